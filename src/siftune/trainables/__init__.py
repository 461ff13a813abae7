"""Trainables, each of which trains one model from one config and reports once per epoch.

The catalogue `TRAINABLES` lists the built-in ones. A user can also provide a function in a file,
FILE.py:FUNC, or a script with flags, SCRIPT.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.catalogue import Catalogue
from siftune.errors import UsageError
from siftune.trainables.user.printed import PrintedMetrics

if TYPE_CHECKING:
    from siftune.space import Config, Space
    from siftune.trainables.base import Report, Trainable

TRAINABLES = Catalogue(
    "trainable",
    {
        "mnist": "siftune.trainables.mnist:Mnist",
        "resnet18": "siftune.trainables.resnet18:ResNet18",
        "sklearn": "siftune.trainables.sklearn:Sklearn",
        "t5": "siftune.trainables.t5:T5",
    },
)

ASKED = "ask_and_tell"  # in place of a trainable: the caller trains the trials


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableSpec:
    """The name of a trainable, and everything that it needs besides a config.

    The spec is small. It is pickled and sent to the workers, which import no heavy library until
    they build the trainable.
    """

    name: str
    data: Path
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    processes: int = 1  # per trial; if there are several, each has one GPU or none
    printed: PrintedMetrics = field(default_factory=PrintedMetrics)  # for a script

    def build(self) -> Trainable:
        """Returns the trainable. Raises UsageError for an unknown name or option."""
        if self.name in TRAINABLES:
            return TRAINABLES.build(self.name, self.options, data=self.data, seed=self.seed)
        return _user_trainable(
            self.name, self.seed, self.printed, str(self.options.get("args", ""))
        )

    def mistakes(self, space: Space) -> list[str]:
        """Returns a sentence for each mistake in the name, the options and the space.

        Imports the user's file, as a worker will do. Runs a script with --help.
        """
        try:
            trainable = self.build()
        except UsageError as error:
            return list(error.mistakes)
        if self.processes > 1 and not trainable.several_processes:
            return [
                f"{self.name} cannot train in several processes, so --gpus-per-trial and "
                f"--processes-per-trial must be at most 1, got {self.processes}: give a function, "
                "FILE.py:FUNC, that calls siftune.parallel.wrap(model)"
            ]
        return [*trainable.mistakes(space), *self._option_mistakes()]

    def _option_mistakes(self) -> list[str]:
        if self.name in TRAINABLES:
            return []
        known = ("args",) if is_script(self.name) else ()
        return [
            f"--trainable-arg {option} works with built-in trainables only: your own trainable "
            "takes its values from the space"
            for option in self.options
            if option not in known
        ]

    def memory_gib(self, space: Space, *, gpu: bool) -> float | None:
        """Returns the memory in GiB that each process needs, or None. See `Trainable`."""
        return self.build().memory_gib(space, self.processes, gpu=gpu)

    def run(
        self, config: Config, start: Path | None, report: Report, *, save_in: Callable[[int], Path]
    ) -> None:
        """See `Trainable.run`."""
        self.build().run(config, start, report, save_in=save_in)


def default_space(name: str, *, gpu: bool = True) -> dict[str, Any]:
    """Returns a trainable's default space, for trials with or without a GPU.

    Raises UsageError if it has none.
    """
    if name in TRAINABLES:
        built_in = TRAINABLES.load(name)
        return {**built_in.space, **({} if gpu else built_in.cpu_space)}
    return _user_trainable(name, seed=0).default_space()


def cpu_options(name: str) -> dict[str, Any]:
    """Returns the options whose defaults differ where trials have no GPU."""
    return dict(TRAINABLES.load(name).cpu_options) if name in TRAINABLES else {}


def load(name: str, args: str = "") -> None:
    """Does what every trial of the trainable needs: imports modules, and reads a script's help.

    `args`: words that every trial of a script gets.
    """
    if name in TRAINABLES:
        TRAINABLES.load(name)
    else:
        _user_trainable(name, seed=0, args=args).load()


def modules(name: str) -> list[str]:
    """Returns the modules that every trial of the trainable imports, besides the user's file."""
    from siftune.trainables.user import script

    if not is_script(name):
        return ["ray.tune"]
    return ["ray.tune", *script.heavy_imports(Path(name))]


def absolute(name: str) -> str:
    """Returns a name of the trainable that is valid in any working directory."""
    if name in TRAINABLES:
        return name
    file, colon, attribute = name.rpartition(":") if ":" in name else (name, "", "")
    return f"{Path(file).absolute()}{colon}{attribute}" if file.endswith(".py") else name


def is_script(name: str) -> bool:
    """Whether `--trainable NAME` names a script, not a function in a file."""
    return ":" not in name and name.endswith(".py")


def how_to_report(name: str, metric: str) -> str:
    """Returns what a trainable must do so that the study gets its metric."""
    if is_script(name):
        return (
            f'print a line of JSON once per epoch, {{"{metric}": 0.31}}, or say with '
            "--metric-pattern or --metric-file where the metric is"
        )
    return f'call tune.report({{"{metric}": value}}) once per epoch, or yield or return the metrics'


def _user_trainable(
    name: str, seed: int, printed: PrintedMetrics | None = None, args: str = ""
) -> Trainable:
    from siftune.trainables.user import function, script

    if function.is_function(name):
        return function.UserFunction(name, seed=seed, metric=printed.metric if printed else "")
    if is_script(name):
        return script.UserScript(name, seed=seed, printed=printed or PrintedMetrics(), args=args)
    if name == ASKED:
        raise UsageError(
            "the trials of this study are trained by its caller: go on with "
            "siftune.ask_and_tell(name=…, resume=True)"
        )
    raise UsageError(
        f"unknown trainable {name!r}; known: {', '.join(TRAINABLES)}, or your own: a function, "
        "FILE.py:FUNC, or a script with flags, FILE.py"
    )
