#!/usr/bin/env bash
# Lists the packages in the image, in a file beside it: tune.sif → tune.cdx.json. `make sbom` calls it;
# sbom.py describes the list. It uses the image's Python, so this machine needs none.
#
#   IMAGE              the image [tune.sif]
#   SOURCE_DATE_EPOCH  the time written in the list, in seconds since 1970 [now]
set -euo pipefail

readonly apptainer=${APPTAINER:-apptainer} image=${IMAGE:-tune.sif}
readonly list=${image%.sif}.cdx.json

main() {
  local here
  here=$(dirname "${BASH_SOURCE[0]}")
  if [[ ! -r $image ]]; then
    echo "make sbom: there is no image $image: build it with make image, or name another with IMAGE=PATH" >&2
    exit 1
  fi
  trap 'rm -f "$list.part"' EXIT
  # Isolated: packages in this directory or in the home directory are not part of the image.
  "$apptainer" --silent exec --contain --no-home "$image" /opt/siftune/venv/bin/python -I - \
    <"$here/sbom.py" >"$list.part"
  mv "$list.part" "$list"
  echo "$list: $(grep -c '"purl"' "$list") components" >&2
}

main
