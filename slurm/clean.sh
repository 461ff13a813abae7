# Removes what jobs leave on a node. Sourced by lib.sh, never run.
# shellcheck shell=bash

readonly SERVER_S=5 # a FUSE server that is younger may belong to a container that is just starting

# mark_run PART: marks the processes that are started from here on as part of this run of the job, with a variable in
# their environment. Many sites have no cgroups, and a process that outlives its parent then outlives the job.
mark_run() {
    export SIFTUNE_RUN=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}:$1
}

# this_run PART: prints the mark of a part of this run as a regular expression
this_run() {
    printf '%s\n' "$SLURM_JOB_ID\\.${SLURM_RESTART_COUNT:-0}:$1"
}

# kill_run RUN: kills the processes on this node with a mark that the extended regular expression RUN describes, and the
# FUSE servers of killed containers, and waits until all are gone. The kernel shows only this account's processes.
kill_run() {
    local tries left
    for ((tries = 0; tries < 80; tries++)); do
        # grep runs without the mark, or it would find itself. This shell has no mark in the environment that the kernel
        # shows, which is the one that the shell was started with.
        left=$(unset SIFTUNE_RUN && grep -lzsE "^SIFTUNE_RUN=($1)\$" /proc/[0-9]*/environ | cut -d/ -f3) || true
        [[ -n $left ]] || left=$(unset SIFTUNE_RUN && idle_servers)
        [[ -n $left ]] || return 0
        left=${left//young/}
        (unset SIFTUNE_RUN && xargs -r kill -KILL <<< "$left") 2> /dev/null || true
        pause 0.1
    done
}

# idle_servers: prints the process ids of the FUSE servers, such as the one that serves an image's file system, whose
# containers were killed, and the word young for one that has to be looked at again. Apptainer starts one in the user
# namespace of its container, with an empty environment, and a killed container does not end it.
idle_servers() {
    local path name space spaces=' '
    local -A servers=()
    for path in /proc/[0-9]*; do
        space=$(readlink "$path/ns/user") || continue # it has ended, or belongs to another account
        read -r name < "$path/comm" || continue
        case $name in
            squashfuse* | fuse-overlayfs | fuse2fs | gocryptfs) servers[${path##*/}]=$space ;;
            *) spaces+="$space " ;;
        esac
    done 2> /dev/null
    for path in "${!servers[@]}"; do
        [[ $spaces != *" ${servers[$path]} "* ]] || continue
        (($(ps -o etimes= -p "$path" || echo "$SERVER_S") < SERVER_S)) && echo young || printf '%s\n' "$path"
    done
}

# kill_users DIRECTORY: kills the processes with open files below it and waits until all are gone. Only the last two
# components of the path are compared, because the path may differ outside the container.
kill_users() {
    local parent=${1%/*} tries left
    for ((tries = 0; tries < 50; tries++)); do
        left=$(find /proc/[0-9]*/fd -lname "*/${parent##*/}/${1##*/}/*" 2>/dev/null | cut -d/ -f3 | sort -u) || true
        [[ -n $left ]] || return 0
        xargs kill -KILL <<< "$left" 2>/dev/null || true
        pause 0.1
    done
}

# list_jobs: sets SIFTUNE_JOBS to the numbers of this account's jobs, for is_dead. The job's nodes do not ask Slurm again.
list_jobs() {
    SIFTUNE_JOBS=$(squeue --me --noheader --format=%A 2>/dev/null | sort -u | tr '\n' ' ') || SIFTUNE_JOBS=''
    export SIFTUNE_JOBS
}

# is_dead JOB: returns whether the job has ended. A job with a higher number may have begun after the list was made.
is_dead() {
    [[ $1 =~ ^[0-9]{1,15}$ && -n ${SIFTUNE_JOBS:-} ]] && (($1 < SLURM_JOB_ID)) && [[ " $SIFTUNE_JOBS" != *" $1 "* ]]
}

# remove_dead DIRECTORY: removes what dead jobs of this account, and earlier runs of this job, left on this node: their
# processes, and their directories in DIRECTORY
remove_dead() {
    local run
    while read -r run; do
        if is_dead "${run%%.*}" || [[ ${run%%.*} == "$SLURM_JOB_ID" && ${run%:*} != "${SIFTUNE_RUN%:*}" ]]; then
            kill_run "${run//./\\.}"
        fi
    done < <(unset SIFTUNE_RUN && grep -hzsE '^SIFTUNE_RUN=[0-9]+\.[0-9]+:[a-z]+$' /proc/[0-9]*/environ |
        tr '\0' '\n' | cut -d= -f2 | sort -u)
    remove_dead_directories "$1" sift-
    kill_run none # the servers of killed containers, of which no process is left now
}

# remove_dead_directories DIRECTORY [PREFIX]: removes the directories of this account's dead jobs from DIRECTORY. With
# PREFIX, DIRECTORY is on this node, and the processes that use them are killed: some of Ray's overwrite their
# environment, and with it the mark
remove_dead_directories() {
    local path
    for path in "$1/${2:-}"[0-9]*; do
        [[ -d $path && ! -L $path && -O $path ]] || continue
        is_dead "${path##*/"${2:-}"}" || continue
        # Several clusters may share a file system, and each has a job with this number.
        [[ -n ${2:-} || $(cat "$path/cluster" 2> /dev/null) == "${SLURM_CLUSTER_NAME:-}" ]] || continue
        [[ -z ${2:-} ]] || kill_users "$path/r"
        rm -rf "$path"
    done
}
