#!/usr/bin/env bash
# emulate.sh: lets this machine, and the cluster's login node, run aarch64 programs: qemu is
# installed if it is missing, and registered with the kernel. It stays registered until a reboot.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

BINFMT=/proc/sys/fs/binfmt_misc

is_registered() { grep -qsx enabled "$BINFMT/qemu-aarch64"; }

require_qemu() {
    command -v qemu-aarch64-static update-binfmts >/dev/null && return
    log "qemu is missing: installing it"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        qemu-user-static binfmt-support >/dev/null ||
        die "apt-get could not install qemu-user-static and binfmt-support; install them by hand"
}

register() {
    [[ -e $BINFMT/register ]] || mount -t binfmt_misc binfmt_misc "$BINFMT" ||
        die "the kernel cannot be taught to run other architectures' programs: modprobe binfmt_misc"
    is_registered && return
    require_qemu
    # Where no init runs, the package does not do it by itself.
    is_registered || update-binfmts --enable qemu-aarch64 || die "qemu could not be registered"
}

main() {
    require_root
    [[ $(uname -m) != aarch64 ]] || return 0
    register
    # The kernel is the same, but each place has a /proc of its own.
    enter login test -e "$BINFMT/register" || enter login mount -t binfmt_misc binfmt_misc "$BINFMT"
}

main "$@"
