"""Controls the randomness and the threads of the libraries that compute a proposal."""

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

    The results of a library then depend only on the proposal. Everything is restored afterwards, so
    a trial that trains in the same process is not affected. One thread is used because sums over
    several threads are not reproducible, and because more threads slow down such small models
    (measured on two busy cores: 10 s instead of 0.5 s per proposal). torch is seeded only if it is
    already imported, and only on the CPU, because no searcher has a model on a GPU. The generators
    belong to the whole process, so two threads must not propose at the same time.
    """
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seed = int(rng.integers(2**32))
    new_generator = np.random.default_rng
    random.seed(seed)
    np.random.seed(seed)
    # A generator created without a seed (by pymoo, in HEBO) would be seeded by the system.
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
    """Returns the thread pools of the loaded libraries, cached because finding them takes 3 ms."""
    return ThreadpoolController()
