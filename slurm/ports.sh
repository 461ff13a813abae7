# Chooses ports that are free on this node. Sourced by lib.sh.
# shellcheck shell=bash

readonly BLOCK=250 # ports for one job, more than Ray needs on a node

# free_ports COUNT NUMBER: prints the first of COUNT consecutive ports that are free on this node. All are
# below the ephemeral range, because the kernel might assign a port of that range before it is used. Two
# jobs that search at once would find the same ports, so each begins at a block of BLOCK ports that NUMBER
# selects.
free_ports() {
    local count=$1 number=$2 top used blocks tries first port
    read -r top _ < /proc/sys/net/ipv4/ip_local_port_range
    ((top > 32768 || top < 20000)) && top=32768
    used=$(used_ports)
    blocks=$(((top - 10000) / BLOCK))
    for ((tries = 0; tries < blocks; tries++)); do
        first=$((10000 + (number + tries * 17) % blocks * BLOCK))
        for ((port = first; port < first + count; port++)); do
            [[ $used == *" $port "* ]] && continue 2
        done
        printf '%s\n' "$first"
        return
    done
    die "there are no $count consecutive free ports on $NODE"
}

# used_ports: prints the local TCP ports in use on this node, each between spaces
used_ports() {
    local file line
    printf ' '
    for file in /proc/net/tcp /proc/net/tcp6; do
        [[ -r $file ]] || continue
        while read -r _ line _; do
            [[ $line == *:* ]] && printf '%d ' "0x${line##*:}"
        done < <(tail -n +2 "$file")
    done
}
