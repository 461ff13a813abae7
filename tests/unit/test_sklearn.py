"""The trainable `sklearn` learns, is resumable, and reports errors in a table."""

import csv
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_wine

from siftune.trainables import sklearn
from siftune.trainables.datasets.mnist import DataError

CONFIG: dict[str, Any] = {
    "lr": 0.01,
    "alpha": 1e-4,
    "l1_ratio": 0.15,
    "loss": "modified_huber",
    "schedule": "invscaling",
    "power_t": 0.2,
    "epochs": 6,
}
DIGITS: dict[str, Any] = {"seed": 3, "data": Path()}


def test_learns_the_digits_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = []
    for metrics, save in sklearn.Sklearn(**DIGITS).epochs(CONFIG, start=None):
        whole.append(metrics)
        if metrics["epoch"] == 2:
            save(tmp_path)
    assert whole[-1]["val_accuracy"] > 0.9
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert [m for m, _ in sklearn.Sklearn(**DIGITS).epochs(CONFIG, start=tmp_path)] == whole[2:]
    evaluated = sklearn.Sklearn(**DIGITS).evaluate(tmp_path)
    assert evaluated["val_accuracy"] == whole[1]["val_accuracy"]
    assert evaluated["val_loss"] == whole[1]["val_loss"]
    assert evaluated["test_accuracy"] > 0.85


def test_learns_a_table(tmp_path: Path) -> None:
    wine = load_wine()
    with (tmp_path / "wine.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*wine.feature_names, "cultivar"])
        table.writerows(
            [*row, f"c{kind}"] for row, kind in zip(wine.data, wine.target, strict=True)
        )
    options = {"table": str(tmp_path / "wine.csv"), "target": "cultivar"}
    sklearn.Sklearn(data=Path(), seed=0, **options).prepare()
    *_, (last, _) = sklearn.Sklearn(**DIGITS, **options).epochs(CONFIG, start=None)
    assert last["val_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the table"),
        ("a,b\n1,2\n", "has no column 'kind': set --trainable-arg target= to one of a, b"),
        ("a,kind\n1,1\n,2\n", "a number is missing in column 'a'"),
        ("a,kind\n1,1\n2\n", "every line must have 2 values"),
        ("kind\n1\n2\n", "no column beside 'kind'"),
        ("a,kind\n1,x\nnan,y\n", "a number is missing"),
        ("a,kind\n1,x\n2,y\n", "too few lines"),
        ("", "cannot read the table"),
    ],
)
def test_says_what_is_wrong_with_a_table(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "table.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=said):
        sklearn.Sklearn(data=Path(), seed=0, table=str(file), target="kind").prepare()


def test_a_step_that_is_too_long_is_said() -> None:
    wild = CONFIG | {"lr": 1e308, "schedule": "constant"}
    with pytest.raises(FloatingPointError, match="epoch 1"):
        list(sklearn.Sklearn(**DIGITS).epochs(wild, start=None))


def test_columns_of_text_become_zeros_and_ones(tmp_path: Path) -> None:
    rows = [
        f"{k % 7},{('red', 'green', 'blue')[k % 3]},{'yes' if k % 3 else 'no'}" for k in range(90)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["size,colour,good", *rows]) + "\n")
    options = {"table": str(tmp_path / "t.csv"), "target": "good"}
    *_, (last, _) = sklearn.Sklearn(**DIGITS, **options).epochs(CONFIG, start=None)
    assert last["val_accuracy"] == 1.0
