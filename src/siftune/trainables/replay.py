"""Work on a GPU that is the same each time, recorded as a CUDA graph and replayed.

A training step of a small network is a hundred kernels, for which Python takes ten times as long as
the GPU. A graph of them is one launch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

WARM_UPS = 3  # PyTorch's advice: what libraries set up at first cannot be recorded


class Replay:
    """Runs the work it is called with, three times as it is and then as a recording of it.

    It must be the same work each time, on tensors that stay: what differs is read from them. And it
    must not wait for the GPU. Each of the runs counts; to record is not to run. Random numbers are
    those that the work itself would draw: a graph takes seed and offset of PyTorch's generator as
    they are at each replay, and advances the offset.

    Work that cannot be recorded is run as it is from then on, and stderr has a line about it.
    """

    # The work is not kept: what keeps a Replay and is kept by its work would be a cycle, and the
    # graph's memory would be held until the garbage is collected.

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # nothing can be recorded on the default one
        self._warm_ups = WARM_UPS
        self._recordable = True
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def __call__(self, work: Callable[[], None]) -> None:
        if self._warm_ups:
            self._warm_ups -= 1
            with self._aside():
                work()
            return
        if self._graph is None and self._recordable:
            self._record(work)
        if self._graph is None:
            work()
        else:
            self._graph.replay()

    def _record(self, work: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with self._aside(), torch.cuda.graph(graph, stream=self._stream):
                work()
        except RuntimeError as error:  # all of CUDA's and PyTorch's are
            self._recordable = False
            # In some versions of PyTorch its generator would wait for the end of the recording.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            why = str(error).partition("\n")[0]
            _say(f"trains without a CUDA graph, which could not be recorded: {why}")
        else:
            self._graph = graph

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream, after what was asked of the GPU before and before what is asked later."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)


@cache  # once in a process, not in each trial
def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
