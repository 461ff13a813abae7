#!/usr/bin/env bash
# Ends the job JOB. The job is asked to stop Ray and to clean up, and is cancelled if it does not end.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly PATIENCE_S=30

main() {
    local job=${JOB:-} deadline=$((SECONDS + PATIENCE_S))
    [[ $job =~ ^[0-9]+$ ]] || die "JOB must be a job number, got '$job'; make status shows the numbers" 2
    scancel --batch --signal=TERM "$job"
    while squeue --noheader --jobs="$job" 2>/dev/null | grep -q . && ((SECONDS < deadline)); do
        sleep 0.5
    done
    scancel --quiet "$job" || true
}

main
