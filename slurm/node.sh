#!/usr/bin/env bash
# Runs one node of the job's Ray cluster, the head or a worker, in one srun task.
#   node.sh PROJECT SITE IMAGE JOB [join|guard PID ROLE DIRECTORY]
# join: the cluster belongs to another job, and all nodes of this job are workers.
# guard: waits until the process PID, another run of this script, has ended, and then cleans the node with its DIRECTORY.
set -euo pipefail

readonly WAIT_S=120 # the longest wait for the head to begin
readonly LIVES=10   # maximum number of starts of Ray on a worker
readonly STARTS=3   # maximum number of failed starts of Ray

main() {
    local project=$1 site=$2 image=$3 life failed=0
    job=$4
    source "$project/slurm/lib.sh"
    source "$project/slurm/gpus.sh"
    load_site "$project" "$site"
    quiet_deaths
    role=worker me=$NODE
    if [[ ${5:-} == guard ]]; then
        guard "$6" "$7" "$8"
        return
    fi
    rename_rocr
    if [[ ${5:-} == join ]]; then
        me=$NODE.$SLURM_JOB_ID # the job that owns the cluster may run on this node too
    elif ((SLURM_PROCID == 0)); then
        role='head'
    fi
    ulimit -c 0 # a core dump has the token; Slurm may have reset the limit
    check "$image"
    make_certificate "$image"
    mark_run node
    remove_dead "$tmp"
    tmp=$(own_directory "$tmp" "sift-$SLURM_JOB_ID") || refuse "cannot create a directory in $tmp: correct NODE_TMP in the site's file"
    echo "${SLURM_RESTART_COUNT:-0}" > "$tmp/run" || true # without it, the directory counts as this run's
    # The guard has a session of its own: it outlives a SIGKILL of this step where Slurm has no cgroups.
    SIFTUNE_RUN='' setsid "$0" "$project" "$site" "$image" "$job" guard $$ "$role" "$tmp" &> /dev/null < /dev/null &
    guard_pid=$!
    patience_s=20
    trap 'stop_ray; end_mps; end_sampling; clean_node "$tmp"; kill -USR1 "$guard_pid" 2> /dev/null || true' EXIT
    # scancel signals all processes of the step, including the one that serves the image's file system.
    # Ray can no longer end cleanly, and Slurm soon sends SIGKILL.
    trap 'patience_s=2; exit 0' TERM
    begin_sampling "$job/gpus/$me"
    begin_mps "$tmp/mps"
    for ((life = 1; life <= LIVES; life++)); do
        run_ray
        if started; then
            # If the head is lost, so is the study. When a disconnected worker reconnects, Ray tells it
            # to exit; it may then join again.
            [[ $role == worker ]] || break
            log "Ray ended on this node: starting it again"
        else
            # A port was taken after the check, or in a way that the check cannot detect.
            ((++failed < STARTS)) || break
            log "Ray did not start on this node: trying again; the end of its log: $(last_words "$job/log/$me")"
        fi
    done
    refuse "Ray ended unexpectedly; the end of its log: $(last_words "$job/log/$me")"
}

# run_ray: starts Ray and waits for it to end; exits when the job ends
run_ray() {
    local status=0 looks=0 address=''
    [[ $role == head ]] || address=$(head_address) || { over && exit 0; exit 1; }
    set -m # Ray gets its own process group
    start_ray "$address" &> "$job/log/$me" &
    ray_pid=$!
    set +m
    while kill -0 "$ray_pid" 2>/dev/null; do
        # Only once a second, because every node queries the shared file system.
        if ((looks++ % 5 == 0)); then
            ! over || exit 0
            # The head's first port was taken, and the head now has another one.
            [[ $role == head || $(< "$job/address") == "$address" ]] || kill -KILL -- "-$ray_pid" || true
            [[ $role == head || $me != "$NODE" ]] || ! is_head_silent || follow_head
        fi
        [[ $role == worker || -e $job/ready ]] || ! started || touch "$job/ready"
        pause 0.2
    done
    wait "$ray_pid" || status=$?
    kill_left
    over && exit 0
    # This is Apptainer's own exit code: the container did not start.
    ((status != 255)) || refuse "the image does not start here: $(tail -n 5 "$job/log/$me")"
    rm -rf "$tmp/r"
}

# started: returns whether Ray accepts nodes and drivers. Only the output of ray start says so
started() {
    grep -qs 'Ray runtime started' "$job/log/$me"
}

# head_address: prints the address of the job's Ray once its head is about to start. ray start itself waits for
# the head, and imports Ray meanwhile. Fails if the job ends first
head_address() {
    local deadline=$((SECONDS + WAIT_S))
    until [[ -e $job/address ]]; do
        over && return 1
        ((SECONDS < deadline)) || refuse "the head node of the job did not start within $WAIT_S s"
        pause 0.2
    done
    cat "$job/address"
}

# over: returns whether the job that owns the cluster has ended
over() {
    [[ -e $job/stop || ! -d $job ]]
}

