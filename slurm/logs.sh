#!/usr/bin/env bash
# Follows the log of the newest job that was submitted from this directory.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local file newest=''
    for file in slurm-*.out; do
        [[ ! -r $file || (-n $newest && $newest -nt $file) ]] || newest=$file
    done
    [[ -n $newest ]] ||
        die "there is no log slurm-JOB.out in $PWD: a job writes it once it begins, and make status shows whether it waits. Run make logs where you ran make submit"
    exec tail -n 50 -F "$newest"
}

main
