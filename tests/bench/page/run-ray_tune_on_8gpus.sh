#!/bin/bash
# The batch file of the Turpan page ("SLURM Job Script"): four tasks, each of which runs the whole
# script. Changed to work here: the paths of the image and the mounts, and the memory of the nodes.
#   run-ray_tune_on_8gpus.sh IMAGE
#SBATCH --job-name=benchmark
#SBATCH -N 4
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=40
#SBATCH --mem=4000M
#SBATCH --time=40
#SBATCH --gres=gpu:2

srun apptainer exec --bind /work --nv "$1" python3 ray_tune.py
