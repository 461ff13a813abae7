#!/usr/bin/env bash
# emulate.sh: enables this machine's kernel, and so the cluster's login node, to run aarch64 programs.
# The emulator is qemu from the Debian release of the tree. It stays registered until a reboot, or
# until -1 is written to the kernel's entry.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

BINFMT=/proc/sys/fs/binfmt_misc
EMULATOR=$STATE/qemu-aarch64

# Matches 64-bit little-endian ELF programs and libraries for machine 183 (aarch64).
MAGIC='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
MASK='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'

# Does not use the host's package: before 8.1, qemu shows programs the host's /proc/cpuinfo, which
# makes torch crash.
fetch_emulator() {
    [[ ! -x $EMULATOR ]] || return 0
    log "fetching qemu"
    mmdebstrap --mode=root --variant=extract --quiet --format=tar --include=qemu-user \
        --aptopt='Acquire::Check-Valid-Until "false"' sid - "$TREE/etc/apt/sources.list" |
        tar -x -O ./usr/bin/qemu-aarch64 >"$EMULATOR.new" ||
        die "Debian's package qemu-user contains no qemu-aarch64"
    chmod +x "$EMULATOR.new"
    mv "$EMULATOR.new" "$EMULATOR"
}

# P: a program gets the name by which it was started. F: the kernel opens the emulator now, so that
# it also works inside any container.
register() {
    [[ ! -e $BINFMT/qemu-aarch64 ]] || return 0
    fetch_emulator
    printf '%s' ":qemu-aarch64:M::$MAGIC:$MASK:$EMULATOR:PF" >"$BINFMT/register"
}

main() {
    require_root
    [[ $(uname -m) != aarch64 ]] || return 0
    [[ -e $BINFMT/register ]] || mount -t binfmt_misc binfmt_misc "$BINFMT" ||
        die "this kernel cannot run programs of other architectures: modprobe binfmt_misc"
    register
    # The login node shares the kernel, but has its own /proc.
    enter login test -e "$BINFMT/register" || enter login mount -t binfmt_misc binfmt_misc "$BINFMT"
}

main "$@"
