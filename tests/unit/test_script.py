"""A user's script as a trainable: it gets flags and prints lines of JSON."""

import sys
from pathlib import Path
from typing import Any

import pytest

from siftune.errors import UsageError
from siftune.space import Space
from siftune.trainables import TrainableSpec, default_space
from siftune.trainables.user.printed import PrintedMetrics
from siftune.trainables.user.script import UserScript
from siftune.trial import failures

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


def run(path: Path, args: str = "", **config: Any) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    trainable = UserScript(str(path), seed=0, printed=PrintedMetrics(metric="loss"), args=args)
    trainable.run(config, None, reports.append, save_in=lambda epoch: Path())
    return reports


def mistakes(path: Path, *names: str, args: str = "", **space: Any) -> list[str]:
    trainable = UserScript(str(path), seed=0, printed=PrintedMetrics(), args=args)
    return trainable.mistakes(Space.read(dict.fromkeys(names, 1) | space))


def test_values_become_flags_and_lines_of_json_reports(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = run(path, lr=1e-5, batch_size=64, fc_dim=128, amp=True, bias=False)
    everything = {"lr": 1e-5, "batch_size": 64, "fc_dim": 128, "amp": True, "bias": False}
    assert first["all"] == everything | {"fail": False}
    assert second == {"loss": 5e-6}
    lines = capfd.readouterr().out.splitlines()  # the log has every line
    assert [line for line in lines if '"loss"' not in line] == ["hello", "{not json}", "[1, 2]"]
    assert len(lines) > 3


def test_a_false_switch_is_left_out(path: Path) -> None:
    assert run(path, lr=1.0, amp=False)[0]["all"]["amp"] is False


def test_a_second_run_in_the_process_begins_anew(path: Path) -> None:
    assert run(path, lr=1.0) != run(path, lr=2.0)


def test_its_failure_is_an_error_that_says_what_it_said(path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"mine.py ended with exit code 1: no luck") as raised:
        run(path, lr=1.0, fail=True)
    assert raised.tb.tb_next is not None
    error = raised.value.with_traceback(raised.tb.tb_next.tb_next)  # without this file's frames
    told = failures.end_of(error, path.parent).error
    assert told == f"RuntimeError: {path} ended with exit code 1: no luck"  # without lines of ours
    with pytest.raises(RuntimeError, match=r"exit code 2: .*invalid choice"):
        run(path, lr=1.0, fc_dim=65)


def test_the_scheduler_s_stop_ends_it(path: Path) -> None:
    def stop(metrics: dict[str, Any]) -> None:
        raise SystemExit(0)

    trainable = UserScript(str(path), seed=0, printed=PrintedMetrics())
    with pytest.raises(SystemExit):
        trainable.run({"lr": 1.0}, None, stop, save_in=lambda epoch: Path())


def test_mistakes_are_found_before_anything_starts(path: Path, tmp_path: Path) -> None:
    assert mistakes(path, "lr", "batch_size", "fc_dim", "amp", "bias") == []
    (mistake,) = mistakes(path, "lr", "dropout")
    assert "mine.py has no flag --dropout; it has: --lr, --batch-size, --fc_dim" in mistake
    assert "--nothing" not in mistake
    (mistake,) = mistakes(tmp_path / "absent.py")
    assert mistake.endswith("absent.py does not exist")
    broken = tmp_path / "broken.py"
    broken.write_text("import nosuchmodule")
    (mistake,) = mistakes(broken)
    assert "broken.py --help fails: ModuleNotFoundError" in mistake
    silent = tmp_path / "silent.py"
    silent.write_text("print('trains')")
    (mistake,) = mistakes(silent)
    assert "silent.py --help shows no flags" in mistake


def test_its_space_is_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    with pytest.raises(UsageError, match=r"mine.py does not exist$"):
        default_space(str(script))
    script.touch()
    with pytest.raises(UsageError, match=r"mine.py is a script: give its flags"):
        default_space(str(script))
    with pytest.raises(UsageError, match=r"mime.py does not exist; there is .*mine.py$"):
        default_space(str(tmp_path / "mime.py"))


# ── Values and words ────────────────────────────────────────────────────────────────────────────

FLAGS = """
import argparse, json, os
p = argparse.ArgumentParser()
p.add_argument("data", nargs="?", default="none")
p.add_argument("--x", type=float)
p.add_argument("-O", dest="level", type=int)
p.add_argument("--layers", type=int, nargs="+")
p.add_argument("--bias", action="store_true", default=True)
p.add_argument("--no_bias", action="store_false", dest="bias")
p.add_argument("--text")
p.add_argument("--old", type=bool)
args = p.parse_args()
print(json.dumps({"args": vars(args)}))
print(json.dumps({"loss": 1.0, **vars(args)}), end="")
"""


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    file = tmp_path / "flags.py"
    file.write_text(FLAGS)
    return file


@pytest.mark.parametrize(
    "config",
    [
        {"x": -1e-05},
        {"x": None},
        {"layers": [16, -8]},
        {"bias": False},
        {"bias": True},
        {"text": "--O2"},
        {"text": "a b='c'"},
        {"O": 3},
    ],
)
def test_a_value_reaches_the_script_as_it_is(flags: Path, config: dict[str, Any]) -> None:
    (metrics,) = run(flags, **config)  # the line without the metric is no epoch
    ((name, value),) = config.items()
    assert metrics["level" if name == "O" else name] == value


def test_words_for_every_trial_and_its_directory(
    flags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIFTUNE_TRIAL_DIR", "/results/s/trials/0001")
    (metrics,) = run(flags, args="'my data' --text {trial_dir}/log", x=0.5)
    assert (metrics["data"], metrics["text"]) == ("my data", "/results/s/trials/0001/log")


def test_a_flag_of_type_bool_cannot_be_false(flags: Path) -> None:
    assert mistakes(flags, old=True) == []
    (mistake,) = mistakes(flags, old="choice([True, False])")
    assert "reads --old with type=bool" in mistake


def test_what_the_script_requires_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "needs.py"
    file.write_text(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('data')\n"
        "p.add_argument('--lr', required=True)\np.add_argument('--x')\np.parse_args()\n"
    )
    (mistake,) = mistakes(file, "x")
    assert "requires --lr, data, which the space does not have" in mistake
    assert mistakes(file, "x", args="imagenet --lr=1") == []
    assert mistakes(file, "x", "lr", args="imagenet") == []


# ── Metrics without JSON ────────────────────────────────────────────────────────────────────────


def found_in(code: str, tmp_path: Path, **how: Any) -> list[dict[str, Any]]:
    file = tmp_path / "prints.py"
    file.write_text(f"import argparse, sys, time\np = argparse.ArgumentParser()\n{ONE_FLAG}{code}")
    reports: list[dict[str, Any]] = []
    trainable = UserScript(str(file), seed=0, printed=PrintedMetrics(**how))
    trainable.run({"x": 1}, None, reports.append, save_in=lambda epoch: Path())
    return reports


ONE_FLAG = "p.add_argument('--x')\np.parse_args()\n"


def test_patterns_find_the_metric_and_others(tmp_path: Path) -> None:
    code = "for e in range(2): print(f'epoch {e} acc=0.5'); print(f'val_loss: {1 / (e + 1)}')\n"
    patterns = (r"val_loss[=:] *([0-9.e+-]+)", r"acc=(?P<acc>[0-9.]+)")
    reports = found_in(code, tmp_path, metric="val_loss", patterns=patterns)
    assert reports == [{"acc": 0.5, "val_loss": 1.0}, {"acc": 0.5, "val_loss": 0.5}]


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("m.csv", "open('m.csv', 'w').write('step,loss\\n1,0.5\\n2,\\n3,0.25\\n')", [0.5, 0.25]),
        ("m.jsonl", "open('m.jsonl', 'w').write('{\"loss\": 2}\\n{\"x\": 1}\\n')", [2]),
        ("m.json", "open('m.json', 'w').write('{\\n\"loss\": 3\\n}')", [3]),
        ("m.csv", "", []),
        ("*/m.csv", "import os; os.mkdir('v1'); open('v1/m.csv', 'w').write('loss\\n4\\n')", [4]),
    ],
)
def test_a_file_of_metrics(
    name: str, code: str, expected: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v0").mkdir()
    (tmp_path / "v0/m.csv").write_text("loss\n9\n")  # of an earlier run
    reports = found_in(code + "\n", tmp_path, metric="loss", file=name)
    assert [report["loss"] for report in reports] == expected
    absolute = [report["loss"] for report in found_in("", tmp_path, file=str(tmp_path / name))]
    assert absolute == []  # nothing new


def test_lines_of_child_processes_count(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import subprocess\nprint('before', flush=True)\n"
    code += "subprocess.run(['echo', '{\"loss\": 0.5}'])\nsubprocess.run(['echo', 'hello'])\n"
    assert found_in(code, tmp_path, metric="loss") == [{"loss": 0.5}]
    assert capfd.readouterr().out == 'before\n{"loss": 0.5}\nhello\n'


@pytest.mark.parametrize(
    "code",
    [
        "sys.stdout.buffer.write(b'loss=1\\nloss=2\\n'); sys.stdout.buffer.flush()",
        "import os; os.write(1, b'loss=1\\nloss=2\\n')",
        "import io; out = io.TextIOWrapper(sys.stdout.buffer); out.write('loss=1\\nloss=2')",
        "import logging; log = logging.Logger('x'); log.addHandler(logging.StreamHandler())\n"
        "[log.warning('loss=%d', e) for e in (1, 2)]",
        "[print('\\rstep 1 loss=9\\rstep 2 loss=8\\rloss=%d' % e) for e in (1, 2)]",
        "import os; os.write(1, b'loss=9\\rloss=1\\nloss=9\\rloss=2\\r\\n')",
        "[print(f'loss={e}\\rbar 100%|##| loss=9', file=sys.stderr) or print(f'loss={e}')"
        " for e in (1, 2)]",
    ],
)
def test_each_way_to_print_counts_and_progress_bars_do_not(tmp_path: Path, code: str) -> None:
    reports = found_in(code, tmp_path, metric="loss", patterns=("loss=([0-9]+)",))
    assert reports == [{"loss": 1}, {"loss": 2}]


def test_what_a_report_prints_is_not_read_again(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = PrintedMetrics(metric="loss", patterns=("loss=([0-9.]+)",))
    trainable = UserScript(str(path), seed=0, printed=printed)

    def show(metrics: dict[str, Any]) -> None:
        print(f"loss={metrics['loss']}")

    trainable.run({"lr": 1.0}, None, show, save_in=lambda epoch: Path())
    hello, reported, shown, *_ = capfd.readouterr().out.splitlines()
    assert (hello, shown) == ("hello", "loss=1.0")
    assert reported.startswith('{"loss": 1.0')


@pytest.mark.parametrize("imports", ["from .inner import V", "from pack.inner import V"])
def test_a_script_may_import_from_its_own_package(tmp_path: Path, imports: str) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").touch()
    (tmp_path / "pack/inner.py").write_text("V = 7\n")
    script = tmp_path / "pack/main.py"
    script.write_text(
        f"import argparse, json\n{imports}\np = argparse.ArgumentParser()\n"
        "p.add_argument('--x')\np.parse_args()\n"
        "if __name__ == '__main__': print(json.dumps({'loss': V}))\n"
    )
    assert mistakes(script, "x") == []
    assert run(script, x=1) == [{"loss": 7}]
    (tmp_path / "pack/function.py").write_text(f"{imports}\ndef train(config): return V\n")
    function = TrainableSpec(name=f"{tmp_path}/pack/function.py:train", data=tmp_path)
    assert function.mistakes(Space.read({"x": 1})) == []
    reports: list[dict[str, Any]] = []
    function.run({"x": 1}, None, reports.append, save_in=lambda epoch: Path())
    assert reports == [{"loss": 7}]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pack"]:
        del sys.modules[name]
    sys.path.remove(str(tmp_path))
