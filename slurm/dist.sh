#!/usr/bin/env bash
# Packs what a cluster needs into siftune-VERSION.tar: the project, and tune.sif if it was built.
# It is not compressed, because nearly all of it is the image, which is already compressed.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
source "$PROJECT/slurm/lib.sh"

main() {
    local version name scratch
    local -a files=(Makefile README.md README.svg SECURITY.md CONTRIBUTING.md CHANGELOG.md pyproject.toml)
    files+=(containers entrypoints slurm src tests/{,bench/,cluster/}README.md) # the pages that README.md links to
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$PROJECT/pyproject.toml")
    name=siftune-$version
    [[ ! -r $PROJECT/tune.sif ]] || files+=(tune.sif)
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064 # expanded now, because the local variable is gone at the exit
    trap "rm -rf '$scratch'" EXIT
    # Record the commit here: the image's label contains it, and Git may be missing on the machine that builds
    # the image.
    git -C "$PROJECT" rev-parse HEAD > "$scratch/COMMIT" 2>/dev/null || echo unknown > "$scratch/COMMIT"
    tar -cf "$name.tar.part" --transform "s#^#$name/#" --exclude=__pycache__ --exclude='*.egg-info' \
        -C "$PROJECT" "${files[@]}" -C "$scratch" COMMIT
    mv "$name.tar.part" "$name.tar"
    log "$PWD/$name.tar: unpack it on the cluster, then run make submit in $name$([[ -r $PROJECT/tune.sif ]] || echo '; there was no tune.sif to pack')"
}

main
