#!/usr/bin/env bash
# Makes a read-only overlay of the image with the user's own packages. From requirements.txt it writes
# requirements.lock, with versions and hashes, beside it, and from that requirements-SUM.sqfs. Both are
# made again only if the list, the lock or the packages of the image have changed. It prints the path of
# the overlay on standard output. `make overlay` calls it, and `make submit` does so for a trainable
# with a requirements.txt beside it.
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

# sum FILE…: prints a short checksum of the contents
sum() { cat "$@" | sha256sum | cut -c 1-12; }

# Prints what identifies the packages in the image: the digests of the lock file and of the base.
packages_of_image() {
  "$apptainer" inspect --labels "$image" 2>/dev/null |
    sed -n 's/^siftune\.lock: *//p; s/^org\.opencontainers\.image\.base\.digest: *//p'
}

# in_image SCRIPT: runs a shell script in the image, where /mnt is the scratch directory
in_image() {
  local bundle=/mnt/ca-bundle.pem
  "$apptainer" --silent exec --contain --no-home --bind "$scratch:/mnt" \
    --env "UV_CACHE_DIR=/mnt/cache,UV_NO_CONFIG=1,PIP_CONFIG_FILE=/dev/null,PIP_NO_CACHE_DIR=1,TMPDIR=/mnt/tmp" \
    ${certificates:+--env "SSL_CERT_FILE=$bundle,PIP_CERT=$bundle,REQUESTS_CA_BUNDLE=$bundle"} \
    "$image" bash -euc "PATH=/mnt/bootstrap/bin:\$PATH own=/opt/siftune/venv/bin/python
$1" >&2
}

# Installs uv, in the version that the image was built with.
prepare() {
  mkdir -p "$scratch/tmp"
  cp "$here/flavours/bootstrap.lock" "$here/packages.py" "$scratch"
  [[ -z $certificates ]] || cp -L "$certificates" "$scratch/ca-bundle.pem"
  # shellcheck disable=SC2016 # expanded in the image
  in_image '
    "$($own -c "import sys; print(sys._base_executable)")" -m venv /mnt/bootstrap
    python -m pip install -q --disable-pip-version-check --require-hashes -r /mnt/bootstrap.lock
  ' || die "uv could not be installed, for the reason above"
}

# Writes the lock file. Packages of the image keep their versions.
resolve() {
  cp "$list" "$scratch/requirements.in"
  # shellcheck disable=SC2016 # expanded in the image
  in_image '
    $own -I /mnt/packages.py /mnt
    uv pip compile -q --python $own --generate-hashes --no-emit-index-url --no-annotate --no-header \
      -c /mnt/constraints --excludes /mnt/excludes $(sed "s/^/--no-emit-package=/" /mnt/names) \
      -o /mnt/requirements.lock /mnt/requirements.in
  ' || die "$list conflicts with the packages in $image, or a package cannot be downloaded; the reason" \
    "is above. If the list is not meant for the image, rename it"
  { printf '%s\n' "$header" && cat "$scratch/requirements.lock"; } > "$lock.part"
  mv "$lock.part" "$lock"
}

build() {
  cp "$lock" "$scratch/requirements.lock"
  # shellcheck disable=SC2016 # expanded in the image
  in_image '
    site=/mnt/tree$($own -c "import sysconfig; print(sysconfig.get_path(\"purelib\"))")
    uv pip install -q --python $own --target $site --require-hashes --no-deps --no-build \
      --compile-bytecode --link-mode=copy -r /mnt/requirements.lock
    rm -rf $site/bin $site/.lock
  ' || die "$lock could not be installed, for the reason above"
  command -v mksquashfs > /dev/null || die "mksquashfs was not found on this machine: install squashfs-tools"
  mksquashfs "$scratch/tree" "$overlay.part" -quiet -no-progress -noappend -all-root >&2
  mv "$overlay.part" "$overlay"
}

main() {
  local packages directory
  certificates=${CA_BUNDLE:-${SSL_CERT_FILE:-}}
  [[ -r $list ]] || die "there is no $list: name the list with REQUIREMENTS=PATH"
  [[ -r $image ]] || die "there is no image $image: build it with make image, or name another with IMAGE=PATH"
  packages=$(packages_of_image)
  [[ -n $packages ]] || die "$image is not an image of siftune: its labels name no lock file"
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
