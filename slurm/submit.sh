#!/usr/bin/env bash
# Submits a study to Slurm. Uses the environment variables that `make submit` sets:
# GPUS SITE TIME NAME ARGS PARTITION ACCOUNT IMAGE RESTARTS RESUME DRY_RUN; GROW is the job to add nodes to.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

main() {
    local site=${SITE:-generic} gpus=${GPUS:-} fields image partition nodes per_node minutes
    local given_image=${IMAGE:-} given_account=${ACCOUNT:-} restarts=${RESTARTS:-20}
    load_site "$PROJECT" "$site"
    # Assigned first, because the exit of die inside read < <(…) would be ignored.
    fields=$(nodes_for "$gpus")
    read -r nodes per_node <<< "$fields"
    fields=$(partition_for "$nodes" "$gpus")
    IFS=' ' read -r minutes partition <<< "$fields"
    minutes=$(time_within "$minutes" "$partition")
    image=${given_image:-$IMAGE}
    [[ -n ${DRY_RUN:-} || -r $image ]] || die "there is no image $image: build it with make image, or name another with IMAGE=PATH" 2
    [[ -n ${DRY_RUN:-} ]] || check_signature "$image"
    check_name NAME "${NAME:-siftune}"
    check_name RESUME "${RESUME:-siftune}"
    [[ -z ${RESUME:-} || -z ${NAME:-} ]] || die "RESUME=$RESUME continues the study of that name: leave out NAME=$NAME" 2
    [[ -z $given_account || $given_account =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        die "ACCOUNT must be letters, digits, '.', '_' and '-', got '$given_account'" 2
    [[ $image != -* ]] || die "IMAGE must not begin with '-', got '$image': use IMAGE=./$image" 2
    # Apptainer separates binds and variables at these characters.
    [[ $PWD != *[,:\"]* ]] || die "submit from a directory whose path has no comma, colon or double quote, got $PWD" 2
    [[ $restarts =~ ^[0-9]{1,4}$ ]] || die "RESTARTS must be a whole number, got '$restarts'" 2

    local name=${NAME:-${RESUME:-siftune}} overlay=''
    local -a words=() command
    # xargs splits quoted words as a shell does, but evaluates nothing.
    xargs -r true <<< "${ARGS:-}" || die "ARGS must be flags, quoted as in a shell, got: $ARGS" 2
    mapfile -d '' -t words < <(xargs -r printf '%s\0' <<< "${ARGS:-}")
    [[ -z ${NAME:-} ]] || words+=(--name "$NAME")
    [[ -z ${RESUME:-} ]] || words+=(--resume "$RESUME")
    overlay=$(overlay_for "$image" "${words[@]}")
    words=("$PROJECT/slurm/tune.sbatch" "$PROJECT" "$site" "$image" "${overlay:--}" "$restarts" - "${words[@]}")
    if [[ -n ${GROW:-} ]]; then
        [[ $GROW =~ ^[0-9]+$ && -d $PWD/.siftune/$GROW ]] ||
            die "JOB must be a running job that was submitted from this directory, got '$GROW'; make status shows the jobs" 2
        name=grow-$GROW
        words=("$PROJECT/slurm/grow.sbatch" "$PROJECT" "$site" "$image" "$PWD/.siftune/$GROW")
    fi
    sbatch_options "$name" "$partition" "${given_account:-$ACCOUNT}" "$nodes" "$per_node" "$minutes"
    command=(sbatch "${OPTIONS[@]}" "${words[@]}")
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${command[@]}"
        printf '\n\n'
        cat "$PROJECT/slurm/$([[ -n ${GROW:-} ]] && echo grow || echo tune).sbatch"
        return
    fi
    "${command[@]}"
}

# check_signature IMAGE: refuses an image that was changed after it was signed; accepts one that was never signed
check_signature() {
    local message status=0
    message=$(IMAGE=$1 "$PROJECT/containers/sign.sh" verify 2>&1) || status=$?
    ((status == 0 || status == 3)) || die "$message; nothing was submitted" 2
}

# overlay_for IMAGE FLAG…: prints the overlay for the requirements.txt beside the trainable's file, if there is
# one, and builds it if necessary
overlay_for() {
    local image=$1 before='' word trainable='' results=results list
    shift
    for word; do
        case $before in
            --results) results=$word ;;
            --trainable) trainable=$word ;;
            --config) trainable=${trainable:-$(trainable_of "$word")} ;;
            --resume) trainable=$(trainable_of "$results/$word/study.yaml") ;; # the last one, because RESUME is appended
        esac
        [[ $word != --trainable=* ]] || trainable=${word#*=}
        before=$word
    done
    list=$(dirname -- "${trainable%%:*}")/requirements.txt
    [[ $trainable == *.py* && -r $list ]] || return 0
    [[ -z ${DRY_RUN:-} ]] || { echo "${list%.txt}-LOCK.sqfs" && return; }
    IMAGE=$image REQUIREMENTS=$list "$PROJECT/containers/overlay.sh"
}

# trainable_of STUDY.yaml: prints its trainable
trainable_of() {
    sed -n "s/^trainable: *['\"]*\([^'\"]*\)['\"]*$/\1/p" "$1" 2> /dev/null || true
}

# check_name VARIABLE VALUE: checks that a study may have this name
check_name() {
    [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        die "$1 must be at most 64 letters, digits, '.', '_' and '-', beginning with a letter or a digit, got '$2'" 2
}

# nodes_for GPUS: prints the number of nodes, and of GPUs on each
nodes_for() {
    local gpus=$1 below
    [[ $gpus =~ ^[1-9][0-9]{0,4}$ ]] || die "GPUS must be a whole number of at least 1, got '$gpus': GPUS=$GPUS_PER_NODE is one node" 2
    if ((gpus <= GPUS_PER_NODE)); then
        echo "1 $gpus"
    elif ((gpus % GPUS_PER_NODE)); then
        below=$((gpus / GPUS_PER_NODE * GPUS_PER_NODE))
        die "GPUS=$gpus does not fill whole nodes of $GPUS_PER_NODE GPUs: use GPUS=$below or GPUS=$((below + GPUS_PER_NODE))" 2
    else
        echo "$((gpus / GPUS_PER_NODE)) $GPUS_PER_NODE"
    fi
}

# partition_for NODES GPUS: prints the longest time in minutes and the name of the first large enough partition
partition_for() {
    local nodes=$1 gpus=$2 entry name most_nodes minutes most_gpus limit most=0
    # shellcheck disable=SC2153 # the site's
    for entry in $PARTITIONS; do
        IFS=: read -r name most_nodes minutes most_gpus <<< "$entry"
        [[ -z ${PARTITION:-} || $name == "$PARTITION" ]] || continue
        limit=${most_gpus:-$((most_nodes * GPUS_PER_NODE))}
        ((gpus <= limit && nodes <= most_nodes)) && echo "$minutes $name" && return
        most=$((limit > most ? limit : most))
    done
    ((most)) || die "PARTITION must be one of: $PARTITIONS; got '$PARTITION'" 2
    die "GPUS=$gpus is more than ${PARTITION:-any partition} has: the maximum is GPUS=$most" 2
}

# time_within MINUTES PARTITION: prints TIME in minutes, or MINUTES if TIME is not set; refuses a longer TIME
time_within() {
    local most=$1 partition=$2 asked=${TIME:-} minutes
    if [[ -z $asked ]]; then
        minutes=$most
    elif [[ $asked =~ ^([0-9]+):([0-5][0-9]):([0-5][0-9])$ ]]; then
        minutes=$((10#${BASH_REMATCH[1]} * 60 + 10#${BASH_REMATCH[2]} + (10#${BASH_REMATCH[3]} > 0)))
    elif [[ $asked =~ ^[0-9]+$ ]]; then
        minutes=$asked
    else
        die "TIME must be minutes or HH:MM:SS, got '$asked'" 2
    fi
    ((minutes >= 1 && minutes <= most)) || die "TIME=$asked must be between 1 and the $most minutes of the partition $partition" 2
    printf '%s\n' "$minutes"
}

main
