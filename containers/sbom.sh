#!/usr/bin/env bash
# Lists what is in the image, beside it: tune.sif → tune.cdx.json. `make sbom` calls it; sbom.py says
# what is listed. Python is the image's: this machine needs none.
#
#   IMAGE              the image [tune.sif]
#   SOURCE_DATE_EPOCH  the time that the list bears, in seconds [now]
set -euo pipefail

readonly apptainer=${APPTAINER:-apptainer} image=${IMAGE:-tune.sif}
readonly list=${image%.sif}.cdx.json

main() {
  local here
  here=$(dirname "${BASH_SOURCE[0]}")
  if [[ ! -r $image ]]; then
    echo "make sbom: there is no image $image: make image, or IMAGE=PATH" >&2
    exit 1
  fi
  trap 'rm -f "$list.part"' EXIT
  # Isolated: neither this directory nor the home has packages of the image.
  "$apptainer" --silent exec --contain --no-home "$image" /opt/siftune/venv/bin/python -I - \
    <"$here/sbom.py" >"$list.part"
  mv "$list.part" "$list"
  echo "$list: $(grep -c '"purl"' "$list") components" >&2
}

main
