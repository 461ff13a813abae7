"""What the image has, for uv: names, constraints and excludes, a file each in the directory that is
named. Run by the image's Python."""

import sys
from importlib.metadata import distributions
from pathlib import Path

found = {d.metadata["Name"]: d.version for d in distributions()}  # uv knows all spellings
# A version of the site's own is in no registry, so that no constraint could be met with it.
own = {name for name, version in found.items() if "+" in version} | {"siftune"}
directory = Path(sys.argv[1])
(directory / "names").write_text("".join(f"{name}\n" for name in found))
(directory / "excludes").write_text("".join(f"{name}\n" for name in own))
(directory / "constraints").write_text(
    "".join(f"{name}=={version}\n" for name, version in found.items() if name not in own)
)
