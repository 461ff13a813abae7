"""`train --check`: trains an epoch, kills the trial, resumes it, and says what would be lost."""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siftune.cli.doctor.finding import Finding, fail, ok, warn
from siftune.machine import resources
from siftune.trainables import TrainableSpec, how_to_report
from siftune.trial.host import Host, Server
from siftune.trial.messages import Answer, Begin, End, Message, Report, Setup

_MOST_FILES = 20_000  # of the launch directory that are looked at


def findings(spec: TrainableSpec, config: dict[str, Any]) -> Iterator[tuple[str, Finding]]:
    """Yields the name and the finding of each check. `config`: as the trainable gets it."""
    spec.build().prepare()
    begun = time.time()
    with tempfile.TemporaryDirectory(prefix="sift-check-") as directory:
        study = Path(directory)
        server = Server(Setup(trainable=spec, study=study, launched_in=Path.cwd(), threads=1))
        first, second = _train(server, Begin(trial="0001", config=config, run="000001"))
        if isinstance(first, End):
            yield "metric", fail(_ending(first), how_to_report(spec.name, spec.printed.metric))
            return
        yield "metric", _metric(spec, first)
        yield "checkpoint", _checkpoint(server, study, config, first, second, spec.printed.metric)
        yield "files", _files(study, begun)
    yield from _source(spec.name)


def _train(server: Server, begin: Begin) -> tuple[Message, Message | None]:
    """Returns the first two messages of a trial, which is then killed."""
    host = Host(server)
    first = host.begin(begin)
    if isinstance(first, End):
        return first, None
    second = host.next(Answer.CONTINUE)
    if isinstance(second, Report):
        host.stop()
        host.next(Answer.STOP)
    return first, second


def _ending(end: End) -> str:
    last = (end.error or "").strip().rpartition("\n")[2]
    return f"the trial ended before its first report{f': {last}' if last else ''}"


def _metric(spec: TrainableSpec, report: Report) -> Finding:
    metric = spec.printed.metric
    if metric in report.metrics:
        return ok(f"{metric} is {report.metrics[metric]} after {report.seconds:.1f} s")
    return fail(
        f"the first report has {', '.join(report.metrics)} and not {metric}",
        f"pass one of them to --metric, or {how_to_report(spec.name, metric)}",
    )


def _checkpoint(
    server: Server,
    study: Path,
    config: dict[str, Any],
    first: Report,
    second: Message | None,
    metric: str,
) -> Finding:
    if isinstance(second, End) and second.cause is None:
        return ok("a trial has one report, so there is nothing to resume")
    if isinstance(second, End):
        return fail(_ending(second), "see the error")
    if first.checkpoint is None:
        return warn(
            "no checkpoint: a trial that is killed starts again at epoch 1",
            "pass checkpoint= to tune.report and start from tune.get_checkpoint()",
        )
    assert isinstance(second, Report)
    path = study / first.checkpoint
    begin = Begin(trial="0001", config=config, epoch=1, checkpoint=path, run="000002")
    resumed, _ = _train(server, begin)
    if isinstance(resumed, End):
        return fail(f"it does not resume: {_ending(resumed)}", "see tune.get_checkpoint()")
    before, after = second.metrics.get(metric), resumed.metrics.get(metric)
    if before == after:
        return ok(f"killed after epoch 1, it continues with epoch 2 and the same {metric}")
    return warn(
        f"killed after epoch 1, its epoch 2 has {metric} {after}, without the kill {before}",
        "save the optimizer's state too, and seed what is drawn from the epoch's number",
    )


def _files(study: Path, begun: float) -> Finding:
    """Whether the trial has written outside its own directory."""
    written: list[str] = []
    count = 0
    for folder, folders, names in os.walk(Path.cwd()):
        folders[:] = [
            name for name in folders if not name.startswith(".") and name != "__pycache__"
        ]
        for name in names:
            count += 1
            path = Path(folder, name)
            if count <= _MOST_FILES and path.exists() and path.stat().st_mtime >= begun:
                written.append(os.path.relpath(path))
    if not written:
        return ok("it writes to its own directory only")
    return warn(
        f"it writes to {', '.join(written[:3])}, which all trials share",
        "give new files relative names, or names in $SIFTUNE_TRIAL_DIR",
    )


def _source(name: str) -> Iterator[tuple[str, Finding]]:
    """Checks the text of a user's file."""
    path = Path(name.rpartition(":")[0] if ":" in name else name)
    if path.suffix != ".py" or not path.is_file():
        return
    text = path.read_text(errors="replace")
    if found := re.search(r"[\"']cuda:\d+[\"']|\.cuda\(\d+\)|set_device\(\d+\)", text):
        yield (
            "gpu",
            warn(
                f"{path.name} asks for a GPU by number, {found[0]}",
                'a trial sees only its own GPUs: use "cuda"',
            ),
        )
    if found := re.search(r"(manual_seed|random\.seed|seed_everything)\(\s*\d+\s*\)", text):
        yield (
            "seed",
            warn(
                f"{path.name} sets a fixed seed, {found[0]}",
                "all trials then draw the same numbers, whatever --seed is",
            ),
        )
    cpus = int(resources.nodes()[0].cpus)
    for match in re.finditer(r"num_workers\s*=\s*(\d+)", text):
        if int(match[1]) > cpus:
            yield (
                "workers",
                warn(
                    f"{path.name} starts {match[1]} DataLoader workers, and there are {cpus} CPUs",
                    "use at most --cpus-per-trial of them",
                ),
            )
