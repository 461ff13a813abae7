#!/usr/bin/env bash
# on.sh PLACE ACCOUNT COMMAND…: runs a command in a place as `ssh ACCOUNT@PLACE` would: with a login
# shell's environment, in the account's home. Arguments are passed unchanged, and the exit status is
# the command's. If this process is killed, the command is killed.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local place=${1:-} account=${2:-}
    local pid
    (($# >= 3)) || die "usage: on.sh PLACE ACCOUNT COMMAND…"
    require_root
    require_place "$place"
    [[ " root ${ACCOUNTS[*]} " == *" $account "* ]] ||
        die "ACCOUNT must be one of ${ACCOUNTS[*]} root, got $account"
    shift 2
    pid=$(pid_of "$place") || die "$place is not running; start it: make cluster (or tests/cluster/node.sh start $place)"
    # shellcheck disable=SC2016 # the inner shell expands $@
    exec nsenter --target "$pid" --mount --uts --ipc --net --pid -- \
        setpriv --reuid "$account" --regid "$account" --init-groups --reset-env --pdeathsig KILL \
        bash -lc 'cd && exec "$@"' bash "$@"
}

main "$@"
