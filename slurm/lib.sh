# Functions shared by the scripts in this directory. Sourced, never run.
# shellcheck shell=bash disable=SC2034 # IN_IMAGE is used by the scripts that source this

# $HOSTNAME is not used, because srun copies the batch node's value to the other nodes.
NODE=${SLURMD_NODENAME:-$(uname -n)}
NODE=${NODE%%.*}

source "$(dirname "${BASH_SOURCE[0]}")/ports.sh"
source "$(dirname "${BASH_SOURCE[0]}")/sbatch.sh"
source "$(dirname "${BASH_SOURCE[0]}")/site.sh"
source "$(dirname "${BASH_SOURCE[0]}")/again.sh"
source "$(dirname "${BASH_SOURCE[0]}")/check.sh"
source "$(dirname "${BASH_SOURCE[0]}")/clean.sh"

readonly SAVE_S=60 # for the driver to save its study, at the time limit and after make cancel

log() {
    printf '%s %s: %s\n' "$(date +%H:%M:%S)" "$NODE" "$*" >&2
}

# die MESSAGE [EXIT_CODE]
die() {
    log "$1"
    exit "${2:-1}"
}

# quiet_deaths: prevents bash from reporting, with a line of its script, that a process was killed. What is worth
# knowing is logged. Bash is silent about signals that it traps; this has no effect on the processes.
quiet_deaths() {
    # shellcheck disable=SC2173 # bash accepts it, and reports no killed process
    trap : KILL BUS SEGV ABRT
}

# pause SECONDS: waits. Unlike sleep, it is no process, whose end bash would report when Slurm signals the whole job.
pause() {
    [[ -n ${silent_fd:-} ]] || exec {silent_fd}<> <(:)
    read -rt "$1" -u "$silent_fd" || true
}

# last_words FILE: prints the end of a log of Ray, on one line, without stack traces and what is no error
last_words() {
    grep -vE '^ *(\*\*\*|@|#[0-9]+ |/|\[state-dump\]|[^ ]*\(\+0x)|StackTrace|^ *\[[^]]* [IW] [0-9 ]*\]|^ *- |^ *[A-Z].*:$|-- $|^ *$' "$1" 2> /dev/null | tail -n 3 | cut -c -300 | tr '\n' ' ' || true
}

# node_tmp PATTERN: prints the directory on this node's own disk; %u is the job's user, and %j its number
node_tmp() {
    local path=$1
    path=${path//%u/${SLURM_JOB_USER:-$USER}}
    printf '%s\n' "${path//%j/$SLURM_JOB_ID}"
}

# own_directory PARENT NAME: creates a directory that only this account can enter, and prints its path. The
# name is predictable. If another account already has it, another name is used.
own_directory() {
    local path=$1/$2
    mkdir -p "$1" || return
    [[ -L $path || ! -O $path ]] || rm -rf "$path" # left by an earlier run of this job
    mkdir -m 700 "$path" 2>/dev/null || path=$(mktemp -d "$1/sift-XXXXXX") || return
    printf '%s\n' "$path"
}

# address [INTERFACE]: prints this node's IPv4 address on INTERFACE, or the one that its name resolves to
address() {
    local ip
    if [[ -n ${1:-} ]]; then
        ip=$(ip -4 -o addr show dev "$1" 2>/dev/null | awk '{sub("/.*", "", $4); print $4; exit}') || true
        [[ -n $ip ]] || die "no IPv4 address on the interface '$1': correct INTERFACE in the site's file"
    else
        ip=$(getent ahostsv4 "$NODE" | awk '$1 !~ /^127\./ {print $1; exit}') || true
        [[ -n $ip ]] || die "$NODE does not resolve to an address: set INTERFACE in the site's file"
    fi
    printf '%s\n' "$ip"
}

# certificate NAME [ADDRESS]: creates NAME.key and NAME.crt in the job's tls/, for a server at ADDRESS.
# Without ADDRESS, creates the key and certificate of the authority that signs the others.
certificate() {
    local path=$job/tls/$1 openssl=(openssl)
    command -v openssl > /dev/null || openssl=("${IN_IMAGE[@]}" openssl)
    if [[ -z ${2:-} ]]; then
        "${openssl[@]}" req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
            -subj "/CN=siftune-$SLURM_JOB_ID" -keyout "$path.key" -out "$path.crt" 2> "$path.log"
        return
    fi
    printf 'subjectAltName=IP:%s,IP:127.0.0.1,DNS:localhost\n' "$2" > "$path.names"
    "${openssl[@]}" req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -subj "/CN=$1" -keyout "$path.key" -out "$path.csr" 2> "$path.log" &&
        "${openssl[@]}" x509 -req -in "$path.csr" -CA "$job/tls/job.crt" -CAkey "$job/tls/job.key" \
            -set_serial "0x$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')" -days 365 \
            -extfile "$path.names" -out "$path.crt" 2>> "$path.log"
}

# in_image IMAGE JOB [NAME]: sets IN_IMAGE, the prefix that runs a command in the container, with the job's
# token and the certificate NAME, and without a home directory. It is an array and not a function, so that
# a background process is the command itself and can be signalled.
#
# Ray's own check of the token is incomplete: in 2.60, calling RaySyncer/StartSync without a token terminates
# the head. Therefore TLS is used: a connection without a certificate of the job is refused.
in_image() {
    local image=$1 job=$2 own=$2/tls/${3:-driver}
    IN_IMAGE=("$CONTAINER" --silent exec)
    [[ -z $GPU_FLAG ]] || IN_IMAGE+=("$GPU_FLAG")
    [[ -z $BINDS ]] || IN_IMAGE+=(--bind "$BINDS")
    [[ ! -e $job/overlay ]] || IN_IMAGE+=(--overlay "$(< "$job/overlay")")
    IN_IMAGE+=(--no-home --bind "$PWD" --bind "$(node_tmp "$NODE_TMP")" --pwd "$PWD"
        --env "RAY_AUTH_MODE=token,RAY_AUTH_TOKEN_PATH=$job/token,SIFTUNE_JOB=$job,SIFTUNE_ORIGIN=${origin:-}"
        --env "RAY_USE_TLS=1,RAY_TLS_CA_CERT=$job/tls/job.crt,RAY_TLS_SERVER_CERT=$own.crt,RAY_TLS_SERVER_KEY=$own.key"
        # As in backend/environment.py, because trials inherit the environment of their node's Ray.
        --env "RAY_TRAIN_V2_ENABLED=0,RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1"
        # The default cache directories of Matplotlib and TorchInductor have fixed names in /tmp, which
        # another account may have taken.
        --env "MPLCONFIGDIR=$job/matplotlib,TORCHINDUCTOR_CACHE_DIR=$job/inductor"
        "$image")
}
