"""What `apptainer test` checks: that everything in the image works together.

Without a network, and without a GPU: an image is built on machines that have none.
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
    """Every Python package is the image's own, or its base's."""
    # Not what is on the path now, but what would be: the home may be bound at the next start.
    assert not site.ENABLE_USER_SITE, "packages under ~/.local would be used: PYTHONNOUSERSITE"
    prefixes = (sys.prefix, sys.base_prefix, "/usr")
    foreign = [entry for entry in sys.path[1:] if not entry.startswith(prefixes)]
    assert not foreign, f"the path has {', '.join(foreign)}"
    return f"Python {sys.version.split()[0]} in {sys.prefix}"


def torch_and_torchvision() -> str:
    """Both load, fit together, and are built for GPUs."""
    import torch
    from torchvision.ops import nms

    build = torch.version.cuda or torch.version.hip
    assert build, f"torch {torch.__version__} is built for CPUs alone"
    kept = nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([0.5, 0.9]), 0.5)
    assert kept.tolist() == [1], f"torchvision keeps boxes {kept.tolist()}"
    kind = "CUDA" if torch.version.cuda else "ROCm"
    # Of torch 2.10 the list is empty where there is no GPU.
    return " ".join([f"torch {torch.__version__}, {kind} {build}", *torch.cuda.get_arch_list()])


def bytecode() -> str:
    """What is kept of it in one file is what is beside the sources, and of their time."""
    import torch

    from siftune.machine import coldstart

    assert isinstance(torch.__spec__.loader, coldstart.Loader), "siftune.pth does nothing"
    assert "def manual_seed(" in inspect.getsource(torch.manual_seed)
    for path in coldstart.places:
        kept = coldstart.Loader("", path).get_data(path)
        source = Path(importlib.util.source_from_cache(path))
        assert kept == Path(path).read_bytes(), f"{path} is another one"
        assert int.from_bytes(kept[8:12], "little") == int(source.stat().st_mtime), f"{path} is old"
    return f"{len(coldstart.places)} modules"


def searchers() -> str:
    """Each can be made and proposes a config."""
    from siftune.searchers import SEARCHERS
    from siftune.space import Space

    for name in SEARCHERS:
        space = Space.read({"x": "choice([1, 2, 3])"})  # of choices, which all of them take
        config = SEARCHERS.build(name, {}, space=space, seed=0).propose(0)
        assert config["x"] in (1, 2, 3), f"{name} proposes {config}"
    return ", ".join(SEARCHERS)


def schedulers() -> str:
    """Each one's module loads."""
    from siftune.schedulers import SCHEDULERS

    for name in SCHEDULERS:
        SCHEDULERS.load(name)
    return ", ".join(SCHEDULERS)


def ray() -> str:
    """Ray Tune loads."""
    import ray
    import ray.tune

    return f"Ray {ray.__version__}"


def one_epoch() -> str:
    """One epoch of the trainable mnist, on blank images."""
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
                stream.truncate(file.size)  # zeros that take no space
        trainable = Mnist(data=Path(directory), seed=0, images=600)
        metrics = [metrics for metrics, _ in trainable.epochs(config, start=None)]
    assert len(metrics) == 1, f"{len(metrics)} epochs"
    return f"val_loss {metrics[0]['val_loss']:.3g}"


def failures(checks: tuple[Check, ...]) -> Iterator[str]:
    """Runs all, prints what each found, yields what each that failed says."""
    for check in checks:
        try:
            print(f"{check.__name__}: {check()}", flush=True)
        except Exception as error:
            yield f"{check.__name__}: {type(error).__name__}: {error}"


def main() -> int:
    checks = (packages, bytecode, torch_and_torchvision, ray, searchers, schedulers, one_epoch)
    with tempfile.TemporaryDirectory(prefix="sift-") as directory:
        # While an image is built /tmp is the host's, and some libraries leave caches behind.
        os.environ |= {"TMPDIR": directory, "MPLCONFIGDIR": f"{directory}/matplotlib"}
        tempfile.tempdir = None  # read TMPDIR again
        found = list(failures(checks))
    for failure in found:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
