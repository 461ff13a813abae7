#!/usr/bin/env bash
# Builds the image, without root, if an input has changed since the last build. `make image` calls it.
# It reads environment variables, each of which may be empty:
#
#   OUT        path of the image [tune.sif, or tune-ARCH.sif for another architecture]
#   BASE       the base: debian, for a tree made from Debian packages without a container registry;
#              a site's image (FILE.sif or a directory); or docker://NAME@sha256:… [the official
#              Python image named in tune.def]
#   FLAVOUR    the lock file in containers/flavours [site on a site's image, otherwise cu13]
#   ARCH       x86_64 or aarch64 [this machine's]. Another architecture is emulated by qemu, which
#              root must have registered with the kernel
#   CA_BUNDLE  certificates, for a site behind a TLS proxy; not kept in the image [$SSL_CERT_FILE]
#   CACHE      a directory that keeps downloads for the next build [nothing is kept]
set -euo pipefail

# A build of cu13 needs 10 GiB for temporary files; the image takes 3 GiB.
readonly TREE_GIB=12 IMAGE_GIB=4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly here=$root/containers apptainer=${APPTAINER:-apptainer}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "make image: $*"
  exit 1
}

# ── Settings ─────────────────────────────────────────────────────────────────────────────────────

flavours() {
  local file names=()
  for file in "$here"/flavours/*.args; do names+=("$(basename "$file" .args)"); done
  (IFS=,; printf '%s' "${names[*]}") | sed 's/,/, /g'
}

# argument NAME FILE: prints the value of NAME in an argument file.
argument() { sed -n "s/^ *$1=//p" "$2" | head -n 1; }

# Sets architecture, as uname names it, and debian_architecture. Sets foreign if it is not this
# machine's architecture.
read_architecture() {
  local machine
  machine=$(uname -m)
  case ${ARCH:-$machine} in
    x86_64 | amd64) architecture=x86_64 debian_architecture=amd64 ;;
    aarch64 | arm64) architecture=aarch64 debian_architecture=arm64 ;;
    *) die "unknown ARCH=${ARCH:-$machine}; known: x86_64 (amd64), aarch64 (arm64)" ;;
  esac
  foreign=
  [[ $architecture == "$machine" ]] || foreign=yes
}

check_architecture() {
  local supported
  supported=$(argument ARCHITECTURES "$here/flavours/$flavour.args")
  [[ " $supported " == *" $architecture "* ]] ||
    die "FLAVOUR=$flavour supports only $supported, not $architecture: use FLAVOUR=cu13, or" \
      "FLAVOUR=site on an image whose torch supports older drivers"
  [[ -z $foreign ]] || check_emulation
}

# With the flag F the kernel keeps the emulator open, so that it works inside a container too.
check_emulation() {
  local binfmt=${BINFMT_MISC:-/proc/sys/fs/binfmt_misc}
  local entry=$binfmt/qemu-$architecture
  if ! grep -qsx enabled "$entry" || ! grep -qs '^flags:.*F' "$entry"; then
    die "ARCH=$architecture must be emulated on this $(uname -m) machine, but its kernel has no" \
      "emulator that works in containers ($entry with the flag F). Root can register qemu 8.1 or newer" \
      "(Debian 13, Ubuntu 24.04: apt install qemu-user-static binfmt-support). If $binfmt is empty," \
      "root must first run: mount -t binfmt_misc binfmt_misc $binfmt"
  fi
}

check_apptainer() {
  command -v "$apptainer" >/dev/null ||
    die "$apptainer was not found on this machine. Install it (apptainer.org), load its module" \
      "(module load apptainer), set APPTAINER=PATH, or build elsewhere and copy tune.sif here"
  [[ -z $foreign ]] || is_apptainer_1_4 ||
    die "ARCH=$architecture on this $(uname -m) machine needs Apptainer 1.4 or newer, for build --arch"
}

is_apptainer_1_4() {
  local version
  version=$("$apptainer" --version | sed -n 's/^apptainer version \([0-9.]*\).*/\1/p')
  [[ -n $version && $(printf '%s\n' 1.4 "$version" | sort -V | head -n 1) == 1.4 ]]
}

