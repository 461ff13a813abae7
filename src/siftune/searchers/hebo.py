"""HEBO, without an adapter between: one model per proposal, of all results so far."""

import io
import warnings
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import torch

from siftune.searchers.model import ModelBased
from siftune.space import Space
from siftune.space.domains import Domain

_threads = torch.get_num_threads()
from hebo.design_space.design_space import DesignSpace  # noqa: E402
from hebo.optimizers.hebo import HEBO  # noqa: E402

torch.set_num_threads(_threads)  # HEBO's import leaves the whole process with one


class Hebo(ModelBased):
    """HEBO (Cowen-Rivers et al. 2022, arXiv:2012.03826), winner of the NeurIPS 2020 challenge.

    A Gaussian process on warped inputs and outputs, and a choice among the Pareto front of three
    acquisition functions. `startup` scores are awaited before the first model; None is HEBO's own
    rule, one more than there are parameters.
    """

    # A proposal takes 2 s. It is one of many on a Pareto front, drawn by lot: two that know nothing
    # of each other seldom meet.
    processes = 2

    def __init__(self, space: Space, *, seed: int, startup: int | None = None) -> None:
        super().__init__(space, seed=seed, startup=1 if startup is None else startup)
        if startup is None:
            self.startup = 1 + len(self.free)
        self._design = DesignSpace().parse([_entry(name, d) for name, d in self.free.items()])

    def suggest(self, rng: np.random.Generator) -> dict[str, float]:
        configs, scores = self.with_lies()
        optimizer = HEBO(self._design, rand_sample=2, scramble_seed=int(rng.integers(2**31)))
        points = pd.DataFrame([self.coordinates(config) for config in configs])
        optimizer.observe_new_data(points, np.array(scores)[:, None])
        # Where one transformation of the scores fails, or a matrix is near singular, HEBO warns,
        # prints, and tries the next.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            suggested = optimizer.suggest().iloc[0]
        return {name: suggested[name].item() for name in self.free}


def _entry(name: str, domain: Domain) -> dict[str, object]:
    if domain.size is None or domain.kind == "unit":
        return {"name": name, "type": "num", "lb": 0, "ub": 1}
    if domain.kind == "level":
        return {"name": name, "type": "int", "lb": 0, "ub": domain.size - 1}
    return {"name": name, "type": "cat", "categories": list(range(domain.size))}
