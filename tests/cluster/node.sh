#!/usr/bin/env bash
# Breaks or repairs a place of the cluster.
#   node.sh kill PLACE    power off: PID 1 and all its namespaces die at once
#   node.sh start PLACE   power on, with empty node-local directories
#   node.sh cut PLACE     unplug the network cable; processes there keep running
#   node.sh heal PLACE    plug it in again
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

set_cable() {
    [[ $1 != login ]] || die "login uses the host's network and cannot be cut; choose another place"
    is_alive "$1" || die "$1 is not running; start it: tests/cluster/node.sh start $1"
    ip link set "$(link_of "$1")" "$2"
}

main() {
    local verb=${1:-} place=${2:-}
    require_root
    case $verb in
    kill | start | cut | heal) ;;
    *) die "usage: node.sh kill|start|cut|heal PLACE" ;;
    esac
    require_place "$place"
    has_link "$BRIDGE" || die "the cluster is not running; first: make cluster"
    take_lock
    case $verb in
    kill) kill_place "$place" ;;
    start) is_alive "$place" || start_place "$place" ;;
    cut) set_cable "$place" down ;;
    heal) set_cable "$place" up ;;
    esac
}

main "$@"
