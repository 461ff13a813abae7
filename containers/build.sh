#!/usr/bin/env bash
# Builds the image, without root, if an input has changed since it was built. `make image` calls it;
# what it is to do is in the environment, every variable may be empty:
#
#   OUT        the image [tune.sif]
#   BASE       what it is built on: nothing, for the official Python image of tune.def; debian, for
#              a tree made from Debian's packages without a container registry; a site's image
#              (FILE.sif or a directory); or docker://NAME@sha256:…
#   FLAVOUR    which lock of containers/flavours [site on a site's image, else cu13]
#   ARCH       the architecture [this machine's]
#   CA_BUNDLE  certificates, for a site behind a TLS proxy; not left in the image [$SSL_CERT_FILE]
#   CACHE      a directory that keeps what was downloaded for the next build [nothing is kept]
set -euo pipefail

# A build of cu13 takes 10 GiB for the unpacked tree and what is made of it; the image has 3.
readonly TREE_GIB=12 IMAGE_GIB=4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly here=$root/containers apptainer=${APPTAINER:-apptainer}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "make image: $*"
  exit 1
}

# ── What is asked for ────────────────────────────────────────────────────────────────────────────

flavours() {
  local file names=()
  for file in "$here"/flavours/*.args; do names+=("$(basename "$file" .args)"); done
  (IFS=,; printf '%s' "${names[*]}") | sed 's/,/, /g'
}

# The value of NAME in an argument file.
argument() { sed -n "s/^ *$1=//p" "$2" | head -n 1; }

# A Debian or kernel name of an architecture, as the kernel says it.
kernel_name() {
  case $1 in
    amd64) echo x86_64 ;;
    arm64) echo aarch64 ;;
    *) echo "$1" ;;
  esac
}

check_architecture() {
  local wanted machine supported
  machine=$(uname -m)
  wanted=$(kernel_name "${ARCH:-$machine}")
  [[ $wanted == "$machine" ]] ||
    die "ARCH=$ARCH cannot be built on $machine yet: build on a machine with that architecture"
  supported=$(argument ARCHITECTURES "$here/flavours/$flavour.args")
  [[ " $supported " == *" $wanted "* ]] ||
    die "FLAVOUR=$flavour is for $supported alone, and this is $wanted: take FLAVOUR=cu13, or" \
      "FLAVOUR=site on an image with a torch for older drivers"
}

check_apptainer() {
  command -v "$apptainer" >/dev/null ||
    die "there is no $apptainer on this machine. Install it (apptainer.org), load its module" \
      "(module load apptainer), name it (APPTAINER=…), or build elsewhere and copy tune.sif here"
}

# room DIRECTORY GIB VARIABLE: before a build of minutes, not after it.
room() {
  local free_gib
  [[ -w $1 ]] || die "cannot write to $1: name another directory in $3"
  free_gib=$(($(df --output=avail -k "$1" | tail -n 1) / 1024 / 1024))
  ((free_gib >= $2)) ||
    die "$1 has $free_gib GiB free and a build needs $2: name a directory with more in $3"
}

# ── The base: what the recipe is told, and what it is known by ───────────────────────────────────

# Sets base_kind and base_name; and base_identity, which changes when the base does.
read_base() {
  base_name=${BASE:-docker://$(argument BASE "$here/tune.def")}
  case $base_name in
    debian)
      base_kind=debian
      base_identity=$(sha256sum <"$here/base.sh")
      ;;
    docker://*:*@sha256:*)
      # A port is no tag.
      [[ ${base_name##*/} != *:*@* ]] ||
        die "BASE=$base_name has a tag and a digest, which Apptainer refuses: leave out the tag"
      base_kind=docker base_identity=$base_name
      ;;
    docker://*@sha256:*) base_kind=docker base_identity=$base_name ;;
    docker://*) die "BASE=$base_name must be by digest: docker://NAME@sha256:…" ;;
    *)
      [[ -e $base_name ]] ||
        die "BASE=$base_name is not there; BASE is empty, debian, a SIF, or docker://NAME@sha256:…"
      base_kind=localimage
      base_name=$(realpath "$base_name")
      base_identity=$(stat -c '%n %s %Y' "$base_name")
      ;;
  esac
}

# Makes what is not there yet. Sets bootstrap, from and base_digest for the recipe.
make_base() {
  case $base_kind in
    docker) bootstrap=docker from=${base_name#docker://} base_digest=${base_name#*@} ;;
    debian)
      say "making a Debian tree …"
      # Relative to the recipe's directory: the image bears this name.
      bootstrap=localimage from=../debian
      "$here/base.sh" "$scratch/debian"
      # The packages and their versions say which tree it is.
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

