"""Ray on a node of a job: `ray start`, with a zygote beside it.

    python -m siftune.join [--head FILE --within SECONDS] DIRECTORY start …

DIRECTORY is the job's own on this node. FILE is where the head writes its address: the other nodes
wait for it. Importing Ray takes about as long as starting the head does: it is done meanwhile.
"""

import argparse
import sys
import time
from pathlib import Path

from siftune.cluster import await_head, job_directory
from siftune.zygote import zygote


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--head", type=Path)
    parser.add_argument("--within", type=float)
    parser.add_argument("directory", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    job = job_directory()
    assert job
    with zygote(options.directory, told_in=job):
        from ray.scripts.scripts import main as ray

        sys.argv = ["ray", *options.command]
        if options.head:
            sys.argv.append(f"--address={_address(options.head, options.within)}")
        ray()


def _address(file: Path, within_s: float) -> str:
    end = time.monotonic() + within_s

    def check() -> None:
        if time.monotonic() > end:
            sys.exit(f"the job's head did not answer in {within_s:.0f} s")
        time.sleep(0.1)

    return await_head(file, check)


if __name__ == "__main__":
    main()
