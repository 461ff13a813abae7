#!/bin/bash
# As root on every node of a job, before it.
set -euo pipefail
install -d -o "$SLURM_JOB_USER" -m 700 "/tmploc/$SLURM_JOB_USER" "/tmploc/$SLURM_JOB_USER/$SLURM_JOB_ID"
