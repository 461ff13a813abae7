# Checks a node. Sourced by lib.sh, never run.
# shellcheck shell=bash disable=SC2034 # tmp is used by the scripts that source this

readonly ROOM_MIB=512 # free space needed on the node's own disk

# check IMAGE: checks, within seconds, for problems that would make every start on this node fail. Sets tmp to the
# directory on the node's own disk. Calls refuse MESSAGE of the script that sources this
check() {
    local image=$1 free_mib bind architecture
    [[ -r $image ]] || refuse "cannot read the image $image from this node"
    for bind in ${BINDS//,/ }; do
        [[ -e ${bind%%:*} ]] || refuse "BINDS names $bind, which does not exist on this node: correct the site's file"
    done
    tmp=$(node_tmp "$NODE_TMP")
    # Ray's sockets are below it, and the path of a socket has at most 107 bytes.
    ((${#tmp} + ${#SLURM_JOB_ID} + 8 <= 43)) ||
        refuse "NODE_TMP gives the path $tmp/sift-$SLURM_JOB_ID/r, longer than 43 characters: set a shorter one in the site's file"
    mkdir -p "$tmp" || refuse "cannot create $tmp: correct NODE_TMP in the site's file"
    free_mib=$(df -Pm "$tmp" | awk 'NR == 2 {print $4}')
    ((free_mib >= ROOM_MIB)) || refuse "only $free_mib MiB are free in $tmp, $ROOM_MIB are needed"
    architecture=$(architecture_of "$image")
    [[ $architecture == "$(uname -m)" ]] ||
        refuse "the image is for $architecture, but this node is $(uname -m): build it with make image ARCH=$(uname -m)"
}

# architecture_of IMAGE: prints the image's architecture in the format of uname -m, or this node's if the image
# does not name one
architecture_of() {
    local architecture
    architecture=$("$CONTAINER" sif header "$1" 2>/dev/null |
        sed -n 's/amd64$/x86_64/; s/arm64$/aarch64/; s/^Primary Architecture: *//p') || true
    printf '%s\n' "${architecture:-$(uname -m)}"
}
