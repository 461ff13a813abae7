"""`make logs` follows the newest log, and says what to do where there is none."""

import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKE = ["make", "--no-print-directory", "-C"]


def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_without_a_log_it_ends_with_a_message(tmp_path: Path) -> None:
    command = [*MAKE, str(project(tmp_path)), "logs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert f"there is no log slurm-JOB.out in {tmp_path}" in done.stderr


def test_the_newest_log_is_followed(tmp_path: Path) -> None:
    old, new = project(tmp_path) / "slurm-9.out", tmp_path / "slurm-10.out"
    old.write_text("old\n")
    new.write_text("new\n")
    past = time.time() - 60
    os.utime(old, (past, past))
    command = [*MAKE, str(tmp_path), "logs"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as tail:
        assert tail.stdout
        assert tail.stdout.readline() == "new\n"
        with new.open("a") as log:
            log.write("more\n")
        assert tail.stdout.readline() == "more\n"
        os.killpg(tail.pid, 9)
