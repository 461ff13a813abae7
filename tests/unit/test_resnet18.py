"""The trainable `resnet18` learns from a folder of images and is resumable."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from siftune.trainables import resnet18
from siftune.trainables.datasets.mnist import DataError, load_mnist

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "lr": 3e-4,
    "batch_size": 8,
    "optimizer": "adamw",
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "scheduler": "none",
    "flip": True,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def digits(mnist_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns options for a folder of a few real digits: image files of two classes."""
    folder = tmp_path_factory.mktemp("digits")
    mnist = load_mnist(mnist_directory, seed=0, device="cpu", images=1200)
    for digit in (0, 1, 7):
        (folder / str(digit)).mkdir()
        chosen = mnist.train_images[mnist.train_labels == digit][:40]
        for number, image in enumerate(chosen):
            Image.fromarray(image.numpy()).save(folder / str(digit) / f"{number}.png")
    return {"seed": 0, "data": Path(), "folder": str(folder)}


def test_learns_and_goes_on_where_it_stopped(digits: dict[str, Any], tmp_path: Path) -> None:
    resnet18.ResNet18(data=Path(), seed=0, folder=digits["folder"]).prepare()
    whole = []
    for metrics, save in resnet18.ResNet18(**digits).epochs(CONFIG, start=None):
        metrics.pop("samples_per_s")
        whole.append(metrics)
        if metrics["epoch"] == 2:
            save(tmp_path)
    assert whole[-1]["loss"] < 0.5 * whole[0]["loss"]
    assert whole[-1]["val_accuracy"] > 0.8
    ((last, _),) = resnet18.ResNet18(**digits).epochs(CONFIG, start=tmp_path)
    last.pop("samples_per_s")
    assert last == whole[2]
    assert resnet18.ResNet18(**digits).evaluate(tmp_path) == {
        name: value for name, value in whole[1].items() if name.startswith("val_")
    }


def test_begins_from_given_weights(digits: dict[str, Any], tmp_path: Path) -> None:
    from torchvision.models import resnet18 as original

    weights = tmp_path / "weights.pt"
    torch.save(original(num_classes=5).state_dict(), weights)
    begun = resnet18._model(3, str(weights))
    assert begun.state_dict()["conv1.weight"].equal(torch.load(weights)["conv1.weight"])
    torch.save({"other": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="not hold weights of torchvision's resnet18"):
        resnet18._model(3, str(weights))


def test_says_what_is_missing(digits: dict[str, Any], tmp_path: Path) -> None:
    for options, message in (
        ({}, "--trainable-arg folder=DIR"),
        ({"folder": str(tmp_path)}, "one subfolder per class"),
        ({"folder": digits["folder"], "size": 32}, "size must be at least 64"),
        ({"folder": digits["folder"], "weights": "none.pt"}, "weights none.pt does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            resnet18.ResNet18(data=Path(), seed=0, **options).prepare()
