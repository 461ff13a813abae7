"""Preset, file and flags are merged into one study."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest

from siftune.cli import flags
from siftune.errors import UsageError
from siftune.study.planning import plan
from siftune.study.reading import read_resumed, read_saved
from siftune.study.request import StudyRequest, flag, is_name, settings

NONE = dict.fromkeys((*settings(), "config", "resume"))
LISTS: dict[str, Any] = {"set": []}


def study(**given: Any) -> StudyRequest:
    return flags.read_study({"preset": "mnist"} | NONE | LISTS | given)[0]


def test_a_flag_is_over_the_preset() -> None:
    assert study().trials == 50
    assert study(trials="7").trials == 7
    assert study(preset="quick").trainable_options == {"images": 10_000}


def test_a_space_in_yaml_has_domains_conditions_and_constants(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "lr: loguniform(1e-5, 1e-2)\ndepth: choice([0, 1])\n"
        "width: choice([8, 16]) if depth > 0\ndecay: 1e-3\nname: resnet\n"
    )
    space = study(space=str(file)).space
    assert space.to_dict() == {
        "lr": "loguniform(1e-05, 0.01)",
        "depth": "choice([0, 1])",
        "width": "choice([8, 16]) if depth > 0",
        "decay": 0.001,
        "name": "resnet",
    }


def test_set_fixes_a_value_or_gives_a_domain() -> None:
    space = study(set=["lr=1e-3", "epochs=choice([2, 4])", "optimizer=sgd"]).space
    assert space.constants["lr"] == 1e-3
    assert str(space.parameters["epochs"].domain) == "choice([2, 4])"
    assert space.constants["optimizer"] == "sgd"


def test_another_trainable_leaves_the_presets_metric_behind(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("SPACE = {'x': 'uniform(0, 1)'}\ndef train(config): ...\n")
    request = study(trainable=f"{file}:train")
    assert (request.metric, request.mode) == ("loss", "min")
    assert request.name.startswith("mine-")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("4h", 14400), ("3:30:00", 12600), ("1:30", 90)],
)
def test_times(text: str, seconds: float) -> None:
    assert flags.read_time("--time-limit", text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1:2", "4 h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--time-limit must be a duration"):
        flags.read_time("--time-limit", text)


def test_a_study_of_an_earlier_version_may_have_an_option_that_is_gone(tmp_path: Path) -> None:
    text = "name: s\ntrainable: mnist\ntrainable_options: {images: 600, fused: true}\n"
    text += "searcher: random\nscheduler: asha\ntrials: 4\n"
    (tmp_path / "study.yaml").write_text(text)
    assert read_saved(tmp_path).trainable_options == {"images": 600}
    assert read_resumed(tmp_path, {}).trainable_options == {"images": 600}
    assert study(config=tmp_path / "study.yaml").trainable_options == {"images": 600}


@pytest.mark.parametrize("missing", ["searcher: random", "scheduler: asha", "trials: 4"])
def test_a_file_that_is_no_planned_study_is_not_taken_for_one(tmp_path: Path, missing: str) -> None:
    lines = ["name: s", "trainable: mnist", "searcher: random", "scheduler: asha", "trials: 4"]
    (tmp_path / "study.yaml").write_text("\n".join(line for line in lines if line != missing))
    with pytest.raises(UsageError, match="it lacks searcher, scheduler or trials"):
        read_saved(tmp_path)


def test_each_setting_has_a_flag_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    flags.add_settings(parser)
    options: dict[str, list[str]] = {}
    for action in parser._actions:
        options.setdefault(action.dest, []).extend(action.option_strings)
    options["try_configs"].remove("--try-file")  # the same setting, from a file
    for name in settings():
        assert options[name] == [flag(name)]


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *[("val_loss", "min"), ("loss/val", "min"), ("valLoss", "min"), ("rmse", "min")],
        *[("top5_error", "min"), ("bits_per_byte", "min"), ("val_perplexity", "min")],
        *[("val_acc", "max"), ("eval/accuracy", "max"), ("f1", "max"), ("episode_reward", "max")],
        *[("roc_auc", "max"), ("R2", "max"), ("my_metric", None), ("loss_score", None)],
    ],
)
def test_the_mode_follows_from_the_name_of_a_metric(metric: str, mode: str | None) -> None:
    if mode is None:
        with pytest.raises(UsageError, match="--mode is missing"):
            study(preset="quick", metric=metric)
        assert study(preset="quick", metric=metric, mode="min").mode == "min"
    else:
        assert study(preset="quick", metric=metric).mode == mode


def test_a_presets_mode_is_for_its_own_metric() -> None:
    assert study(preset="quick").mode == "max"
    assert study(preset="quick", metric="val_accuracy").mode == "max"
    assert study(preset="quick", metric="val_loss").mode == "min"


@pytest.mark.parametrize("file", ["train v2.py", "-x.py", "größe.py", "a" * 80 + ".py"])
def test_a_name_made_of_a_files_name_is_valid(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("SPACE = {'x': 1}\ndef train(config): ...\n")
    assert is_name(study(trainable=f"{tmp_path / file}:train").name)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--", "image net", "5"], ["image net", "5"]),
        (["--", "5"], ["5"]),
        (["--trainable-arg", "args='image net' --amp"], ["image net", "--amp"]),
    ],
)
def test_words_for_the_script_arrive_as_they_are(words: list[str], expected: list[str]) -> None:
    from siftune.cli import tune

    request, _ = flags.read_study(vars(flags.parse(tune.parser(), words)))
    assert shlex.split(request.trainable_options["args"]) == expected


def test_words_for_the_script_are_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    from siftune.cli import status, tune

    with pytest.raises(SystemExit):
        flags.parse(tune.parser(), ["--trainable-arg", "args=a", "--", "b"])
    assert "give them in --trainable-arg args=… or after --" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        flags.parse(status.parser(), ["--", "b"])
    assert "unrecognized arguments: -- b" in capsys.readouterr().err


def test_an_impossible_pattern_is_a_mistake() -> None:
    for pattern in ("no group", "(", "[a-z"):
        with pytest.raises(UsageError, match="--metric-pattern must be a regular expression"):
            study(metric_patterns=[pattern])
    with pytest.raises(UsageError, match=r"--metric-file must be a \.csv"):
        study(metric_file="log.txt")


def test_a_study_keeps_the_rungs_that_it_began_with(tmp_path: Path) -> None:
    """Earlier versions began at epoch 1 and did not write it; later ones write what they chose."""
    text = "name: s\ntrainable: mnist\nsearcher: random\nscheduler: asha\ntrials: 4\n"
    (tmp_path / "study.yaml").write_text(text)
    assert read_resumed(tmp_path, {}).scheduler_options == {"grace_epochs": 1}
    (tmp_path / "study.yaml").write_text(text + "scheduler_options: {grace_epochs: 2}\n")
    assert read_resumed(tmp_path, {}).scheduler_options == {"grace_epochs": 2}
    planned, _ = plan(study(scheduler="asha", trials="50", set=["epochs=81"]), slots=1)
    assert planned.scheduler_options == {"grace_epochs": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(0.9, 0.99)", (0.9, 0.99)),
        ("[(1, 2), (3,)]", [(1, 2), (3,)]),
        ("!tuple [1, 2]", (1, 2)),
        ("print(1)", "print(1)"),
        ("[1, 2]", [1, 2]),
        ("", ""),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("1e-3", 1e-3),
        ("(1)", "(1)"),
    ],
)
def test_values_of_set(text: str, value: object) -> None:
    asked = study(trainable="sklearn", set=[f"loss={text}"])
    assert repr(asked.space.given(asked.space.constants)["loss"]) == repr(value)


def test_each_study_draws_a_seed_and_keeps_it(tmp_path: Path) -> None:
    drawn = {plan(study(), slots=1)[0].seed for _ in range(3)}
    assert len(drawn) == 3
    assert plan(study(seed="7"), slots=1)[0].seed == 7
    planned, _ = plan(study(searcher="random"), slots=1)
    file = tmp_path / "study.yaml"
    file.write_text(planned.to_yaml())
    assert f"seed: {planned.seed}\n" in file.read_text()
    assert read_saved(tmp_path).seed == planned.seed
    assert plan(read_resumed(tmp_path, {}), slots=1)[0].seed == planned.seed
    assert plan(study(config=file), slots=1)[0].seed == planned.seed
    assert plan(study(config=file, seed="0"), slots=1)[0].seed == 0


def test_a_study_directory_without_a_seed_had_seed_0(tmp_path: Path) -> None:
    text = "name: s\ntrainable: mnist\nsearcher: random\nscheduler: asha\ntrials: 4\n"
    (tmp_path / "study.yaml").write_text(text)
    assert read_saved(tmp_path).seed == 0
    assert read_resumed(tmp_path, {}).seed == 0
