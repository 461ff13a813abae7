# The functions for GPUs: their number, utilisation and MPS. Sourced after lib.sh, never run.
# shellcheck shell=bash

# gpus_here: prints the number of GPUs that Slurm gave this task, or that it can see on a site that does not ask for any
gpus_here() {
    local -a given
    IFS=, read -r -a given <<< "${CUDA_VISIBLE_DEVICES:-${HIP_VISIBLE_DEVICES:-${ROCR_VISIBLE_DEVICES:-}}}"
    if ((${#given[@]} == 0)) && [[ -z $GPU_REQUEST ]]; then
        count_gpus
    else
        printf '%s\n' "${#given[@]}"
    fi
}

# count_gpus: prints the number of GPUs of this node, by the vendor's program or by the device files
count_gpus() {
    local found=0
    if command -v nvidia-smi > /dev/null; then
        found=$(nvidia-smi --list-gpus 2> /dev/null | grep -c '^GPU ') || true
    elif command -v rocm-smi > /dev/null; then
        found=$(rocm-smi --showid 2> /dev/null | grep -o '^GPU\[[0-9]*\]' | sort -u | wc -l) || true
    fi
    ((found)) || found=$(find "${DEVICES:-/dev}" -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
    ((found)) || found=$(find "${DEVICES:-/dev}/dri" -maxdepth 1 -name 'renderD*' 2> /dev/null | wc -l)
    printf '%s\n' "$found"
}

# rename_rocr: passes the AMD GPUs that Slurm gave this task to Ray, which refuses the variable that Slurm sets
rename_rocr() {
    [[ $GPU_FLAG == --rocm && -n ${ROCR_VISIBLE_DEVICES:-} ]] || return 0
    export HIP_VISIBLE_DEVICES=$ROCR_VISIBLE_DEVICES
    unset ROCR_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES
}

# begin_sampling FILE: samples the utilisation of the GPUs every 5 s into FILE, until end_sampling
begin_sampling() {
    if [[ -z ${CUDA_VISIBLE_DEVICES:-} ]] || ! command -v nvidia-smi > /dev/null; then
        return 0
    fi
    set -m # the sampler gets its own process group
    sample_gpus "$1" &
    sampler_pid=$!
    set +m
}

end_sampling() {
    [[ -n ${sampler_pid:-} ]] || return 0
    kill -KILL -- "-$sampler_pid" 2>/dev/null || true
    sampler_pid=''
}

# sample_gpus FILE: writes the number of samples and the sum of the percentages, for machine/gpus.py. FILE
# is on the shared file system, so it is written only when the elapsed time has grown by 5 % or by a minute:
# about 70 times in the first 20 minutes, then once a minute.
sample_gpus() {
    local file=$1 new=${1%/*}/.${1##*/} percent samples=0 percents=0 begun=$SECONDS now next=0
    stdbuf -oL nvidia-smi --id="$CUDA_VISIBLE_DEVICES" --query-gpu=utilization.gpu --format=csv,noheader,nounits --loop=5 |
        while read -r percent; do
            [[ $percent =~ ^[0-9]+$ ]] || continue # [N/A], for a GPU divided by MIG, or an error
            ((percents += percent, ++samples))
            now=$((SECONDS - begun))
            ((now >= next)) || continue
            next=$((now + (now < 1200 ? now / 20 : 60)))
            printf '%s %s\n' "$samples" "$percents" > "$new" || break
            mv "$new" "$file" || break
        done
}

# begin_mps DIRECTORY: starts CUDA's MPS for the GPUs, until end_mps, if the site has MPS=1. Processes that start
# later find it through the environment, in the container too. Trials with whole GPUs do not use it
# (trial/process.py). If MPS does not start, the job continues without it.
begin_mps() {
    local directory=$1 gpus=${CUDA_VISIBLE_DEVICES:-}
    [[ ${MPS:-} == 1 && -n $gpus ]] || return 0
    if ! command -v nvidia-cuda-mps-control > /dev/null; then
        log "the site's file has MPS=1, but nvidia-cuda-mps-control was not found: the job continues without MPS"
        return 0
    fi
    mkdir -m 700 "$directory"
    # MPS renumbers GPUs that are given by index, and its clients would then ask for wrong ones. UUIDs avoid this.
    [[ ! $gpus =~ ^[0-9,]+$ ]] ||
        gpus=$(nvidia-smi --id="$gpus" --query-gpu=uuid --format=csv,noheader | paste -sd ,) || gpus=''
    if [[ $gpus == *-* ]] && CUDA_VISIBLE_DEVICES=$gpus CUDA_MPS_PIPE_DIRECTORY=$directory CUDA_MPS_LOG_DIRECTORY=$directory \
        timeout 30 nvidia-cuda-mps-control -d < /dev/null &> "$directory/start"; then
        export CUDA_VISIBLE_DEVICES=$gpus CUDA_MPS_PIPE_DIRECTORY=$directory CUDA_MPS_LOG_DIRECTORY=$directory
        log "started MPS for $gpus"
    else
        log "MPS did not start: $(cat "$directory/start" 2>&1); the job continues without it"
    fi
    mps_directory=$directory
}

# end_mps: stops MPS, after its clients have ended
end_mps() {
    [[ -n ${mps_directory:-} ]] || return 0
    timeout 5 nvidia-cuda-mps-control <<< quit &> /dev/null || true
    kill_users "$mps_directory" # if it did not quit
    mps_directory=''
}
