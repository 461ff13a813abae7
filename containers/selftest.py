"""The checks of `apptainer test`: everything in the image works together.

They need neither a network nor a GPU, because images are built on machines that have none.
"""

import importlib.util
import inspect
import os
import site
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

Check = Callable[[], str]


def packages() -> str:
    """Checks that every Python package belongs to the image or its base."""
    # The setting is checked too, because the home directory may be mounted at the next start.
    assert not site.ENABLE_USER_SITE, "packages in ~/.local would be used: set PYTHONNOUSERSITE"
    prefixes = (sys.prefix, sys.base_prefix, "/usr")
    foreign = [entry for entry in sys.path[1:] if not entry.startswith(prefixes)]
    assert not foreign, f"sys.path has {', '.join(foreign)}"
    return f"Python {sys.version.split()[0]} in {sys.prefix}"


def torch_and_torchvision() -> str:
    """Checks that both load, match each other and are built for GPUs."""
    import torch
    from torchvision.ops import nms

    build = torch.version.cuda or torch.version.hip
    assert build, f"torch {torch.__version__} is built for CPUs only"
    kept = nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([0.5, 0.9]), 0.5)
    assert kept.tolist() == [1], f"torchvision keeps boxes {kept.tolist()}"
    kind = "CUDA" if torch.version.cuda else "ROCm"
    # With torch 2.10 the list is empty if there is no GPU.
    return " ".join([f"torch {torch.__version__}, {kind} {build}", *torch.cuda.get_arch_list()])


def bytecode() -> str:
    """Checks that the bytecode kept in one file is that of the sources, with their times."""
    import torch

    from siftune.machine import coldstart

    assert isinstance(torch.__spec__.loader, coldstart.Loader), "siftune.pth has no effect"
    assert "def manual_seed(" in inspect.getsource(torch.manual_seed)
    for path in coldstart.places:
        kept = coldstart.Loader("", path).get_data(path)
        source = Path(importlib.util.source_from_cache(path))
        assert kept == Path(path).read_bytes(), f"{path} differs from the kept bytecode"
        assert int.from_bytes(kept[8:12], "little") == int(source.stat().st_mtime), (
            f"{path} is outdated"
        )
    return f"{len(coldstart.places)} modules"


def searchers() -> str:
    """Checks that each searcher can be built and proposes a config."""
    from siftune.searchers import SEARCHERS
    from siftune.space import Space

    for name in SEARCHERS:
        space = Space.read({"x": "choice([1, 2, 3])"})  # choices, which all searchers support
        config = SEARCHERS.build(name, {}, space=space, seed=0).propose(0)
        assert config["x"] in (1, 2, 3), f"{name} proposes {config}"
    return ", ".join(SEARCHERS)


def schedulers() -> str:
    """Checks that the module of each scheduler loads."""
    from siftune.schedulers import SCHEDULERS

    for name in SCHEDULERS:
        SCHEDULERS.load(name)
    return ", ".join(SCHEDULERS)


def ray() -> str:
    """Checks that Ray Tune loads."""
    import ray
    import ray.tune

    return f"Ray {ray.__version__}"


def one_epoch() -> str:
    """Trains one epoch of the trainable mnist on blank images."""
    from siftune.trainables.datasets.mnist import FILES
    from siftune.trainables.mnist import Mnist

    config = {"lr": 1e-3, "batch_size": 16, "optimizer": "adamw", "weight_decay": 0.0}
    config |= {"conv1_channels": 8, "conv2_channels": 16, "conv3_channels": 0}
    config |= {"kernel1": 3, "kernel2": 3, "activation": "relu", "dropout": 0.0, "fc_dim": 64}
    config |= {"scheduler": "none", "epochs": 1, "num_classes": 10}
    with tempfile.TemporaryDirectory(prefix="sift-") as directory:
        raw = Path(directory, "MNIST", "raw")
        raw.mkdir(parents=True)
        for file in FILES:
            with (raw / file.name).open("wb") as stream:
                stream.write(file.header)
                stream.truncate(file.size)  # zeros that take no disk space
        trainable = Mnist(data=Path(directory), seed=0, images=600)
        metrics = [metrics for metrics, _ in trainable.epochs(config, start=None)]
    assert len(metrics) == 1, f"{len(metrics)} epochs"
    return f"val_loss {metrics[0]['val_loss']:.3g}"


def failures(checks: tuple[Check, ...]) -> Iterator[str]:
    """Runs all checks, prints their results, and yields a message for each failure."""
    for check in checks:
        try:
            print(f"{check.__name__}: {check()}", flush=True)
        except Exception as error:
            yield f"{check.__name__}: {type(error).__name__}: {error}"


def main() -> int:
    checks = (packages, bytecode, torch_and_torchvision, ray, searchers, schedulers, one_epoch)
    with tempfile.TemporaryDirectory(prefix="sift-") as directory:
        # During a build /tmp belongs to the host, and some libraries leave caches there.
        os.environ |= {"TMPDIR": directory, "MPLCONFIGDIR": f"{directory}/matplotlib"}
        tempfile.tempdir = None  # read TMPDIR again
        failed = list(failures(checks))
    for failure in failed:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
