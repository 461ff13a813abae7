"""HEBO, called directly. Each proposal fits a new model to all results so far."""

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

torch.set_num_threads(_threads)  # importing HEBO sets it to 1 for the whole process


class Hebo(ModelBased):
    """HEBO (Cowen-Rivers et al. 2022, arXiv:2012.03826), winner of the NeurIPS 2020 challenge.

    It fits a Gaussian process to warped inputs and outputs, and draws from the Pareto front of
    three acquisition functions. The first model is fitted after `startup` results. By default this
    is one more than the number of parameters, as in HEBO.
    """

    # A proposal takes 2 s. It is drawn at random from a Pareto front, so two proposals that do not
    # know of each other are seldom equal.
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
        # If a transformation of the scores fails or a matrix is almost singular, HEBO warns, prints
        # and tries the next one.
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
