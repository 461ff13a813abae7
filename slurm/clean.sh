# Removes what a job leaves on a node. Sourced by lib.sh, never run.
# shellcheck shell=bash

# mark_run PART: marks the processes that are started from here on as belonging to this run of the job, with a variable
# in their environment. Many sites have no cgroups, and a process that outlives its parent then outlives the job.
mark_run() {
    export SIFTUNE_RUN=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}:$1
}

# kill_run RUN: kills the processes on this node with a mark that the extended regular expression RUN describes, and the
# FUSE servers of killed containers, and waits until all are gone. The kernel shows only this account's processes. Call
# it in a process without the mark.
kill_run() {
    local tries left
    for ((tries = 0; tries < 50; tries++)); do
        # Without the mark, or the loop would find its own programs.
        left=$(unset SIFTUNE_RUN && grep -lzsE "^SIFTUNE_RUN=($1)\$" /proc/[0-9]*/environ | cut -d/ -f3) || true
        [[ -n $left ]] || left=$(idle_servers)
        [[ -n $left ]] || return 0
        xargs kill -KILL <<< "$left" 2> /dev/null || true
        pause 0.1
    done
}

# idle_servers: prints the process ids of the FUSE servers, such as the one that serves an image's file system, whose
# containers were killed. Apptainer starts one in the user namespace of its container, with an empty environment, and a
# killed container does not end it.
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
        [[ $spaces == *" ${servers[$path]} "* ]] || printf '%s\n' "$path"
    done
}

# own_directory PARENT NAME: creates a directory that only this account can enter, and prints its path. The
# name is predictable. If another account already has it, another name is used.
own_directory() {
    local path=$1/$2
    mkdir -p "$1" || return
    [[ -L $path || ! -O $path ]] || rm -rf "$path" # left by an earlier run of this job
    mkdir -m 700 "$path" 2>/dev/null || path=$(mktemp -d "$1/sift-XXXXXX") || return
    printf '%s\n' "$path"
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

# list_jobs: sets SIFTUNE_JOBS to the numbers of this account's jobs, for is_dead. Its nodes do not ask Slurm again.
list_jobs() {
    SIFTUNE_JOBS=$(squeue --me --noheader --format=%A 2>/dev/null | sort -u | tr '\n' ' ') || SIFTUNE_JOBS=''
    export SIFTUNE_JOBS
}

# is_dead JOB: returns whether the job has ended. A later job may have begun after the list was made
is_dead() {
    [[ $1 =~ ^[0-9]{1,15}$ && -n ${SIFTUNE_JOBS:-} ]] && (($1 < SLURM_JOB_ID)) && [[ " $SIFTUNE_JOBS" != *" $1 "* ]]
}

# remove_dead DIRECTORY: removes what dead jobs of this account, and earlier runs of this job, left on this node: their
# processes, and their directories in DIRECTORY
remove_dead() {
    local run path
    while read -r run; do
        [[ ${run%%.*} == "$SLURM_JOB_ID" && ${run%:*} != "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" ]] ||
            is_dead "${run%%.*}" || continue
        kill_run "${run//./\\.}"
    done < <(grep -hzsE '^SIFTUNE_RUN=[0-9]+\.[0-9]+:[a-z]+$' /proc/[0-9]*/environ | tr '\0' '\n' | cut -d= -f2 | sort -u)
    kill_run none # the servers of killed containers
    for path in "$1"/sift-*; do
        [[ -d $path && ! -L $path && -O $path ]] && is_dead "${path##*/sift-}" && rm -rf "$path"
    done
    return 0
}
