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

# sample_gpus FILE: what siftune.utilisation reads there: how often a GPU was looked at, and the sum of the
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
