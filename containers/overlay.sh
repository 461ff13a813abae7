#!/usr/bin/env bash
# Packages of the user's own as a read-only overlay of the image: requirements.txt → requirements.lock,
# with versions and hashes, beside it → requirements-SUM.sqfs, once per lock and set of the image's own
# packages. Says on standard output where the overlay is. `make overlay` calls it, and `make submit`
# for a trainable with a requirements.txt beside it.
#
#   REQUIREMENTS  the list [requirements.txt]
#   IMAGE         the image [tune.sif]
#   CA_BUNDLE     certificates, for a site behind a TLS proxy [$SSL_CERT_FILE]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here apptainer=${APPTAINER:-apptainer}
readonly image=${IMAGE:-tune.sif} list=${REQUIREMENTS:-requirements.txt}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "make overlay: $*"
  exit 1
}

# sum FILE…: of their contents, short
sum() { cat "$@" | sha256sum | cut -c 1-12; }

# What the packages in the image are known by: the lock, and the base that it was laid on.
packages_of_image() {
  "$apptainer" inspect --labels "$image" 2>/dev/null |
    sed -n 's/^siftune\.lock: *//p; s/^org\.opencontainers\.image\.base\.digest: *//p'
}

# in_image PROGRAM: a shell's, in the image with the scratch directory as /mnt and nothing else
in_image() {
  local bundle=/mnt/ca-bundle.pem
  "$apptainer" --silent exec --contain --no-home --bind "$scratch:/mnt" \
    --env "UV_CACHE_DIR=/mnt/cache,UV_NO_CONFIG=1,PIP_CONFIG_FILE=/dev/null,PIP_NO_CACHE_DIR=1,TMPDIR=/mnt/tmp" \
    ${certificates:+--env "SSL_CERT_FILE=$bundle,PIP_CERT=$bundle,REQUESTS_CA_BUNDLE=$bundle"} \
    "$image" bash -euc "PATH=/mnt/bootstrap/bin:\$PATH own=/opt/siftune/venv/bin/python
$1" >&2
}

# uv, as the image was made with.
prepare() {
  mkdir -p "$scratch/tmp"
  cp "$here/flavours/bootstrap.lock" "$here/packages.py" "$scratch"
  [[ -z $certificates ]] || cp -L "$certificates" "$scratch/ca-bundle.pem"
  # shellcheck disable=SC2016 # the image's
  in_image '
    "$($own -c "import sys; print(sys._base_executable)")" -m venv /mnt/bootstrap
    python -m pip install -q --disable-pip-version-check --require-hashes -r /mnt/bootstrap.lock
  ' || die "uv could not be installed, its reason is above"
}

# What is in the image already stays as it is.
resolve() {
  cp "$list" "$scratch/requirements.in"
  # shellcheck disable=SC2016 # the image's
  in_image '
    $own -I /mnt/packages.py /mnt
    uv pip compile -q --python $own --generate-hashes --no-emit-index-url --no-annotate --no-header \
      -c /mnt/constraints --excludes /mnt/excludes $(sed "s/^/--no-emit-package=/" /mnt/names) \
      -o /mnt/requirements.lock /mnt/requirements.in
  ' || die "$list and what is in $image do not go together, or cannot be had; the reason is above." \
    "A list that is not meant for the image needs another name"
  { printf '%s\n' "$header" && cat "$scratch/requirements.lock"; } > "$lock.part"
  mv "$lock.part" "$lock"
}

build() {
  cp "$lock" "$scratch/requirements.lock"
  # shellcheck disable=SC2016 # the image's
  in_image '
    site=/mnt/tree$($own -c "import sysconfig; print(sysconfig.get_path(\"purelib\"))")
    uv pip install -q --python $own --target $site --require-hashes --no-deps --no-build \
      --compile-bytecode --link-mode=copy -r /mnt/requirements.lock
    rm -rf $site/bin $site/.lock
  ' || die "$lock cannot be installed, the reason is above"
  command -v mksquashfs > /dev/null || die "there is no mksquashfs on this machine (squashfs-tools)"
  mksquashfs "$scratch/tree" "$overlay.part" -quiet -no-progress -noappend -all-root >&2
  mv "$overlay.part" "$overlay"
}

main() {
  local packages directory
  certificates=${CA_BUNDLE:-${SSL_CERT_FILE:-}}
  [[ -r $list ]] || die "there is no $list: REQUIREMENTS=PATH"
  [[ -r $image ]] || die "there is no image $image: make image, or IMAGE=PATH"
  packages=$(packages_of_image)
  [[ -n $packages ]] || die "$image is none of siftune's: its labels name no lock"
  directory=$(cd "$(dirname "$list")" && pwd)
  lock=${list%.txt}.lock
  header="# $(basename "$list") $(sum "$list"), image $(sum <(printf '%s' "$packages"))"
  scratch='' overlay=$lock
  trap 'rm -rf "$scratch" "$lock.part" "$overlay.part"' EXIT
  if [[ ! -r $lock || $(head -n 1 "$lock") != "$header" ]]; then
    scratch=$(mktemp -d)
    prepare
    resolve
  fi
  overlay=$directory/$(basename "${list%.txt}")-$(sum "$lock").sqfs
  if [[ ! -r $overlay ]]; then
    if [[ -z $scratch ]]; then
      scratch=$(mktemp -d)
      prepare
    fi
    build
    say "$overlay: $(du -h "$overlay" | cut -f 1); apptainer run --overlay $overlay $image …"
  fi
  printf '%s\n' "$overlay"
}

main
