#!/usr/bin/env bash
# PID 1 of a place. Moves from the host's file system to the place's own. start_place in lib.sh runs
# it inside new namespaces; in the end it executes tini, which runs boot.sh.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# /proc is still the host's, so it shows this process's id on the host.
record_pid() {
    local pid _
    read -r pid _ </proc/self/stat
    printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$RUN/$1/pid.new"
    mv "$RUN/$1/pid.new" "$RUN/$1/pid"
}

make_devices() {
    local dev=$1
    local gpu
    mount -t tmpfs -o mode=755,size=1m tmpfs "$dev"
    mkdir "$dev/pts" "$dev/shm" "$dev/mqueue"
    mknod -m 666 "$dev/null" c 1 3
    mknod -m 666 "$dev/zero" c 1 5
    mknod -m 666 "$dev/full" c 1 7
    mknod -m 666 "$dev/random" c 1 8
    mknod -m 666 "$dev/urandom" c 1 9
    mknod -m 666 "$dev/tty" c 5 0
    # Unprivileged Apptainer mounts SIF files through FUSE.
    mknod -m 666 "$dev/fuse" c 10 229
    # Slurm allocates these as GPUs. Each is a copy of /dev/null, so that no real driver is reached.
    for ((gpu = 0; gpu < GPUS_PER_NODE; gpu++)); do
        mknod -m 666 "$dev/nvidia$gpu" c 1 3
    done
    ln -s pts/ptmx "$dev/ptmx"
    ln -s /proc/self/fd "$dev/fd"
    ln -s /proc/self/fd/0 "$dev/stdin"
    ln -s /proc/self/fd/1 "$dev/stdout"
    ln -s /proc/self/fd/2 "$dev/stderr"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$dev/pts"
    mount -t tmpfs -o mode=1777,size=2g tmpfs "$dev/shm"
    mount -t mqueue mqueue "$dev/mqueue"
}

# Mounts the directories that only this place has. They are lost when it ends.
mount_own() {
    local place=$1 root=$2
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    make_devices "$root/dev"
    mount -t tmpfs -o mode=755,size=256m tmpfs "$root/run"
    mount -t tmpfs -o mode=755,size=256m tmpfs "$root/var/spool"
    mount -t tmpfs -o mode=1777,size=256m tmpfs "$root/var/tmp"
    mount -t tmpfs -o mode=700,size=64m tmpfs "$root/root"
    case $place in
    login) # on disk, because images are built there
        mkdir -m 1777 "$RUN/$place/tmp"
        mount --bind "$RUN/$place/tmp" "$root/tmp"
        ;;
    controller) # keeps its list of jobs across a restart
        mkdir -p "$RUN/controller.spool"
        mount --bind "$RUN/controller.spool" "$root/var/spool"
        mount -t tmpfs -o mode=1777,size=256m tmpfs "$root/tmp"
        ;;
    *) # small enough for a test to fill
        mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/tmp"
        mount -t tmpfs -o mode=755,size=1g tmpfs "$root/tmploc"
        ;;
    esac
    mount --bind "$LOG/$place" "$root/var/log" # on the host, so that it remains when the place dies
}

mount_read_only() {
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}

# Mounts the directories that all places share.
mount_shared() {
    local root=$1
    mount --bind "$SHARED/home" "$root/home"
    mount --bind "$SHARED/work" "$root/work"
    mount_read_only "$RUN/etc/slurm" "$root/etc/slurm"
    mount_read_only "$RUN/etc/munge" "$root/etc/munge"
    mount_read_only "$RUN/etc/hosts" "$root/etc/hosts"
    # The host's certificates may include a site's own certificate authority.
    if [[ -e /etc/ssl/certs/ca-certificates.crt ]]; then
        mount_read_only /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    fi
}

# Gives the login node the host's network settings, so that it reaches the same registries.
mount_host_settings() {
    local root=$1
    local file
    mount_read_only "$RUN/etc/host.sh" "$root/etc/profile.d/host.sh"
    for file in /etc/resolv.conf /etc/pip.conf /etc/apt; do
        if [[ -e $file ]]; then
            mount_read_only "$(realpath "$file")" "$root$file"
        fi
    done
}

main() {
    local place=$1
    record_pid "$place"
    hostname "$place"
    # pivot_root needs a bind mount. It is read-only, so that no place changes another's system.
    mount --make-rprivate /
    mount_read_only "$TREE" "$TREE"
    mount_own "$place" "$TREE"
    mount_shared "$TREE"
    [[ $place != login ]] || mount_host_settings "$TREE"
    cp "$HERE/boot.sh" "$TREE/run/boot.sh"
    wait_until 20 test -e "$RUN/$place/plugged" || die "$place was not connected to the network within 20 s"
    cd "$TREE"
    pivot_root . mnt
    # From here on, every program is the tree's.
    exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 \
        tini -- bash /run/boot.sh "$place"
}

main "$@"
