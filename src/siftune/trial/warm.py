"""Imports what trials need, once, in the fork server that their processes are forked from.

`multiprocessing.forkserver` can be told to import modules, and nothing else. Hence this one, whose
import does the rest: it reads what is wanted from the environment.
"""

import gc
import importlib
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

VARIABLE = "SIFTUNE_WARM"

# How many threads numerical libraries start, when they are imported or later.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# With these a library that is imported starts no threads: a fork would not have them. The last is
# pyarrow's memory allocator.
_NO_THREADS = dict.fromkeys(THREADS, "1") | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}

# torch.cuda.is_available() then asks the driver's library and leaves CUDA alone: users' files call
# it when they are imported, and after that no fork could use CUDA.
_NO_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def wanted(trainable: str, modules: list[str]) -> dict[str, str]:
    """The variables of the environment that this module is to be imported with."""
    return (
        _NO_THREADS
        | _NO_CUDA
        | {VARIABLE: json.dumps({"trainable": trainable, "modules": modules})}
    )


def _warm(trainable: str, modules: list[str]) -> None:
    gc.disable()
    for name in modules:
        importlib.import_module(name)
    from siftune import trainables
    from siftune.trial import session

    session.install()
    trainables.load(trainable)
    # What a collection of garbage looks through is copied, and nothing of this is garbage.
    gc.collect()
    gc.freeze()
    gc.enable()


def why_not_to_fork() -> str | None:
    """Why a process must not go on that was forked from this state, asked in such a process."""
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    if threads > 1:
        return f"starts {threads - 1} threads when it is imported"
    torch: Any = sys.modules.get("torch")
    if torch is not None and (torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork()):
        return "uses CUDA when it is imported"
    return None


if VARIABLE in os.environ:
    # Else what this process starts would not find what is beside its own files.
    del os.environ["PYTHONSAFEPATH"]
    with redirect_stdout(sys.stderr):
        try:
            _warm(**json.loads(os.environ.pop(VARIABLE)))
        except Exception as error:  # the trial's own process meets it again, and reports it
            print(f"not imported beforehand: {type(error).__name__}: {error}")
