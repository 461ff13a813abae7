# What node.sh has besides Ray for its task's GPUs. Sourced, never run; lib.sh is there already.
# shellcheck shell=bash

# begin_sampling FILE: has the driver look every 5 s how busy the GPUs are, until end_sampling
begin_sampling() {
    if [[ -z ${CUDA_VISIBLE_DEVICES:-} ]] || ! command -v nvidia-smi > /dev/null; then
        return 0
    fi
    set -m # a process group of its own
    sample_gpus "$1" &
    sampler_pid=$!
    set +m
}

end_sampling() {
    [[ -n ${sampler_pid:-} ]] || return 0
    kill -KILL -- "-$sampler_pid" 2>/dev/null || true
    sampler_pid=''
}

# sample_gpus FILE: what machine/gpus.py reads there: how often a GPU was looked at, and the sum of the
# percents. It is written when the time has grown by a twentieth, or by a minute: over the shared file
# system that is some 70 times in the first 20 minutes, then once a minute.
sample_gpus() {
    local file=$1 new=${1%/*}/.${1##*/} percent samples=0 percents=0 begun=$SECONDS now next=0
    stdbuf -oL nvidia-smi --id="$CUDA_VISIBLE_DEVICES" --query-gpu=utilization.gpu --format=csv,noheader,nounits --loop=5 |
        while read -r percent; do
            [[ $percent =~ ^[0-9]+$ ]] || continue # [N/A] of a GPU divided by MIG; an error
            ((percents += percent, ++samples))
            now=$((SECONDS - begun))
            ((now >= next)) || continue
            next=$((now + (now < 1200 ? now / 20 : 60)))
            printf '%s %s\n' "$samples" "$percents" > "$new" || break
            mv "$new" "$file" || break
        done
}

# begin_mps DIRECTORY: where the site has MPS=1, CUDA's MPS for the GPUs, until end_mps. What is started afterwards
# finds it by the environment, in the container too; trials with whole GPUs leave it aside (trial/process.py).
# Where it cannot be had the job goes on without.
begin_mps() {
    local directory=$1 gpus=${CUDA_VISIBLE_DEVICES:-}
    [[ ${MPS:-} == 1 && -n $gpus ]] || return 0
    if ! command -v nvidia-cuda-mps-control > /dev/null; then
        log "MPS=1 in the site's file, but there is no nvidia-cuda-mps-control here: the job goes on without MPS"
        return 0
    fi
    mkdir -m 700 "$directory"
    # It renumbers what it is given by number, and its clients would ask for what is not there: hence names.
    [[ ! $gpus =~ ^[0-9,]+$ ]] ||
        gpus=$(nvidia-smi --id="$gpus" --query-gpu=uuid --format=csv,noheader | paste -sd ,) || gpus=''
    if [[ $gpus == *-* ]] && CUDA_VISIBLE_DEVICES=$gpus CUDA_MPS_PIPE_DIRECTORY=$directory CUDA_MPS_LOG_DIRECTORY=$directory \
        timeout 30 nvidia-cuda-mps-control -d < /dev/null &> "$directory/start"; then
        export CUDA_VISIBLE_DEVICES=$gpus CUDA_MPS_PIPE_DIRECTORY=$directory CUDA_MPS_LOG_DIRECTORY=$directory
        log "MPS for $gpus"
    else
        log "MPS does not start here: $(cat "$directory/start" 2>&1); the job goes on without it"
    fi
    mps_directory=$directory
}

# end_mps: after its clients have ended
end_mps() {
    [[ -n ${mps_directory:-} ]] || return 0
    timeout 5 nvidia-cuda-mps-control <<< quit &> /dev/null || true
    kill_users "$mps_directory" # where it did not listen
    mps_directory=''
}
