"""Ray on the nodes of a job besides the head's: `ray start`, once the head is there.

    python -m siftune.join FILE DEADLINE_S start …

FILE is where the head writes its address. Importing Ray takes about as long as starting the head
does: it is done meanwhile.
"""

import sys
import time
from pathlib import Path

from siftune.cluster import await_head


def main(file: str, deadline_s: str, *command: str) -> None:
    from ray.scripts.scripts import main as ray

    end = time.monotonic() + float(deadline_s)

    def check() -> None:
        if time.monotonic() > end:
            sys.exit(f"the job's head did not answer in {deadline_s} s")
        time.sleep(0.1)

    address = await_head(Path(file), check)
    sys.argv = ["ray", *command, f"--address={address}"]
    ray()


if __name__ == "__main__":
    main(*sys.argv[1:])
