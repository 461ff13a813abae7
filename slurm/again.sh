# Starts a job again that ended before its study did. Sourced by lib.sh, never run.
# shellcheck shell=bash disable=SC2154 # job belongs to the scripts that source this

readonly BEAT_S=5          # between two signs of life of the head node
readonly HEAD_SILENCE_S=25 # without a sign before the other nodes try to reach the head node

# beat: writes the head node's sign of life to the job's directory
beat() {
    ((SECONDS >= ${next_beat:-0})) || return 0
    next_beat=$((SECONDS + BEAT_S))
    { printf '%s\n' "$SECONDS" > "$job/beat.new" && mv "$job/beat.new" "$job/beat"; } 2> /dev/null || true
}

# is_head_silent: returns whether the head node has shown no sign of life for HEAD_SILENCE_S and does not accept a
# connection either. A shared file system that stalls for a while must not end the job
is_head_silent() {
    local beat
    beat=$(cat "$job/beat" 2> /dev/null) || return 1
    if [[ $beat != "${last_beat:-}" ]]; then
        last_beat=$beat
        heard=$SECONDS
    fi
    ((SECONDS - heard > HEAD_SILENCE_S)) || return 1
    # shellcheck disable=SC2016 # the inner shell expands it
    ! timeout 3 bash -c 'exec 3<> "/dev/tcp/${1%:*}/${1##*:}"' bash "$(< "$job/address")" 2> /dev/null
}

# follow_head: starts the job again after its head node was lost. Slurm keeps such a job on the other nodes, because it was
# submitted with --no-kill, but its batch script is gone. One of these nodes does this, and writes to the job's log
follow_head() {
    local -a arguments
    mkdir "$job/follower" 2> /dev/null || return 0
    exec 2>> "slurm-$SLURM_JOB_ID.out" # srun, which wrote there, was on the head node
    log "the head node $(head -n 1 "$job/nodes") was lost"
    mapfile -d '' -t arguments < "$job/arguments"
    again "${arguments[@]}" && return
    rm -rf "$job"
    scancel "$SLURM_JOB_ID"
}

# again PROJECT SITE IMAGE OVERLAY RESTARTS ORIGIN FLAG…: requeues this job, or submits another one to follow it.
# Returns whether it was requeued
again() {
    local project=$1 site=$2 image=$3 overlay=$4 restarts=$5 origin=$6 done=${SLURM_RESTART_COUNT:-0} minutes
    shift 6
    if ((done >= restarts)); then
        log "the study is not finished, and RESTARTS=$restarts is used up: continue it with
  $(resume_command)"
        return 1
    fi
    log "the study is not finished: requeueing the job"
    scontrol requeue "$SLURM_JOB_ID" && return
    log "the job cannot be requeued: submitting another one to follow it"
    minutes=$(minutes_of "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l)")
    sbatch_options "$SLURM_JOB_NAME" "$SLURM_JOB_PARTITION" "${SLURM_JOB_ACCOUNT:-}" \
        "$SLURM_JOB_NUM_NODES" "$SLURM_GPUS_ON_NODE" "$minutes"
    sbatch "${OPTIONS[@]}" --dependency="afterany:$SLURM_JOB_ID" "$project/slurm/tune.sbatch" \
        "$project" "$site" "$image" "$overlay" $((restarts - 1)) "$origin" "$@" >&2
    return 1
}

# resume_command: prints the command that resumes the study; the driver has written it
resume_command() {
    printf '%s\n' "${resume:-$(cat "$job/resume" 2> /dev/null || echo 'make submit RESUME=…')}"
}
