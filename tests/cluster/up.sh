#!/usr/bin/env bash
# Starts the cluster: controller, login node, four nodes. Places that already run are left alone.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

IDLE_DEADLINE_S=60
READY='(idle|mixed|allocated|completing)' # a node with a job is also ready

setting() { # prints a kernel setting; the second argument if the kernel does not have it
    local value=$2
    [[ ! -e $1 ]] || value=$(<"$1")
    printf '%s\n' "$value"
}

# Fails with one message that lists everything that is missing.
require_kernel() {
    local missing=()
    [[ $(setting /proc/sys/user/max_user_namespaces 0) != 0 ]] ||
        missing+=("user namespaces: sysctl user.max_user_namespaces=60000")
    [[ $(setting /proc/sys/kernel/unprivileged_userns_clone 1) == 1 ]] ||
        missing+=("user namespaces of ordinary accounts: sysctl kernel.unprivileged_userns_clone=1")
    [[ $(setting /proc/sys/kernel/apparmor_restrict_unprivileged_userns 0) == 0 ]] ||
        missing+=("user namespaces under AppArmor: sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    grep -qw fuse /proc/filesystems || modprobe fuse 2>/dev/null ||
        missing+=("FUSE, for unprivileged Apptainer: modprobe fuse")
    unshare --mount --uts --ipc --pid --net --fork true 2>/dev/null ||
        missing+=("mount, UTS, IPC, PID and network namespaces (in a container: run it privileged)")
    ((${#missing[@]} == 0)) || {
        printf 'up.sh: missing: %s\n' "${missing[@]}" >&2
        exit 1
    }
}

# The alias of the bridge names its owner: there is one cluster per machine.
make_bridge() {
    local owner=
    if has_link "$BRIDGE"; then
        owner=$(<"/sys/class/net/$BRIDGE/ifalias")
        # A cluster that was killed may have left its bridge behind.
        if [[ -n $owner && $owner != "$STATE" ]] && ! RUN=$owner/run any_alive; then
            log "replacing the bridge of $owner, where nothing is running"
            ip link delete "$BRIDGE"
            make_bridge
            return
        fi
        [[ $owner == "$STATE" ]] ||
            die "$BRIDGE belongs to the cluster in ${owner:-an unknown directory}; stop that cluster first"
    else
        ! ip -4 route show | grep -q "^${SUBNET//./\\.}\." ||
            die "$SUBNET.0/24 is in use on this machine; set SIFTUNE_CLUSTER_SUBNET to three other numbers"
        ip link add "$BRIDGE" address 02:00:5f:00:00:fe type bridge ||
            die "cannot create a bridge, because the kernel lacks a module: modprobe bridge veth"
        ip link set "$BRIDGE" alias "$STATE" addrgenmode none
        ip address add "$SUBNET.$(host_number login)/24" dev "$BRIDGE"
    fi
    ip link set "$BRIDGE" up
}

make_shared() {
    local account
    mkdir -p "$SHARED"/{home,work}
    chmod 1777 "$SHARED/work"
    for account in "${ACCOUNTS[@]}"; do
        chroot "$TREE" id -u "$account" >/dev/null || die "$TREE has no account $account; build it again: rm -r $TREE"
        [[ -d $SHARED/home/$account ]] || install -d -m 700 "$SHARED/home/$account"
        chown --from=root "$(chroot "$TREE" id -u "$account"):$(chroot "$TREE" id -g "$account")" \
            "$SHARED/home/$account"
    done
}

# Prints the memory per node: 4 GiB are kept for the system and the tests, the nodes share the rest.
memory_mib() {
    local total
    total=$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)
    local share=$(((total - 4096) / ${#NODES[@]}))
    ((share <= 5000)) || share=5000
    ((share >= 900)) || die "the cluster needs 8 GiB of memory, got $total MiB"
    printf '%d\n' "$share"
}

render() {
    local memory=$1 file
    for file in slurm.conf gres.conf cgroup.conf; do
        sed -e "s/@NODES@/node[1-${#NODES[@]}]/" \
            -e "s/@CPUS@/$CPUS_PER_NODE/" \
            -e "s/@MEMORY_MIB@/$memory/; s/@HALF_MEMORY_MIB@/$((memory / 2))/" \
            -e "s/@MEMORY_PER_CPU_MIB@/$((memory / CPUS_PER_NODE))/" \
            -e "s/@GPUS@/$GPUS_PER_NODE/; s/@LAST_GPU@/$((GPUS_PER_NODE - 1))/" \
            "$HERE/etc/$file.in" >"$RUN/etc/slurm/$file"
    done
    install -m 755 "$HERE/etc/prolog.sh" "$HERE/etc/epilog.sh" "$RUN/etc/slurm/"
}

make_etc() {
    local memory place name
    memory=$(memory_mib)
    mkdir -p "$RUN/etc/slurm"
    render "$memory"
    {
        printf '127.0.0.1 localhost\n'
        for place in "${PLACES[@]}"; do
            printf '%s.%s %s\n' "$SUBNET" "$(host_number "$place")" "$place"
        done
    } >"$RUN/etc/hosts"
    # The host's settings for package registries: certificates, proxies, pip and uv.
    for name in $(compgen -e | grep -E '^(PIP_|UV_|SSL_CERT_|CURL_CA_BUNDLE$|REQUESTS_CA_BUNDLE$)|_(proxy|PROXY)$'); do
        printf 'export %s=%q\n' "$name" "${!name}"
    done >"$RUN/etc/host.sh"
    if [[ ! -d $RUN/etc/munge ]]; then
        install -d -m 700 "$RUN/etc/munge"
        (umask 277 && head -c 128 /dev/urandom >"$RUN/etc/munge/munge.key")
        chown -R "$(chroot "$TREE" id -u munge):$(chroot "$TREE" id -g munge)" "$RUN/etc/munge"
    fi
}

# Prints `NODE STATE` lines; a star after the state means that the node does not respond.
node_states() { enter controller sinfo --noheader --Node --partition=small --format='%N %T' 2>/dev/null; }

ready() {
    local states
    states=$(node_states) || return 1
    [[ $(grep -cE " $READY$" <<<"$states") == "${#NODES[@]}" ]]
}

explain() {
    local place states=
    log "not ready within $IDLE_DEADLINE_S s:"
    if is_alive controller; then
        enter controller sinfo --Node --partition=small --long >&2 || true
        enter controller sinfo --list-reasons >&2 || true
        states=$(node_states) || true
    fi
    for place in controller "${NODES[@]}"; do
        grep -qE "^$place $READY$" <<<"$states" || tail_of "$place"
    done
    [[ $(setting /proc/sys/net/bridge/bridge-nf-call-iptables 0) == 0 ]] ||
        log "the host's packet filter applies to the bridge; if it drops forwarded packets, as Docker's does:" \
            "sysctl net.bridge.bridge-nf-call-iptables=0"
}

STARTED=()
undo() {
    local status=$? place
    ((status != 0)) || return 0
    ((${#STARTED[@]} == 0)) || log "undoing; the logs are in $LOG"
    for place in "${STARTED[@]}"; do
        kill_place "$place"
    done
    any_alive || remove_bridge
}

all_booted() {
    local place
    for place in "${PLACES[@]}"; do
        is_booted "$place" || return 1
    done
}

main() {
    local place began=$SECONDS
    require_root
    require_kernel
    require_program ip iproute2
    take_lock
    if any_alive; then
        all_booted && ready && return
    else
        "$HERE/tree.sh"
        rm -rf "$RUN"
        mkdir -p "$RUN" "$LOG"
    fi
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    make_bridge
    make_shared
    [[ -d $RUN/etc ]] || make_etc
    for place in "${PLACES[@]}"; do
        is_booted "$place" && continue
        STARTED+=("$place")
        start_place "$place"
    done
    wait_until "$IDLE_DEADLINE_S" ready || {
        explain
        exit 1
    }
    log "${#NODES[@]} nodes ready after $((SECONDS - began)) s; shared file system: $SHARED"
}

main "$@"
