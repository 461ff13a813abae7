#!/bin/bash
# As root on every node of a job, after it.
set -euo pipefail
rm -rf "/tmploc/${SLURM_JOB_USER:?}/${SLURM_JOB_ID:?}"
rmdir --ignore-fail-on-non-empty "/tmploc/$SLURM_JOB_USER"
