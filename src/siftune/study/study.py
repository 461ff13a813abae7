"""The planned study: a request in which every value has been chosen."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml

from siftune.schedulers import SCHEDULERS
from siftune.searchers import SEARCHERS
from siftune.study.request import StudyRequest, processes

DEFAULT_MAX_EPOCHS = 100

# Numbers that YAML 1.1 takes for text.
FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")


class _Dumper(yaml.SafeDumper):
    """Writes tuples as tuples, and quotes text such as 1e-3, for siftune/study/text.py."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("!tuple", value))


def to_yaml(values: Mapping[str, Any]) -> str:
    """Returns the settings of a study as YAML, which `read_study_yaml` reads."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(StudyRequest):
    """A planned study. study.yaml holds all of its fields."""

    searcher: str
    scheduler: str
    seed: int
    trials: int
    gpus_per_trial: float

    def sign(self) -> int:
        """Returns the factor that turns the metric into a score, which is always minimised."""
        return 1 if self.mode == "min" else -1

    @property
    def processes(self) -> int:
        """The number of processes of a trial."""
        return processes(self.processes_per_trial, self.gpus_per_trial)

    @property
    def max_epochs(self) -> int:
        """The maximum number of epochs of a trial: the scheduler's option of that name, otherwise
        the largest `epochs` of the space, otherwise 100."""
        if "max_epochs" in self.scheduler_options:
            return self.scheduler_options["max_epochs"]
        return int(self.space.bounds("epochs")[1]) if "epochs" in self.space else DEFAULT_MAX_EPOCHS

    def last_epoch(self, config: Mapping[str, Any]) -> int | None:
        """Returns the epoch after which a trial of this config ends, even if its function would
        continue: the smaller of `epochs` and the scheduler's option max_epochs. None if neither is
        given."""
        given = (config.get("epochs"), self.scheduler_options.get("max_epochs"))
        return min((int(epochs) for epochs in given if epochs is not None), default=None)

    def to_yaml(self) -> str:
        """Returns the content of study.yaml."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["space"] = self.space.to_dict()
        return to_yaml(values)

    def build_searcher(self) -> Any:
        """Builds the searcher. Raises UsageError for options that it does not have."""
        options = self.searcher_options
        return SEARCHERS.build(self.searcher, options, space=self.space, seed=self.seed)

    def build_scheduler(self) -> Any:
        """Builds the scheduler. Raises UsageError for options that it does not have."""
        return SCHEDULERS.build(
            self.scheduler,
            {k: v for k, v in self.scheduler_options.items() if k != "max_epochs"},
            space=self.space,
            seed=self.seed,
            trials=self.trials,
            max_epochs=self.max_epochs,
        )
