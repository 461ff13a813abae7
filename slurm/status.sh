#!/usr/bin/env bash
# Shows the queue, each study, and the output of the site's status command. It needs no Python, because it
# reads the files that a study writes every few seconds, and asks Slurm once. It uses the variables STUDY, SITE and
# RESULTS.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

readonly SILENCE_S=30 # a driver on another node counts as dead after this, as in src/siftune/record/lease.py

main() {
    local results=${RESULTS:-results} study shown=0
    queue=''
    if command -v squeue > /dev/null; then
        # Number and state come first, for state_of; the rest is shown.
        queue=$(squeue --me --format='%A %T|%.10i %.24j %.9T %.10M %.10l %.5D %R') || queue=''
        cut -d '|' -f 2- <<< "${queue:-|Slurm does not answer: showing only the studies}"
    else
        echo "Slurm was not found on this machine: showing only the studies"
    fi
    [[ -z ${STUDY:-} || $STUDY =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        die "STUDY must be the name of a study, got '$STUDY'" 2
    for study in "$results"/${STUDY:-*}/study.yaml; do
        [[ -e $study ]] || continue
        show "${study%/study.yaml}"
        shown=1
    done
    ((shown)) || echo "there is no study ${STUDY:+$STUDY }in $results"
    load_site "$PROJECT" "${SITE:-generic}"
    if [[ -n $STATUS_COMMAND ]]; then
        # The command and its flags come from the site's file.
        # shellcheck disable=SC2086
        $STATUS_COMMAND || log "the site's status command failed: $STATUS_COMMAND"
    fi
}

# show DIRECTORY: prints one study in two lines
show() {
    local directory=$1 metric real state paused under_way gpus=''
    state=$(life "$directory")
    if [[ ! -e $directory/summary.json ]]; then
        echo "${directory##*/}: $state, no trial has begun"
        return
    fi
    paused=$(number "$directory/summary.json" paused)
    under_way="$(($(number "$directory/summary.json" running) + ${paused:-0})) unfinished"
    if [[ $state == running* ]]; then
        under_way="$(number "$directory/summary.json" running) running"
        ((${paused:-0} == 0)) || under_way+=", $paused paused"
        gpus="$(rounded %.6g "$directory/summary.json" gpus_busy) of $(rounded %.6g "$directory/summary.json" gpus) GPUs in use, "
    fi
    real=$(percent "$directory/summary.json" gpu_utilisation)
    printf '%s: %s completed, %s pruned, %s failed, %s; %s; %sslots busy %s of the time%s\n' "${directory##*/}" \
        "$(number "$directory/summary.json" completed)" "$(number "$directory/summary.json" pruned)" \
        "$(number "$directory/summary.json" failed)" "$under_way" \
        "$state" "$gpus" "$(percent "$directory/summary.json" busy_fraction)" "${real:+, GPU utilisation $real}"
    [[ -e $directory/best.json ]] || return 0
    metric=$(sed -n 's/^metric: //p' "$directory/study.yaml")
    printf '  best %s %s in trial %s, epoch %s\n' "$metric" "$(rounded %.6g "$directory/best.json" "$metric")" \
        "$(number "$directory/best.json" trial)" "$(number "$directory/best.json" epoch)"
}

# life DIRECTORY: prints whether the study is running, and if not, what to do. It uses the words of History.life
# in src/siftune/record/history.py, and the rules of look in src/siftune/record/lease.py. If Slurm answers, it also says
# whether the study's job is gone, or waits to continue the study.
life() {
    local directory=$1 driver=$1/driver.json resume clock='' seen=$1/study.yaml now ago job left=saved
    resume="(resume with $(resume_with "$directory"))"
    job=$(number "$driver" slurm_job)
    # Written by tune.sbatch
    [[ ! -r $directory/.driver.cancelled || $(< "$directory/.driver.cancelled") != "$(number "$driver" nonce)" ]] || left=cancelled
    if is_complete "$directory"; then
        [[ -z $(number "$driver" ended) ]] || { echo finished && return; }
    elif [[ $(state_of "$job") == PENDING ]]; then
        echo "saved (job $job is in the queue and resumes it)" && return
    elif [[ -n $(number "$driver" ended) ]]; then
        echo "$left $resume" && return
    fi
    [[ ! -e $directory/trials.jsonl ]] || seen=$directory/trials.jsonl
    [[ ! -e $driver ]] || seen=$driver
    now=$(now "$directory") || { now=$(date +%s) && clock=", by this machine's clock"; }
    ago=$((now - $(stat -c %Y "$seen")))
    if is_here "$driver"; then
        is_process "$driver" && echo running && return
    elif [[ -n $(number "$driver" nonce) && $(state_of "$job") != gone ]] && ((-SILENCE_S <= ago && ago <= SILENCE_S)); then
        echo "running$clock"
        return
    fi
    if is_complete "$directory"; then
        echo finished
    elif [[ $left == cancelled ]]; then
        echo "cancelled $resume"
    else
        echo "dead for $(duration "$ago")$clock $resume"
    fi
}

# resume_with DIRECTORY: prints what resumes the study: a command, or the flag of the command that began it
resume_with() {
    local command
    command=$(sed -nE 's/.*"resume": "(([^"\\]|\\.)*)".*/\1/p' "$1/driver.json" 2> /dev/null | sed -E 's/\\(.)/\1/g') || true
    printf '%s\n' "${command:---resume ${1##*/}}"
}

# state_of JOB: prints the state of the job; `gone` if it is not in the queue; nothing if this is not known
state_of() {
    local state
    [[ -n $queue && $1 =~ ^[0-9]+$ ]] || return 0
    state=$(awk -v job="$1" '$1 == job {sub(/[|].*/, "", $2); print $2; exit}' <<< "$queue")
    printf '%s\n' "${state:-gone}"
}

# is_complete DIRECTORY: returns whether the study has no work left
is_complete() {
    local begun ended trials
    [[ $(number "$1/driver.json" finished) != true ]] || return 0
    begun=$(grep -cs '^{"event": "start"' "$1/trials.jsonl") || true
    ended=$(grep -cs '^{"event": "end"' "$1/trials.jsonl") || true
    trials=$(sed -n 's/^trials: \([0-9]*\)$/\1/p' "$1/study.yaml")
    ((${ended:-0} == ${begun:-0} && ${ended:-0} >= ${trials:-0}))
}

# is_here DRIVER: returns whether the driver's process belongs to this boot of this machine and to this container
is_here() {
    [[ $(number "$1" boot) == "$(< /proc/sys/kernel/random/boot_id)" && $(number "$1" pids) == "$(readlink /proc/self/ns/pid)" ]]
}

# is_process DRIVER: returns whether the driver's process id exists on this machine and belongs to a process
# that started when the driver did
is_process() {
    local -a fields
    IFS= read -r fields 2>/dev/null < "/proc/$(number "$1" pid)/stat" || return 1
    read -r -a fields <<< "${fields##*)}" # the name before it may contain any characters
    [[ ${fields[0]} != [ZX] && ${fields[19]} == "$(number "$1" began)" ]]
}

# now DIRECTORY: prints the time of the file system, from a file that is written there now
now() {
    local file
    file=$(mktemp "$1/.now-XXXXXX" 2>/dev/null) || return
    stat -c %Y "$file"
    rm "$file"
}

# duration SECONDS: prints it in the words of duration in src/siftune/record/wording.py
duration() {
    LC_ALL=C awk -v s="$(($1 > 0 ? $1 : 0))" 'BEGIN {
        if (s < 90) printf "%d s", s
        else if (s < 3570) printf "%.0f min", s / 60
        else if (s < 3 * 86400) printf "%.3g h", s / 3600
        else printf "%.3g days", s / 86400
    }'
}

# rounded FORMAT FILE KEY: prints the value of KEY in this format of printf, as Python does in the log
rounded() {
    local value
    value=$(number "$2" "$3")
    # shellcheck disable=SC2059 # the format is a parameter
    if [[ $value =~ ^-?[0-9.]+(e[+-]?[0-9]+)?$ ]]; then LC_ALL=C printf "$1" "$value"; else printf '%s' "$value"; fi
}

# percent FILE KEY: prints the fraction KEY in per cent, or nothing if it is not known
percent() {
    number "$1" "$2" | LC_ALL=C awk '$1 ~ /^[0-9]/ {printf "%.0f %%", 100 * $1}'
}

# number FILE KEY: prints the last value of KEY in a JSON file of the study, or nothing
number() {
    [[ -r $1 ]] || return 0
    tr '{},' '[\n*]' < "$1" | awk -v key="\"$2\":" '$1 == key {gsub(/"/, "", $2); value = $2} END {print value}'
}

main
