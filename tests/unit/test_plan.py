"""Run ids: what moves them and what does not; the DAG; a run's config.yaml there and back."""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcluster import plan
from kdcluster.errors import ConfigError
from kdcluster.experiment import configfile, yamlfile
from kdcluster.experiment.config import Model
from kdcluster.experiment.identity import changed, digest
from kdcluster.plan import Plan, Run
from kdcluster.run import RECIPES, STORE
from tests.fields import BASE, FILES, another, experiment, get, hashed, leaves, put

GOLDEN = Path(__file__).parents[1] / "golden" / "ids.txt"
FIELDS = dict(leaves())
STUDENTS = ("baseline", "distilled")
OF_THE_TEACHER = ["teacher", STORE, "distilled"]
MOVES = {
    "data": plan.ROLES,
    "data.views": STUDENTS,
    "teacher": OF_THE_TEACHER,
    "student": STUDENTS,
    "distill": ("distilled",),
    "control": ("baseline",),  # of which there are more
    "distill.logits": (STORE,),  # which is planned no more, and no id moves
    "train": plan.ROLES,
    "seeds": STUDENTS,
    "variant": STUDENTS,
    "imports": plan.ROLES,
}
"""Key, or its first part -> the roles whose ids it moves, where it moves any."""


def ids(made: Plan) -> dict[str, list[str]]:
    return {role: [run.id for run in made.runs if run.role == role] for role in plan.ROLES}


def of(values: dict[str, Any], **files: str) -> dict[str, list[str]]:
    """Role -> ids of one experiment."""
    return ids(plan.plan([experiment(values, files={**FILES, **files})]))


