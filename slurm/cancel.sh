#!/usr/bin/env bash
# Ends the job JOB. The job saves its study and cleans up, and is cancelled if it does not end.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly CLEAN_S=45 # for the job to stop Ray and to clean up, after the study is saved
readonly EXIT_S=3   # for its script to exit, after it has removed its directory

main() {
    local job=${JOB:-} state directory resume=''
    [[ $job =~ ^[0-9]{1,15}$ ]] || die "JOB must be a job number, got '$job'; make status shows the numbers" 2
    state=$(squeue --noheader --jobs="$job" --format='%T %Z' 2>/dev/null | head -n 1) || true
    [[ -n $state ]] || die "job $job is not in the queue: make status shows your jobs"
    directory=${state#* }/.siftune/$job
    state=${state%% *}
    if [[ $state != RUNNING || ! -d $directory ]]; then
        scancel "$job"
        log "job $job was $state and is cancelled"
        return
    fi
    if [[ -e $directory/cancelled ]]; then
        log "job $job is being cancelled already: stopping it at once"
    else
        log "job $job saves its study, for at most $SAVE_S s, and then ends; make cancel JOB=$job stops it at once"
    fi
    resume=$(cat "$directory/resume" 2> /dev/null) || true
    scancel --batch --signal=USR2 "$job" || true
    wait_for_end "$directory" $((SAVE_S + CLEAN_S)) || log "job $job did not end within $((SAVE_S + CLEAN_S)) s: Slurm ends it"
    scancel --quiet "$job" || true
    log "job $job has ended${resume:+; its study continues with
  $resume}"
}

# wait_for_end DIRECTORY SECONDS: waits until the job has removed its directory, which it does last; fails at the deadline.
# Slurm is not asked, because some sites allow few questions
wait_for_end() {
    local directory=$1 deadline=$((SECONDS + $2))
    while [[ -d $directory ]]; do
        ((SECONDS < deadline)) || return 1
        sleep 0.5
    done
    sleep "$EXIT_S"
}

main
