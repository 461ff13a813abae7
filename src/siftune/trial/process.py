"""A trial's process: runs the user's code in its main thread until the trial ends or pauses."""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from siftune.study import layout
from siftune.trial import checkpoints, directory, failures, gpu_memory, metrics, session, warm
from siftune.trial.messages import Answer, Begin, End, Report, Setup


class Stopped(SystemExit):
    """Raised from `tune.report` when the trial must not train any further."""


def main(
    connection: Connection,
    board: Connection | None,
    setup: Setup,
    variables: dict[str, str],
    forked: bool,
) -> None:
    """Trains the trials that the worker sends: one, or several if the setup reuses processes.

    `board`: the connection to the board through which the processes of a trial meet, if it has
    several. `variables`: environment variables that select the visible GPUs. `forked`: whether this
    process was forked from a fork server.
    """
    os.environ |= variables
    os.setsid()  # one process group with everything that the trial starts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if forked and (reason := warm.why_not_to_fork()):
        connection.send(reason)
        return
    try:
        connection.send(None)
        _set_threads(setup.threads)
        while True:
            begin: Begin = connection.recv()
            connection.send(_run(connection, board, setup, begin))
            if not setup.reuse:
                break
    except (EOFError, BrokenPipeError, ConnectionResetError):
        _end_all()  # the worker has ended
    _flush()
    # multiprocessing does not run atexit functions, but experiment loggers save their data in them.
    atexit._run_exitfuncs()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    _end_all()


def _end_all() -> None:
    """Kills this process and everything that the trial has started."""
    os.killpg(0, signal.SIGKILL)


def _set_threads(count: int) -> None:
    """Sets the number of threads of numerical libraries, which were imported with one thread."""
    os.environ |= dict.fromkeys(warm.THREADS, str(count))
    if count == 1:
        return
    import threadpoolctl

    threadpoolctl.threadpool_limits(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(Exception):
        ctypes.CDLL(None).fflush(None)


def _run(connection: Connection, board: Connection | None, setup: Setup, begin: Begin) -> End:
    """Runs a trial once. Returns how the run ended, including any exception of the user's code."""
    run: _Run | None = None
    try:
        run = _Run(connection, setup, begin)
        with session.active(run), _process_group(board, setup, begin):
            setup.trainable.run(
                begin.config, begin.checkpoint, run.report, save_in=run.unsaved_checkpoint
            )
        return End()
    except Stopped:
        return End()
    except SystemExit as error:
        return End() if error.code in (None, 0) else failures.end_of(error, setup.study)
    except BaseException as error:
        if run is not None and run.broken:
            raise  # the worker has ended
        return failures.end_of(error, setup.study)
    finally:
        _flush()


def _process_group(
    board: Connection | None, setup: Setup, begin: Begin
) -> AbstractContextManager[None]:
    if setup.trainable.processes == 1:
        return nullcontext()
    from siftune.trainables.training import parallel
    from siftune.trial.store import BoardStore

    assert board is not None
    store = BoardStore(board, begin.run)
    return parallel.joined(begin.rank, setup.trainable.processes, store)


class _Run:
    """The session of one run: implements `tune.report` and the functions related to it."""

    def __init__(self, connection: Connection, setup: Setup, begin: Begin) -> None:
        self.trial = begin.trial
        self.config = begin.config
        self.study = setup.study.name
        self.resources = setup.resources
        self.checkpoint = begin.checkpoint
        self.broken = False
        self._connection = connection
        self._setup = setup
        self._begin = begin
        self._epoch = begin.epoch
        self._over = False
        self._divide = begin.gpu.divide if begin.gpu else None
        self.directory = directory.prepare(
            setup.study, begin.trial, setup.launched_in, links=setup.in_trial_directory
        )
        log = layout.log(setup.study, begin.trial, begin.rank)
        directory.redirect_output(log)
        os.chdir(self.directory if setup.in_trial_directory else setup.launched_in)
        os.environ["SIFTUNE_TRIAL_DIR"] = str(self.directory)
        Path("/proc/self/comm").write_text(f"trial {begin.trial}")  # for ps and top
        if not setup.share_gpu:
            # With MPS the crash of one process ends others, so only trials that share a GPU use it.
            os.environ.pop("CUDA_MPS_PIPE_DIRECTORY", None)
        if begin.gpu:
            gpu_memory.limit(begin.gpu.limit_mib)
        if setup.reuse and setup.measure_gpu:
            gpu_memory.forget()
        multiprocessing.set_start_method(None, force=True)  # not set yet, as in a new interpreter
        self._since = time.perf_counter()

    def unsaved_checkpoint(self, epoch: int) -> Path:
        """Returns the directory in which to write the checkpoint of an epoch.

        It is the same in all processes of the trial. `report` then stores its content as a
        checkpoint of the trial.
        """
        return checkpoints.unsaved(self._setup.study, self.trial, epoch, self._begin.run)

    def report(self, reported: Mapping[Any, Any], checkpoint: Any = None) -> None:
        if self._over:
            raise Stopped
        self._epoch += 1
        values = metrics.plain(reported)
        saved = None
        if checkpoint is not None and self._begin.rank == 0:
            saved = checkpoints.keep(
                checkpoint, self._setup.study, self.trial, self._epoch, self._begin.run
            )
        used_mib = gpu_memory.used_mib() if self._setup.measure_gpu else None
        now = time.perf_counter()
        report = Report(
            epoch=self._epoch,
            metrics=values,
            seconds=now - self._since,
            checkpoint=saved,
            gpu_mib=used_mib,
        )
        if self._ask(report) is Answer.STOP:
            self._over = True
            raise Stopped
        if used_mib and self._divide:
            # The trial had the whole GPU. From now on it shares the GPU with other trials.
            gpu_memory.limit(gpu_memory.part_mib(used_mib, *self._divide))
            self._divide = None
        # The code after the last report still runs, but a further report raises Stopped.
        last = self._begin.last_epoch
        self._over = last is not None and self._epoch >= last
        self._since = time.perf_counter()

    def _ask(self, report: Report) -> Answer:
        try:
            self._connection.send(report)
            answer: Answer = self._connection.recv()
        except (EOFError, OSError):
            self.broken = True
            raise
        return answer
