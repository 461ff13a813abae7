#!/usr/bin/env bash
# Site and GPUs → sbatch. Reads variables of the environment, as `make submit` sets them:
# GPUS SITE TIME NAME ARGS PARTITION ACCOUNT IMAGE RESTARTS RESUME DRY_RUN; GROW is a job to add to.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

main() {
    local site=${SITE:-generic} gpus=${GPUS:-} found image partition nodes per_node minutes
    local given_image=${IMAGE:-} given_account=${ACCOUNT:-} restarts=${RESTARTS:-20}
    load_site "$PROJECT" "$site"
    # Assigned first: a die() inside of read < <(…) would go unheard.
    found=$(nodes_for "$gpus")
    read -r nodes per_node <<< "$found"
    found=$(partition_for "$nodes" "$gpus")
    IFS=' ' read -r minutes partition <<< "$found"
    minutes=$(time_within "$minutes" "$partition")
    image=${given_image:-$IMAGE}
    [[ -n ${DRY_RUN:-} || -r $image ]] || die "there is no image $image: build it with make image, or give IMAGE=PATH" 2
    [[ -n ${DRY_RUN:-} ]] || check_signature "$image"
    check_name NAME "${NAME:-siftune}"
    check_name RESUME "${RESUME:-siftune}"
    [[ -z ${RESUME:-} || -z ${NAME:-} ]] || die "RESUME=$RESUME goes on with that study: leave out NAME=$NAME" 2
    [[ -z $given_account || $given_account =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        die "ACCOUNT must be letters, digits, '.', '_' and '-', got '$given_account'" 2
    [[ $image != -* ]] || die "IMAGE must not begin with '-', got '$image': IMAGE=./$image" 2
    # What Apptainer takes binds and variables apart at.
    [[ $PWD != *[,:\"]* ]] || die "submit from a directory without comma, colon and quote in its path: $PWD" 2
    [[ $restarts =~ ^[0-9]{1,4}$ ]] || die "RESTARTS must be a whole number, got '$restarts'" 2

    local name=${NAME:-${RESUME:-siftune}} overlay=''
    local -a words=() command
    # xargs takes quotes apart as a shell does, and evaluates nothing.
    xargs -r true <<< "${ARGS:-}" || die "ARGS must be flags as a shell reads them, got: $ARGS" 2
    mapfile -d '' -t words < <(xargs -r printf '%s\0' <<< "${ARGS:-}")
    [[ -z ${NAME:-} ]] || words+=(--name "$NAME")
    [[ -z ${RESUME:-} ]] || words+=(--resume "$RESUME")
    overlay=$(overlay_for "$image" "${words[@]}")
    words=("$PROJECT/slurm/tune.sbatch" "$PROJECT" "$site" "$image" "${overlay:--}" "$restarts" - "${words[@]}")
    if [[ -n ${GROW:-} ]]; then
        [[ $GROW =~ ^[0-9]+$ && -d $PWD/.siftune/$GROW ]] ||
            die "JOB must be a job that runs and was submitted from this directory, got '$GROW'; make status shows them" 2
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

# check_signature IMAGE: a signed image must be as it was signed; one that never was is the user's choice
check_signature() {
    local said status=0
    said=$(IMAGE=$1 "$PROJECT/containers/sign.sh" verify 2>&1) || status=$?
    ((status == 0 || status == 3)) || die "$said; nothing was submitted" 2
}

# overlay_for IMAGE FLAG…: where the trainable's file has a requirements.txt beside it, the overlay with what
# it lists, made if there is none
overlay_for() {
    local image=$1 before='' word trainable='' results=results list
    shift
    for word; do
        case $before in
            --results) results=$word ;;
            --trainable) trainable=$word ;;
            --config) trainable=${trainable:-$(trainable_of "$word")} ;;
            --resume) trainable=$(trainable_of "$results/$word/study.yaml") ;; # the last, by RESUME
        esac
        [[ $word != --trainable=* ]] || trainable=${word#*=}
        before=$word
    done
    list=$(dirname -- "${trainable%%:*}")/requirements.txt
    [[ $trainable == *.py* && -r $list ]] || return 0
    [[ -z ${DRY_RUN:-} ]] || { echo "${list%.txt}-LOCK.sqfs" && return; }
    IMAGE=$image REQUIREMENTS=$list "$PROJECT/containers/overlay.sh"
}

# trainable_of STUDY.yaml
trainable_of() {
    sed -n "s/^trainable: *['\"]*\([^'\"]*\)['\"]*$/\1/p" "$1" 2> /dev/null || true
}

# check_name VARIABLE VALUE: as a study may be called
check_name() {
    [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        die "$1 must be letters, digits, '.', '_' and '-', at most 64 of them, got '$2'" 2
}

# nodes_for GPUS: number of nodes, and of GPUs on each
nodes_for() {
    local gpus=$1 below
    [[ $gpus =~ ^[1-9][0-9]{0,4}$ ]] || die "GPUS must be a whole number, at least 1, got '$gpus': GPUS=$GPUS_PER_NODE is one node" 2
    if ((gpus <= GPUS_PER_NODE)); then
        echo "1 $gpus"
    elif ((gpus % GPUS_PER_NODE)); then
        below=$((gpus / GPUS_PER_NODE * GPUS_PER_NODE))
        die "GPUS=$gpus does not fill whole nodes of $GPUS_PER_NODE: GPUS=$below or GPUS=$((below + GPUS_PER_NODE)) would do" 2
    else
        echo "$((gpus / GPUS_PER_NODE)) $GPUS_PER_NODE"
    fi
}

# partition_for NODES GPUS: the first partition that is large enough, after its longest time in minutes
partition_for() {
    local nodes=$1 gpus=$2 entry name most_nodes minutes most_gpus most=0
    # shellcheck disable=SC2153 # the site's
    for entry in $PARTITIONS; do
        IFS=: read -r name most_nodes minutes most_gpus <<< "$entry"
        [[ -z ${PARTITION:-} || $name == "$PARTITION" ]] || continue
        ((gpus <= ${most_gpus:-$((most_nodes * GPUS_PER_NODE))} && nodes <= most_nodes)) && echo "$minutes $name" && return
        most=$((most_nodes * GPUS_PER_NODE > most ? most_nodes * GPUS_PER_NODE : most))
        most=${most_gpus:-$most}
    done
    ((most)) || die "PARTITION must be one of: $PARTITIONS; got '$PARTITION'" 2
    die "GPUS=$gpus is more than ${PARTITION:-any partition} gives: GPUS=$most is the most" 2
}

# time_within MINUTES PARTITION: TIME if it is within them, or all of them
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
