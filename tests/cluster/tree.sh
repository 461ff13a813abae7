#!/usr/bin/env bash
# Makes the file system that all places of the cluster run from: Debian sid, since that is where
# Apptainer is, with Slurm. Once; anew only when this file has changed.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# What the project asks of a login node (bash, coreutils, make, Slurm's clients, Apptainer), what
# makes a Debian base without root (mmdebstrap, mount, uidmap), and the nodes' daemons. No Python.
PACKAGES=(
    apptainer squashfuse fuse-overlayfs uidmap
    slurm-wlm munge
    mmdebstrap mount
    make iproute2 procps tini ca-certificates tzdata
)

# The mirror that this machine's own apt uses; SIFTUNE_DEBIAN_MIRROR overrides.
mirror() {
    local found
    found=${SIFTUNE_DEBIAN_MIRROR:-}
    if [[ -z $found ]]; then
        # shellcheck disable=SC2016 # $(REPO_URI) is apt's
        found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
            'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)
    fi
    [[ -n $found ]] || die "no Debian mirror among this machine's apt sources; run apt-get update," \
        "or set SIFTUNE_DEBIAN_MIRROR to a mirror's address"
    printf '%s\n' "$found"
}

# Accounts have one uid everywhere because all places share this tree; subordinate ids are what
# `apptainer build` and mmdebstrap map when an account is root inside a build.
add_accounts() {
    local root=$1
    local account uid=30000
    : >"$root/etc/subuid"
    for account in "${ACCOUNTS[@]}"; do
        uid=$((uid + 1))
        chroot "$root" useradd --uid "$uid" --shell /bin/bash --no-create-home "$account"
        printf '%s:%d:65536\n' "$account" $((uid * 65536)) >>"$root/etc/subuid.new"
    done
    # useradd adds ranges of its own in some versions
    mv "$root/etc/subuid.new" "$root/etc/subuid"
    cp "$root/etc/subuid" "$root/etc/subgid"
}

# The tree is mounted read-only: whatever is mounted inside it must already be there.
add_mount_points() {
    local root=$1
    mkdir -p "$root"/{work,tmploc,etc/munge,etc/slurm,etc/apt}
    touch "$root"/etc/{pip.conf,resolv.conf,hosts,hostname,profile.d/host.sh}
    ln -sf /usr/share/zoneinfo/UTC "$root/etc/localtime"
    rm -rf "$root/etc/slurm/"*
    rm -f "$root"/usr/bin/python3* # should a package bring it one day
}

make_tree() {
    local from=$1 into=$2
    # The release file of a mirror's snapshot may have expired.
    mmdebstrap --mode=root --variant=minbase --quiet \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --include="$(IFS=,; printf '%s' "${PACKAGES[*]}")" \
        sid "$into" "deb $from sid main" ||
        die "mmdebstrap failed (above); is sid on $from?"
    add_accounts "$into"
    add_mount_points "$into"
}

main() {
    local inputs from
    require_root
    inputs=$(sha256sum <"${BASH_SOURCE[0]}")
    [[ -e $TREE.inputs && $(<"$TREE.inputs") == "$inputs" ]] && return
    any_alive && die "the cluster runs from $TREE, which is to be made anew; first: make cluster-down"
    require_program mmdebstrap mmdebstrap
    from=$(mirror)
    log "making $TREE from Debian sid, about a minute"
    trap 'rm -rf "$TREE.new"' EXIT
    rm -rf "$TREE.new"
    mkdir -p "$STATE"
    make_tree "$from" "$TREE.new"
    rm -rf "$TREE" "$TREE.inputs"
    mv "$TREE.new" "$TREE"
    printf '%s\n' "$inputs" >"$TREE.inputs"
}

main "$@"
