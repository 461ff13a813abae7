#!/usr/bin/env bash
# sign.sh sign: signs the image. sign.sh verify: says whether it is still what was signed. `make
# sign` and `make verify` call it; what they are to do is in the environment:
#
#   IMAGE  the image [tune.sif]
#   KEY    a PEM file to sign with (the private key) or to verify with (the public one) [a PGP key
#          of Apptainer's own keyring: apptainer key list]
#
# The keyring is in the home: who can write the image, but not the home, cannot sign another one.
# Where there is no key yet, sign makes a pair that the mode of its file protects, and no pass
# phrase. Others verify after `apptainer key import` of what `apptainer key export` wrote. What was
# signed here is remembered in ~/.config/siftune/signed, so that an image without its signature is
# refused too, until its line there is deleted. An older image that the same key signed passes.
#
# Exit status of verify: 0 signed and unchanged, 1 refused, 3 not signed and never was.
set -euo pipefail

readonly UNSIGNED=3
readonly verb=${1:-} apptainer=${APPTAINER:-apptainer} image=${IMAGE:-tune.sif} key=${KEY:-}
readonly record=${XDG_CONFIG_HOME:-${HOME:-/nonexistent}/.config}/siftune/signed

say() { printf '%s\n' "$*" >&2; }

die() {
  say "make $verb: $*"
  exit 1
}

# The image's names, as it is called and with links followed: either may be exchanged for another.
names() { realpath -s "$image" && realpath "$image"; }

was_signed() { [[ -r $record ]] && grep -qxF -f "$record" <<<"$(names)"; }

remember() {
  mkdir -p "$(dirname "$record")"
  touch "$record"
  names | sort -u -o "$record" "$record" -
}

# The ids of the signatures in it; nothing where it is no SIF.
signatures() {
  { "$apptainer" sif list "$image" 2>/dev/null || true; } |
    awk -F '|' '$NF ~ /^Signature/ {print $1 + 0}'
}

make_key() {
  [[ $("$apptainer" key list --secret) != *Fingerprint* ]] || return 0
  "$apptainer" key newpair --name "$(id -un)" --email '' --comment '' --password '' \
    --push=false >&2 || die "Apptainer made no key; its reason is above"
  say "it is in Apptainer's keyring, without a pass phrase: apptainer key list"
}

sign() {
  local id
  [[ -w $image ]] || die "cannot write to $image"
  [[ -n $key ]] || make_key
  # Of several signatures each would have to be of a known key.
  for id in $(signatures); do "$apptainer" sif del "$id" "$image"; done
  "$apptainer" sign ${key:+--key "$key"} "$image" >&2 ||
    die "Apptainer did not sign $image; its reason is above"
  remember
}

verify() {
  local said reason with=(--local)
  local advice="do not run it: remove it and make image, or make sign if it was you who changed it"
  [[ -z $key ]] || with=(--key "$key")
  if [[ -z $(signatures) ]]; then
    ! was_signed || die "$image was signed and no longer is; $advice"
    say "$image is not signed: make sign"
    exit "$UNSIGNED"
  fi
  if ! said=$("$apptainer" verify "${with[@]}" "$image" 2>&1); then
    reason=$(sed -n 's/^FATAL: *Failed to verify container: //p' <<<"$said")
    die "$image is not what a key of yours signed (${reason:-$said}); $advice." \
      "If somebody else signed it: apptainer key import FILE; with a PEM file: KEY=FILE"
  fi
  say "$image is signed and unchanged"
}

main() {
  [[ $verb == sign || $verb == verify ]] || die "not a command of sign.sh; known: sign, verify"
  command -v "$apptainer" >/dev/null ||
    die "there is no $apptainer on this machine: module load apptainer"
  [[ -r $image ]] || die "there is no image $image: make image, or IMAGE=PATH"
  [[ -z $key || -r $key ]] || die "KEY=$key cannot be read"
  "$verb"
}

main
