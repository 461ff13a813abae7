# The options of sbatch for a job, with the time of its warning. Sourced by lib.sh.
# shellcheck shell=bash disable=SC2034 # OPTIONS is used by the scripts that source this

# minutes_of TIME: prints a time in minutes, rounded up; fails if TIME has none of the forms of Slurm's --time: MINUTES,
# MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES and DAYS-HOURS:MINUTES:SECONDS
minutes_of() {
    local days=0 hours=0 minutes=0 seconds=0
    if [[ $1 =~ ^([0-9]{1,7})(:([0-5]?[0-9]))?$ ]]; then
        minutes=${BASH_REMATCH[1]} seconds=${BASH_REMATCH[3]:-0}
    elif [[ $1 =~ ^([0-9]{1,5}):([0-5]?[0-9]):([0-5]?[0-9])$ ]]; then
        hours=${BASH_REMATCH[1]} minutes=${BASH_REMATCH[2]} seconds=${BASH_REMATCH[3]}
    elif [[ $1 =~ ^([0-9]{1,4})-([0-9]{1,5})(:([0-5]?[0-9])(:([0-5]?[0-9]))?)?$ ]]; then
        days=${BASH_REMATCH[1]} hours=${BASH_REMATCH[2]}
        minutes=${BASH_REMATCH[4]:-0} seconds=${BASH_REMATCH[6]:-0}
    else
        return 1
    fi
    printf '%s\n' $(((10#$days * 24 + 10#$hours) * 60 + 10#$minutes + (10#$seconds > 0)))
}

# sbatch_options NAME PARTITION ACCOUNT NODES GPUS_PER_NODE MINUTES: sets OPTIONS, without the script. A job without GPUs
# gets whole nodes
sbatch_options() {
    local name=$1 partition=$2 account=$3 nodes=$4 gpus=$5 minutes=$6 warning_s line cpus=$CPUS_PER_NODE mib=$MEM_PER_NODE_MIB
    local -a requests=() more
    for line in "${PARTITION_LINES[@]}"; do
        [[ $line != "$partition:"* ]] || IFS=: read -r _ _ _ _ cpus mib <<< "$line"
    done
    if ((gpus)); then
        cpus=$((cpus * gpus / GPUS_PER_NODE)) mib=$((mib * gpus / GPUS_PER_NODE))
        [[ -z $GPU_REQUEST ]] || requests+=("${GPU_REQUEST//%g/$gpus}")
    fi
    [[ -z $MEM_REQUEST ]] || requests=("${MEM_REQUEST//%m/$mib}" "${requests[@]}")
    mapfile -d '' -t more < <(xargs -r printf '%s\0' <<< "$SBATCH_OPTIONS")
    # The signal leaves time to save and to stop Ray. Slurm may send it a minute early.
    warning_s=$((minutes * 15 < 120 ? minutes * 15 : 120))
    OPTIONS=(
        --job-name="$name"
        ${partition:+--partition="$partition"}
        ${account:+--account="$account"}
        --nodes="$nodes"
        --ntasks-per-node=1
        --cpus-per-task="$cpus"
        "${requests[@]}"
        --time="$minutes"
        --signal=B:USR1@"$warning_s"
        --requeue
        --no-kill # a lost node must not end the job
        --output=slurm-%j.out
        --open-mode=append
        ${EXPORT_REQUEST:+"$EXPORT_REQUEST"}
        "${more[@]}"
    )
}
