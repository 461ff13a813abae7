"""Programs that use Ray themselves, on the Ray of a job."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.cluster.conftest import Cluster, poll
from tests.cluster.jobs import Job

PAGE = Path(__file__).parents[1] / "bench" / "page"


def written(name: str) -> str:
    """Returns the command that writes a file of the Turpan page."""
    return f"cat > {name} <<'END'\n{(PAGE / name).read_text()}\nEND\n"


def test_the_pages_script_is_one_tuner_on_all_gpus(
    submit: Callable[..., Job], cluster: Cluster
) -> None:
    job = submit(
        prepare=written("ray_tune.py") + written("mnist_ddp.py"), GPUS=8, RUN="python ray_tune.py"
    )
    poll(lambda: "8.0/8 GPUs" in job.log(), 300, "eight trials at once", job.log, every_s=1)
    log = job.log()
    dropped = "without num_cpus, num_gpus, include_dashboard, _system_config"
    assert log.count(f"siftune: ray.init joins the job's Ray, {dropped}") == 1
    assert len(set(re.findall(r"original_main_\w+_0000\d", log))) == 8
    cancel = ("make", "-C", job.directory, "cancel", f"JOB={job.number}")
    cluster.check("hpc1", *cancel, timeout_s=150)
    job.wait(30)
    job.await_nothing_left()


def test_a_program_that_ends_ends_its_job(submit: Callable[..., Job]) -> None:
    program = "import sys, ray; ray.init(); print(len(ray.nodes()), 'nodes', sys.argv); sys.exit(3)"
    write = f'echo "{program}" > program.py'
    job = submit(prepare=write, GPUS=4, RUN="python program.py 'two words'")
    log = job.wait()
    assert "2 nodes ['program.py', 'two words']" in log
    assert job.status() == 3
    assert "requeueing" not in log
    job.await_nothing_left()


def test_a_command_that_is_not_there_is_named(submit: Callable[..., Job]) -> None:
    job = submit(GPUS=1, RUN="nosuch.py")
    log = job.wait()
    assert "run: cannot run nosuch.py: No such file or directory" in log
    assert job.status() == 1