# Everything that the recipe copies, in a directory of its own: without this machine's leftovers.
stage() {
  mkdir "$scratch/context" "$scratch/mnt" "$scratch/apptainer"
  tar -c -C "$root" --exclude=__pycache__ --exclude='*.egg-info' pyproject.toml src entrypoints \
    containers/{tune.def,selftest.py} containers/flavours/{bootstrap.lock,"$flavour".{lock,args}} |
    tar -x -C "$scratch/context"
}

# One sum over the names and contents of what is staged, and over the base.
inputs() {
  {
    (cd "$scratch/context" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    printf '%s\n' "$base_identity"
  } | sha256sum | cut -d ' ' -f 1
}

inputs_of_image() {
  [[ -f $out ]] || return 0
  "$apptainer" inspect --labels "$out" 2>/dev/null | sed -n 's/^siftune\.inputs: *//p' || true
}

commit() {
  # Not a checkout but what `make dist` packed: it says which commit that was.
  [[ ! -f $root/COMMIT ]] || { cat "$root/COMMIT" && return; }
  # The directory may be another account's, which Git does not trust by itself.
  local git=(git -c "safe.directory=$root" -C "$root") hash
  hash=$("${git[@]}" rev-parse HEAD 2>/dev/null) || { echo unknown && return; }
  [[ -z $("${git[@]}" status --porcelain -- src entrypoints containers pyproject.toml) ]] ||
    hash+=-changed
  echo "$hash"
}

# ── The build ────────────────────────────────────────────────────────────────────────────────────

# zstd starts faster and packs better than gzip; `apptainer build` can be told so since 1.4.
compression() {
  local version
  version=$("$apptainer" --version | sed -n 's/^apptainer version \([0-9.]*\).*/\1/p')
  if [[ -n $version && $(printf '%s\n' 1.4 "$version" | sort -V | head -n 1) == 1.4 ]]; then
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
  [[ -z $certificates ]] || cp -L "$certificates" "$scratch/mnt/ca-bundle.pem"
  # A bind needs a directory in the base: /mnt is in every one.
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
  ) || die "the build failed, its reason is above; $(kept)"
  [[ $("$apptainer" sif list "$out" 2>/dev/null) != *Signature* ]] ||
    say "$out was signed, and the new one is not: make sign"
  mv -f "$partial" "$out"
}

kept() {
  if [[ -f $out ]]; then echo "$out is the old one, untouched"; else echo "there is no $out"; fi
}

clean_up() {
  rm -f "$partial"
  # What a base brings may be read-only.
  chmod -R u+w "$scratch" 2>/dev/null || true
  rm -rf "$scratch"
}

main() {
  out=$(realpath -m "${OUT:-tune.sif}")
  certificates=${CA_BUNDLE:-${SSL_CERT_FILE:-}}
  [[ -z $certificates || -r $certificates ]] || die "CA_BUNDLE=$certificates cannot be read"
  read_base
  flavour=${FLAVOUR:-cu13}
  [[ -n ${FLAVOUR:-} || $base_kind != localimage ]] || flavour=site
  [[ -f $here/flavours/$flavour.args ]] ||
    die "unknown FLAVOUR=$flavour; known: $(flavours)"
  [[ $flavour != site || ( -n ${BASE:-} && $base_kind != debian ) ]] ||
    die "FLAVOUR=site takes torch from its base, and this one has none: BASE=path/to/site.sif"
  check_architecture
  check_apptainer

  temporary=$(realpath "${APPTAINER_TMPDIR:-${TMPDIR:-/tmp}}")
  room "$(dirname "$out")" 0 OUT
  room "$temporary" 0 APPTAINER_TMPDIR
  scratch=$(mktemp -d -p "$temporary" siftune-image.XXXXXX)
  partial=$out.$$.part
  trap clean_up EXIT
  stage
  wanted=$(inputs)
  if [[ $(inputs_of_image) == "$wanted" ]]; then
    say "$out is up to date"
    return
  fi
  room "$(dirname "$out")" "$IMAGE_GIB" OUT
  room "$temporary" "$TREE_GIB" APPTAINER_TMPDIR
  make_base
  build
  say "$out: $(du -h "$out" | cut -f 1), flavour $flavour; try it: apptainer run $out --preset quick"
}

main
