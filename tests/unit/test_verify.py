"""`verify`: a store of a teacher's logits held against what the teacher gives today, and against the labels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from kdcluster import teacherlogits
from kdcluster.cli import main
from kdcluster.commands import verify as command
from kdcluster.files import write_json
from kdcluster.launch import preflight
from kdcluster.launch.status import statuses
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.teacherlogits import Missing, Store
from kdcluster.train import verify
from kdcluster.train.distributed import World
from kdcluster.train.teacher_logits import Targets, store_of
from kdcluster.train.verify import ELSEWHERE, picked
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 300
VIEWS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, its images, its trained teacher and its store of two views."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.put_images(folder / "data", train=IMAGES, test=100)
    made = tiny.make_plan(folder, {"teacher.train": {"epochs": 6}})
    for run in made.only([STORE]).runs:
        tiny.train_here(folder / "runs", run, folder / "data")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in; what a child process does is done in this one."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(preflight, "verify", _here)
    return tmp_path / "here"


def _here(stores: list[Run], root: Path, data: Path, *, images: int, seed: int, whole: bool) -> list[dict[str, Any]]:
    found = [verify.verify(run, root, data, images, seed, whole=whole) for run in stores]
    return list(json.loads(json.dumps(found)))


def made() -> Plan:
    from kdcluster.experiment import configfile
    from kdcluster.plan import plan

    return plan([configfile.load("tiny.yaml")])


def store(folder: Path) -> Store:
    (run,) = (run for run in made().runs if run.role == STORE)
    return store_of(folder / "runs", run.id, run, IMAGES)


def say(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["verify", *(arguments or ("tiny.yaml",))], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def put(store: Store, view: int, logits: Any) -> None:
    """Other logits, with a check sum that is right."""
    np.save(store.path(view), logits)
    manifest = store.manifest()
    manifest["views"][str(view)]["crc32c"] = google_crc32c.value(store.path(view).read_bytes())
    write_json(store.folder / "manifest.json", manifest)


def state_of_the_store(folder: Path) -> tuple[str, str]:
    (one,) = (one for run_id, one in statuses(made(), folder / "runs").items() if run_id.startswith(STORE))
    return one.state, one.reason


def make_again(folder: Path) -> None:
    (run,) = (run for run in made().runs if run.role == STORE)
    tiny.train_here(folder / "runs", run, folder / "data")


# What is right


def test_a_sound_store_has_the_same_bits_and_stands_in_the_order_of_the_labels(folder):
    said = say().stdout
    assert f"{VIEWS} views of {IMAGES} images, 10 classes, every check sum is right" in said
    assert f"{VIEWS * IMAGES} images computed again on cpu: the same bits\n" in said
    assert re.search(r"\d\d\.\d\d to \d\d\.\d\d % of the images are as labelled, (9|10|11)\.\d\d % would be in a", said)


@pytest.mark.parametrize("lacks", [{}, {"top1": None, "tolerance": None}])
def test_of_a_view_of_which_the_check_sum_alone_is_known_the_rest_is_compared(folder, lacks):
    ours = store(folder)
    manifest = ours.manifest()
    views = {view: {"crc32c": entry["crc32c"], **lacks} for view, entry in manifest["views"].items()}
    write_json(ours.folder / "manifest.json", {**manifest, "views": views})
    assert f"{VIEWS * IMAGES} images computed again on cpu: the same bits\n" in say().stdout
    assert teacherlogits.about(ours.run)["top1"] == [None, None]


def test_the_same_in_json_of_a_sample(folder):
    (found,) = json.loads(say("tiny.yaml", "--images", "40", "--json").stdout)["stores"]
    assert (found["wrong"], found["problems"], found["experiments"]) == ({}, [], ["tiny"])
    sample = {"images": 40, "same": 40, "difference": 0.0, "allowed": 0.0, "elsewhere": 0, "devices": ["cpu"]}
    assert found["sample"] == sample
    assert found["labels"]["images"] == VIEWS * IMAGES, "whatever the sample, all labels"
    least, shuffled = found["labels"]["top1"][0], found["labels"]["shuffled"]
    assert least > 2 * shuffled, "else the tests of another order prove nothing"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("views", "total", "images"), [([0], 7, 3), ([0, 1, 5], 50, 40), ([0, 1], 10, 1000)])
def test_the_sample_is_spread_over_views_and_images(views, total, images, seed):
    found = picked(views, total, images, seed)
    assert sum(map(len, found.values())) == min(images, len(views) * total)
    assert list(found) == views
    for index in found.values():
        assert (index.diff() > 0).all()
        assert 0 <= index[0] < total / 2 <= index[-1] < total


def test_another_seed_is_another_sample():
    one, same, other = (picked([0, 1], 500, 60, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_the_page_that_documents_the_format_has_a_reader(folder):
    page = (Path(__file__).parents[2] / "docs" / "teacher-logits.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(code, names)
    ours = store(folder)
    for view in range(VIEWS):
        read = names["read_view"](ours.run, view)
        assert (read.dtype, read.shape, read.tobytes()) == (
            np.float16,
            (IMAGES, 10),
            ours.read(view, 1 << 30).tobytes(),
        )
    with pytest.raises(KeyError):
        names["read_view"](ours.run, VIEWS)
    ours.path(0).write_bytes(ours.path(0).read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"view-00000\.npy is damaged"):
        names["read_view"](ours.run, 0)


def test_the_page_names_every_key_of_the_manifest(folder):
    page = (Path(__file__).parents[2] / "docs" / "teacher-logits.md").read_text(encoding="utf-8")
    manifest = store(folder).manifest()
    keys = {*manifest, *manifest["views"]["0"]} - {"check_sum"}
    assert [key for key in sorted(keys) if f"`{key}`" not in page and f"`views.*.{key}`" not in page] == []


def test_a_store_that_is_done_has_said_so_of_every_view(folder):
    beat = RunDir(folder / "runs", store(folder).run.name).newest().read("heartbeat")
    assert (beat["epoch"], beat["epochs"], beat["step"]) == (VIEWS, VIEWS, beat["steps"])


# What is wrong


@pytest.mark.parametrize("how", ["shuffled", "by one"])
def test_logits_in_another_order_than_the_images_are_found_marked_and_made_again(folder, how):
    ours = store(folder)
    right = ours.read(1, 1 << 30)
    order = np.random.RandomState(0).permutation(IMAGES) if how == "shuffled" else np.roll(np.arange(IMAGES), 1)
    put(ours, 1, right[order])
    assert len(ours.read(1, 1 << 30)), "its check sum says nothing against it"
    said = say(code=1).stdout
    assert "view 1 is wrong: other logits than the teacher gives, by up to" in said
    assert re.search(
        r"\d\.\d\d % of its images are as labelled, \d\d\.\d\d % were when it was made, \d+\.\d\d % ", said
    )
    assert "kdcluster submit tiny.yaml makes it again" in said
    with pytest.raises(Missing, match="other logits"):
        ours.read(1, 1 << 30)
    assert state_of_the_store(folder) == (State.PLANNED, "view 1 is damaged; submit makes what is missing")
    make_again(folder)
    assert (ours.read(1, 1 << 30) == right).all()
    assert state_of_the_store(folder)[0] == State.DONE
    say()


def test_one_row_that_is_another_images_is_found_by_a_sample_of_all(folder):
    ours = store(folder)
    right = ours.read(0, 1 << 30)
    other = right.copy()
    other[17] = right[18] if (right[17] != right[18]).any() else right[19]
    put(ours, 0, other)
    assert "in 1 of 300 images" in say(code=1).stdout


def test_a_damaged_view_is_marked_and_named(folder):
    ours = store(folder)
    content = bytearray(ours.path(0).read_bytes())
    content[-1] ^= 1
    ours.path(0).write_bytes(content)
    assert "view 0 is wrong: it is damaged (its check sum is wrong)" in say(code=1).stdout
    assert ours.path(0).with_suffix(".damaged").exists()
    assert "view 0 is wrong: it is damaged (its check sum is wrong)" in say(code=1).stdout, (
        "and so it stays until it is made"
    )
    ours.path(1).unlink()
    assert "view 1 is wrong: it is damaged (No such file or directory)" in say(code=1).stdout


def test_a_student_computes_what_is_marked(folder):
    ours, distilled = store(folder), next(run for run in made().runs if run.role == "distilled")
    ours.mark(0, "no good", ours.manifest()["views"]["0"]["crc32c"])
    targets = Targets(distilled, folder / "runs", World(0, 1, torch.device("cpu")), IMAGES)
    targets.begin(0)
    targets.begin(1)
    assert targets.origin == {0: "computed", 1: "read"}


def test_a_teacher_with_other_weights(folder):
    teacher = RunDir(folder / "runs", made().only(["teacher"]).runs[0].id)
    ours = store(folder)
    shutil.copy(teacher.weights("last"), folder / "last")
    (folder / "last").write_bytes((folder / "last").read_bytes()[:-4] + b"abcd")
    shutil.copy(folder / "last", teacher.weights("best"))
    said = say(code=1).stdout
    assert "manifest says weights" in said
    assert "makes all of its views again" in said
    assert ours.path(0).exists()


def test_images_whose_labels_are_in_another_order(folder):
    """The store is as the teacher gives it: what is wrong are the labels, which no submit heals."""
    arrays = folder / "data" / "arrays" / "cifar10"
    labels = np.load(arrays / "train_labels.npy")
    np.save(arrays / "train_labels.npy", np.roll(labels, IMAGES // 2))
    ours = store(folder)
    shutil.rmtree(ours.folder)
    make_again(folder)
    said = say(code=1).stdout
    assert "the same bits" in said
    assert "are not in one order; delete that folder, and prefetch decodes it again" in said
    assert not list(ours.folder.glob("*.damaged"))
    notes, refused = command.check(made(), folder / "runs", folder / "data", "kdcluster submit tiny.yaml")
    assert refused, "submit heals it not"
    assert any("are not in one order" in note for note in notes)


# Where it was made


def test_another_processor_is_allowed_to_round_otherwise_but_not_to_be_wrong(folder):
    ours = store(folder)
    right = ours.read(0, 1 << 30)
    largest = float(np.abs(right).max())
    manifest = ours.manifest()
    for entry in manifest["views"].values():
        entry["by"] = "torch 1.0, an abacus"
    write_json(ours.folder / "manifest.json", manifest)
    put(ours, 0, (right * np.float16(1 + ELSEWHERE["none"] / 2)).astype(np.float16))
    said = say().stdout
    assert "the same bits in 3" in said, "in those of the other view, and wherever rounding hid it"
    assert "between two kinds of processor, or two versions of torch" in said
    put(ours, 0, (right + np.float16(3 * ELSEWHERE["none"] * largest)).astype(np.float16))
    assert "view 0 is wrong: other logits" in say(code=1).stdout


def test_the_same_processor_is_not_allowed_to(folder):
    ours = store(folder)
    right = ours.read(0, 1 << 30)
    put(ours, 0, np.nextafter(right, np.float16(100)))
    assert "view 0 is wrong: other logits" in say(code=1).stdout


# Where there is none


def test_no_store_is_5(folder):
    shutil.rmtree(store(folder).folder)
    assert "no view is stored yet in" in say(code=5).stderr


def test_where_there_is_none_the_command_that_makes_it_can_be_typed(folder):
    shutil.rmtree(store(folder).folder)
    Path("tiny.yaml").rename("a b.yaml")
    assert "; kdcluster submit './a b.yaml' makes them" in say("./a b.yaml", code=5).stderr


def test_of_two_experiments_the_one_that_has_a_store_is_looked_at(folder):
    (folder / "other.yaml").write_text((folder / "tiny.yaml").read_text() + "\n", encoding="utf-8")
    text = (folder / "other.yaml").read_text().replace("alpha: 0.5", "alpha: 0")
    (folder / "other.yaml").write_text(text if "alpha" in text else text + "distill: {alpha: 0}\n", encoding="utf-8")
    result = say("tiny.yaml", "other.yaml", code=5)
    assert "the same bits" in result.stdout
    assert "other has no store" in result.stderr


def test_without_images_the_store_is_left_alone(folder):
    shutil.rmtree(folder / "data")
    assert "it cannot be computed again: no decoded images in" in say(code=1).stdout
    assert not list(store(folder).folder.glob("*.damaged"))


# plan --check


def test_a_plans_check_looks_at_a_small_sample(folder):
    ours = store(folder)
    notes, refused = command.check(made(), folder / "runs", folder / "data", "kdcluster submit tiny.yaml")
    assert not refused
    assert any(f"{command.FEW} images computed again on cpu: the same bits" in note for note in notes)
    right = ours.read(0, 1 << 30)
    put(ours, 0, right[::-1])
    notes, refused = command.check(made(), folder / "runs", folder / "data", "kdcluster submit tiny.yaml")
    assert not refused, "submit heals it"
    assert any("view 0 is wrong: other logits" in note for note in notes)


def test_a_child_process_answers(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained)
    (found,) = preflight.verify(
        [run for run in made().runs if run.role == STORE],
        *(trained / "runs", trained / "data"),
        images=8,
        seed=0,
        whole=True,
    )
    assert found["sample"]["same"] == 8
