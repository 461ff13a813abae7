#!/usr/bin/env bash
# One node of the job's Ray cluster, the head or a worker, inside one srun task.
#   node.sh PROJECT SITE IMAGE JOB [join]
# join: the cluster is another job's, and all nodes of this one are workers.
set -euo pipefail

readonly WAIT_S=120   # for the head to begin
readonly ROOM_MIB=512 # on the node's own disk
readonly LIVES=10     # of Ray on a worker, which is started again when it ends
readonly STARTS=3     # of Ray, that fail

main() {
    local project=$1 site=$2 image=$3 life failed=0
    job=$4
    source "$project/slurm/lib.sh"
    source "$project/slurm/gpus.sh"
    load_site "$project" "$site"
    role=worker me=$NODE
    if [[ ${5:-} == join ]]; then
        me=$NODE.$SLURM_JOB_ID # its first job may be on this node too
    elif ((SLURM_PROCID == 0)); then
        role='head'
    fi
    tmp=$(node_tmp "$NODE_TMP")
    ulimit -c 0 # a core holds the token; Slurm may have set the limit anew
    check "$image"
    tmp=$(own_directory "$tmp" "sift-$SLURM_JOB_ID") || refuse "cannot make a directory in $tmp: correct NODE_TMP in the site's file"
    patience_s=20
    trap 'stop_ray; end_mps; end_sampling; rm -rf "$tmp"' EXIT
    # Ray's sockets lie below it, and a socket's path has 107 bytes.
    ((${#tmp} + 2 <= 43)) || refuse "NODE_TMP makes the path $tmp/r, longer than 43 characters"
    # From outside, a signal goes to all processes of the step, the image's file system among them:
    # Ray cannot end well any more, and Slurm's patience is short.
    trap 'patience_s=2; exit 0' TERM
    begin_sampling "$job/gpus/$me"
    begin_mps "$tmp/mps"
    for ((life = 1; life <= LIVES; life++)); do
        run_ray
        if started; then
            # A head that is lost has taken the study along. A worker that was cut off, or killed,
            # is told to end when it comes back, and is welcome again.
            [[ $role == worker ]] || break
            log "Ray ended on this node: it is started again"
        else
            # A port was taken between the look and the use, or in a way that no look can see.
            ((++failed < STARTS)) || break
            log "Ray did not start on this node: it is tried again; the end of its log: $(tail -n 5 "$job/log/$me")"
        fi
    done
    refuse "Ray ended by itself; the end of its log: $(tail -n 5 "$job/log/$me")"
}

# run_ray: starts Ray and waits for its end; leaves with the job's
run_ray() {
    local status=0 looks=0 address=''
    [[ $role == head ]] || address=$(head_address) || { over && exit 0; exit 1; }
    set -m # a process group of Ray's own
    start_ray "$address" &> "$job/log/$me" &
    ray_pid=$!
    set +m
    while kill -0 "$ray_pid" 2>/dev/null; do
        # Once a second: that is a question to the shared file system, of every node.
        if ((looks++ % 5 == 0)); then
            ! over || exit 0
            # The head's first port was taken, and it has another.
            [[ $role == head || $(< "$job/address") == "$address" ]] || kill -KILL -- "-$ray_pid" || true
        fi
        [[ $role == worker || -e $job/ready ]] || ! started || touch "$job/ready"
        sleep 0.2 || true
    done
    wait "$ray_pid" || status=$?
    kill_left
    over && exit 0
    # Apptainer's own status: there was no container.
    ((status != 255)) || refuse "the image does not start here: $(tail -n 5 "$job/log/$me")"
    rm -rf "$tmp/r"
}

# started: whether Ray takes nodes and drivers: ray start says so on its own output, and nowhere else
started() {
    grep -q 'Ray runtime started' "$job/log/$me"
}

# head_address: of the job's Ray, once its head is about to start: ray start waits for it, and imports Ray
# meanwhile; fails where the job ends before
head_address() {
    local deadline=$((SECONDS + WAIT_S))
    until [[ -e $job/address ]]; do
        over && return 1
        ((SECONDS < deadline)) || refuse "the job's head did not begin to start in $WAIT_S s"
        sleep 0.2
    done
    cat "$job/address"
}

# over: whether the job that the cluster is of has ended
over() {
    [[ -e $job/stop || ! -d $job ]]
}

# check IMAGE: what makes every start fail, said in seconds
check() {
    local image=$1 room bind architecture own
    [[ -r $image ]] || refuse "cannot read the image $image from this node"
    for bind in ${BINDS//,/ }; do
        [[ -e ${bind%%:*} ]] || refuse "BINDS names $bind, which is not on this node: correct the site's file"
    done
    mkdir -p "$tmp" || refuse "cannot make $tmp: correct NODE_TMP in the site's file"
    room=$(df -Pm "$tmp" | awk 'NR == 2 {print $4}')
    ((room >= ROOM_MIB)) || refuse "only $room MiB are free in $tmp, $ROOM_MIB are needed"
    architecture=$(architecture_of "$image")
    [[ $architecture == "$(uname -m)" ]] ||
        refuse "the image does not start here: it is for $architecture and this node is $(uname -m): make image ARCH=$(uname -m)"
    in_image "$image" "$job" "$me"
    own=$(address "$INTERFACE")
    certificate "$me" "$own" || refuse "openssl made no certificate: $(cat "$job/tls/$me.log")"
}

# architecture_of IMAGE: in the kernel's word; this node's where the image does not say
architecture_of() {
    local found
    found=$(apptainer sif header "$1" 2>/dev/null |
        sed -n 's/amd64$/x86_64/; s/arm64$/aarch64/; s/^Primary Architecture: *//p') || true
    printf '%s\n' "${found:-$(uname -m)}"
}

# start_ray [ADDRESS]: becomes ray start, of the head, or of a worker for the head at ADDRESS
start_ray() {
    local ip first port memory_mib store_mib shm_mib
    local -a ray
    ip=$(address "$INTERFACE")
    first=$(free_ports 207 $((SLURM_JOB_ID + failed)))
    if [[ $role == head ]]; then
        port=$((first + 206))
        printf '%s:%s\n' "$ip" "$port" > "$job/address.new"
        mv "$job/address.new" "$job/address"
        # A node that is out of reach is given up after half a minute, not after a whole one.
        export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=4
        # Without Ray's autoscaler and dashboard: the cluster is what Slurm gave.
        ray=(--head --port="$port" --no-monitor --include-dashboard=false)
    else
        ray=(--address="$1")
    fi
    memory_mib=${SLURM_MEM_PER_NODE:-$MEM_PER_NODE_MIB}
    shm_mib=$(df -Pm /dev/shm | awk 'NR == 2 {print $4}')
    # Trials exchange little through Ray: a tenth of the memory, at most 2 GiB, half of /dev/shm.
    store_mib=$(printf '%s\n' $((memory_mib / 10)) 2048 $((shm_mib / 2)) | sort -n | head -n 1)
    # What trials write to a temporary directory goes with the job. Ray would start a process for
    # each CPU at once, none of which a trial can use, and one that reads logs for nobody.
    # It opens its own directory to every account: hence one below.
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

# gpus_here: GPUs that Slurm gave this task
gpus_here() {
    local -a given
    IFS=, read -r -a given <<< "${CUDA_VISIBLE_DEVICES:-${ROCR_VISIBLE_DEVICES:-}}"
    printf '%s\n' "${#given[@]}"
}

# shellcheck disable=SC2329 # the trap's
stop_ray() {
    local deadline=$((SECONDS + patience_s))
    [[ -n ${ray_pid:-} ]] || return 0
    kill "$ray_pid" 2>/dev/null || true
    while kill -0 "$ray_pid" 2>/dev/null && ((SECONDS < deadline)); do
        sleep 0.1 || true
    done
    kill_left
}

# kill_left: what Ray left, until it is gone. Its workers have process groups of their own, and take a
# moment to notice that it has ended; all write their logs below its directory.
kill_left() {
    kill -KILL -- "-$ray_pid" 2>/dev/null || true
    kill_users "$tmp/r"
}

# refuse MESSAGE: says why this node cannot take part, to the log and to the study that waits for it
refuse() {
    printf '%s\n' "$1" > "$job/failed/$me"
    die "$1"
}

main "$@"
