#!/bin/bash
# Runs as root on every node of a job, after the job.
set -euo pipefail
rm -rf "/tmploc/${SLURM_JOB_USER:?}/${SLURM_JOB_ID:?}"
# Another job may be using the directory or have removed it, and a restarted node never had it. Errors
# are ignored, because Slurm drains a node whose epilog fails.
rmdir "/tmploc/$SLURM_JOB_USER" 2>/dev/null || true
