#!/usr/bin/env bash
# on.sh PLACE ACCOUNT COMMAND…: runs a command there, as `ssh ACCOUNT@PLACE` would: in a login
# shell's environment, in the account's home. Words are passed as they are; the exit status is the
# command's. If this process is killed, the command is killed.
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
        die "an account is one of ${ACCOUNTS[*]} root, got $account"
    shift 2
    pid=$(pid_of "$place") || die "$place is not running; first: make cluster (or node.sh start $place)"
    # shellcheck disable=SC2016 # $@ is the inner shell's
    exec nsenter --target "$pid" --mount --uts --ipc --net --pid -- \
        setpriv --reuid "$account" --regid "$account" --init-groups --reset-env --pdeathsig KILL \
        bash -lc 'cd && exec "$@"' bash "$@"
}

main "$@"
