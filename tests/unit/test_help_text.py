"""The flags of a script are those in its help, whichever package writes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siftune.trainables.user import help_text
from siftune.trainables.user.help_text import Flag

SCRIPTS = Path(__file__).parents[1] / "ray" / "scripts"

ARGPARSE = """
import argparse
p = argparse.ArgumentParser(description="Trains --nothing.")
p.add_argument("data")
p.add_argument("-b", "--batch-size", type=int, help="mini-batch size (default: 256), of all --gpus")
p.add_argument("--lr", "--learning-rate", type=float)
p.add_argument("--alpha", nargs="?", const=1, type=float)
p.add_argument("--layers", nargs="+", type=int)
p.add_argument("--betas", nargs=2, type=float)
p.add_argument("--opt", metavar="[sgd|adam]")
p.add_argument("--kind", choices=["a", "b"])
p.add_argument("--amp", action=argparse.BooleanOptionalAction)
p.add_argument("--bias", action="store_true")
p.add_argument("--no_bias", action="store_false", dest="bias")
p.add_argument("--steps", type=int, required=True)
p.add_argument("-v", action="count")
p.add_argument("--wd", dest="weight_decay", type=float)
p.add_argument("--a-flag-so-long-that-its-description-is-on-the-next-line", help="--other")
p.parse_args()
"""
SIMPLE_PARSING = """
from dataclasses import dataclass
from simple_parsing import ArgumentParser
@dataclass
class Options:
    lr: float = 0.1  # the rate
    layers: tuple[int, ...] = (1, 2)
p = ArgumentParser()
p.add_arguments(Options, dest="options")
p.parse_args()
"""
JSONARGPARSE = """
from jsonargparse import ArgumentParser
class Model:
    def __init__(self, lr: float = 0.1, layers: list[int] = [1]): ...
p = ArgumentParser()
p.add_class_arguments(Model, "model")
p.parse_args()
"""


def flags(script: str | Path, tmp_path: Path) -> tuple[dict[str, Flag], help_text.Help]:
    if isinstance(script, str):
        (tmp_path / "s.py").write_text(script)
        script = tmp_path / "s.py"
    env = os.environ | {"COLUMNS": "1000", "TERMINAL_WIDTH": "1000", "NO_COLOR": "1"}
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found = help_text.parse(done.stdout or done.stderr)
    return {flag.name: flag for flag in found.flags}, found


def test_argparse(tmp_path: Path) -> None:
    by_name, found = flags(ARGPARSE, tmp_path)
    assert list(by_name) == [
        *("--batch-size", "--lr", "--alpha", "--layers", "--betas", "--opt", "--kind", "--amp"),
        *("--bias", "--no_bias", "--steps", "-v", "--wd"),
        "--a-flag-so-long-that-its-description-is-on-the-next-line",
    ]
    assert {name for name, flag in by_name.items() if flag.is_switch} == {
        *("--amp", "--bias", "--no_bias", "-v")
    }
    assert {name for name, flag in by_name.items() if flag.several} == {"--layers", "--betas"}
    assert {name for name, flag in by_name.items() if flag.required} == {"--steps"}
    assert found.positionals == ("data",)
    for parameter, name in {
        "batch_size": "--batch-size",
        "learning_rate": "--lr",
        "weight_decay": "--wd",  # by its placeholder
        "b": "--batch-size",
    }.items():
        flag = found.find(parameter)
        assert flag is not None
        assert flag.name == name
    assert found.find("nothing") is None
    assert found.find_off("amp") == "--no-amp"
    assert found.find_off("bias") == "--no_bias"
    assert found.find_off("lr") is None


def test_click(tmp_path: Path) -> None:
    by_name, found = flags(SCRIPTS / "click_flags.py", tmp_path)
    assert by_name["--learning-rate"].spellings == ("-l", "--learning-rate", "--lr")
    assert by_name["--learning-rate"].required
    assert (by_name["--amp"].is_switch, found.find_off("amp")) == (True, "--no-amp")
    assert found.positionals == ("DATA",)


def test_typer(tmp_path: Path) -> None:
    by_name, found = flags(SCRIPTS / "typer_flags.py", tmp_path)
    assert (by_name["--lr"].required, by_name["--lr"].is_switch) == (True, False)
    assert not by_name["--layers"].is_switch
    assert (by_name["--amp"].is_switch, found.find_off("amp")) == (True, "--no-amp")


def test_fire(tmp_path: Path) -> None:
    by_name, _ = flags(SCRIPTS / "fire_flags.py", tmp_path)
    assert {name: flag.required for name, flag in by_name.items()} == {
        "--lr": True,
        "--layers": False,
        "--amp": False,
    }
    assert not any(flag.is_switch for flag in by_name.values())


def test_simple_parsing(tmp_path: Path) -> None:
    by_name, _ = flags(SIMPLE_PARSING, tmp_path)
    assert (by_name["--lr"].several, by_name["--layers"].several) == (False, True)


def test_jsonargparse_with_dots(tmp_path: Path) -> None:
    by_name, found = flags(JSONARGPARSE, tmp_path)
    flag = found.find("model/lr")
    assert flag is not None
    assert flag.name == "--model.lr"
    assert not by_name["--model.layers"].several  # one word, a list in brackets


@pytest.mark.parametrize("text", ["", "trains", "usage: s.py [-h]\n\noptions:\n  -h, --help  help"])
def test_a_help_without_flags(text: str) -> None:
    assert help_text.parse(text).flags == ()
