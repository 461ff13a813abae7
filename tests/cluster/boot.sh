#!/usr/bin/env bash
# Starts the daemons of a place, inside it. The last one stays in the foreground; when it ends, so
# does the place.
set -euo pipefail

start_munge() {
    local deadline=$((SECONDS + 20))
    install -d -o munge -g munge -m 755 /run/munge
    install -d -o munge -g munge -m 700 /var/log/munge
    setpriv --reuid munge --regid munge --init-groups munged --seed-file=/run/munge/seed
    until [[ -S /run/munge/munge.socket.2 ]]; do
        ((SECONDS < deadline)) || {
            echo "munged has created no socket within 20 s" >&2
            return 1
        }
        sleep 0.05
    done
}

main() {
    local place=$1
    umount --lazy /mnt # the host's file system
    start_munge
    install -d -o slurm -g slurm -m 755 /var/log/slurm /var/spool/slurmctld
    install -d -m 755 /var/spool/slurmd
    case $place in
    controller) exec slurmctld -D ;;
    login) exec sleep infinity ;;
    *) exec slurmd -D ;;
    esac
}

main "$@"