def moved(values: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The roles whose ids differ."""
    return [role for role in plan.ROLES if of(values)[role] != of(other)[role]]


def on_disk(folder: Path, text: str, name: str = "exp.yaml") -> dict[str, list[str]]:
    (folder / name).write_text(text, encoding="utf-8")
    return ids(plan.plan([configfile.load(str(folder / name))]))


# Golden ids


@pytest.mark.parametrize("name", ["exp1", "exp2", "demo"])
def test_golden_ids(empty_folder: Path, name: str) -> None:
    """Moving one of these makes every run of that experiment another run: see run.RECIPES. Written by hand only."""
    assert GOLDEN.is_file(), f"{GOLDEN} is missing; get it back from git, it must never be made from today's ids"
    golden = [line.split() for line in GOLDEN.read_text().splitlines()]
    made = plan.plan([configfile.load(name)])
    assert [run.id for run in made.runs] == [run_id for experiment, run_id in golden if experiment == name]


def test_an_id_says_role_model_seed_and_hash() -> None:
    (run, *_) = plan.plan([experiment(put(BASE, "teacher.model", "ViT-Base.tag_in1k"))]).runs
    assert run.id == f"teacher-vit_base-s0-{run.hash[:8]}"
    assert len(run.hash) == 64


# What moves an id


@pytest.mark.parametrize("key", FIELDS)
def test_a_field_moves_the_ids_that_it_says(key: str) -> None:
    info = FIELDS[key]
    before = experiment(BASE).config
    value = get(before, key)
    changed = put(BASE, key, another(info, value))
    assert get(experiment(changed).config, key) != value
    expected = MOVES.get(key) or (MOVES[key.partition(".")[0]] if hashed(info) else ())
    assert moved(BASE, changed) == [role for role in plan.ROLES if role in expected]


def test_every_id_of_a_changed_field_is_another() -> None:
    """No two fields enter the hash under the same name."""
    found = {}
    for key, info in FIELDS.items():
        if hashed(info):
            changed = put(BASE, key, another(info, get(experiment(BASE).config, key)))
            found[key] = json.dumps(of(changed))
    assert len(set(found.values())) == len(found)


def test_the_name_and_the_folder_of_an_experiment_move_nothing() -> None:
    assert ids(plan.plan([experiment(BASE, "one")])) == ids(plan.plan([experiment(BASE, "folder/two")]))


@pytest.mark.parametrize("role", plan.ROLES)
def test_a_recipe_moves_its_role_and_what_hangs_on_it(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(BASE)
    monkeypatch.setitem(RECIPES, role, RECIPES[role] + 1)
    hang = OF_THE_TEACHER if role == "teacher" else [role]
    assert [role for role in plan.ROLES if before[role] != of(BASE)[role]] == hang


def test_a_new_field_moves_nothing_while_it_has_its_default() -> None:
    class Wider(Model):
        droppath: float = 0.0

    assert changed(Wider(model="a", image_size=32)) == changed(Model(model="a", image_size=32))
    assert changed(Wider(model="a", droppath=0.1)) != changed(Model(model="a"))


def test_the_teacher_is_hashed_as_it_is_trained() -> None:
    taken_over = put(BASE, "train.lr", 1e-3)
    written_out = put(taken_over, "teacher.train", {"lr": 1e-3})
    assert of(taken_over) == of(written_out)
    assert moved(taken_over, put(taken_over, "teacher.train", {"lr": 2e-3})) == OF_THE_TEACHER


def test_a_teacher_that_is_taken_as_it_is_hangs_on_no_training() -> None:
    taken = put(BASE, "teacher.train", "none")
    assert moved(BASE, taken) == OF_THE_TEACHER
    assert moved(taken, put(taken, "train.lr", 0.1)) == ["baseline", "distilled"]


def test_how_many_labels_there_are_is_all_the_same_to_a_teacher_that_is_taken_as_it_is() -> None:
    taken = put(BASE, "teacher.train", "none")
    assert moved(taken, put(taken, "data.labelled", 500)) == ["baseline", "distilled"]
    assert moved(BASE, put(BASE, "data.labelled", 500)) == ["teacher", STORE, "baseline", "distilled"]


def test_the_teachers_seed_is_its_own() -> None:
    found = of(put(put(BASE, "teacher.seed", 5), "seeds", [0, 1, 2]))
    assert [run.split("-")[2] for run in found["teacher"]] == ["s5"]
    assert [run.split("-")[2] for run in found["baseline"]] == ["s0", "s1", "s2"]
    assert [run.split("-")[2] for run in found["distilled"]] == ["s0", "s1", "s2"]
    assert found["baseline"] == of(put(BASE, "seeds", [0, 1, 2]))["baseline"]


@pytest.mark.parametrize(
    "loss",
    [
        {"temperature": 9.0},
        {"loss": "dkd", "dkd_beta": 2.0},
        {"loss": "dist", "dist_gamma": 1.0},
        {"loss": "hard"},
        {"standardise": True},
    ],
)
def test_without_weight_of_the_teacher_the_distilled_runs_are_the_baseline_runs(loss: dict[str, Any]) -> None:
    made = plan.plan([experiment(put(BASE, "distill", {"alpha": 0.0, **loss}))])
    wanted = made.wanted["exp"]
    assert wanted["distilled"] == wanted["baseline"] == tuple(ids(made)["baseline"])
    assert wanted["baseline"] == tuple(of(BASE)["baseline"])
    assert ids(made)["distilled"] == []
    assert wanted[STORE] == ()
    assert ids(made)[STORE] == []


def test_a_teacher_sees_the_views_of_the_file_or_its_own() -> None:
    """With views of its own it stays the same teacher when the students' change; what it says of these does not."""
    own = put(BASE, "teacher.augment", {"pad": 2, "flip": True})
    assert moved(BASE, own) == OF_THE_TEACHER
    assert moved(own, put(own, "data.augment", {"pad": 5, "flip": False})) == [STORE, *STUDENTS]
    seen = put(BASE, "data.augment", {"pad": 2, "flip": True})
    assert moved(seen, put(seen, "teacher.augment", {"pad": 2, "flip": True})) == []
    taken = put(put(BASE, "teacher.train", "none"), "data.augment.pad", 5)
    assert moved(taken, put(taken, "teacher.augment.pad", 2)) == []


@pytest.mark.parametrize(
    ("block", "inside"),
    [("crop", {"scale": [0.08, 1]}), ("erase", {"probability": 0.25}), ("mixup", {"share": 0.5}), ("cutmix", {})],
)
def test_a_block_that_is_off_by_default_is_on_with_nothing_in_it(block: str, inside: Any) -> None:
    on = put(BASE, f"data.augment.{block}", {})
    assert moved(BASE, on) == list(plan.ROLES)
    assert moved(on, put(BASE, f"data.augment.{block}", inside)) == []
    assert moved(BASE, put(BASE, f"data.augment.{block}", None)) == []


# The store of the teacher's logits


def of_role(made: Plan, role: str) -> list[Run]:
    return [run for run in made.runs if run.role == role]


def test_a_store_waits_for_its_teacher_and_students_for_the_store() -> None:
    made = plan.plan([experiment(put(BASE, "seeds", [0, 1]))])
    (teacher,), (store,) = of_role(made, "teacher"), of_role(made, STORE)
    assert made.wanted["exp"][STORE] == (store.id,)
    assert (store.needs, store.after, store.model, store.train) == ([teacher.id], [], teacher.model, None)
    assert [(run.needs, run.after) for run in of_role(made, "distilled")] == [([teacher.id], [store.id])] * 2
    assert [(run.needs, run.after) for run in of_role(made, "baseline")] == [([], [])] * 2
    assert made.readers(store.id) == of_role(made, "distilled")
    assert made.readers(teacher.id) == []


def test_where_the_logits_are_computed_there_is_no_store_and_no_other_id() -> None:
    stored, computed = (plan.plan([experiment(put(BASE, "distill.logits", how))]) for how in ("stored", "computed"))
    assert stored == plan.plan([experiment(BASE)])
    assert [run.id for run in computed.runs] == [run.id for run in stored.runs if run.role != STORE]
    assert (computed.wanted["exp"][STORE], of_role(computed, "distilled")[0].after) == ((), [])


ONE_TEACHER = put(BASE, "teacher.train", {"epochs": 10, "batch_size": 64, "lr": 0.1})
"""The students' `train` is not the teacher's."""
LIKE_IT = {
    "distill.temperature": 9.0,
    "distill.alpha": 0.9,
    "student.model": "resnet50",
    "student.pretrained": False,
    "seeds": [3, 4],
    "train.batch_size": 32,
    "train.lr": 0.5,
    "train.epochs": 3,
    "train.micro_batch": 2,
    "data.views": 2,
    "variant": "other",
    "resources.procs": 2,
    "teacher.min_top1": 50.0,
}
"""What asks the same of the same teacher."""


@pytest.mark.parametrize("key", LIKE_IT)
def test_what_asks_the_same_of_one_teacher_shares_its_store(key: str) -> None:
    made = plan.plan([experiment(ONE_TEACHER, "one"), experiment(put(ONE_TEACHER, key, LIKE_IT[key]), "two")])
    (store,) = of_role(made, STORE)
    assert made.experiments_of(store.id) == ["one", "two"]
    assert {run.store for run in of_role(made, "distilled")} == {store.id}


@pytest.mark.parametrize("augment", [{}, {"mixup": {}}])
def test_trials_read_the_store_of_the_experiment_whatever_they_hold_out(augment: dict[str, Any]) -> None:
    asked = put(ONE_TEACHER, "data.augment", augment)
    (store,) = of_role(plan.plan([experiment(asked)]), STORE)
    for key, value in {**LIKE_IT, "data.view_seed": 0}.items():
        for run in plan.trial(experiment(put(asked, key, value)), [1000, 1001], 0.3):
            assert (run.data.val_fraction, run.store, run.needs) == (0.3, store.id, store.needs)
    (other,) = plan.trial(experiment(put(asked, "data.view_seed", 1)), [1000], 0.3)
    assert other.store != store.id


def test_a_teacher_that_saw_other_images_has_another_store() -> None:
    """Of the whole training set, as every store is."""
    (store,), (other,) = (
        of_role(plan.plan([experiment(put(BASE, "data.val_fraction", held))]), STORE) for held in (0.0, 0.25)
    )
    assert store.id != other.id
    assert store.data == other.data


@pytest.mark.parametrize(("views", "epochs", "expected"), [(None, 7, 7), (3, 7, 3), (7, 7, 7), (12, 7, 7), (1, 7, 1)])
def test_a_store_has_the_views_that_students_come_to_see(views: int | None, epochs: int, expected: int) -> None:
    values = put(put(BASE, "data.views", views), "train.epochs", epochs)
    made = plan.plan([experiment(put(values, "teacher.train", {"epochs": 99}))])
    (store,) = of_role(made, STORE)
    assert (store.views, store.data.views) == (expected, None)
    assert {run.views for run in made.runs if run != store} == {None}


@pytest.mark.parametrize("order", [1, -1])
def test_a_store_that_two_ask_for_has_the_views_and_the_gate_of_whoever_asks_for_most(order: int) -> None:
    """Behind a gate that one experiment has not, its students would wait for nothing."""

    def stores(*asked: tuple[int, float | None]) -> list[tuple[int | None, float | None]]:
        made = plan.plan(
            experiment(put(put(ONE_TEACHER, "train.epochs", views), "teacher.min_top1", gate), f"exp{views}")
            for views, gate in asked[::order]
        )
        return [(run.views, run.teacher and run.teacher.min_top1) for run in of_role(made, STORE)]

    assert stores((5, 80.0), (9, 70.0), (7, 90.0)) == [(9, 70.0)]
    assert stores((5, None), (9, 70.0)) == [(9, None)]


def test_a_run_as_its_directory_has_it_takes_the_place_of_the_planned_one() -> None:
    """Also where nothing but its name can be read; a store there may have been asked for more views."""
    made = plan.plan([experiment(put(BASE, "train.epochs", 5))])
    teacher, store, baseline, _ = made.runs
    here = [
        teacher.model_copy(update={"hash": ""}),
        store.model_copy(update={"views": 9}),
        baseline.model_copy(update={"variant": "x"}),
    ]
    assert made.joined(here).runs == (*here, made.runs[3])
    assert made.joined([store.model_copy(update={"views": 3})])[store.id].views == 5


# Files


def test_weights_and_imports_count_by_content(tmp_path: Path) -> None:
    for name, content in {"a.pt": "one", "b.pt": "one", "c.pt": "two", "m.py": "x", "n.py": "x", "o.py": "y"}.items():
        (tmp_path / name).write_text(content)
    text = "data: {{name: cifar10}}\nteacher: {{model: t}}\nstudent: {{model: s, pretrained: {0}}}\nimports: [{1}]\n"
    first = on_disk(tmp_path, text.format("a.pt", "m.py"))
    assert on_disk(tmp_path, text.format("b.pt", "n.py")) == first
    other_weights = on_disk(tmp_path, text.format("c.pt", "m.py"))
    assert [role for role in plan.ROLES if other_weights[role] != first[role]] == list(STUDENTS)
    other_import = on_disk(tmp_path, text.format("a.pt", "o.py"))
    assert all(other_import[role] != first[role] for role in plan.ROLES)
    (tmp_path / "a.pt").write_text("six")
    assert on_disk(tmp_path, text.format("a.pt", "m.py"))["baseline"] not in (
        first["baseline"],
        other_weights["baseline"],
    )


def test_an_image_folder_counts_by_names_and_sizes(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "0.png").write_bytes(b"12345")
    text = "data: {{name: image_folder, path: {}}}\nteacher: {{model: t}}\nstudent: {{model: s}}\n"
    first = on_disk(tmp_path, text.format("pets"))
    (root / "train" / "cat" / "0.png").write_bytes(b"54321")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    assert on_disk(tmp_path, text.format("pets")) == first
    shutil.copytree(root, tmp_path / "copy")
    assert on_disk(tmp_path, text.format("copy")) == first
    (root / "train" / "cat" / "0.png").write_bytes(b"123456")
    longer = on_disk(tmp_path, text.format("pets"))
    assert all(longer[role] != first[role] for role in plan.ROLES)
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "1.png")
    assert on_disk(tmp_path, text.format("pets")) not in (first, longer)


