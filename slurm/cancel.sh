#!/usr/bin/env bash
# Ends the job JOB: it is asked to stop its Ray and to clean up, and cancelled if it does not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly PATIENCE_S=30

main() {
    local job=${JOB:-} deadline=$((SECONDS + PATIENCE_S))
    [[ $job =~ ^[0-9]+$ ]] || die "JOB must be a job's number, got '$job'; make status shows them" 2
    scancel --batch --signal=TERM "$job"
    while squeue --noheader --jobs="$job" 2>/dev/null | grep -q . && ((SECONDS < deadline)); do
        sleep 0.5
    done
    scancel --quiet "$job" || true
}

main
