#!/bin/bash
# Runs as root on every node of a job, before the job.
set -euo pipefail
install -d -o "$SLURM_JOB_USER" -m 700 "/tmploc/$SLURM_JOB_USER" "/tmploc/$SLURM_JOB_USER/$SLURM_JOB_ID"
