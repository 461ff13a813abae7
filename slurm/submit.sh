#!/usr/bin/env bash
# Submits a study to Slurm. Uses the environment variables that `make submit` sets:
# GPUS NODES CPUS_PER_TRIAL SITE TIME NAME ARGS RUN PARTITION ACCOUNT IMAGE RESTARTS RESUME DRY_RUN; GROW is the job to add nodes to.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

main() {
    local site=${SITE:-generic} fields image partition nodes per_node minutes most
    local given_image=${IMAGE:-} given_account=${ACCOUNT:-} restarts=${RESTARTS:-$([[ -n ${RUN:-} ]] && echo 0 || echo 20)}
    load_site "$PROJECT" "$site"
    [[ -n ${DRY_RUN:-} ]] || set_up "$LOGIN_SETUP"
    export APPTAINER=${APPTAINER:-$CONTAINER} # for the scripts in containers/
    # Assigned first, because the exit of die inside read < <(…) would be ignored.
    fields=$(nodes_for "${GPUS:-}" "${NODES:-}")
    read -r nodes per_node <<< "$fields"
    minutes=$(asked_minutes)
    fields=$(partition_for "$nodes" "$per_node" "$minutes")
    IFS=' ' read -r most partition <<< "$fields"
    minutes=${minutes:-$most}
    ((minutes >= 1 && minutes <= most)) || die "TIME=$TIME must be between 1 and the $most minutes of the partition $partition" 2
    image=${given_image:-$IMAGE}
    [[ -n ${DRY_RUN:-} || -r $image ]] || die "there is no image $image: build it with make image, or name another with IMAGE=PATH" 2
    [[ -n ${DRY_RUN:-} ]] || check_signature "$image"
    [[ -z $IMAGES_BELOW || $(realpath -m -- "$image") == "$IMAGES_BELOW"/* ]] ||
        die "$site runs images only below $IMAGES_BELOW: copy $image there, and give IMAGE=$IMAGES_BELOW/…/${image##*/}" 2
    check_name NAME "${NAME:-siftune}"
    check_name RESUME "${RESUME:-siftune}"
    [[ -z ${RESUME:-} || -z ${NAME:-} ]] || die "RESUME=$RESUME continues the study of that name: leave out NAME=$NAME" 2
    [[ -z $given_account || $given_account =~ ^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$ ]] ||
        die "ACCOUNT must be letters, digits, '.', '_', '@' and '-', got '$given_account'" 2
    [[ $image != -* ]] || die "IMAGE must not begin with '-', got '$image': use IMAGE=./$image" 2
    # Apptainer separates binds and variables at these characters.
    [[ $PWD != *[,:\"]* ]] || die "submit from a directory whose path has no comma, colon or double quote, got $PWD" 2
    [[ -z ${CPUS_PER_TRIAL:-} || $CPUS_PER_TRIAL =~ ^[1-9][0-9]{0,4}$ ]] ||
        die "CPUS_PER_TRIAL must be a whole number of at least 1, got '$CPUS_PER_TRIAL'" 2
    [[ $restarts =~ ^[0-9]{1,4}$ ]] || die "RESTARTS must be a whole number, got '$restarts'" 2

    local name=${NAME:-${RESUME:-siftune}} overlay=''
    local -a words=() command
    # xargs splits quoted words as a shell does, but evaluates nothing.
    xargs -r true <<< "${ARGS:-}" || die "ARGS must be flags, quoted as in a shell, got: $ARGS" 2
    mapfile -d '' -t words < <(xargs -r printf '%s\0' <<< "${ARGS:-}")
    if [[ -n ${RUN:-} ]]; then
        run_words
    else
        [[ -z ${NAME:-} ]] || words+=(--name "$NAME")
        [[ -z ${RESUME:-} ]] || words+=(--resume "$RESUME")
        [[ -z ${CPUS_PER_TRIAL:-} ]] || words+=(--cpus-per-trial "$CPUS_PER_TRIAL")
        ((per_node)) || words+=(--gpus-per-trial 0)
    fi
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

# run_words: sets words to those of RUN, a program that uses Ray itself
run_words() {
    [[ -z "${ARGS:-}${RESUME:-}${CPUS_PER_TRIAL:-}" ]] ||
        die "RUN=$RUN is no study of siftune: leave out ARGS, RESUME and CPUS_PER_TRIAL" 2
    xargs -r true <<< "$RUN" || die "RUN must be a command, quoted as in a shell, got: $RUN" 2
    mapfile -d '' -t words < <(xargs -r printf '%s\0' <<< "$RUN")
    words=(run "${words[@]}")
}

# check_signature IMAGE: refuses an image that was changed after it was signed; accepts one that was never signed
check_signature() {
    local message status=0
    if ! command -v "$APPTAINER" > /dev/null; then
        log "$APPTAINER is not on this node: the image's signature is not checked"
        return
    fi
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
            run | python | python3) [[ $word != *.py ]] || trainable=$word ;;
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

# nodes_for GPUS NODES: prints the number of nodes, and of GPUs on each
nodes_for() {
    local gpus=$1 nodes=$2 below
    if [[ -n $nodes ]]; then
        [[ -z $gpus ]] || die "NODES=$nodes asks for nodes without GPUs: leave it out, or leave out GPUS=$gpus" 2
        [[ $nodes =~ ^[1-9][0-9]{0,4}$ ]] || die "NODES must be a whole number of at least 1, got '$nodes'" 2
        echo "$nodes 0"
        return
    fi
    ((GPUS_PER_NODE)) || die "the site has no GPUs: use NODES=1 and not GPUS" 2
    [[ $gpus =~ ^[1-9][0-9]{0,4}$ ]] || die "GPUS must be a whole number of at least 1, got '$gpus': GPUS=$GPUS_PER_NODE is one node, and NODES=1 is one without GPUs" 2
    if ((gpus <= GPUS_PER_NODE)); then
        echo "1 $gpus"
    elif ((gpus % GPUS_PER_NODE)); then
        below=$((gpus / GPUS_PER_NODE * GPUS_PER_NODE))
        die "GPUS=$gpus does not fill whole nodes of $GPUS_PER_NODE GPUs: use GPUS=$below or GPUS=$((below + GPUS_PER_NODE))" 2
    else
        echo "$((gpus / GPUS_PER_NODE)) $GPUS_PER_NODE"
    fi
}

# partition_for NODES GPUS_PER_NODE MINUTES: prints the longest time in minutes and the name of the first partition that is
# large enough and allows MINUTES, or of the one with the longest time. A job without GPUs prefers partitions without them
partition_for() {
    local nodes=$1 per_node=$2 asked=${3:-0} line name most_nodes minutes most_gpus fits most=0 longest=0 found='' other='' names=''
    for line in "${PARTITION_LINES[@]}"; do
        IFS=: read -r name most_nodes minutes most_gpus _ <<< "$line"
        names+=" $name"
        [[ -z ${PARTITION:-} || $name == "$PARTITION" ]] || continue
        fits=$((per_node ? most_gpus : most_nodes))
        most=$((fits > most ? fits : most))
        ((nodes <= most_nodes && (per_node == 0 || nodes * per_node <= most_gpus))) || continue
        if ((minutes < asked)); then
            ((minutes <= longest)) || { longest=$minutes && other="$minutes $name"; }
        elif ((per_node || most_gpus == 0)); then
            echo "$minutes $name"
            return
        else
            found=${found:-$minutes $name}
        fi
    done
    found=${found:-$other}
    [[ -z $found ]] || { echo "$found" && return; }
    [[ -z ${PARTITION:-} || " $names " == *" $PARTITION "* ]] || die "PARTITION must be one of:$names; got '$PARTITION'" 2
    if ((per_node)); then
        die "GPUS=$((nodes * per_node)) is more than ${PARTITION:-any partition} has: the maximum is GPUS=$most" 2
    fi
    die "NODES=$nodes is more than ${PARTITION:-any partition} has: the maximum is NODES=$most" 2
}

# asked_minutes: prints TIME in minutes, or nothing if it is not set
asked_minutes() {
    [[ -n ${TIME:-} ]] || return 0
    minutes_of "$TIME" || die "TIME must be minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, got '$TIME'" 2
}

main
