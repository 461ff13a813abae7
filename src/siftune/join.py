"""Ray on the nodes of a job besides the head's: `ray start`, once the head is there.

    python -m siftune.join ADDRESS DEADLINE_S start --address=ADDRESS …

Importing Ray takes about as long as starting the head does: it is done meanwhile.
"""

import sys
import time

from siftune.cluster import await_head


def main(address: str, deadline_s: str, *command: str) -> None:
    from ray.scripts.scripts import main as ray

    end = time.monotonic() + float(deadline_s)

    def check() -> None:
        if time.monotonic() > end:
            sys.exit(f"the head at {address} did not answer in {deadline_s} s")
        time.sleep(0.1)

    await_head(address, check)
    sys.argv = ["ray", *command]
    ray()


if __name__ == "__main__":
    main(*sys.argv[1:])
