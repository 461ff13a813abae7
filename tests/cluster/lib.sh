# shellcheck shell=bash disable=SC2034 # names used by the scripts that source this
# Shared by the cluster's scripts: names, addresses, and functions that start, find and stop a place
# (controller, login, node1 …). Sourced, never run.

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# The cluster writes only to this directory on the host.
STATE=${SIFTUNE_CLUSTER_DIR:-$(cd -- "$HERE/../.." && pwd)/.cluster}
TREE=$STATE/tree
RUN=$STATE/run
LOG=$STATE/log
SHARED=$STATE/shared

NODES=(node1 node2 node3 node4)
PLACES=(controller login "${NODES[@]}")
ACCOUNTS=(hpc1 hpc2)
CPUS_PER_NODE=40
GPUS_PER_NODE=2

BRIDGE=siftune0
# 198.18.0.0/15 is reserved for benchmarks (RFC 2544), so no site's network uses it.
SUBNET=${SIFTUNE_CLUSTER_SUBNET:-198.18.7}

log() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    log "$*"
    exit 1
}

# wait_until SECONDS COMMAND…: polls until the command succeeds; fails at the deadline.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

require_root() {
    ((EUID == 0)) || die "needs root (network namespaces, a bridge, device nodes), got uid $EUID;" \
        "run it with sudo, or in a virtual machine or a privileged container"
}

# require_program PROGRAM PACKAGE: installs the package if the program is missing.
require_program() {
    ! command -v "$1" >/dev/null || return 0
    log "$1 is missing: installing $2"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$2" >/dev/null ||
        die "apt-get could not install $2; install it by hand"
}

# Allows one start or stop at a time. Daemons are started with 9>&-, or they would hold the lock.
take_lock() {
    mkdir -p "$STATE"
    # The directory ignores itself, so that no .gitignore elsewhere must name it.
    [[ -e $STATE/.gitignore ]] || printf '*\n' >"$STATE/.gitignore"
    exec 9>"$STATE/lock"
    flock --wait 300 9 || die "another start or stop of this cluster has held $STATE/lock for 300 s; wait for it to end"
}

is_place() {
    local place
    for place in "${PLACES[@]}"; do
        [[ $place == "$1" ]] && return 0
    done
    return 1
}

require_place() {
    is_place "$1" || die "a place is one of ${PLACES[*]}, got ${1:-nothing}"
}

# start_time PID: prints the start in clock ticks since boot. It distinguishes reused process ids.
start_time() {
    local line
    local -a fields
    { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    # The command's name, in brackets, may contain blanks, so fields are counted after it.
    read -ra fields <<<"${line##*) }"
    [[ ${fields[0]} != [ZX] ]] || return 1
    printf '%s\n' "${fields[19]}"
}

# pid_of PLACE: prints the process id on the host of the place's PID 1; fails if it is not running.
pid_of() {
    local pid started now
    [[ -e $RUN/$1/pid ]] || return 1
    read -r pid started <"$RUN/$1/pid"
    now=$(start_time "$pid") || return 1
    [[ $now == "$started" ]] || return 1
    printf '%s\n' "$pid"
}

is_alive() { pid_of "$1" >/dev/null; }

is_gone() { ! is_alive "$1"; }

# Succeeds once commands inside the place have the tree, the network and munge.
is_booted() { enter "$1" test -S /run/munge/munge.socket.2 -a -e /run/boot.sh 2>/dev/null; }

any_alive() {
    local place
    for place in "${PLACES[@]}"; do
        is_alive "$place" && return 0
    done
    return 1
}

# Prints the last byte of a place's address. The login node has the bridge's address, on the host.
host_number() {
    case $1 in
    node*) printf '%s\n' "${1#node}" ;;
    controller) printf '100\n' ;;
    login) printf '254\n' ;;
    esac
}

link_of() { printf 'st-%s\n' "$1"; } # an interface name has at most 15 characters

has_link() { [[ -e /sys/class/net/$1 ]]; }

# enter PLACE COMMAND…: runs the command as root inside the place.
enter() {
    local pid
    pid=$(pid_of "$1") || {
        log "$1 is not running; start it: tests/cluster/node.sh start $1"
        return 1
    }
    nsenter --target "$pid" --mount --uts --ipc --net --pid -- "${@:2}"
}

# Shows the end of a place's log, which includes the output of Slurm's daemons.
tail_of() {
    log "the end of $LOG/$1/boot.log:"
    tail -n 20 "$LOG/$1/boot.log" >&2 || true
}

# Removes the bridge if its alias shows that it belongs to this checkout.
remove_bridge() {
    if has_link "$BRIDGE" && [[ $(<"/sys/class/net/$BRIDGE/ifalias") == "$STATE" ]]; then
        ip link delete "$BRIDGE"
    fi
}

# Connects a started place to the bridge. The virtual cable disappears with the place's namespace.
plug() {
    local place=$1 pid=$2
    local link mac number
    link=$(link_of "$place")
    number=$(host_number "$place")
    # A restarted node keeps its MAC address, so that the other nodes' ARP tables remain valid.
    printf -v mac '02:00:5f:00:00:%02x' "$number"
    if has_link "$link"; then # left by a node that died; the kernel removes it later
        ip link delete "$link" 2>/dev/null || true
    fi
    ip link add "$link" type veth peer name eth0 address "$mac" netns "$pid"
    ip link set "$link" addrgenmode none master "$BRIDGE" up
    nsenter --target "$pid" --net ip link set lo up
    nsenter --target "$pid" --net ip link set eth0 addrgenmode none up
    nsenter --target "$pid" --net ip address add "$SUBNET.$number/24" dev eth0
}

is_settled() { is_booted "$1" || is_gone "$1"; }

# Fails if the place has not booted after 20 s, or dies before.
require_booted() {
    wait_until 20 is_settled "$1" && is_booted "$1" && return
    tail_of "$1"
    die "$1 did not start"
}

start_place() {
    local place=$1
    local pid
    local -a namespaces=(--mount --uts --ipc --pid)
    # The login node uses the host's network, because images are built there from package registries.
    [[ $place == login ]] || namespaces+=(--net)
    kill_place "$place" # an interrupted start may have left something behind
    rm -rf "${LOG:?}/$place"
    mkdir -p "$RUN/$place" "$LOG/$place"
    setsid unshare "${namespaces[@]}" --fork -- bash "$HERE/init.sh" "$place" \
        </dev/null >"$LOG/$place/boot.log" 2>&1 9>&- &
    wait_until 20 is_alive "$place" || require_booted "$place"
    pid=$(pid_of "$place")
    [[ $place == login ]] || plug "$place" "$pid"
    touch "$RUN/$place/plugged"
    require_booted "$place"
}

# Powers a place off, without an orderly shutdown. The namespaces and their mounts end with PID 1.
kill_place() {
    local place=$1
    local pid
    if pid=$(pid_of "$place"); then
        kill -KILL "$pid" 2>/dev/null || true
        wait_until 20 is_gone "$place" || die "$place (process $pid) is still running 20 s after SIGKILL"
    fi
    if has_link "$(link_of "$place")"; then
        ip link delete "$(link_of "$place")" 2>/dev/null || true
    fi
    rm -rf "${RUN:?}/$place"
}
