#!/usr/bin/env bash
# Writes slurm/sites/NAME.env from what Slurm says of this cluster, for the user to check. `make site` calls it.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

main() {
    local name=${NAME:-} file partitions='' line part nodes limit gpus cpus mib minutes most=0 most_cpus=0 most_mib=0 type=''
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$ ]] || die "NAME must be letters, digits, '_' and '-', got '$name': make site NAME=mycluster" 2
    file=$PROJECT/slurm/sites/$name.env
    [[ ! -e $file ]] || die "there is a file slurm/sites/$name.env: remove it, or give another NAME" 2
    command -v sinfo > /dev/null || die "sinfo was not found: run this on a login node of the cluster" 2
    while IFS='|' read -r part nodes limit gpus cpus mib; do
        minutes=$(minutes_of "${limit/infinite/525600}") || continue
        [[ -z $type && $gpus =~ gpu:([A-Za-z][^:,\(]*): ]] && type=${BASH_REMATCH[1]}
        gpus=$(gpus_of "$(grep -o 'gpu[^,]*' <<< "$gpus" | head -n 1)") cpus=${cpus%+} mib=${mib%+}
        [[ $gpus =~ ^[0-9]+$ ]] || gpus=0
        ((gpus < most)) || most_cpus=$cpus most_mib=$mib most=$gpus
        line=${part%\*}:$nodes:$minutes
        ((gpus)) || line+=:0:$cpus:$mib
        # A partition may have several kinds of nodes: the first line with GPUs counts.
        [[ " $partitions " == *" ${part%\*}:"* ]] || partitions+="${partitions:+ }$line"
    done < <(sinfo --noheader --format='%P|%D|%l|%G|%c|%m' | sort -t '|' -k 1,1 -k 4,4r)
    [[ -n $partitions ]] || die 'sinfo shows no partition' 1
    {
        printf '# Written by make site from sinfo: check each line. slurm/sites/README.md describes the variables.\n'
        printf 'PARTITIONS="%s"\nGPUS_PER_NODE=%s\nCPUS_PER_NODE=%s\n' "$partitions" "$most" "$most_cpus"
        printf '# Slurm refuses a job that asks for more than it configured: less is safe.\nMEM_PER_NODE_MIB=%s\n' "$most_mib"
        printf '# File systems that your data are on, such as /scratch,/work.\nBINDS=""\n'
        printf "# The nodes' network, if their names resolve to another one: ip -4 addr on a node.\nINTERFACE=\"\"\n"
        [[ -z $type ]] || printf '# If a type of GPU must be given.\n#GPU_REQUEST=--gres=gpu:%s:%%g\n' "$type"
        [[ -z $(account) ]] || printf 'ACCOUNT=%s\n' "$(account)"
    } > "$file"
    (load_site "$PROJECT" "$name")
    cat "$file"
    log "wrote slurm/sites/$name.env: check it, then try make submit SITE=$name DRY_RUN=1 $( ((most)) && echo "GPUS=$most" || echo NODES=1)"
}

# account: prints the user's default account, if Slurm accounts for jobs
account() {
    sacctmgr --noheader --parsable2 show user "$USER" format=defaultaccount 2> /dev/null | head -n 1 || true
}

main
