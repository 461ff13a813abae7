#!/usr/bin/env bash
# base.sh DIR [ARCHITECTURE]: makes the Debian tree DIR that an image can be built on.
#
# It needs neither root nor a container registry. The packages come from the Debian archive that this
# machine's apt uses, or from DEBIAN_MIRROR.
set -euo pipefail

readonly SUITE=bookworm
# The wheels contain their own libraries. From the system they need libc, libstdc++ and libgomp.
readonly PACKAGES=python3,python3-venv,ca-certificates,libstdc++6,libgomp1,procps

die() {
  printf 'base.sh: %s\n' "$*" >&2
  exit 1
}

# Prints the archives in this machine's apt sources, one per line. Reads both of apt's formats.
apt_archives() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    [[ -r $file ]] || continue
    case $file in
      *.list) sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+).*/\2/p' "$file" ;;
      *.sources) sed -nE 's/^URIs:[[:space:]]*//p' "$file" | tr -s '[:space:]' '\n' ;;
    esac
  done
}

# Prints the apt sources of the tree, or nothing if this machine's apt has no Debian archive:
# mmdebstrap then uses Debian's own.
sources() {
  local archives main security
  archives=$(apt_archives)
  main=${DEBIAN_MIRROR:-$(grep -m1 -E '/debian/?$' <<<"$archives" || true)}
  [[ -n $main ]] || return 0
  printf 'deb %s %s main\n' "$main" "$SUITE" "$main" "$SUITE-updates"
  security=$(grep -m1 -E '/debian-security/?$' <<<"$archives" || true)
  [[ -z $security ]] || printf 'deb %s %s main\n' "$security" "$SUITE-security"
}

# Prints the options with which this machine's apt reaches the archive: proxies, retries, and whether
# an old mirror is accepted.
apt_options() {
  command -v apt-config >/dev/null || return 0
  apt-config dump Acquire |
    grep -E '^Acquire::(http|https|Retries|Check-Valid-Until|Check-Date)(::[^ ]+)? "[^"]' || true
}

main() {
  [[ $# -ge 1 ]] || die "the directory is missing; usage: base.sh DIR [ARCHITECTURE]"
  local tree=$1 architecture=${2:-} apt mirrors line
  command -v mmdebstrap >/dev/null ||
    die "BASE=debian needs mmdebstrap (Debian, Ubuntu: apt install mmdebstrap); or use another BASE"
  [[ ! -e $tree ]] || die "$tree already exists: name a new directory"
  apt=$(apt_options)
  mirrors=$(sources)
  local options=(--quiet --format=tar --variant=essential --include="$PACKAGES") lines=()
  # mmdebstrap's check for emulation needs arch-test. It is skipped, because dpkg also reports the error.
  [[ -z $architecture ]] || options+=(--architectures="$architecture" --skip=check/qemu)
  while read -r line; do [[ -z $line ]] || options+=(--aptopt="$line"); done <<<"$apt"
  while read -r line; do [[ -z $line ]] || lines+=("$line"); done <<<"$mirrors"

  # Without root, mmdebstrap uses a user namespace, or else fakechroot. It writes a tar, which is
  # unpacked here, so that this user owns every file and can delete it. Device nodes are left out,
  # because only root can create them. Apt's sources and caches are left out too.
  mkdir -p "$tree"
  if ! mmdebstrap "${options[@]}" "$SUITE" - ${lines[@]+"${lines[@]}"} |
    tar -x -C "$tree" --no-same-owner --exclude='./dev/*' \
      --exclude=./etc/apt --exclude=./var/lib/apt --exclude=./var/cache/apt; then
    rm -rf "$tree"
    die "mmdebstrap could not create a Debian tree, for the reason above. It needs a user namespace" \
      "with a range of ids (newuidmap, a line in /etc/subuid) or fakechroot, and a Debian archive:" \
      "DEBIAN_MIRROR=http://…"
  fi
}

main "$@"
