"""A recipe is the keys that it prints: the same ids, whichever of the two a file has, and the file's own keys win."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.errors import ConfigError
from kdcluster.experiment import configfile, recipes, yamlfile
from kdcluster.experiment.config import Experiment
from kdcluster.plan import plan

GOOD = "data: {name: cifar10}\nteacher: {model: resnet18}\nstudent: {model: resnet10t}\n"
NAMES = list(recipes.RECIPES)


def load(folder: Path, text: str, *overrides: str) -> Experiment:
    path = folder / "exp.yaml"
    path.write_text(GOOD + text, encoding="utf-8")
    return configfile.load(str(path), overrides).config


def ids(folder: Path, text: str, *overrides: str) -> list[str]:
    load(folder, text)
    return [run.id for run in plan([configfile.load(str(folder / "exp.yaml"), overrides)]).runs]


def printed(name: str) -> str:
    result = CliRunner().invoke(main, ["schema", "--recipe", name])
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_id_of_a_recipe_is_that_of_its_keys(tmp_path: Path, name: str) -> None:
    named = ids(tmp_path, f"recipe: {name}\n")
    written = yamlfile.parse(printed(name))
    augment = json.dumps(written.pop("data", {}).get("augment", {}))  # the file has a `data` already
    assert named == ids(tmp_path, yamlfile.dump(written), f"data.augment={augment}")
    assert named == ids(tmp_path, "", f"recipe={name}")
    assert named != ids(tmp_path, "")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_recipe_is_there(tmp_path: Path, name: str) -> None:
    config = load(tmp_path, f"recipe: {name}\n")
    for dotted, value in recipes.RECIPES[name].keys.items():
        found: Any = config
        for part in dotted.split("."):
            found = getattr(found, part)
        assert (list(found) if isinstance(found, tuple) else found) == value, dotted


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_says_its_source(name: str) -> None:
    text = printed(name)
    said = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert said == f"{name}: {recipes.RECIPES[name].source}"
    assert yamlfile.parse(text) == recipes.keys(name)
    document = json.loads(CliRunner().invoke(main, ["schema", "--recipe", name, "--json"]).stdout)
    assert document == {
        "schema": "kdcluster.recipe/1",
        "recipe": name,
        "source": recipes.RECIPES[name].source,
        "keys": recipes.keys(name),
    }


def test_a_key_of_the_file_or_of_set_wins(tmp_path: Path) -> None:
    text = "recipe: deit\ntrain: {lr: 0.1}\ndistill: {alpha: 0.25}\n"
    config = load(tmp_path, text, "train.weight_decay=0.3")
    assert (config.train.lr, config.train.weight_decay, config.train.epochs) == (0.1, 0.3, 300)
    assert (config.distill.alpha, config.distill.loss) == (0.25, "hard")
    assert config.teacher_train() == config.train  # so the teacher has it, too


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recipe: deit\ntrain: {steps: 100}\n", {"train.steps": 100, "train.epochs": 10, "train.warmup_epochs": 0.0}),
        ("recipe: patient\ntrain: {steps: 100}\n", {"train.steps": 100, "train.epochs": 10, "train.warmup_steps": 0}),
        ("recipe: deit\ntrain: {warmup_steps: 7}\n", {"train.warmup_steps": 7, "train.warmup_epochs": 0.0}),
        ("recipe: patient\ntrain: {warmup_epochs: 7.0}\n", {"train.warmup_steps": 0, "train.warmup_epochs": 7.0}),
        ("recipe: a2\ntrain: {schedule: constant}\n", {"train.min_lr": 0.0}),
        ("recipe: a2\ntrain: {schedule: cosine}\n", {"train.min_lr": 1e-6}),
        ("recipe: patient\ndistill: {loss: hard}\n", {"distill.temperature": 4.0, "distill.alpha": 1.0}),
        ("recipe: patient\ndistill: {loss: kd}\n", {"distill.temperature": 1.0}),
    ],
)
def test_what_goes_with_a_key_that_the_file_has_otherwise_is_put_aside(
    tmp_path: Path, text: str, expected: dict[str, Any]
) -> None:
    config = load(tmp_path, text)
    for dotted, value in expected.items():
        assert attrgetter(dotted)(config) == value, dotted


def test_other_views_put_aside_what_they_stand_for(tmp_path: Path) -> None:
    padded = load(tmp_path, "recipe: deit\n", "data.augment.pad=2").data.augment
    assert (padded.crop, padded.pad, padded.policy) == (None, 2, "rand")
    other = load(tmp_path, "recipe: a2\n", "data.augment.policy=trivial").data.augment
    assert (other.policy, other.rand.magnitude, other.mixup and other.mixup.alpha) == ("trivial", 9, 0.1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("recipe: dait\n", "4:1: recipe: must be one of deit, patient, a2, finetune (got 'dait'); did you mean deit?"),
        (
            "recipe: [deit]\n",
            "4:1: recipe: must be one of deit, patient, a2, finetune (got ['deit']); did you mean deit?",
        ),
        ("recipe: deit\ntrain: 3\n", "5:1: train: must be a block of keys (got 3)"),
        ("recipe: deit\ntrain: {lrr: 3.0}\n", "5:9: train.lrr: unknown key; did you mean train.lr?"),
        ("recipe: a2\ntrain: {lr: 1e-7}\n", "5:1: train.min_lr: must be less than lr (got 1e-06, and lr is 1e-07)"),
    ],
)
def test_what_is_wrong_beside_a_recipe_is_said_where_it_stands(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert [line.removeprefix(f"{tmp_path}/exp.yaml:") for line in caught.value.problems] == [problem]


@pytest.mark.parametrize(
    ("theirs", "own", "expected"),
    [
        ("{schedule: cosine, min_lr: 1e-5}", "{schedule: constant}", {"min_lr": 0.0}),
        ("{schedule: cosine, min_lr: 1e-5}", "{epochs: 3}", {"min_lr": 1e-5}),
        ("{ema_decay: 0.99, ema_warmup: true}", "{ema_decay: null}", {"ema_warmup": False, "ema_decay": None}),
        ("{ema_decay: 0.99, ema_warmup: true}", "{ema_decay: 0.9}", {"ema_warmup": True, "ema_decay": 0.9}),
    ],
)
def test_a_teacher_puts_aside_what_goes_with_another_schedule_or_average(
    tmp_path: Path, theirs: str, own: str, expected: dict[str, Any]
) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text(GOOD.replace("resnet18}", f"resnet18, train: {own}}}") + f"train: {theirs}\n", encoding="utf-8")
    train = configfile.load(str(path)).config.teacher_train()
    assert train is not None
    assert {key: getattr(train, key) for key in expected} == expected