# make_certificate IMAGE: creates this node's certificate, and sets IN_IMAGE to use it
make_certificate() {
    local own
    in_image "$1" "$job" "$me"
    own=$(address "$INTERFACE")
    certificate "$me" "$own" || refuse "openssl could not create a certificate: $(cat "$job/tls/$me.log")"
}

# start_ray [ADDRESS]: replaces this process with ray start (exec), for the head or for a worker of the head at
# ADDRESS
start_ray() {
    local ip first port memory_mib store_mib shm_mib
    local -a ray
    ip=$(address "$INTERFACE")
    first=$(free_ports 207 $((SLURM_JOB_ID + failed)))
    if [[ $role == head ]]; then
        port=$((first + 206))
        printf '%s:%s\n' "$ip" "$port" > "$job/address.new"
        mv "$job/address.new" "$job/address"
        # An unreachable node is declared dead after about 30 s instead of a minute.
        export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=4
        # Ray's autoscaler and dashboard are off: Slurm determines the nodes of the cluster.
        ray=(--head --port="$port" --no-monitor --include-dashboard=false)
    else
        ray=(--address="$1")
    fi
    memory_mib=${SLURM_MEM_PER_NODE:-$MEM_PER_NODE_MIB}
    shm_mib=$(df -Pm /dev/shm | awk 'NR == 2 {print $4}')
    # Trials send little through Ray. Its object store gets a tenth of the memory, but at most 2 GiB and at most
    # half of /dev/shm.
    store_mib=$(printf '%s\n' $((memory_mib / 10)) 2048 $((shm_mib / 2)) | sort -n | head -n 1)
    # Temporary files of trials are deleted with the job. By default, Ray would start a worker process for
    # each CPU, which trials cannot use, and a process that reads logs. Ray makes its own directory
    # accessible to every account, so it is placed inside the job's private directory.
    exec "${IN_IMAGE[@]}" env TMPDIR="$tmp" TORCHINDUCTOR_CACHE_DIR="$tmp/inductor" RAY_prestart_worker_first_driver=0 RAY_memory_monitor_refresh_ms=0 \
        ray start "${ray[@]}" --block --disable-usage-stats --include-log-monitor=false \
        --node-ip-address="$ip" --temp-dir="$tmp/r" \
        --node-manager-port="$first" --object-manager-port=$((first + 1)) \
        --dashboard-agent-listen-port=$((first + 2)) --dashboard-agent-grpc-port=$((first + 3)) \
        --runtime-env-agent-port=$((first + 4)) --metrics-export-port=$((first + 5)) \
        --min-worker-port=$((first + 6)) --max-worker-port=$((first + 205)) \
        --num-cpus="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --num-gpus="$(gpus_here)" \
        --memory=$((memory_mib * 1048576 * 8 / 10)) --object-store-memory=$((store_mib * 1048576))
}

# shellcheck disable=SC2329 # called by the trap
stop_ray() {
    local deadline=$((SECONDS + patience_s))
    [[ -n ${ray_pid:-} ]] || return 0
    kill "$ray_pid" 2>/dev/null || true
    while kill -0 "$ray_pid" 2>/dev/null && ((SECONDS < deadline)); do
        pause 0.1
    done
    kill_left
}

# kill_left: kills the remaining Ray processes and waits until all are gone. Ray's workers have their own process groups
# and take a moment to notice that it has ended. All of them write their logs below its directory.
kill_left() {
    kill -KILL -- "-$ray_pid" 2>/dev/null || true
    kill_users "$tmp/r"
}

# guard PID ROLE DIRECTORY: cleans the node if the process PID has ended without doing so. If it has done so, a container that was
# just starting may still leave its FUSE server
guard() {
    local cleaned=''
    role=$2
    trap '' TERM
    trap 'cleaned=1' USR1
    while [[ -d /proc/$1 ]]; do pause 1; done
    if [[ -n $cleaned ]]; then
        pause $((SERVER_S + 1))
        kill_run none
    else
        clean_node "$3"
    fi
}

# clean_node DIRECTORY: kills what is left of this node's processes of the job's step, and removes its directory. If the
# job has been requeued since, its next run owns the directories
clean_node() {
    local run=${SLURM_RESTART_COUNT:-0} directory=$1 batch='' owner=''
    [[ $(cat "$1/run" 2> /dev/null || echo "$run") == "$run" ]] || directory=''
    # Some processes of Ray overwrite their environment, and with it the mark.
    [[ -z $directory ]] || kill_users "$directory/r"
    kill_run "$(this_run node)"
    [[ -z $directory ]] || rm -rf "$directory"
    # Slurm ends the step if the batch script was killed, which then does not clean up.
    [[ $role == head ]] && read -r batch owner 2> /dev/null < "$job/batch" || return 0
    if [[ $owner == "$run" && ! -d /proc/$batch ]]; then
        kill_run "$(this_run batch)"
        rm -rf "$job"
    fi
}

# refuse MESSAGE: reports why this node cannot take part, to the log and to the study that waits for it
refuse() {
    printf '%s\n' "$1" > "$job/failed/$me"
    die "$1"
}

main "$@"
