"""A trial's process, without Ray: its environment, its messages, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from siftune.space import Space
from siftune.trainables import TrainableSpec
from siftune.trial import checkpoints, directory
from siftune.trial.host import Host, Server
from siftune.trial.messages import Answer, Begin, Cause, End, Message, Report, Setup

Start = Callable[..., tuple[Host, Message]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a trial of a function in a file; returns its host and its first message."""
    hosts = []

    def begin(body: str, *, reuse: bool = False, **more: Any) -> tuple[Host, Message]:
        file = tmp_path / "mine.py"
        file.write_text("from ray import tune\n" + dedent(body))
        trainable = TrainableSpec(name=f"{file}:train", data=tmp_path)
        setup = Setup(
            trainable=trainable, study=tmp_path / "study", launched_in=tmp_path, reuse=reuse
        )
        hosts.append(Host(Server(setup)))
        more = {"trial": "0001", "config": {"x": 1}, "run": "first"} | more
        return hosts[-1], hosts[-1].begin(Begin(**more))

    yield begin
    for host in hosts:
        host.stop()


def metrics(message: Message) -> dict[str, Any]:
    assert isinstance(message, Report), message
    return message.metrics


def end(message: Message) -> End:
    assert isinstance(message, End), message
    return message


def gone(process: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_report_comes_with_its_epoch_and_the_end_with_nothing(start: Start) -> None:
    host, first = start("def train(config):\n    tune.report({'loss': config['x']})")
    assert metrics(first) == {"loss": 1}
    assert isinstance(first, Report)
    assert first.epoch == 1
    assert host.next(Answer.CONTINUE) == End()


@pytest.mark.parametrize(
    ("imports", "call"),
    [
        ("from ray.tune import report, get_checkpoint", "report({'loss': 1})"),
        ("import ray.tune as rt", "rt.report(metrics={'loss': 1})"),
        ("from ray import train as rt", "rt.report({'loss': 1})"),
        ("import ray", "ray.tune.report(loss=1)"),
        ("", "tune.report({'loss': 0}, loss=1)"),
        ("from ray.air import session", "session.report({'loss': 1})"),
    ],
)
def test_reports_arrive_in_whichever_way_the_function_is_imported(
    start: Start, imports: str, call: str
) -> None:
    _, first = start(f"{imports}\ndef train(config):\n    {call}")
    assert metrics(first) == {"loss": 1}


def test_user_code_runs_in_the_main_thread_of_a_process_of_its_own(start: Start) -> None:
    body = """
    import os, signal, threading
    def train(config):
        signal.signal(signal.SIGUSR1, lambda *_: None)
        main = threading.current_thread() is threading.main_thread()
        tune.report({"main": main, "leader": os.getpgid(0) == os.getpid(), "pid": os.getpid()})
    """
    host, first = start(body)
    assert metrics(first)["main"]
    assert metrics(first)["leader"]
    host.next(Answer.CONTINUE)
    second = host.begin(Begin(trial="0002", config={}, run="first"))
    assert metrics(second)["pid"] != metrics(first)["pid"]


def test_a_trial_works_in_its_own_directory_and_reads_what_lies_where_it_was_launched(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").write_text("data")
    body = """
    from pathlib import Path
    def train(config):
        Path("mine.txt").write_text("own")
        context = tune.get_context()
        print("said", flush=True)
        said = [context.get_trial_dir(), context.get_trial_name(), context.get_trial_id()]
        tune.report({"read": Path("data.txt").read_text(), "said": said})
    """
    _, first = start(body)
    own = tmp_path / "study" / "trials" / "0001"
    assert metrics(first) == {"read": "data", "said": [str(own), "0001", "0001"]}
    assert (own / "mine.txt").read_text() == "own"
    assert not (tmp_path / "mine.txt").exists()
    assert (own / "log.txt").read_text() == "said\n"


def test_results_are_the_trials_own_even_if_their_directory_existed(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text("of something else")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "start.pt").write_text("weights")
    (tmp_path / "best.pt").write_text("")
    for name in ("best.pt", "checkpoints/start.pt"):
        os.utime(tmp_path / name, (1, 1))
    body = """
    from pathlib import Path
    def train(config):
        print("said", flush=True)
        Path("checkpoints/epoch1.pt").write_text("own")
        Path("best.pt").write_text("shared")
        tune.report({"read": Path("checkpoints/start.pt").read_text()})
    """
    _, first = start(body)
    own = tmp_path / "study" / "trials" / "0001"
    assert metrics(first) == {"read": "weights"}
    assert (own / "checkpoints" / "epoch1.pt").read_text() == "own"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["start.pt"]
    assert (own / "log.txt").read_text() == "said\n"
    assert (tmp_path / "log.txt").read_text() == "of something else"
    # It cannot be prevented, so the study says it.
    assert directory.overwritten(tmp_path, since=1) == [tmp_path / "best.pt"]
    assert directory.overwritten(tmp_path, since=time.time() + 1) == []


def test_a_second_run_of_a_trial_finds_its_directory_and_adds_to_its_log(
    start: Start, tmp_path: Path
) -> None:
    body = """
    from pathlib import Path
    def train(config):
        print(Path("mine.txt").exists())
        Path("mine.txt").touch()
        tune.report({})
    """
    host, _ = start(body)
    host.next(Answer.CONTINUE)
    host.begin(Begin(trial="0001", config={}, run="second"))
    assert (tmp_path / "study/trials/0001/log.txt").read_text() == "False\nTrue\n"


SAVES = """
import json, tempfile
from pathlib import Path
def train(config):
    done = 0
    if checkpoint := tune.get_checkpoint():
        done = json.loads(Path(checkpoint.path, "epoch").read_text())
    for epoch in range(done + 1, 5):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch").write_text(str(epoch))
            tune.report({"epoch": epoch}, checkpoint=tune.Checkpoint(directory))
"""


def test_a_checkpoint_is_kept_whole_and_continued_from_with_its_epoch(
    start: Start, tmp_path: Path
) -> None:
    host, first = start(SAVES)
    second = host.next(Answer.CONTINUE)
    assert isinstance(second, Report)
    assert second.checkpoint
    host.next(Answer.STOP)
    kept = tmp_path / "study" / second.checkpoint
    assert (kept / "epoch").read_text() == "2"
    third = host.begin(Begin(trial="0001", config={}, epoch=2, checkpoint=kept, run="second"))
    assert isinstance(third, Report)
    assert (third.epoch, third.metrics["epoch"]) == (3, 3)
    assert isinstance(first, Report)
    assert first.checkpoint
    kept_names = {second.checkpoint}
    checkpoints.remove_others(tmp_path / "study", "0001", kept_names, run="third")
    names = {path.name for path in (tmp_path / "study/checkpoints/0001").iterdir()}
    assert names == {Path(second.checkpoint).name}


def test_a_stopped_trial_cleans_up_and_its_process_ends(start: Start, tmp_path: Path) -> None:
    body = """
    import os
    from pathlib import Path
    def train(config):
        try:
            tune.report({"pid": os.getpid()})
        finally:
            Path("cleaned").touch()
    """
    host, first = start(body)
    assert host.next(Answer.STOP) == End()
    assert (tmp_path / "study/trials/0001/cleaned").exists()
    assert gone(metrics(first)["pid"])


def test_a_trial_ends_after_its_last_epoch_and_what_follows_its_report_runs(
    start: Start, tmp_path: Path
) -> None:
    body = """
    from pathlib import Path
    def train(config):
        while True:
            tune.report({})
            Path("after").touch()
    """
    host, _ = start(body, last_epoch=2)
    assert isinstance(host.next(Answer.CONTINUE), Report)
    (tmp_path / "study/trials/0001/after").unlink()
    assert host.next(Answer.CONTINUE) == End()
    assert (tmp_path / "study/trials/0001/after").exists()


@pytest.mark.parametrize(
    ("does", "cause", "words"),
    [
        ("raise Own(lambda: 1)", Cause.ERROR, "Own: whatever"),
        ("raise Mute()", Cause.ERROR, "Mute"),
        ("sys.exit('no data')", Cause.ERROR, "sys.exit('no data')"),
        ("sys.exit(3)", Cause.ERROR, "exit code 3"),
        ("os._exit(3)", Cause.CRASH, "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Cause.CRASH, "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", Cause.CRASH, "SIGKILL"),
        ("raise MemoryError", Cause.MEMORY, "MemoryError"),
        ("raise RuntimeError('CUDA out of memory. Tried')", Cause.MEMORY, "CUDA"),
        ("raise OSError(errno.ENOSPC, 'No space', 'w.pt')", Cause.STORAGE, "w.pt"),
        ("raise OSError(errno.EROFS, 'Read-only', HERE)", Cause.NODE, "Read-only"),
        ("raise OSError(errno.ENOENT, 'Not there', 'w.pt')", Cause.ERROR, "w.pt"),
        ("raise OSError(errno.EIO, 'I/O error', '/scratch/images/7.png')", Cause.CRASH, "7.png"),
        ("raise OSError(errno.ESTALE, 'Stale', '/home/me/data')", Cause.CRASH, "/home/me/data"),
        ("raise OSError(errno.EIO, 'I/O error', STUDY + '/w.pt')", Cause.STORAGE, "w.pt"),
        ("tune.report(3)", Cause.ERROR, "takes a dictionary of metrics, got int"),
        ("input()", Cause.ERROR, "EOFError"),
    ],
)
def test_how_a_trial_fails_is_told_apart(start: Start, does: str, cause: Cause, words: str) -> None:
    body = f"""
    import errno, os, signal, sys, tempfile
    HERE = tempfile.gettempdir() + "/x"
    STUDY = os.path.dirname(os.path.dirname(os.environ["SIFTUNE_TRIAL_DIR"]))
    class Own(Exception):
        def __str__(self): return "whatever"
    class Mute(Exception):
        def __str__(self): raise ValueError
    def train(config):
        {does}
    """
    host, first = start(body)
    ended = end(first)
    assert ended.cause is cause
    assert words in (ended.error or "")
    if "Traceback" in (ended.error or ""):
        assert (ended.error or "").splitlines()[1].endswith(", in train")
    assert host.begin(Begin(trial="0002", config={}, run="next"))


def test_exit_without_an_error_is_the_end(start: Start) -> None:
    assert start("import sys\ndef train(config):\n    sys.exit()")[1] == End()


@pytest.mark.parametrize("how", ["stop", "end"])
def test_nothing_that_a_trial_has_started_outlives_it(start: Start, how: str) -> None:
    body = """
    import subprocess
    def train(config):
        child = subprocess.Popen(["sleep", "1000"])
        tune.report({"child": child.pid})
        if config["x"]:
            import time
            time.sleep(1000)
    """
    host, first = start(body, config={"x": how == "stop"})
    if how == "stop":
        host.stop()
    host.next(Answer.CONTINUE)
    assert gone(metrics(first)["child"])


def test_a_trial_that_does_not_stop_when_told_is_killed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siftune.trial.host._STOP_S", 0.5)
    body = """
    import os, time
    def train(config):
        try:
            tune.report({"pid": os.getpid()})
        except BaseException:
            time.sleep(1000)
    """
    host, first = start(body)
    assert end(host.next(Answer.STOP)).killed
    assert gone(metrics(first)["pid"])


def test_metrics_are_what_json_can_hold(start: Start) -> None:
    body = """
    import numpy, torch
    class Odd:
        def __str__(self): raise ValueError
    def train(config):
        tune.report({
            "done": True, 1: numpy.float32(0.5), ("a", 2): torch.tensor(2),
            "nested": {"a": {"b": 1}}, "list": [numpy.int64(1), "x"], "huge": 10**400,
            "odd": Odd(), "half": "\\ud800",
        })
    """
    _, first = start(body)
    received = metrics(first)
    assert received.pop("odd").startswith("a Odd that cannot be shown")
    assert received == {
        "done": True,
        "1": 0.5,
        "('a', 2)": 2,
        "nested/a/b": 1,
        "list": [1, "x"],
        "huge": "a whole number of 1329 bits",
        "half": "\\ud800",
    }
    json.dumps(received).encode()


@pytest.mark.parametrize("end_it", ["return {'loss': config['x']}", "yield {'loss': 1}"])
def test_a_function_may_return_or_yield_its_metrics(start: Start, end_it: str) -> None:
    host, first = start(f"def train(config):\n    {end_it}")
    assert metrics(first) == {"loss": 1}
    assert host.next(Answer.CONTINUE) == End()


FORMS = """
import functools
def f(config, data=None, factor=1):
    tune.report(loss=config["x"] * factor + sum(data))
class Net:
    def __call__(self, config): yield {"loss": config["x"]}
    def fit(self, config): return config["x"]
class Asynchronous:
    async def __call__(self, config): return config["x"]
async def asynchronous(config): return config["x"]
"""


@pytest.mark.parametrize(
    "train",
    [
        "functools.partial(f, data=[0])",
        "functools.partial(f, factor=1, data=range(1))",
        "Net()",
        "Net().fit",
        "lambda config: config['x']",
        "lambda config, factor=1: {'loss': config['x'] * factor}",
        "tune.with_parameters(f, data=[0])",
        "tune.with_resources(f, {'cpu': 1}) and tune.with_parameters(f, data=[0])",
        "tune.with_resources(tune.with_parameters(f, data=[0]), {'cpu': 1})",
        "tune.with_resources(Net().fit, {'gpu': 1})",
    ],
)
def test_each_callable_object_is_trained(start: Start, train: str) -> None:
    host, first = start(f"{FORMS}train = {train}")
    assert metrics(first) == {"loss": 1}
    assert host.next(Answer.CONTINUE) == End()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("Net", "is a class, and not a subclass of tune.Trainable: name an object of it"),
        ("asynchronous", "is asynchronous"),
        ("Asynchronous()", "is asynchronous"),
        ("lambda: 1", "cannot be called with a config alone: too many positional"),
        ("lambda config, data: 1", "missing a required argument: 'data'. Bind other arguments"),
    ],
)
def test_what_cannot_be_trained_with_a_config_is_refused(
    tmp_path: Path, train: str, words: str
) -> None:
    (tmp_path / "refused.py").write_text(f"{FORMS}train = {train}")
    spec = TrainableSpec(name=f"{tmp_path}/refused.py:train", data=tmp_path)
    (mistake,) = spec.mistakes(Space.read({"x": 1}))
    assert words in mistake


CLASS = """
from pathlib import Path
class train(tune.Trainable):
    def setup(self, config, data=None):
        self.data = data
    def step(self):
        return {"before": self.iteration, "id": self.trial_id, "data": self.data}
    def log_result(self, result):
        self.logged = result["training_iteration"]
        Path(self.logdir, "logged").write_text(str(self.logged))
    def save_checkpoint(self, directory):
        SAVE
    def load_checkpoint(self, checkpoint):
        self.data = LOAD
    def cleanup(self):
        Path("cleaned").touch()
train = tune.with_parameters(train, data=5)
"""


@pytest.mark.parametrize(
    ("save", "load"),
    [
        ("return {'state': lambda: 7}", "checkpoint['state']()"),
        ("Path(directory, 's').write_text('7')", "int(Path(checkpoint, 's').read_text())"),
        (
            "Path(directory, 's').touch(); return directory",
            "7 if Path(checkpoint, 's').exists() else 0",
        ),
    ],
)
def test_a_class_of_ray_tune_continues_from_the_checkpoint_that_it_saved(
    start: Start, tmp_path: Path, save: str, load: str
) -> None:
    host, first = start(CLASS.replace("SAVE", save).replace("LOAD", load))
    assert metrics(first) == {"before": 0, "id": "0001", "data": 5}
    assert isinstance(first, Report)
    assert first.checkpoint
    second = host.next(Answer.CONTINUE)
    assert metrics(second)["before"] == 1
    host.next(Answer.STOP)
    trial = tmp_path / "study/trials/0001"
    assert (trial / "cleaned").exists()
    assert (trial / "logged").read_text() == "2"
    kept = tmp_path / "study" / first.checkpoint
    again = host.begin(Begin(trial="0001", config={}, epoch=1, checkpoint=kept, run="second"))
    assert metrics(again) == {"before": 1, "id": "0001", "data": 7}


def test_a_step_that_returns_nothing_is_named(start: Start) -> None:
    _, ended = start("class train(tune.Trainable):\n    def step(self): pass")
    assert "step must return a dictionary, got NoneType" in (end(ended).error or "")


def test_a_reused_process_trains_the_next_trial(start: Start) -> None:
    host, first = start(
        "import os\ndef train(config):\n    tune.report({'pid': os.getpid()})", reuse=True
    )
    assert host.next(Answer.STOP) == End()
    second = host.begin(Begin(trial="0002", config={}, run="a"))
    assert metrics(second)["pid"] == metrics(first)["pid"]


def test_pickled_classes_and_spawned_processes_find_the_users_file(start: Start) -> None:
    body = """
    import multiprocessing, pickle
    class Model: ...
    def square(x): return x * x
    def train(config):
        multiprocessing.set_start_method("spawn")
        with multiprocessing.Pool(1) as pool:
            squares = pool.map(square, [2, 3])
        tune.report({"squares": squares, "module": Model.__module__,
                     "model": type(pickle.loads(pickle.dumps(Model()))) is Model})
    """
    _, first = start(body)
    assert metrics(first) == {"squares": [4, 9], "module": "mine", "model": True}


ALONE = """
import sys, threading
from pathlib import Path
from siftune.space import Space
from siftune.trainables import TrainableSpec
from siftune.trial.host import Host, Server
from siftune.trial.messages import Begin, Setup
here = Path(sys.argv[1])
trainable = TrainableSpec(name=f"{here}/mine.py:train", data=here)
setup = Setup(trainable=trainable, study=here / "study", launched_in=here)
server = Server(setup)
host = Host(server)
report = host.begin(Begin(trial="0001", config={}))
print(report.metrics if hasattr(report, "metrics") else report)
print(server.cannot_fork)
host.stop()
"""


@pytest.mark.parametrize(
    ("on_import", "forked", "why"),
    [
        ("import torch", True, None),
        ("import torch; DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'", True, None),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", False, "threads"),
    ],
)
def test_a_file_that_starts_threads_when_imported_is_not_forked_from(
    tmp_path: Path, on_import: str, forked: bool, why: str | None
) -> None:
    body = f"""
    import os, threading
    from ray import tune
    {on_import}
    IMPORTED_IN = os.getpid()
    def train(config):
        tune.report({{"forked": IMPORTED_IN != os.getpid()}})
    """
    (tmp_path / "mine.py").write_text(dedent(body))
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    message, reason = done.stdout.splitlines()
    assert message == str({"forked": forked}), done.stderr
    assert reason == "None" if why is None else why in reason


def test_a_trial_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    body = """
    import os, subprocess, time
    from ray import tune
    def train(config):
        child = subprocess.Popen(["sleep", "1000"])
        tune.report({"pids": [os.getpid(), child.pid]})
        time.sleep(1000)
    """
    (tmp_path / "mine.py").write_text(dedent(body))
    text = ALONE.replace("print(server.cannot_fork)", "import os; sys.stdout.flush(); os._exit(9)")
    command = [sys.executable, "-c", text, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    pids = json.loads(done.stdout.replace("'", '"'))["pids"]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert os.getpid() not in pids


def test_trials_outlive_their_fork_server_and_the_next_one_has_another(start: Start) -> None:
    body = """
    import os
    def train(config):
        for _ in range(2):
            tune.report({"server": os.getppid()})
    """
    host, first = start(body)
    os.kill(metrics(first)["server"], signal.SIGKILL)
    assert isinstance(host.next(Answer.CONTINUE), Report)
    assert host.next(Answer.CONTINUE) == End()
    second = host.begin(Begin(trial="0002", config={}, run="a"))
    assert metrics(second)["server"] != metrics(first)["server"]


def test_a_fork_server_that_dies_as_a_trial_starts_is_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, first = start("import os\ndef train(config):\n    tune.report({'server': os.getppid()})")
    server = metrics(first)["server"]
    assert host.next(Answer.CONTINUE) == End()
    ensure_running = forkserver.ensure_running

    def then_die() -> None:
        ensure_running()
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
            os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(forkserver, "ensure_running", then_die)
    second = host.begin(Begin(trial="0002", config={}, run="a"))
    assert metrics(second)["server"] != server


def test_a_trial_that_is_killed_with_its_fork_server_has_crashed(start: Start) -> None:
    body = """
    import os, signal
    def train(config):
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = end(start(body)[1])
    assert (ended.cause, ended.signal) == (Cause.CRASH, signal.SIGTERM)


def test_a_log_keeps_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("ab") as file:  # a process that goes on writing
        for number in range(1000):
            file.write(f"line {number}\n".encode())
        file.flush()
        directory.cut(log, keep=3000)
        file.write(b"after\n")
    first, *lines = log.read_text().splitlines()
    assert "bytes before this line were removed" in first
    assert lines[-2:] == ["line 999", "after"]
    assert lines == [f"line {number}" for number in range(1000 - len(lines) + 1, 1000)] + ["after"]
    assert log.stat().st_size < 3200
    before = log.read_text()
    directory.cut(log, keep=3000)
    assert log.read_text() == before


def test_the_help_of_a_script_is_read_once_for_all_trials(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import argparse, pathlib\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a') as file: file.write('start ')\n"
        "p = argparse.ArgumentParser()\np.add_argument('data')\np.add_argument('--x')\n"
        "print('{\"loss\": ' + p.parse_args().x + '}')\n"
    )
    trainable = TrainableSpec(
        name=str(tmp_path / "script.py"), data=tmp_path, options={"args": "images"}
    )
    server = Server(Setup(trainable=trainable, study=tmp_path / "study", launched_in=tmp_path))
    for trial in ("0001", "0002", "0003"):
        host = Host(server)
        assert metrics(host.begin(Begin(trial=trial, config={"x": 1}, run="a"))) == {"loss": 1}
        host.stop()
    assert (tmp_path / "starts").read_text().split() == ["start"] * 4