# What a file looks like

WRITTEN = {
    "blocks": "data:\n  name: cifar10\nteacher:\n  model: r\nstudent:\n  model: r\ntrain:\n  lr: 0.001\n  epochs: 5\n",
    "other order": "train: {epochs: 5, lr: 1e-3}\nstudent: {model: r}\nteacher: {model: r}\ndata: {name: cifar10}\n",
    "comments": "# about\ndata: {name: cifar10} # c\nteacher: {model: r}\n\nstudent: {model: r}\n"
    "train: # t\n  lr: 1.0e-3\n  epochs: 5\n",
    "an alias": "data: {name: &d cifar10}\nteacher: &net {model: r}\nstudent: *net\ntrain: {lr: &lr 1e-3, epochs: 5}\n",
    "a merge": "data: {name: cifar10}\nteacher:\n  model: r\n  train: &t {lr: 1e-3}\nstudent: {model: r}\n"
    "train:\n  <<: *t\n  epochs: 5\n",
    "JSON": '{"data": {"name": "cifar10"}, "teacher": {"model": "r"}, "student": {"model": "r"}, '
    '"train": {"lr": 0.001, "epochs": 5}}',
    "what is not hashed": "data: {name: cifar10}\nteacher: {model: r, min_top1: 90}\nstudent: {model: r}\n"
    "train: {lr: 1e-3, epochs: 5, compile: true, micro_batch: 8, channels_last: false}\n"
    "resources: {procs: 2, threads: 1}\nreference: {teacher: 91.1}\n",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_the_way_a_file_is_written_moves_nothing(tmp_path: Path, how: str) -> None:
    assert on_disk(tmp_path, WRITTEN[how]) == on_disk(tmp_path, WRITTEN["blocks"])


DEFAULTS = {
    key: info.default
    for key, info in FIELDS.items()
    if not info.is_required()
    and key not in ("data.path", "data.image_size", "teacher.pretrained", "student.pretrained")
    and not key.startswith(("distill.dkd_", "distill.dist_"))  # refused for the default loss
    and "augment.rand." not in key  # and these for the default policy
    and not {"crop", "erase", "mixup", "cutmix"} & set(key.split("."))  # off by default: to name one is to switch it on
}
CIFAR = {"data": {"name": "cifar10"}, "teacher": {"model": "resnet18"}, "student": {"model": "resnet10t"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written_out")


@given(keys=st.sets(st.sampled_from(sorted(DEFAULTS))), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_defaults_written_out_in_any_order_move_nothing(folder: Path, keys: set[str], seed: int) -> None:
    values: dict[str, Any] = CIFAR
    for key in keys:
        values = put(values, key, list(DEFAULTS[key]) if isinstance(DEFAULTS[key], tuple) else DEFAULTS[key])
    assert on_disk(folder, yamlfile.dump(_shuffled(values, random.Random(seed)))) == of(CIFAR)


def _shuffled(values: Any, order: random.Random) -> Any:
    if not isinstance(values, dict):
        return values
    keys = list(values)
    order.shuffle(keys)
    return {key: _shuffled(values[key], order) for key in keys}


# The DAG


def test_two_experiments_share_their_teacher_and_its_logits(empty_folder: Path) -> None:
    made = plan.plan([configfile.load("exp1"), configfile.load("exp2")])
    assert [run.role for run in made.runs] == ["teacher", STORE, "baseline", "distilled", "baseline", "distilled"]
    teacher, store = made.runs[:2]
    assert made.experiments_of(teacher.id) == made.experiments_of(store.id) == ["exp1", "exp2"]
    assert [run.needs for run in made.runs if run.role == "distilled"] == [[teacher.id], [teacher.id]]
    assert [run.needs for run in made.runs if run.role == "baseline"] == [[], []]
    assert made.wanted["exp1"]["teacher"] == made.wanted["exp2"]["teacher"] == (teacher.id,)


def test_what_a_run_needs_comes_before_it(empty_folder: Path) -> None:
    made = plan.plan([configfile.load(name) for name in ("demo", "exp2", "exp1")])
    order = [run.id for run in made.runs]
    assert len(set(order)) == len(order)
    assert all(order.index(one) < order.index(run.id) for run in made.runs for one in (*run.needs, *run.after))


def test_the_same_experiment_twice_is_one() -> None:
    once, twice = plan.plan([experiment(BASE)]), plan.plan([experiment(BASE), experiment(BASE)])
    assert (twice.runs, twice.wanted) == (once.runs, once.wanted)


def test_two_experiments_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two different experiments are named exp; rename one of the files"):
        plan.plan([experiment(BASE), experiment(put(BASE, "train.lr", 0.1))])


def test_a_plan_cut_down_to_a_role_keeps_what_the_role_needs() -> None:
    made = plan.plan([experiment(put(BASE, "seeds", [0, 1]))])
    assert [run.role for run in made.only(["distilled"]).runs] == ["teacher", STORE, "distilled", "distilled"]
    assert [run.role for run in made.only(["baseline"]).runs] == ["baseline", "baseline"]
    assert [run.role for run in made.only(["teacher"]).runs] == ["teacher"]
    assert [run.role for run in made.only([STORE]).runs] == ["teacher", STORE]
    assert made.only(plan.ROLES).runs == made.runs


def test_eight_equal_digits_of_different_hashes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcluster.run.digest", lambda identity: "00000000" + digest(identity)[8:])
    with pytest.raises(ConfigError, match="two different runs have the id teacher-resnet18-s0-00000000; set `variant`"):
        plan.plan([experiment(BASE, "one"), experiment(put(BASE, "train.lr", 0.1), "two")])
    plan.plan([experiment(BASE, "one"), experiment(BASE, "two")])


def test_the_plan_touches_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [configfile.load("exp1"), experiment(BASE)]

    def touched(*_: Any, **__: Any) -> Any:
        raise AssertionError("the plan touches files")

    with monkeypatch.context() as patch:
        for module, names in ((builtins, ["open"]), (io, ["open"]), (os, ["open", "stat", "listdir", "scandir"])):
            for name in names:
                patch.setattr(module, name, touched)
        with pytest.raises(AssertionError):
            Path("exp.yaml").stat()
        made = plan.plan(loaded)
    assert len(made.runs) == 8


# A run's config.yaml


def test_a_run_is_fully_resolved() -> None:
    made = plan.plan([experiment({**BASE, "teacher": {**BASE["teacher"], "min_top1": 50.0, "train": {"epochs": 3}}})])
    teacher, store, baseline, distilled = made.runs
    assert teacher.train is not None
    assert (teacher.train.epochs, teacher.teacher, teacher.distill) == (3, None, None)
    assert (baseline.teacher, baseline.distill, baseline.needs) == (None, None, [])
    assert distilled.teacher is not None
    assert store.teacher == distilled.teacher
    assert distilled.teacher.model == teacher.model
    assert distilled.teacher.min_top1 == 50.0
    assert (distilled.channels, distilled.num_classes, distilled.amp) == (3, 10, "auto")


@pytest.mark.parametrize(
    ("name", "channels", "classes"), [("cifar100", 3, 100), ("cifar10", 3, 10), ("mnist5k", 1, 10)]
)
def test_channels_and_classes_come_from_the_data(tmp_path: Path, name: str, channels: int, classes: int) -> None:
    text = f"data: {{name: {name}}}\nteacher: {{model: t}}\nstudent: {{model: s}}\n"
    (tmp_path / "exp.yaml").write_text(text)
    run = plan.plan([configfile.load(str(tmp_path / "exp.yaml"))]).runs[0]
    assert (run.channels, run.num_classes) == (channels, classes)


def test_a_model_that_is_only_evaluated_runs_in_float32() -> None:
    teacher = plan.plan([experiment(put(BASE, "teacher.train", "none"))]).runs[0]
    assert (teacher.train, teacher.amp) == (None, "none")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(
    variant=st.text(),
    arguments=st.dictionaries(st.text(), plain, max_size=3),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    path=st.text(min_size=1),
)
@settings(max_examples=40, deadline=None)
def test_config_yaml_there_and_back(
    folder: Path, variant: str, arguments: dict[str, Any], lr: float, path: str
) -> None:
    values = {**BASE, "variant": variant, "train": {"lr": lr}, "imports": [path]}
    values = put(put(values, "student.model_args", arguments), "student.pretrained", "/student.pt")
    distilled = plan.plan([experiment(values, files={**FILES, path: "ee"})]).runs[-1]
    (folder / "config.yaml").write_text(distilled.to_yaml(), encoding="utf-8")
    assert Run.from_yaml(folder / "config.yaml") == distilled


@pytest.mark.parametrize("role", plan.ROLES)
def test_every_role_there_and_back(tmp_path: Path, role: str) -> None:
    values = put(BASE, "teacher.train", "none")
    run = next(run for run in plan.plan([experiment(values)]).runs if run.role == role)
    (tmp_path / "config.yaml").write_text(run.to_yaml(), encoding="utf-8")
    assert Run.from_yaml(tmp_path / "config.yaml") == run


@pytest.mark.parametrize("text", ["", "a: [", "a: 1\n", "\x00"])
def test_a_config_yaml_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: not a run's configuration of this version"):
        Run.from_yaml(path)


def test_a_config_yaml_of_another_version(tmp_path: Path) -> None:
    run = plan.plan([experiment(BASE)]).runs[0]
    path = tmp_path / "config.yaml"
    path.write_text(run.to_yaml() + "new_field: 3\n")
    with pytest.raises(ConfigError, match="new_field"):
        Run.from_yaml(path)
