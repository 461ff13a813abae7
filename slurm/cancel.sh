#!/usr/bin/env bash
# Ends the job JOB. The job saves its study and cleans up, and is cancelled if it does not end.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly CLEAN_S=45 # for the job to stop Ray and to clean up, after the study is saved
readonly LOOK_S=5   # between two questions to Slurm

main() {
    local job=${JOB:-} state directory resume='' patience_s=$CLEAN_S
    [[ $job =~ ^[0-9]{1,15}$ ]] || die "JOB must be a job number, got '$job'; make status shows the numbers" 2
    state=$(squeue --noheader --jobs="$job" --format='%T %Z' 2>/dev/null | head -n 1) || true
    [[ -n $state ]] || die "job $job is not in the queue: make status shows your jobs"
    directory=${state#* }/.siftune/$job
    state=${state%% *}
    if [[ $state != RUNNING ]]; then
        scancel "$job"
        log "job $job was $state and is cancelled"
        return
    fi
    if [[ -e $directory/cancelled ]]; then
        log "job $job is being cancelled already: stopping it at once"
    elif [[ -d $directory ]]; then
        log "job $job saves its study, for at most $SAVE_S s, and then ends; make cancel JOB=$job stops it at once"
        patience_s=$((patience_s + SAVE_S))
    else
        log "job $job has no study to save: it ends"
    fi
    resume=$(cat "$directory/resume" 2> /dev/null) || true
    scancel --batch --signal=USR2 "$job" || true
    wait_for_end "$job" "$directory" "$patience_s" || log "job $job did not end within $patience_s s: Slurm ends it"
    scancel --quiet "$job" || true
    log "job $job has ended${resume:+; its study continues with
  $resume}"
}

# wait_for_end JOB DIRECTORY SECONDS: waits until the job has left the queue; fails at the deadline
wait_for_end() {
    local job=$1 directory=$2 deadline=$((SECONDS + $3)) next=$((SECONDS + 2)) there=''
    while ((SECONDS < deadline)); do
        # The job removes its directory last.
        [[ ! -d $directory ]] || there=1
        if ((SECONDS >= next)) || [[ -n $there && ! -d $directory ]]; then
            squeue --noheader --jobs="$job" --states=PD,R,S 2> /dev/null | grep -q . || return 0
            next=$((SECONDS + LOOK_S)) there=''
        fi
        sleep 0.5
    done
    return 1
}

main
