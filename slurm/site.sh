# The site's file: its variables, their defaults, and the checks of their values. Sourced by lib.sh.
# shellcheck shell=bash disable=SC2034 # the variables are used by the scripts that source this

readonly SITE_VARIABLES=(PARTITIONS GPUS_PER_NODE CPUS_PER_NODE MEM_PER_NODE_MIB ACCOUNT BINDS NODE_TMP INTERFACE IMAGE
    IMAGES_BELOW GPU_FLAG GPU_REQUEST MEM_REQUEST EXPORT_REQUEST SBATCH_OPTIONS CONTAINER LOGIN_SETUP NODE_SETUP MPS
    STATUS_COMMAND)

# load_site PROJECT NAME: sets the variables of slurm/sites/NAME.env, and PARTITION_LINES, a line for each partition:
# name:nodes:minutes:GPUs of a job:CPUs of a node:MiB of a node. Reports all mistakes of the file at once.
load_site() {
    local project=$1 name=$2 file known
    known=$(cd "$project/slurm/sites" && printf '%s ' *.env)
    file=$project/slurm/sites/$name.env
    [[ $name =~ ^[A-Za-z0-9_-]+$ && -r $file ]] ||
        die "SITE must be one of: ${known//.env/}; got '$name'. slurm/sites/README.md says how to add a site" 2
    SITE_MISTAKES=() PARTITION_LINES=()
    PARTITIONS='' GPUS_PER_NODE='' CPUS_PER_NODE='' MEM_PER_NODE_MIB=''
    ACCOUNT='' BINDS='' NODE_TMP=/tmp INTERFACE='' IMAGE=tune.sif MPS='' STATUS_COMMAND=''
    GPU_FLAG=--nv GPU_REQUEST=--gres=gpu:%g MEM_REQUEST=--mem=%mM EXPORT_REQUEST=--export=NONE SBATCH_OPTIONS='' CONTAINER=apptainer
    LOGIN_SETUP='' NODE_SETUP='' IMAGES_BELOW=''
    if bash -n "$file" 2> /dev/null; then
        check_names "$file"
        # shellcheck source=/dev/null
        source "$file"
        check_values
    else
        SITE_MISTAKES+=("it is not Bash: $(bash -n "$file" 2>&1 | head -n 1 || true)")
    fi
    if ((${#SITE_MISTAKES[@]})); then
        printf "slurm/sites/$name.env: %s\n" "${SITE_MISTAKES[@]}" >&2
        exit 2
    fi
}

# check_names FILE: notes lines that set no variable of a site
check_names() {
    local file=$1 name
    while read -r name; do
        [[ " ${SITE_VARIABLES[*]} " == *" $name "* ]] ||
            SITE_MISTAKES+=("unknown variable $name; the variables are: ${SITE_VARIABLES[*]}")
    done < <(sed -nE 's/^ *([A-Za-z_][A-Za-z0-9_]*)=.*/\1/p' "$file")
}

# check_values: checks the variables, and converts those that may be pasted from sinfo
check_values() {
    GPUS_PER_NODE=$(gpus_of "$GPUS_PER_NODE")
    CPUS_PER_NODE=${CPUS_PER_NODE%+} MEM_PER_NODE_MIB=${MEM_PER_NODE_MIB%+}
    must GPUS_PER_NODE '^[0-9]{1,3}$' 'the GPUs of a node, 0 for none' 'GPUS_PER_NODE=4' 'sinfo -o "%G"'
    must CPUS_PER_NODE '^[1-9][0-9]{0,4}$' 'the cores of a node' 'CPUS_PER_NODE=32' 'sinfo -o "%c"'
    must MEM_PER_NODE_MIB '^[1-9][0-9]{2,8}$' 'the memory of a node in MiB' 'MEM_PER_NODE_MIB=120000' 'sinfo -o "%m"'
    must ACCOUNT '^([A-Za-z0-9][A-Za-z0-9._@-]{0,63})?$' 'an account of Slurm, or empty' 'ACCOUNT=""'
    must BINDS '^(/[^ ,"]*(,/[^ ,"]*)*)?$' 'directories with commas between them' 'BINDS=/scratch,/work'
    must NODE_TMP '^/[^ ,:"]*$' "a directory on the node's own disk" 'NODE_TMP=/tmp'
    must INTERFACE '^[A-Za-z0-9._-]{0,15}$' 'the name of a network interface, or empty' 'INTERFACE=ib0' 'ip -4 addr'
    must IMAGE '^[^-].*$' 'the path of the image' 'IMAGE=tune.sif'
    must MPS '^1?$' '1 or empty' 'MPS=""'
    must GPU_FLAG '^(--nv|--rocm|)$' '--nv, --rocm or empty' 'GPU_FLAG=--nv'
    must GPU_REQUEST '^(--?[a-z].*%g.*|)$' 'an option with %g for the number of GPUs, or empty' 'GPU_REQUEST=--gres=gpu:%g'
    must MEM_REQUEST '^(--?[a-z].*%m.*|)$' 'an option with %m for the MiB, or empty' 'MEM_REQUEST=--mem=%mM'
    must EXPORT_REQUEST '^(--export=.+|)$' 'an option of sbatch, or empty' 'EXPORT_REQUEST=--export=NONE'
    must CONTAINER '^(/[^ ]*/)?(apptainer|singularity)$' 'apptainer or singularity' 'CONTAINER=apptainer'
    must IMAGES_BELOW '^(/[^ ]*)?$' 'a directory, or empty' 'IMAGES_BELOW=/work/conteneurs'
    xargs -r true <<< "$SBATCH_OPTIONS" 2> /dev/null || SITE_MISTAKES+=("SBATCH_OPTIONS has a quote without its end: $SBATCH_OPTIONS")
    check_partitions
}

# must VARIABLE PATTERN WHAT LINE [COMMAND]: notes a mistake if the value does not match. COMMAND shows the right value
must() {
    [[ ${!1} =~ $2 ]] || SITE_MISTAKES+=("$1 must be $3, got '${!1}': write $4${5:+ with the value that $5 shows}")
}

# gpus_of TEXT: prints a number of GPUs that is given as sinfo shows it, such as gpu:a100:2(S:0-1)
gpus_of() {
    local text=${1%%(*}
    [[ $text == gpu:* ]] && text=${text##*:}
    [[ $text == none ]] && text=0
    printf '%s\n' "$text"
}

# check_partitions: sets PARTITION_LINES. An entry is name:nodes:minutes[:GPUs[:CPUs[:MiB]]], and entries are separated
# by spaces; or it is a line as sinfo -o "%P %D %l" prints it
check_partitions() {
    local line entry name nodes time gpus cpus mib minutes rest
    local -a entries
    while read -r line; do
        [[ $line != PARTITION\ * ]] || continue # the header of sinfo
        if [[ $line =~ ^([^ :]+)\ +([0-9]+)\ +([0-9:-]+|infinite)$ ]]; then
            time=${BASH_REMATCH[3]}
            minutes=$(minutes_of "${time/infinite/525600}") || minutes=$time
            entries=("${BASH_REMATCH[1]%\*}:${BASH_REMATCH[2]}:$minutes")
        else
            read -r -a entries <<< "$line"
        fi
        for entry in "${entries[@]}"; do
            IFS=: read -r name nodes minutes gpus cpus mib rest <<< "$entry"
            if [[ $name =~ ^[A-Za-z0-9._-]*$ && $nodes =~ ^[1-9][0-9]{0,5}$ && $minutes =~ ^[1-9][0-9]{0,6}$ && -z $rest &&
                $gpus =~ ^[0-9]{0,6}$ && $cpus =~ ^[0-9]{0,5}$ && $mib =~ ^[0-9]{0,9}$ ]]; then
                PARTITION_LINES+=("$name:$nodes:$minutes:${gpus:-$((nodes * ${GPUS_PER_NODE:-0}))}:${cpus:-$CPUS_PER_NODE}:${mib:-$MEM_PER_NODE_MIB}")
            else
                SITE_MISTAKES+=("PARTITIONS has '$entry', which is not name:nodes:minutes[:GPUs]: write PARTITIONS=\"small:4:240\", or paste the lines of sinfo -h -o \"%P %D %l\"")
            fi
        done
    done <<< "$PARTITIONS"
    ((${#PARTITION_LINES[@]} + ${#SITE_MISTAKES[@]})) ||
        SITE_MISTAKES+=('PARTITIONS is empty: write PARTITIONS="name:nodes:minutes" with the values that sinfo -o "%P %D %l" shows')
}

# set_up LINES: runs the site's set-up lines, such as module load apptainer
set_up() {
    [[ -n $1 ]] || return 0
    # Scripts of the system expect neither option.
    set +eu
    # shellcheck source=/dev/null
    [[ $(type -t module) == function ]] || source /etc/profile
    eval "$1" || log "these set-up lines of the site's file failed: $1"
    set -eu
}
