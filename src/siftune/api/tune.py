"""Runs a study from Python. The driver is a process of its own, as on the command line."""

import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from siftune.api import function
from siftune.api.progress import Progress
from siftune.api.result import Result, load
from siftune.errors import UsageError
from siftune.space import Space
from siftune.study import request
from siftune.study.reading import changed, new_name, read
from siftune.study.study import to_yaml

_RUN = "import sys; from siftune.cli.tune import main; sys.exit(main())"
_MISTAKE, _AT_TIME_LIMIT = 2, 75  # exit codes of the driver
_LAST = 15  # lines of its output that the message of an error quotes


class StudyError(RuntimeError):
    """Raised if a study cannot go on, or if none of its trials succeeded."""


def tune(
    train: str | Callable[..., Any],
    space: str | Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    results: str | Path = "results",
    data: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Result:
    """Runs a study on this machine, and returns its result.

        result = siftune.tune(train, {"lr": "loguniform(1e-5, 1e-1)"}, trials=50, metric="loss")

    `train`: a trainable as on the command line ("mnist", "FILE.py:FUNC"), or a function of one
    config, also of a notebook or a closure. Trials run in other processes: a function is pickled
    with what it refers to, and changes to these objects stay in the trial. `space`: a dictionary of
    domains, or "FILE.py:NAME" or "FILE.yaml"; the default is the trainable's own. `name`: of the
    study and its directory in `results`; the default is the function's name and the time. `data`:
    the directory of data sets. `settings`: those of study.yaml, such as `trials=50,
    searcher="hebo", scheduler="none", time_limit_s=3600, gpus_per_trial=1, seed=0,
    stop_conditions=["loss <= 0.1"]`.

    `resume`: go on with the study `name`, if there is one. Its function and space are those that it
    began with. Only settings that `--resume` can change may differ.

    An interrupt (Ctrl-C) saves the study and raises KeyboardInterrupt. A time limit saves the study
    and returns: see `Result.finished`.

    Raises UsageError with all mistakes, before anything is started; StudyError if the study cannot
    go on.
    """
    if wrong := [_unknown(name) for name in settings if name not in request.settings()]:
        raise UsageError([*wrong, f"known settings: {', '.join(request.settings())}"])
    name = name or new_name(train if isinstance(train, str) else _name_of(train))
    directory = Path(results).absolute() / name
    exists = (directory / "study.yaml").is_file()
    if exists and callable(train) and not resume:
        raise UsageError(f"the study {name!r} exists in {directory.parent}: resume=True goes on")
    words = ["--results", str(directory.parent)]
    words += ["--data", str(data)] if data is not None else []
    if exists and resume:
        return _run(["--resume", name, *words, *_flags(changed(directory, settings))], directory)
    words += ["--name", name]
    if isinstance(space, str):
        words += ["--space", space]
    layer = settings | {"trainable": train if isinstance(train, str) else "function.py:train"}
    if isinstance(space, Mapping):
        # Raises all mistakes that need no look at the machine.
        layer["space"] = _described(read([layer | {"name": name, "space": space}], {}).space)
    if not isinstance(train, str):
        layer["trainable"] = function.trainable(train, directory)
    with tempfile.TemporaryDirectory(prefix="siftune-") as scratch:
        config = Path(scratch, "study.yaml")
        config.write_text(to_yaml(layer))
        return _run(["--config", str(config), *words], directory)


def _unknown(name: str) -> str:
    of_flag = [n for n in request.settings() if request.flag(n) == f"--{name.replace('_', '-')}"]
    return f"unknown setting {name!r}" + (f": use {of_flag[0]}" if of_flag else "")


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", "")).replace("<lambda>", "lambda") or "train"


def _described(space: Space) -> dict[str, Any]:
    """Returns the space as text, as in study.yaml. Raises UsageError for a sample_from."""
    if space.drawn:
        raise UsageError(
            f"sample_from of {', '.join(space.drawn)} needs a file that other processes can "
            "read: put the dictionary into a file, and give space='FILE.py:NAME'"
        )
    return space.to_dict()


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Returns the flags of settings that can be changed on resume: numbers, times and texts."""
    words = []
    for name, value in settings.items():
        kind = request.settings()[name].kind
        for one in value if kind == "texts" else [value]:
            words += [request.flag(name), f"{one}s" if kind == "duration" else str(one)]
    return words


def _run(words: list[str], directory: Path) -> Result:
    """Runs the driver to its end, and shows its progress."""
    # In a session of its own, an interrupt in a terminal reaches the driver once, from here.
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # -P: a file in this directory may be named like a library.
    command = [sys.executable, "-P", "-c", _RUN, *words]
    last: list[str] = []
    with (
        subprocess.Popen(command, text=True, start_new_session=True, **streams) as driver,
        closing(Progress(directory)) as progress,
    ):
        lines = _lines(driver)
        interrupted = False
        while True:
            try:
                line = _next(lines)
                if line is None:
                    break
                if line:
                    progress.say(line)
                    last = [*last, line][-_LAST:]
                progress.redraw()
            except KeyboardInterrupt:
                interrupted = True
                driver.send_signal(signal.SIGINT)  # it saves; a second one stops it at once
    if interrupted:
        raise KeyboardInterrupt
    if driver.returncode == _MISTAKE:
        said = (line.strip().removeprefix("tune: ") for line in last)
        raise UsageError([line for line in said if line])
    if driver.returncode not in (0, _AT_TIME_LIMIT):
        raise StudyError("".join(last).strip() or f"the driver ended with {driver.returncode}")
    return load(directory)


def _lines(driver: subprocess.Popen[str]) -> "queue.SimpleQueue[str | None]":
    """Returns the lines of the driver as they come, and None at the end. A thread reads them, so
    that the main one can redraw and receives interrupts."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert driver.stdout
        for line in driver.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _next(lines: "queue.SimpleQueue[str | None]") -> str | None:
    """Returns the next line, or "" if none has come for a second."""
    try:
        return lines.get(timeout=1.0)
    except queue.Empty:
        return ""
