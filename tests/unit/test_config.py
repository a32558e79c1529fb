"""What is wrong with an experiment file is said once, at its place, in words; and --set says it in the same words.

The files in tests/broken begin with what they expect: `# expect: line:column: dotted.key: what is wrong`, where
{here} is the folder of the file and {above} the one around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcluster.cli import main
from kdcluster.errors import ConfigError, NotFound
from kdcluster.experiment import configfile, schema, yamlfile
from kdcluster.experiment.config import Experiment
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.experiment.identity import changed

BROKEN = Path(__file__).parents[1] / "broken"
FILES = sorted(BROKEN.glob("*.yaml"))
GOOD = "data:\n  name: cifar10\nteacher:\n  model: resnet18\nstudent:\n  model: resnet10t\n"


def write(folder: Path, text: str, name: str = "exp.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(folder: Path, text: str, *overrides: str) -> LoadedExperiment:
    return configfile.load(write(folder, text), overrides)


def refused(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines with which a file is refused, without its path."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        configfile.load(path, overrides)
    return [line.removeprefix(f"{path}:") for line in caught.value.problems]


def expected(path: Path) -> list[str]:
    lines = [line.removeprefix("# expect: ") for line in path.read_text().splitlines() if line.startswith("# expect: ")]
    return [
        f"{path}:{line}".replace("{here}", str(path.parent)).replace("{above}", str(path.parents[1])) for line in lines
    ]


def image_folder(root: Path, train: str = "cat dog", test: str = "cat dog") -> Path:
    for split, classes in (("train", train), ("test", test)):
        for name in classes.split():
            (root / split / name).mkdir(parents=True)
            (root / split / name / "0.png").write_bytes(b"png")
    return root


# Broken files


def test_there_are_enough_broken_files() -> None:
    assert len(FILES) >= 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_broken_file_gives_its_message_and_exit_code_2(path: Path) -> None:
    result = CliRunner().invoke(main, ["plan", str(path)])
    assert result.stderr.splitlines() == expected(path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(expected(path)) == 1 or path.stem == "several"


def test_several_errors_come_in_the_order_of_the_file() -> None:
    lines = expected(BROKEN / "several.yaml")
    places = [tuple(map(int, line.removeprefix(f"{BROKEN}/several.yaml:").split(":")[:2])) for line in lines]
    assert len(lines) > 9
    assert places == sorted(places)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_bytes(b"data: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r":1:1: not a YAML file: 'utf-8' codec can't decode byte 0xff"):
        configfile.load(str(path))
    path.write_bytes(b"data: \x00\n")
    with pytest.raises(ConfigError, match=r":1:1: not a YAML file: unacceptable character"):
        configfile.load(str(path))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.setattr(
        Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        configfile.load(path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_places_count_in_files_of_other_editors_too(tmp_path: Path, start: str, ending: str) -> None:
    path = tmp_path / "exp.yaml"
    path.write_bytes((start + GOOD + "train: {lr: 0}\n").replace("\n", ending).encode())
    with pytest.raises(ConfigError) as caught:
        configfile.load(str(path))
    assert str(caught.value) == f"{path}:7:9: train.lr: must be greater than 0 (got 0)"


def test_a_value_from_an_alias_or_a_merge_is_placed_where_it_is_written(tmp_path: Path) -> None:
    merged = GOOD.replace("  model: resnet18\n", "  model: resnet18\n  train: &slow {lr: -1}\n")
    lines = refused(tmp_path, merged + "train:\n  <<: *slow\n  epochs: 0\n")
    assert lines == [
        "5:17: teacher.train.lr: must be greater than 0 (got -1)",
        "5:17: train.lr: must be greater than 0 (got -1)",
        "10:3: train.epochs: must be at least 1 (got 0)",
    ]


def test_every_duplicate_is_reported_at_once(tmp_path: Path) -> None:
    text = GOOD + "train: {lr: 1, epochs: 2, lr: 3}\nseeds: [0]\ndistill:\n  alpha: 1\n  alpha: 0\nseeds: [1]\n"
    assert refused(tmp_path, text) == [
        "7:27: train.lr: stands twice in the same block; keep one",
        "11:3: distill.alpha: stands twice in the same block; keep one",
        "12:1: seeds: stands twice in the same block; keep one",
    ]


def test_a_key_that_pydantic_uses_itself(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD.replace("cifar10", "cifar10\n  augment: {str: 1}")) == [
        "3:13: data.augment.str: unknown key; known: pad, flip, crop, color, policy, rand, erase, mixup, cutmix"
    ]


def test_a_key_by_the_name_that_others_have_for_it(tmp_path: Path) -> None:
    train = ("learning_rate", "lr"), ("wd", "weight_decay"), ("bs", "batch_size"), ("num_epochs", "epochs")
    meant = {f"train.{name}": ours for name, ours in train}
    meant |= {"distill.T": "temperature", "distill.temp": "temperature", "student.img_size": "image_size"}
    meant |= {"teacher.name": "model", "data.root": "path"}
    for key, ours in meant.items():
        [said] = refused(tmp_path, GOOD, f"{key}=1")
        assert said == f"--set {key}=1: {key}: unknown key; did you mean {key.partition('.')[0]}.{ours}?"
    [said] = refused(tmp_path, GOOD.replace("model: resnet18", "name: resnet18"))  # and not that model is missing
    assert said == "4:3: teacher.name: unknown key; did you mean teacher.model?"
    [said] = refused(tmp_path, GOOD, "sweep.wd=1")  # not a key of that block
    assert "weight_decay" not in said


def test_keys_that_are_no_text(tmp_path: Path) -> None:
    blocks = "data, teacher, student, distill, control, train, seeds, variant, resources, imports, sweep, reference"
    known = f"known: recipe, {blocks}"
    assert refused(tmp_path, GOOD + "3: 4\n") == [f"7:1: 3: unknown key; {known}"]
    assert len(refused(tmp_path, GOOD + "? [a, b]\n: 3\n")) == 1


def test_a_long_value_is_cut_short(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, GOOD + f"train: {{lr: {list(range(500))}}}\n")
    assert line.startswith("7:9: train.lr: must be a number (got [0, 1, 2,")
    assert line.endswith("...)")
    assert len(line) < 110


def test_a_date_is_text_only_in_quotes(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD + "variant: 2024-01-01\n") == [
        "7:1: variant: must be text; put it in quotes (got 2024-01-01)"
    ]
    assert load(tmp_path, GOOD + "variant: '2024-01-01'\n").config.variant == "2024-01-01"


@pytest.mark.parametrize("value", [".nan", "-.inf", "[1, .inf]", "{a: {b: .nan}}", "2024-01-01", "!!binary aGk="])
def test_what_the_id_cannot_hold_is_no_model_argument(tmp_path: Path, value: str) -> None:
    (line,) = refused(
        tmp_path, GOOD + f"  model_args:\n    ok: [1, {{a: null, b: 1e-3}}, text, true]\n    odd: {value}\n"
    )
    assert line.startswith("9:5: student.model_args.odd: must be made of text, finite numbers")


def test_yaml_is_1_2(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + "train: {lr: 1e-3}\nvariant: 8:00:00\n").config
    assert (config.train.lr, config.variant) == (1e-3, "8:00:00")
    assert load(tmp_path, GOOD + "variant: no\n").config.variant == "no"


def test_a_scalar_with_an_anchor_keeps_its_type(tmp_path: Path) -> None:
    text = GOOD.replace("cifar10", "cifar10\n  augment: {flip: &off false, pad: &two 2}")
    config = load(tmp_path, text + "train: {compile: *off, epochs: *two, lr: &lr 1e-3, weight_decay: *lr}\n").config
    assert (config.train.compile, config.train.epochs, config.train.weight_decay) == (False, 2, 1e-3)


# Blocks that contradict each other, and files that others name


def test_an_image_folder_whose_splits_have_other_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", "cat dog", "cat dog eel")
    text = GOOD.replace("cifar10", "image_folder\n  path: pets")
    assert refused(tmp_path, text) == ["3:3: data.path: train/ has 2 classes and test/ has 3; only in test/: eel"]
    image_folder(root, "eel", "")
    found = load(tmp_path, text)
    assert (found.num_classes, found.config.data.path) == (3, str(root))


def test_an_image_folder_without_test_images(tmp_path: Path) -> None:
    text = GOOD.replace("cifar10", "image_folder\n  path: pets")
    (tmp_path / "pets" / "train").mkdir(parents=True)
    (tmp_path / "pets" / "test").mkdir()
    assert refused(tmp_path, text) == [f"3:3: data.path: no images below {tmp_path}/pets/train"]


def test_a_file_that_cannot_be_read_is_a_message(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert refused(tmp_path, GOOD.replace("cifar10", "image_folder\n  path: pets")) == [
        f"3:3: data.path: cannot read {root}/train/cat/gone.png: No such file or directory"
    ]


def test_problems_of_one_block_hide_nothing_of_the_others(tmp_path: Path) -> None:
    text = (
        GOOD.replace("  model: resnet18", "  model: resnet18\n  pretrained: true")
        + "train: {warmup_epochs: 20, lr: 0}\n"
    )
    assert refused(tmp_path, text) == [
        "4:3: teacher.model: pretrained: true needs the tag of the weights in the name, as in resnet18.a1_in1k",
        "8:28: train.lr: must be greater than 0 (got 0)",
    ]


def test_a_broken_train_says_nothing_of_the_teachers_warm_up(tmp_path: Path) -> None:
    text = GOOD.replace("  model: resnet18", "  model: resnet18\n  train: {warmup_epochs: 15}")
    assert refused(tmp_path, text + "train: {epochs: twenty}\n") == [
        "8:9: train.epochs: must be a whole number (got 'twenty')"
    ]
    assert load(tmp_path, text + "train: {epochs: 20}\n").config.teacher_train().warmup_epochs == 15  # type: ignore[union-attr]


def test_the_teacher_takes_over_what_it_does_not_set(tmp_path: Path) -> None:
    text = GOOD.replace("  model: resnet18", "  model: resnet18\n  train: {lr: 3e-4}")
    config = load(tmp_path, text + "train: {lr: 1e-3, epochs: 7}\n").config
    teacher = config.teacher_train()
    assert teacher is not None
    assert (teacher.lr, teacher.epochs) == (3e-4, 7)


@pytest.mark.parametrize(
    ("ours", "own", "merged"),
    [
        ("{steps: 400, warmup_steps: 40, lr: 1e-3}", "{lr: 2e-3}", {"steps": 400, "warmup_steps": 40, "lr": 2e-3}),
        ("{steps: 400, warmup_steps: 40}", "{steps: 200}", {"steps": 200, "warmup_steps": 40}),
        ("{steps: 400, warmup_steps: 40, lr: 1e-3}", "{epochs: 6}", {"epochs": 6, "lr": 1e-3}),
        ("{steps: 400, warmup_steps: 40}", "{epochs: 6, warmup_epochs: 2.0}", {"epochs": 6, "warmup_epochs": 2.0}),
        ("{steps: 400, warmup_steps: 40}", "{steps: null}", {}),
        ("{epochs: 16, warmup_epochs: 5.0}", "{steps: 200}", {"steps": 200}),
        ("{epochs: 16, warmup_epochs: 5.0}", "{epochs: 6}", {"epochs": 6, "warmup_epochs": 5.0}),
    ],
)
def test_a_length_in_another_unit_puts_the_experiments_warm_up_aside(
    tmp_path: Path, ours: str, own: str, merged: dict[str, Any]
) -> None:
    text = GOOD.replace("  model: resnet18", f"  model: resnet18\n  train: {own}")
    teacher = load(tmp_path, f"{text}train: {ours}\n").config.teacher_train()
    assert teacher is not None
    assert changed(teacher) == merged  # and so in its id


def test_a_broken_train_says_nothing_of_the_teachers_steps(tmp_path: Path) -> None:
    text = GOOD.replace("  model: resnet18", "  model: resnet18\n  train: {warmup_steps: 15}")
    assert refused(tmp_path, text + "train: {steps: many}\n") == [
        "8:9: train.steps: must be a whole number (got 'many')"
    ]


def test_asha_needs_trials_of_as_many_steps(tmp_path: Path) -> None:
    sweep = "sweep: {scheduler: SCHEDULER, space: {train.steps: {choice: [100, 200]}}}\n"
    load(tmp_path, GOOD + sweep.replace("SCHEDULER", "none"))
    assert refused(tmp_path, GOOD + sweep.replace("SCHEDULER", "asha")) == [
        "7:9: sweep.scheduler: asha compares trials after each tenth of their steps, so train.steps must be the same "
        "for all"
    ]


def test_a_teacher_that_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    text = GOOD.replace("  model: resnet18", "  model: resnet18\n  pretrained: w.pt\n  train: none")
    assert load(tmp_path, text).config.teacher_train() is None


# Paths


def test_paths_count_from_the_file_and_on_the_command_line_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for path in (tmp_path / "w.pt", tmp_path / "m.py", here / "w.pt", here / "m.py"):
        path.write_text("x")
    text = GOOD + "  pretrained: w.pt\nimports: [m.py]\n"
    config = load(tmp_path, text).config
    assert (config.student.pretrained, config.imports) == (str(tmp_path / "w.pt"), (str(tmp_path / "m.py"),))
    config = load(tmp_path, text, "student.pretrained=w.pt", "imports=[m.py]").config
    assert (config.student.pretrained, config.imports) == (str(here / "w.pt"), (str(here / "m.py"),))
    assert load(tmp_path, text, "student={model: a, pretrained: w.pt}").config.student.pretrained == str(here / "w.pt")


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "m.py").write_text("x")
    assert load(tmp_path, GOOD + "imports: [~/m.py]\n").config.imports == (str(tmp_path / "home" / "m.py"),)
    assert refused(tmp_path, GOOD + "imports: [~nobody/m.py]\n") == [
        f"7:11: imports.0: no such file: {tmp_path}/~nobody/m.py"
    ]


# --set

WRONG = {
    "train.lr": "true",
    "train.epochs": "ten",
    "train.amp": "bf61",
    "train.batchsize": "64",
    "distill.alpha": "1.5",
    "distill.temperature": "-4",
    "seeds": "[0, 1, 0]",
    "data.name": "cifar1000",
    "teacher.model": "null",
    "teacher.train": "null",
    "student.pretrained": "true",
    "student.model_args": "{num_classes: 3}",
    "resources": "{gpus: 1, procs: 1}",
    "temperature": "4",
    "train": "[1]",
}


@pytest.mark.parametrize("key", WRONG)
def test_set_says_the_same_as_the_file(tmp_path: Path, key: str) -> None:
    values = yamlfile.parse(GOOD)
    *above, last = key.split(".")
    block = values
    for part in above:
        block = block.setdefault(part, {})
    block[last] = yamlfile.parse(WRONG[key])
    (in_file,) = refused(tmp_path, yamlfile.dump(values))
    (by_set,) = refused(tmp_path, GOOD, f"{key}={WRONG[key]}")
    if key == "student.pretrained":  # what is wrong is the name, which the file has
        assert by_set == "6:3: " + in_file.split(": ", 1)[1]
    else:
        assert by_set == f"--set {key}={WRONG[key]}: " + in_file.split(": ", 1)[1]


@pytest.mark.parametrize("text", ["train.lr", "=3", "train..lr=3", ".lr=3", "train.lr=", ""])
def test_set_wants_a_key_and_a_value(tmp_path: Path, text: str) -> None:
    words = "expected KEY=VALUE with a dotted key, as in train.epochs=3"
    assert refused(tmp_path, GOOD, text) == [f"--set {text}: {words}"]


def test_set_takes_any_yaml_value_and_the_last_one_wins(tmp_path: Path) -> None:
    sets = ("train.lr=1", "seeds=[3, 4]", "train={epochs: 5}", "train.epochs=6", "variant=a=b", "train.amp='none'")
    config = load(tmp_path, GOOD + "train: {lr: 2}\n", *sets).config
    assert (config.train.lr, config.train.epochs, config.train.amp) == (3e-4, 6, "none")
    assert (config.seeds, config.variant) == ((3, 4), "a=b")


def test_set_changes_one_place_of_a_block_that_two_share(tmp_path: Path) -> None:
    text = "data: {name: cifar10}\nteacher: &net\n  model: resnet18\nstudent: *net\n"
    config = load(tmp_path, text, "student.model=resnet10t").config
    assert (config.teacher.model, config.student.model) == ("resnet18", "resnet10t")


def test_the_set_that_counts_is_the_one_that_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD, "train.epochs=0", "train={epochs: -1}") == [
        "--set train={epochs: -1}: train.epochs: must be at least 1 (got -1)"
    ]
    assert refused(tmp_path, GOOD, "train={epochs: -1, lr: 0}", "train.epochs=0") == [
        "--set train={epochs: -1, lr: 0}: train.lr: must be greater than 0 (got 0)",
        "--set train.epochs=0: train.epochs: must be at least 1 (got 0)",
    ]


def test_every_key_that_is_a_list_has_an_example_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").touch()
    keys = [one.key for one in schema.fields() if one.type.startswith("list")]
    assert {"seeds", "imports", "train.betas", "data.augment.crop.scale", "data.augment.erase.ratio"} <= {*keys}
    for key in keys:
        (said,) = refused(tmp_path, GOOD, f"{key}=0.5")
        assert said.startswith(f"--set {key}=0.5: {key}: must be a list, as in [")
        example = said.partition("as in ")[2].partition(" (")[0]
        load(tmp_path, GOOD, f"{key}={example}")


def test_set_errors_come_after_those_of_the_file(tmp_path: Path) -> None:
    sets = ("train.epochs=0", "trian.lr=3", "x", "seeds.0=1", "train.lr=[")
    assert refused(tmp_path, GOOD + "distill: {alpha: 2}\n", *sets) == [
        "7:11: distill.alpha: must be at most 1 (got 2)",
        "--set train.epochs=0: train.epochs: must be at least 1 (got 0)",
        "--set trian.lr=3: trian: unknown key; did you mean train?",
        "--set seeds.0=1: seeds: must be a list, as in [0, 1, 2] (got {0: 1})",
        "--set x: expected KEY=VALUE with a dotted key, as in train.epochs=3",
        "--set train.lr=[: train.lr: not a YAML value; put text in quotes",
    ]


def test_one_wrong_item_is_one_message(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD, "seeds=[x]") == ["--set seeds=[x]: seeds.0: must be a whole number (got 'x')"]


# Finding experiments


def test_the_working_directory_comes_before_what_ships(empty_folder: Path) -> None:
    shipped = configfile.find("exp1")
    assert shipped.is_absolute()
    (empty_folder / "configs").mkdir()
    write(empty_folder / "configs", GOOD, "exp1.yaml")
    assert configfile.find("exp1") == Path("configs/exp1.yaml")
    assert next(iter(configfile.experiments())) == "exp1"
    assert set(configfile.experiments()) == {"exp1", "exp2", "demo"}
    assert configfile.load(str(shipped)).config != configfile.load("exp1").config


def test_an_experiment_that_is_not_there(empty_folder: Path) -> None:
    with pytest.raises(NotFound, match=r"no experiment 'ex1', neither .* did you mean 'exp1'\?$"):
        configfile.find("ex1")
    with pytest.raises(NotFound, match=r"; known: demo, exp1, exp2$"):
        configfile.find("resnet")
    for path in ("configs/exp1.yaml", "exp.yml", str(empty_folder)):
        with pytest.raises(NotFound, match=f"^no experiment file {path}$"):
            configfile.find(path)


def test_a_file_of_the_working_directory_is_listed_and_suggested(empty_folder: Path) -> None:
    write(empty_folder, GOOD, "fashion.yaml")
    write(empty_folder, GOOD, "other.yml")
    (empty_folder / "compose.yaml").write_text("services:\n  teacher: {}\n")
    (empty_folder / "gone.yaml").symlink_to("nowhere")
    assert list(configfile.experiments()) == ["demo", "exp1", "exp2", "./fashion.yaml", "./other.yml"]
    assert configfile.find("./fashion.yaml") == Path("fashion.yaml")
    for name, meant in (("fashion", "./fashion.yaml"), ("other", "./other.yml"), ("compose", "./compose.yaml")):
        with pytest.raises(NotFound, match=f"did you mean '{meant}'"):
            configfile.find(name)


# YAML there and back

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(plain)
@settings(max_examples=80, deadline=None)
def test_dump_and_parse_are_inverse(value: Any) -> None:
    assert yamlfile.parse(yamlfile.dump({"value": value})) == {"value": value}


def test_a_shipped_file_has_nothing_to_say_against_it() -> None:
    for name in ("exp1", "exp2", "demo"):
        assert (
            Experiment.model_validate(configfile.load(name).config.model_dump(exclude_unset=True)).contradictions()
            == []
        )
