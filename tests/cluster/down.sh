#!/usr/bin/env bash
# Stops the cluster: processes, namespaces, mounts, network. Keeps the tree, the logs and the shared
# file system; `down.sh --all` removes those as well.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local place
    case ${1:-} in
    '' | --all) ;;
    *) die "the only option is --all, got $1" ;;
    esac
    [[ -d $STATE ]] || return 0
    require_root
    take_lock
    for place in "${PLACES[@]}"; do
        kill_place "$place"
    done
    remove_bridge
    rm -rf "$RUN"
    if [[ ${1:-} == --all ]]; then
        rm -rf "$STATE"
    fi
}

main "$@"
