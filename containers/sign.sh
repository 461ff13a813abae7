#!/usr/bin/env bash
# sign.sh sign: signs the image. sign.sh verify: checks that the image is unchanged since it was
# signed. `make sign` and `make verify` call it. It reads environment variables:
#
#   IMAGE  the image [tune.sif]
#   KEY    a PEM file: the private key to sign with, or the public key to verify with [a PGP key in
#          Apptainer's own keyring: apptainer key list]
#
# The keyring is in the home directory. An account that can write to the image, but not to the home
# directory, cannot sign another image. If there is no key yet, sign creates one without a
# passphrase, protected by the mode of its file. Other people verify the image after `apptainer key
# import` of a file written by `apptainer key export`. Signed images are listed in
# ~/.config/siftune/signed, so that an image that has lost its signature is refused too, until its
# line there is deleted. An older image that was signed with the same key is accepted.
#
# Exit codes of verify: 0 signed and unchanged, 1 refused, 3 never signed.
set -euo pipefail

readonly UNSIGNED=3
readonly verb=${1:-} apptainer=${APPTAINER:-apptainer} image=${IMAGE:-tune.sif} key=${KEY:-}
readonly record=${XDG_CONFIG_HOME:-${HOME:-/nonexistent}/.config}/siftune/signed

say() { printf '%s\n' "$*" >&2; }

die() {
  say "make $verb: $*"
  exit 1
}

# Prints the path of the image, as given and with links resolved: both could lead to another image.
names() { realpath -s "$image" && realpath "$image"; }

was_signed() { [[ -r $record ]] && grep -qxF -f "$record" <<<"$(names)"; }

remember() {
  mkdir -p "$(dirname "$record")"
  touch "$record"
  names | sort -u -o "$record" "$record" -
}

# Prints the ids of the signatures in the image; nothing if it is not a SIF.
signatures() {
  { "$apptainer" sif list "$image" 2>/dev/null || true; } |
    awk -F '|' '$NF ~ /^Signature/ {print $1 + 0}'
}

make_key() {
  [[ $("$apptainer" key list --secret) != *Fingerprint* ]] || return 0
  "$apptainer" key newpair --name "$(id -un)" --email '' --comment '' --password '' \
    --push=false >&2 || die "Apptainer could not create a key, for the reason above"
  say "the new key is in Apptainer's keyring, without a passphrase: apptainer key list"
}

sign() {
  local id
  [[ -w $image ]] || die "cannot write to $image"
  [[ -n $key ]] || make_key
  # Old signatures are removed, because verifying would need the key of each.
  for id in $(signatures); do "$apptainer" sif del "$id" "$image"; done
  "$apptainer" sign ${key:+--key "$key"} "$image" >&2 ||
    die "Apptainer could not sign $image, for the reason above"
  remember
}

verify() {
  local output reason with=(--local)
  local advice="do not run it: delete it and run make image, or make sign if you changed it yourself"
  [[ -z $key ]] || with=(--key "$key")
  if [[ -z $(signatures) ]]; then
    ! was_signed || die "$image was signed, but its signature is missing; $advice"
    say "$image is not signed: make sign"
    exit "$UNSIGNED"
  fi
  if ! output=$("$apptainer" verify "${with[@]}" "$image" 2>&1); then
    reason=$(sed -n 's/^FATAL: *Failed to verify container: //p' <<<"$output")
    die "the signature of $image is not valid (${reason:-$output}); $advice." \
      "If someone else signed it: apptainer key import FILE. If it was signed with a PEM file: KEY=FILE"
  fi
  say "$image is signed and unchanged"
}

main() {
  [[ $verb == sign || $verb == verify ]] || die "unknown command; known: sign, verify"
  command -v "$apptainer" >/dev/null ||
    die "$apptainer was not found on this machine: module load apptainer"
  [[ -r $image ]] || die "there is no image $image: build it with make image, or name another with IMAGE=PATH"
  [[ -z $key || -r $key ]] || die "KEY=$key cannot be read"
  "$verb"
}

main
