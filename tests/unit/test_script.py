"""The user's own script as a trainable: flags in, lines of JSON out."""

from pathlib import Path
from typing import Any

import pytest

from siftune.errors import UsageError
from siftune.trainables import default_space
from siftune.trainables.user import script

SCRIPT = """
import argparse, json, sys
parser = argparse.ArgumentParser(description="Trains --nothing at all.")
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--batch-size", type=int)
parser.add_argument("--fc_dim", type=int, choices=[64, 128])
parser.add_argument("--amp", action="store_true")
parser.add_argument("--bias", action=argparse.BooleanOptionalAction)
parser.add_argument("--fail", action="store_true")
args = parser.parse_args()
print("hello")
print(json.dumps({"loss": args.lr, "all": vars(args)}))
if args.fail:
    sys.exit("no luck")
print("{not json}")
print(json.dumps({"loss": args.lr / 2}))
print("[1, 2]")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(SCRIPT)
    return file


def run(path: Path, **config: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    script.run(path, config, found.append)
    return found


def test_values_become_flags_and_lines_of_json_reports(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run(path, lr=1e-5, batch_size=64, fc_dim=128, amp=True, bias=False)
    everything = {"lr": 1e-5, "batch_size": 64, "fc_dim": 128, "amp": True, "bias": False}
    assert first["all"] == everything | {"fail": False}
    assert second == {"loss": 5e-6}
    assert capsys.readouterr().out == "hello\n{not json}\n[1, 2]\n"


def test_a_false_switch_is_left_out(path: Path) -> None:
    assert run(path, lr=1.0, amp=False)[0]["all"]["amp"] is False


def test_a_second_run_in_the_process_begins_anew(path: Path) -> None:
    assert run(path, lr=1.0) != run(path, lr=2.0)


def test_its_failure_is_an_error_that_says_what_it_said(path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"mine.py exited with no luck"):
        run(path, lr=1.0, fail=True)
    with pytest.raises(RuntimeError, match=r"exited with 2: .*invalid choice"):
        run(path, lr=1.0, fc_dim=65)


def test_the_scheduler_s_stop_ends_it(path: Path) -> None:
    def stop(metrics: dict[str, Any]) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        script.run(path, {"lr": 1.0}, stop)


def test_mistakes_are_found_before_anything_starts(path: Path, tmp_path: Path) -> None:
    assert script.mistakes(path, ["lr", "batch_size", "fc_dim", "amp", "bias"]) == []
    (mistake,) = script.mistakes(path, ["lr", "dropout"])
    assert "mine.py has no flag --dropout; it has: --lr, --batch-size, --fc_dim" in mistake
    assert "--nothing" not in mistake
    (mistake,) = script.mistakes(tmp_path / "absent.py", [])
    assert mistake.endswith("absent.py does not exist")
    broken = tmp_path / "broken.py"
    broken.write_text("import nosuchmodule")
    (mistake,) = script.mistakes(broken, [])
    assert "broken.py --help fails: ModuleNotFoundError" in mistake
    silent = tmp_path / "silent.py"
    silent.write_text("print('trains')")
    (mistake,) = script.mistakes(silent, [])
    assert "silent.py --help shows no flags" in mistake


def test_its_space_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"--trainable mine.py is a script: give its flags"):
        default_space("mine.py")
