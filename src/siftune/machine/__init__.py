"""The machine: Slurm's environment, GPUs, and how Python starts and imports."""
