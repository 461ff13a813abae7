#!/usr/bin/env bash
# emulate.sh: lets this machine's kernel, and so the cluster's login node, run aarch64 programs. The
# emulator is qemu of the release that the tree is made of; it stays registered until a reboot, or
# until somebody writes -1 to the kernel's entry.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

BINFMT=/proc/sys/fs/binfmt_misc
EMULATOR=$STATE/qemu-aarch64

# An ELF file, of 64 bits, little-endian, a program or a library, for the machine 183.
MAGIC='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
MASK='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'

# Not the host's package: before 8.1 qemu shows programs the host's /proc/cpuinfo, on which torch
# crashes.
fetch_emulator() {
    [[ ! -x $EMULATOR ]] || return 0
    log "fetching qemu"
    mmdebstrap --mode=root --variant=extract --quiet --format=tar --include=qemu-user \
        --aptopt='Acquire::Check-Valid-Until "false"' sid - "$TREE/etc/apt/sources.list" |
        tar -x -C "$STATE" --transform='s,.*/,,' ./usr/bin/qemu-aarch64 ||
        die "there is no qemu-aarch64 in Debian's package qemu-user"
}

# P: a program is told the name that it was started by. F: the emulator is opened now, so that it
# is found from inside any container.
register() {
    [[ ! -e $BINFMT/qemu-aarch64 ]] || return 0
    fetch_emulator
    printf '%s' ":qemu-aarch64:M::$MAGIC:$MASK:$EMULATOR:PF" >"$BINFMT/register"
}

main() {
    require_root
    [[ $(uname -m) != aarch64 ]] || return 0
    [[ -e $BINFMT/register ]] || mount -t binfmt_misc binfmt_misc "$BINFMT" ||
        die "this kernel runs no other architectures' programs: modprobe binfmt_misc"
    register
    # The kernel is the same, but the login node has a /proc of its own.
    enter login test -e "$BINFMT/register" || enter login mount -t binfmt_misc binfmt_misc "$BINFMT"
}

main "$@"
