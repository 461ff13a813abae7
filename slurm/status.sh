#!/usr/bin/env bash
# The queue, each study, and what the site has to show. Needs no Python: it reads what the study
# writes every few seconds. Reads STUDY, SITE and RESULTS of the environment.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

main() {
    local results=${RESULTS:-results} study shown=0
    if command -v squeue > /dev/null; then
        squeue --me --format='%.10i %.24j %.9T %.10M %.10l %.5D %R'
    else
        echo "no Slurm here: only the studies"
    fi
    [[ -z ${STUDY:-} || $STUDY =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        die "STUDY must be the name of a study, got '$STUDY'" 2
    for study in "$results"/${STUDY:-*}/study.yaml; do
        [[ -e $study ]] || continue
        show "${study%/study.yaml}"
        shown=1
    done
    ((shown)) || echo "no study ${STUDY:-} in $results"
    load_site "$PROJECT" "${SITE:-generic}"
    if [[ -n $STATUS_COMMAND ]]; then
        # A command and its flags, from the site's own file.
        # shellcheck disable=SC2086
        $STATUS_COMMAND || log "the site's '$STATUS_COMMAND' failed"
    fi
}

# show DIRECTORY: one study in two lines
show() {
    local directory=$1 metric real
    printf '%s: ' "${directory##*/}"
    if [[ ! -e $directory/summary.json ]]; then
        echo "starting"
        return
    fi
    real=$(number "$directory/summary.json" gpu_utilisation)
    real=${real#null}
    printf '%s completed, %s pruned, %s failed, %s running; %s of %s GPUs taken, slots busy %s of the time%s\n' \
        "$(number "$directory/summary.json" completed)" "$(number "$directory/summary.json" pruned)" \
        "$(number "$directory/summary.json" failed)" "$(number "$directory/summary.json" running)" \
        "$(number "$directory/summary.json" gpus_busy)" "$(number "$directory/summary.json" gpus)" \
        "$(number "$directory/summary.json" busy_fraction)" "${real:+, GPUs busy $real of it}"
    [[ -e $directory/best.json ]] || return 0
    metric=$(sed -n 's/^metric: //p' "$directory/study.yaml")
    printf '  best %s %s in trial %s, epoch %s\n' "$metric" "$(number "$directory/best.json" "$metric")" \
        "$(number "$directory/best.json" trial)" "$(number "$directory/best.json" epoch)"
}

# number FILE KEY: the last value of KEY in a file of ours, one entry a line
number() {
    awk -v key="\"$2\":" '$1 == key {gsub(/[",]/, "", $2); found = $2} END {print found}' "$1"
}

main
