#!/usr/bin/env bash
# Builds the root file system of all places of the cluster: Debian sid, which has Apptainer, with
# Slurm. It is built only once, and again when this file has changed.
set -euo pipefail
# shellcheck source=tests/cluster/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# The packages that the project needs on a login node (bash, coreutils, make, Slurm's clients,
# Apptainer), those that build a Debian base without root (mmdebstrap, mount, uidmap), and the nodes'
# daemons. No Python.
PACKAGES=(
    apptainer squashfuse fuse-overlayfs uidmap
    slurm-wlm munge
    mmdebstrap mount
    make iproute2 procps tini ca-certificates tzdata
)

# Prints the Debian mirror: SIFTUNE_DEBIAN_MIRROR, or else the one that this machine's apt uses.
mirror() {
    local found
    found=${SIFTUNE_DEBIAN_MIRROR:-}
    if [[ -z $found ]]; then
        # shellcheck disable=SC2016 # apt expands $(REPO_URI)
        found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
            'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)
    fi
    [[ -n $found ]] || die "this machine's apt sources have no Debian mirror; run apt-get update," \
        "or set SIFTUNE_DEBIAN_MIRROR to a mirror's address"
    printf '%s\n' "$found"
}

# Accounts have the same uid everywhere, because all places share this tree. `apptainer build` and
# mmdebstrap map subordinate ids when an account is root inside a build.
add_accounts() {
    local root=$1
    local account uid=30000
    : >"$root/etc/subuid"
    for account in "${ACCOUNTS[@]}"; do
        uid=$((uid + 1))
        chroot "$root" useradd --uid "$uid" --shell /bin/bash --no-create-home "$account"
        printf '%s:%d:65536\n' "$account" $((uid * 65536)) >>"$root/etc/subuid.new"
    done
    # Some versions of useradd add their own ranges.
    mv "$root/etc/subuid.new" "$root/etc/subuid"
    cp "$root/etc/subuid" "$root/etc/subgid"
}

# Creates all mount points now, because the tree is mounted read-only.
add_mount_points() {
    local root=$1
    mkdir -p "$root"/{work,tmploc,etc/munge,etc/slurm,etc/apt}
    touch "$root"/etc/{pip.conf,resolv.conf,hosts,hostname,profile.d/host.sh}
    ln -sf /usr/share/zoneinfo/UTC "$root/etc/localtime"
    rm -rf "$root/etc/slurm/"*
    rm -f "$root"/usr/bin/python3* # in case a package depends on it one day
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
    any_alive && die "$TREE must be built again, but the cluster is running from it; first: make cluster-down"
    require_program mmdebstrap mmdebstrap
    from=$(mirror)
    log "building $TREE from Debian sid, which takes about a minute"
    trap 'rm -rf "$TREE.new"' EXIT
    rm -rf "$TREE.new"
    mkdir -p "$STATE"
    make_tree "$from" "$TREE.new"
    rm -rf "$TREE" "$TREE.inputs"
    mv "$TREE.new" "$TREE"
    printf '%s\n' "$inputs" >"$TREE.inputs"
}

main "$@"
