"""Known configs are the first trials of a study: `--try` and `--try-file`."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

from siftune.cli import flags
from siftune.driver import prefetch
from siftune.driver.progress import Progress
from siftune.driver.proposals import Proposals
from siftune.errors import UsageError
from siftune.record.journal import Event
from siftune.searchers import SEARCHERS
from siftune.space import Config, Space, key
from siftune.study import known
from siftune.study.planning import plan
from siftune.study.reading import read, read_resumed
from siftune.study.request import StudyRequest, settings
from siftune.study.study import Study
from siftune.study.text import parse_yaml

SPACE = {
    "lr": "loguniform(1e-5, 1e-1)",
    "dropout": "quniform(0, 0.5, 0.1)",
    "width": "choice([8, 16, 32])",
    "depth": "choice([1, 2]) if width > 8",
    "act": "choice(['relu', 'no', '8'])",
    "optim": {"betas": "choice([(0.9, 0.99), (0.9, 0.999)])"},
    "epochs": 2,
}
FINITE = {"width": "choice([8, 16, 32])", "depth": "choice([1, 2]) if width > 8", "epochs": 2}
NONE: dict[str, Any] = dict.fromkeys((*settings(), "config", "resume"))


@pytest.fixture
def space_file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(f"SPACE = {SPACE!r}\ndef train(config): ...\n")
    return str(path)


@pytest.fixture
def asked(space_file: str) -> Callable[..., StudyRequest]:
    """Reads a study from flags."""

    def asked(*configs: str | Path, **given: Any) -> StudyRequest:
        given = {"preset": "mnist", "set": [], "trainable": f"{space_file}:train"} | given
        return flags.read_study(NONE | given | {"try_configs": list(configs)})[0]

    return asked


def study(searcher: str = "random", **more: Any) -> Study:
    layer = {"trainable": "t.py:f", "name": "s", "space": SPACE, "trials": 6, "seed": 0}
    layer |= {"searcher": searcher, "scheduler": "bohb" if searcher == "bohb" else "none"} | more
    return plan(read([layer], {}), slots=2)[0]


def made(study: Study, proposals: Proposals, log: list[Event]) -> Progress:
    return Progress(study, proposals, study.build_scheduler(), slots=2, write=log.append)


def run(progress: Progress, *, until: int = 99) -> None:
    """Runs two trials at a time, each for two epochs."""
    while not progress.done and len(progress.trials) < until:
        while len(progress.unfinished()) < 2 and progress.begin():
            pass
        for name in progress.unfinished()[:1]:
            width = progress.trials[name].config["width"]
            for epoch in (1, 2):
                progress.report(name, epoch, {"loss": width + 1 / epoch}, seconds=0.1)
            progress.end(name, "completed")


def begun(log: list[Event]) -> list[Config]:
    return [event["config"] for event in log if event["event"] == "start"]


def test_a_config_in_a_flag_gets_the_values_of_the_space(asked: Callable[..., Any]) -> None:
    request = asked(
        "lr=1e-3 width=16 depth=2 act=no", "dropout=0.3 optim.betas='(0.9, 0.999)'", "act=8"
    )
    assert request.try_configs == [
        {"lr": 1e-3, "width": 16, "depth": 2, "act": "no"},
        {"dropout": 0.3, "optim/betas": (0.9, 0.999)},
        {"act": "8"},
    ]


def test_files_and_flags_keep_their_order(asked: Callable[..., Any], tmp_path: Path) -> None:
    table, listed = tmp_path / "known.csv", tmp_path / "known.yaml"
    table.write_text("\ufefflr, width ,depth\n1e-3,16,2\n0.01,8,\n", encoding="utf-8")
    listed.write_text("- {lr: 1e-4, optim: {betas: [0.9, 0.99]}}\n- {act: relu}\n")
    assert asked(table, "lr=0.1", listed).try_configs == [
        {"lr": 1e-3, "width": 16, "depth": 2},
        {"lr": 0.01, "width": 8},
        {"lr": 0.1},
        {"lr": 1e-4, "optim/betas": (0.9, 0.99)},
        {"act": "relu"},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr=5", "lr must be in loguniform(1e-05, 0.1), got 5"),
        ("lr=high", "lr must be in loguniform(1e-05, 0.1), got high"),
        ("dropout=0.13", "dropout must be in quniform(0, 0.5, 0.1), got 0.13"),
        ("width=true", "width must be in choice([8, 16, 32]), got true"),
        ("epochs=3", "epochs has the fixed value 2 in the space, got 3"),
        ("momentum=0.9", "unknown parameter 'momentum'; the space has: lr, dropout, width"),
        ("width=8 depth=2", "depth has no effect, because it needs width > 8: leave it out"),
        ("depth=2", "depth has an effect only if width > 8: name width as well"),
    ],
)
def test_a_value_that_no_trial_can_have_is_named_with_its_config(
    asked: Callable[..., Any], text: str, words: str
) -> None:
    with pytest.raises(UsageError) as error:
        asked("lr=0.01", text)
    (mistake,) = error.value.mistakes
    assert mistake.startswith(f"--try config 2 ({text}): {words}")


def test_mistakes_come_together_and_the_same_one_once(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    table = tmp_path / "known.csv"
    table.write_text("rate,lr\n" + "1,7\n" * 3)
    with pytest.raises(UsageError) as error:
        asked(table, trials="0", searcher="best")
    mistakes = error.value.mistakes
    assert [line.partition(":")[0] for line in mistakes if "--try" in line] == [
        "--try config 1 (rate=1 lr=7) and 2 more"
    ] * 2
    assert {"--trials must", "unknown searcher"} <= {" ".join(m.split()[:2]) for m in mistakes}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--try must be a config such as 'lr=1e-3 batch_size=64'"),
        ("lr", "--try must be 'NAME=VALUE NAME=VALUE'"),
        ("lr='1", "No closing quotation"),
        (Path("none.csv"), "cannot read none.csv: No such file"),
        (Path("none.txt"), "--try-file must be FILE.yaml or FILE.csv, got 'none.txt'"),
    ],
)
def test_what_is_no_config_is_refused(
    asked: Callable[..., Any], text: str | Path, words: str
) -> None:
    with pytest.raises(UsageError) as error:
        asked(text)
    assert words in "\n".join(error.value.mistakes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "lr\n1,2\n", "a.csv, line 2: more cells than names"),
        ("a.csv", "lr\n", "a.csv contains no config"),
        ("a.yaml", "lr: 1", "a.yaml must contain a list of configs"),
        ("a.yaml", "- 1", "a.yaml must contain a list of configs"),
        ("a.yaml", "- [", "a.yaml is not valid YAML"),
    ],
)
def test_what_is_no_file_of_configs_is_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        known.read(path)
    assert words in error.value.mistakes[0]


def test_known_configs_count_among_the_trials() -> None:
    with pytest.raises(UsageError, match="--trials must be at least 2, the number of configs"):
        study(try_configs=[{"lr": 0.1}, {"lr": 0.01}], trials=1)


def test_a_file_of_a_study_holds_its_known_configs(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    request = asked("lr=1e-3 width=16 depth=2", "optim.betas='(0.9, 0.99)'", searcher="random")
    planned, _ = plan(request, slots=1)
    file = tmp_path / "study.yaml"
    file.write_text(planned.to_yaml())
    assert parse_yaml(file.read_text())["try_configs"][0] == request.try_configs[0]
    assert read_resumed(tmp_path, {}).try_configs == request.try_configs
    assert asked(config=file, trainable=None).try_configs == request.try_configs
    with pytest.raises(UsageError, match="cannot change try_configs"):
        read_resumed(tmp_path, {"try_configs": [{"lr": 0.1}]})


@pytest.mark.parametrize("searcher", [name for name in SEARCHERS if name != "grid"])
def test_known_configs_come_first_with_every_searcher_and_are_told(searcher: str) -> None:
    first = {"lr": 1e-3, "width": 16, "depth": 2, "dropout": 0.3, "act": "no"}
    first |= {"optim/betas": (0.9, 0.99)}
    s = study(searcher, try_configs=[first, {"lr": 0.01}])
    log: list[Event] = []
    ends: list[str] = []
    with closing(prefetch.build(s, slots=2)) as proposals:
        end = proposals.searcher.end
        proposals.searcher.end = lambda name, score: (ends.append(name), end(name, score))  # type: ignore[method-assign, assignment, func-returns-value]
        run(made(s, proposals, log))
    configs = begun(log)
    assert configs[0] == first | {"epochs": 2}
    assert configs[1]["lr"] == 0.01
    assert len({key(config) for config in configs}) == 6
    assert sorted(ends) == [f"{n:04d}" for n in range(1, 7)]


def test_the_searchers_own_configs_follow_as_without_known_ones() -> None:
    with_known, without = list[Event](), list[Event]()
    for log, configs in ((with_known, [{"lr": 0.01}] * 2), (without, [])):
        s = study(try_configs=configs, trials=4 + len(configs))
        run(made(s, Proposals(s, s.build_searcher()), log))
    assert begun(with_known)[2:] == begun(without)
    assert begun(with_known)[0] != begun(with_known)[1]  # the other values are random


def test_a_grid_is_covered_once_with_known_configs() -> None:
    configs = [{"width": 32, "depth": 1}, {"width": 8}]
    s = study("grid", space=FINITE, trials=None, try_configs=configs)
    log: list[Event] = []
    run(made(s, Proposals(s, s.build_searcher()), log))
    trained = begun(log)
    assert [config["width"] for config in trained[:2]] == [32, 8]
    assert len(trained) == len({key(config) for config in trained}) == 5


def test_a_resumed_study_completes_its_known_configs_alike() -> None:
    s = study("optuna", try_configs=[{"lr": 0.1}, {"lr": 0.01}, {"width": 8}])
    whole, cut = list[Event](), list[Event]()
    run(made(s, Proposals(s, s.build_searcher()), whole))
    run(made(s, Proposals(s, s.build_searcher()), cut), until=2)
    again = made(s, Proposals(s, s.build_searcher()), cut)
    again.replay(list(cut))
    run(again)
    assert begun(cut) == begun(whole)


def test_a_config_given_twice_is_trained_once() -> None:
    messages: list[str] = []
    twice = {"width": 32, "depth": 1}
    s = study(space=FINITE, trials=3, try_configs=[twice, twice])
    log: list[Event] = []
    run(made(s, Proposals(s, s.build_searcher(), say=messages.append), log))
    assert len({key(config) for config in begun(log)}) == 3
    assert messages == [
        "trial 0002 gets a random config instead of the one in --try: it has already been trained"
    ]


def test_computed_values_follow_from_the_known_ones() -> None:
    drawn = Space.read(
        {
            "lr": tune.uniform(0, 1),
            "half": tune.sample_from(lambda config: config["lr"] / 2),
            "quarter": tune.sample_from(lambda config: config["half"] / 2),
        }
    )
    rng = np.random.default_rng(0)
    assert known.complete({"lr": 0.5}, drawn, rng) == {"lr": 0.5, "half": 0.25, "quarter": 0.125}
    (config,), mistakes = known.check([{"lr": 0.5, "half": "0.1"}], drawn)
    assert mistakes == []
    assert known.complete(config, drawn, rng) == {"lr": 0.5, "half": 0.1, "quarter": 0.05}
