# The options of sbatch for a job, with the time of its warning. Sourced by lib.sh.
# shellcheck shell=bash disable=SC2034 # OPTIONS is used by the scripts that source this

# sbatch_options NAME PARTITION ACCOUNT NODES GPUS_PER_NODE MINUTES: sets OPTIONS, without the script
sbatch_options() {
    local name=$1 partition=$2 account=$3 nodes=$4 gpus=$5 minutes=$6 warning_s
    # The signal leaves time to save and to stop Ray. Slurm may send it a minute early.
    warning_s=$((minutes * 15 < 120 ? minutes * 15 : 120))
    OPTIONS=(
        --job-name="$name"
        ${partition:+--partition="$partition"}
        ${account:+--account="$account"}
        --nodes="$nodes"
        --ntasks-per-node=1
        --cpus-per-task=$((CPUS_PER_NODE * gpus / GPUS_PER_NODE))
        --mem=$((MEM_PER_NODE_MIB * gpus / GPUS_PER_NODE))M
        --gres=gpu:"$gpus"
        --time="$minutes"
        --signal=B:USR1@"$warning_s"
        --requeue
        --no-kill # a lost node must not end the job
        --output=slurm-%j.out
        --open-mode=append
        --export=NONE
    )
}