# check_space DIRECTORY GIB VARIABLE: fails early if the directory has too little space for a build.
check_space() {
  local free_gib
  [[ -w $1 ]] || die "cannot write to $1: name another directory in $3"
  free_gib=$(($(df --output=avail -k "$1" | tail -n 1) / 1024 / 1024))
  ((free_gib >= $2)) ||
    die "$1 has $free_gib GiB free, but a build needs $2 GiB: name a directory with more space in $3"
}

# ── The base: arguments of the recipe, and identity ──────────────────────────────────────────────

# Sets base_kind, base_name and base_identity, which changes if the base changes.
read_base() {
  base_name=${BASE:-docker://$(argument BASE "$here/tune.def")}
  # The name becomes a line of the recipe.
  [[ $base_name != docker:* || $base_name =~ ^docker://[A-Za-z0-9._:/@-]+$ ]] ||
    die "BASE=$base_name must have a digest: docker://NAME@sha256:…"
  case $base_name in
    debian)
      base_kind=debian
      base_identity=$(sha256sum <"$here/base.sh")
      ;;
    docker://*:*@sha256:*)
      # A port is not a tag.
      [[ ${base_name##*/} != *:*@* ]] ||
        die "BASE=$base_name has a tag and a digest, which Apptainer refuses: leave out the tag"
      base_kind=docker base_identity=$base_name
      ;;
    docker://*@sha256:*) base_kind=docker base_identity=$base_name ;;
    docker://*) die "BASE=$base_name must have a digest: docker://NAME@sha256:…" ;;
    *)
      [[ -e $base_name ]] ||
        die "BASE=$base_name does not exist; BASE may be empty, debian, a SIF, or docker://NAME@sha256:…"
      base_kind=localimage
      base_name=$(realpath "$base_name")
      base_identity=$(stat -c '%n %s %Y' "$base_name")
      ;;
  esac
}

# Makes the Debian tree if it is the base. Sets bootstrap, from and base_digest for the recipe.
make_base() {
  case $base_kind in
    docker) bootstrap=docker from=${base_name#docker://} base_digest=${base_name#*@} ;;
    debian)
      say "making a Debian tree …"
      # Relative to the recipe's directory, because the image records this path.
      bootstrap=localimage from=../debian
      "$here/base.sh" "$scratch/debian" "$debian_architecture"
      # The packages and their versions identify the tree.
      base_digest=sha256:$(sha256sum <"$scratch/debian/var/lib/dpkg/status" | cut -d ' ' -f 1)
      ;;
    localimage)
      bootstrap=localimage from=$base_name base_digest=unknown
      [[ -d $from ]] || base_digest=sha256:$(sha256sum <"$from" | cut -d ' ' -f 1)
      base_name=$(basename "$base_name")
      ;;
  esac
}

# ── Inputs ───────────────────────────────────────────────────────────────────────────────────────

# Copies everything that the recipe needs to a separate directory, without this machine's leftovers.
stage() {
  mkdir "$scratch/context" "$scratch/mnt" "$scratch/apptainer"
  tar -c -C "$root" --exclude=__pycache__ --exclude='*.egg-info' --exclude='*.md' pyproject.toml src entrypoints \
    containers/{tune.def,selftest.py} containers/flavours/{bootstrap.lock,"$flavour".{lock,args}} |
    tar -x -C "$scratch/context"
}

# Prints one checksum of the staged files (names and contents), the base and the architecture.
inputs() {
  {
    (cd "$scratch/context" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    printf '%s\n' "$base_identity" "$architecture"
  } | sha256sum | cut -d ' ' -f 1
}

inputs_of_image() {
  [[ -f $out ]] || return 0
  "$apptainer" inspect --labels "$out" 2>/dev/null | sed -n 's/^siftune\.inputs: *//p' || true
}

commit() {
  # A tarball made by `make dist` has this file instead of a Git checkout.
  [[ ! -f $root/COMMIT ]] || { cat "$root/COMMIT" && return; }
  # Git does not trust a directory of another account, unless it is named as safe.
  local git=(git -c "safe.directory=$root" -C "$root") hash
  hash=$("${git[@]}" rev-parse HEAD 2>/dev/null) || { echo unknown && return; }
  [[ -z $("${git[@]}" status --porcelain -- src entrypoints containers pyproject.toml) ]] ||
    hash+=-changed
  echo "$hash"
}

# ── The build ────────────────────────────────────────────────────────────────────────────────────

# zstd starts faster and compresses better than gzip. `apptainer build` supports it since 1.4.
compression() {
  if is_apptainer_1_4; then
    echo "--mksquashfs-args=-comp zstd -Xcompression-level 3"
  else
    say "the image is compressed with gzip: zstd needs Apptainer 1.4 or newer"
  fi
}

build() {
  local version lock zstd options=()
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
  lock=sha256:$(sha256sum <"$here/flavours/$flavour.lock" | cut -d ' ' -f 1)
  zstd=$(compression)
  [[ -z $zstd ]] || options+=("$zstd")
  # --arch selects the image in the registry and sets a label. Apptainer takes the architecture in the
  # SIF's header from the programs in the tree.
  [[ -z $foreign ]] || options+=(--arch "$debian_architecture")
  [[ -z $certificates ]] || cp -L "$certificates" "$scratch/mnt/ca-bundle.pem"
  # The target of a bind must exist in the base. Every base has /mnt.
  options+=(--bind "$scratch/mnt:/mnt")
  if [[ -n ${CACHE:-} ]]; then
    mkdir -p "$CACHE" "$scratch/mnt/cache"
    options+=(--bind "$(realpath "$CACHE"):/mnt/cache")
  fi
  (
    cd "$scratch/context"
    APPTAINER_TMPDIR=$scratch/apptainer "$apptainer" build "${options[@]}" \
      --build-arg-file "containers/flavours/$flavour.args" \
      --build-arg "BOOTSTRAP=$bootstrap" --build-arg "BASE=$from" \
      --build-arg "BASE_NAME=$base_name" --build-arg "BASE_DIGEST=$base_digest" \
      --build-arg "VERSION=$version" --build-arg "COMMIT=$(commit)" \
      --build-arg "LOCK_DIGEST=$lock" --build-arg "INPUTS=$wanted" \
      "$partial" containers/tune.def >&2
  ) || die "the build failed, for the reason above; $(kept)"
  [[ $("$apptainer" sif list "$out" 2>/dev/null) != *Signature* ]] ||
    say "$out was signed, but the new image is not: make sign"
  mv -f "$partial" "$out"
}

kept() {
  if [[ -f $out ]]; then echo "the old $out is unchanged"; else echo "there is no $out"; fi
}

clean_up() {
  rm -f "$partial"
  # Files from the base may be read-only.
  chmod -R u+w "$scratch" 2>/dev/null || true
  rm -rf "$scratch"
}

main() {
  read_architecture
  # An image that cannot run here must not replace one that can.
  out=$(realpath -m "${OUT:-tune${foreign:+-$debian_architecture}.sif}")
  certificates=${CA_BUNDLE:-${SSL_CERT_FILE:-}}
  [[ -z $certificates || -r $certificates ]] || die "CA_BUNDLE=$certificates cannot be read"
  read_base
  flavour=${FLAVOUR:-cu13}
  [[ -n ${FLAVOUR:-} || $base_kind != localimage ]] || flavour=site
  [[ $flavour =~ ^[a-z0-9]+$ && -f $here/flavours/$flavour.args ]] ||
    die "unknown FLAVOUR=$flavour; known: $(flavours)"
  [[ $flavour != site || ( -n ${BASE:-} && $base_kind != debian ) ]] ||
    die "FLAVOUR=site takes torch from its base, but this base has none: use BASE=path/to/site.sif"
  check_architecture
  check_apptainer

  temporary=$(realpath "${APPTAINER_TMPDIR:-${TMPDIR:-/tmp}}")
  check_space "$(dirname "$out")" 0 OUT
  check_space "$temporary" 0 APPTAINER_TMPDIR
  scratch=$(mktemp -d -p "$temporary" siftune-image.XXXXXX)
  partial=$out.$$.part
  trap clean_up EXIT
  stage
  wanted=$(inputs)
  if [[ $(inputs_of_image) == "$wanted" ]]; then
    say "$out is up to date"
    return
  fi
  check_space "$(dirname "$out")" "$IMAGE_GIB" OUT
  check_space "$temporary" "$TREE_GIB" APPTAINER_TMPDIR
  make_base
  build
  say "$out: $(du -h "$out" | cut -f 1), flavour $flavour, $architecture;" \
    "try it: apptainer run $out --preset quick"
}

main
