#!/bin/bash
# As root on every node of a job, after it.
set -euo pipefail
rm -rf "/tmploc/${SLURM_JOB_USER:?}/${SLURM_JOB_ID:?}"
# Another job may be in it, or have removed it; a node that was started anew never had it. An epilog
# that fails takes the node out of use.
rmdir "/tmploc/$SLURM_JOB_USER" 2>/dev/null || true
