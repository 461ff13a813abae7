"""Lists the packages of the image for uv. Run by the image's Python.

Writes the files names, constraints and excludes to the directory that is given as argument.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

versions = {d.metadata["Name"]: d.version for d in distributions()}  # uv accepts all spellings
# A site's own version, with a "+", is in no registry, so a constraint on it could not be met.
own = {name for name, version in versions.items() if "+" in version} | {"siftune"}
directory = Path(sys.argv[1])
(directory / "names").write_text("".join(f"{name}\n" for name in versions))
(directory / "excludes").write_text("".join(f"{name}\n" for name in own))
(directory / "constraints").write_text(
    "".join(f"{name}=={version}\n" for name, version in versions.items() if name not in own)
)
