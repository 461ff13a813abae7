"""The libraries' own randomness and threads, under the control of the proposal that calls them."""

import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from threadpoolctl import ThreadpoolController


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch from `rng`, and allows one thread.

    What a library computes inside then depends on the proposal alone, and a trial that trains in
    the same process draws what it would have drawn without: everything is put back after. One
    thread since sums of several are not reproducible, and since models this small only lose by
    more (measured on two busy cores: 10 s instead of 0.5 s a proposal). torch counts only if it is
    imported already, and only its CPU generator: no searcher's model is on a GPU. All of this is
    the whole process's, so two threads must not propose at once.
    """
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seed = int(rng.integers(2**32))
    new_generator = np.random.default_rng
    random.seed(seed)
    np.random.seed(seed)
    # A generator made without a seed (pymoo's, in HEBO) would take one from the operating system.
    np.random.default_rng = lambda seed=None: new_generator(
        rng.integers(2**63) if seed is None else seed
    )
    if torch:
        torch_state, threads = torch.default_generator.get_state(), torch.get_num_threads()
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
    try:
        with _thread_pools(len(sys.modules)).limit(limits=1):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        np.random.default_rng = new_generator
        if torch:
            torch.default_generator.set_state(torch_state)
            torch.set_num_threads(threads)


@functools.lru_cache(maxsize=1)
def _thread_pools(modules: int) -> ThreadpoolController:
    """Those of the libraries that are loaded. To find them takes 3 ms: only when there are more."""
    return ThreadpoolController()
