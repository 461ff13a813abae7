"""Imports what trials need, once, in the fork server from which their processes are forked.

`multiprocessing.forkserver` can only import modules in advance. The remaining preparation
is therefore done as a side effect of importing this module. It reads the list of imports from the
environment.
"""

import gc
import importlib
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from siftune.machine import gpus

VARIABLE = "SIFTUNE_WARM"

# Variables that set how many threads numerical libraries start, at import or later.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# With these, libraries start no threads at import, because a fork would not have the threads. The
# last one is for pyarrow's memory allocator.
_NO_THREADS = dict.fromkeys(THREADS, "1") | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}

# With this, torch.cuda.is_available() asks NVML and does not initialise CUDA. Users' files often
# call it at import, and a process that is forked after CUDA is initialised cannot use CUDA.
_NO_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def wanted(trainable: str, args: str, modules: list[str]) -> dict[str, str]:
    """Returns the environment variables with which this module must be imported.

    `args`: words that every trial of a script gets.
    """
    words = {"trainable": trainable, "args": args, "modules": modules}
    return _NO_THREADS | _NO_CUDA | {VARIABLE: json.dumps(words)}


def _warm(trainable: str, args: str, modules: list[str]) -> None:
    gc.disable()
    for name in modules:
        importlib.import_module(name)
    from siftune import trainables
    from siftune.trial import session

    session.install()
    trainables.load(trainable, args)
    gpus.close_nvml()
    # A later garbage collection would copy these objects' pages in every fork. None is garbage.
    gc.collect()
    gc.freeze()
    gc.enable()


def why_not_to_fork() -> str | None:
    """Returns why this forked process must not continue, or None if it may."""
    torch: Any = sys.modules.get("torch")
    # Without a GPU torch.cuda.is_available() counts as a use of CUDA, but nothing can go wrong.
    if (
        torch is not None
        and gpus.any_here()
        and (torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())
    ):
        return "uses CUDA when it is imported"
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    if threads > 1:
        return f"starts threads when it is imported ({threads - 1} running)"
    return None


if VARIABLE in os.environ:
    # Otherwise child processes could not import the modules next to their own files.
    del os.environ["PYTHONSAFEPATH"]
    with redirect_stdout(sys.stderr):
        try:
            _warm(**json.loads(os.environ.pop(VARIABLE)))
        except Exception as error:  # the trial's own process raises it again and reports it
            print(f"importing in advance failed: {type(error).__name__}: {error}")
