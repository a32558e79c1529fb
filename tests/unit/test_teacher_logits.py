"""The store of a teacher's logits: the same bits as computed, whatever is damaged, missing, late or stopped."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcluster import teacherlogits
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.plan import Plan, Run
from kdcluster.rows import Rows
from kdcluster.runs import RunDir
from kdcluster.saved import weights_record
from kdcluster.teacherlogits import Missing, Store
from kdcluster.train import data, feed, models, storing, teacher_logits, trainer, views, worker
from kdcluster.train.distributed import World
from kdcluster.train.losses import round_logits
from kdcluster.train.step import epoch_batches
from kdcluster.train.storing import Part
from kdcluster.train.teacher_logits import Targets, load_teacher, store_of
from kdcluster.train.trainer import Progress
from tests import tiny
from tests.disk import fill, small_disk

pytestmark = pytest.mark.usefixtures("one_thread", "small_rounds")

ALONE = World(0, 1, torch.device("cpu"))
IMAGES, ROUND = 70, 16
CHANGES: dict[str, Any] = {"teacher.train": {"epochs": 1}, "train.epochs": 3}
"""3 epochs of 4 steps, over 70 images: rounds of 16, 16, 16, 16 and 6."""
CNN = {"teacher": {**tiny.CNN, "train": {"epochs": 1}}}
CROP: dict[str, Any] = {"data.augment": {"crop": {"scale": [0.2, 1]}}}
ALL: dict[str, Any] = {
    "data.augment": {
        "crop": {"scale": [0.2, 1]},
        "color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        "policy": "trivial",
        "erase": {"probability": 0.5},
    }
}
MIXED: dict[str, Any] = {"mixup": {"share": 0.4}, "cutmix": {"share": 0.4}}
LARGER = {"teacher": {**tiny.CNN, "image_size": 24, "train": {"epochs": 1}}}
"""A teacher that sees the images at another size than the student."""


@pytest.fixture
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (teacher_logits, storing):
        monkeypatch.setattr(module, "ROWS", ROUND)


@dataclass
class Place:
    """An experiment's runs, made in this process."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / "data").exists():
            tiny.put_images(self.folder / "data", train=IMAGES)

    @property
    def plan(self) -> Plan:
        return tiny.make_plan(self.folder, {**CHANGES, **self.changes})

    def run(self, role: str) -> Run:
        return next(run for run in self.plan.runs if run.role == role)

    @property
    def root(self) -> Path:
        return self.folder / "runs"

    @property
    def store(self) -> Store:
        return store_of(self.root, self.run("teacher-logits").id, self.run("distilled"), IMAGES)

    def make(self, role: str, progress: Progress | None = None) -> RunDir:
        """One attempt at the run of a role."""
        run_dir = tiny.prepare(self.root, self.run(role))
        trainer.train(run_dir, run_dir.start_attempt({}), ALONE, self.folder / "data", progress or Progress())
        return run_dir

    def elsewhere(self, name: str, *, stored: bool) -> Place:
        """Another runs directory with the same teacher, and its store or none."""
        other = Place(self.folder / name, self.changes)
        kept = ["teacher", *(["teacher-logits"] if stored else [])]
        for role in kept:
            run_id = self.run(role).id
            shutil.copytree(self.root / run_id, other.root / run_id)
        return other


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A trained teacher, a store of three views in `runs`, and in `computed` a student that never saw it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (teacher_logits, storing):
            patch.setattr(module, "ROWS", ROUND)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        place = Place(tmp_path_factory.mktemp("made"))
        place.make("teacher")
        place.make("teacher-logits")
        place.elsewhere("computed", stored=False).make("distilled")
        torch.set_num_threads(threads)
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """With that teacher and that store, to do with as one likes."""
    shutil.copytree(made.folder / "data", tmp_path / "data")
    shutil.copytree(made.root, tmp_path / "runs")
    return Place(tmp_path)


@pytest.fixture
def untouched(made: Place) -> dict[str, bytes]:
    """What is in a store that nobody has disturbed."""
    return content(made.store)


@pytest.fixture
def computed(made: Place) -> dict[str, bytes]:
    """The student of a teacher that is run along."""
    return bits(RunDir(made.folder / "computed" / "runs", made.run("distilled").id))


@pytest.fixture
def bare(made: Place, tmp_path: Path) -> Place:
    """With that teacher alone."""
    return made.elsewhere(str(tmp_path / "bare"), stored=False)


class Stop(Progress):
    """Asks to stop once a step is reached."""

    at = 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "step" and value >= self.at:
            super().__setattr__("stop", True)


def stop_at(step: int) -> Progress:
    return type("StopAt", (Stop,), {"at": step})()  # type: ignore[no-any-return]


def bits(run_dir: RunDir) -> dict[str, bytes]:
    """Of all weights, best and last, and of the result."""
    tensors = {(which, k): v for which in ("best", "last") for k, v in load_file(run_dir.weights(which)).items()}
    found = {"/".join(key): value.numpy().tobytes() for key, value in tensors.items()}
    return {**found, "best": repr((run_dir.result() or {})["best"]).encode()}


def content(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


def origin(run_dir: RunDir) -> dict[str, int]:
    return (run_dir.result() or {})["views"]  # type: ignore[no-any-return]


# --- the same bits ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CNN,
        {"train.micro_batch": 5, "train.label_smoothing": 0.1},
        {"data.val_fraction": 0.2},
        {**CNN, "data.views": 2, "train.ema_decay": 0.9},
        {"teacher.train": {"epochs": 1, "amp": "bf16"}},
        {"train.batch_size": 70},
        {**CROP, "train.micro_batch": 5},
        {**CROP, **LARGER},
        {**ALL, **LARGER, "data.val_fraction": 0.2},
        {"data.augment": {"pad": 2, "policy": "rand"}, **LARGER},
        {"data.augment": {"pad": 2, **MIXED}, **LARGER},
        {"data.augment": {**ALL["data.augment"], **MIXED}, **LARGER, "data.val_fraction": 0.2, "data.labelled": 42},
    ],
    ids=[
        "ViT",
        "CNN",
        "micro-batches",
        "held out",
        "views in turns, CNN",
        "bf16",
        "one batch",
        "crop",
        "two sizes",
        "all",
        "no crop",
        "mixed",
        "all and mixed",
    ],
)
def test_stored_and_computed_logits_give_a_student_of_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    place = Place(tmp_path, changes)
    place.make("teacher")
    place.make("teacher-logits")
    computed = place.elsewhere("computed", stored=False).make("distilled")
    stored = place.make("distilled")
    assert bits(stored) == bits(computed)
    assert (origin(stored), origin(computed)) == ({"read": 3}, {"computed": 3})


def test_the_logits_matter(place: Place) -> None:
    """What the others compare would differ if another view were read."""
    stored = place.make("distilled")
    other = place.elsewhere("other", stored=True)
    manifest = other.store.manifest()
    for view, path in enumerate([other.store.path(1), other.store.path(0)]):
        shutil.copy(place.store.path(view), path)
    zero, one = (manifest["views"][view] for view in "01")
    write_json(other.store.folder / "manifest.json", {**manifest, "views": {**manifest["views"], "0": one, "1": zero}})
    assert bits(other.make("distilled"))["last/head.weight"] != bits(stored)["last/head.weight"]


@pytest.mark.parametrize("at", [5, 6, 8])
def test_a_student_resumed_in_an_epoch_has_the_same_bits_and_counts_its_views(place, computed, at) -> None:
    student = place.make("distilled", stop_at(at))
    assert student.attempt(1).read("preempted") == {"step": at}
    shutil.rmtree(place.store.run)  # what is left is computed
    assert bits(place.make("distilled")) == computed
    assert origin(student) == ({"read": 2, "computed": 1} if at == 8 else {"read": 1, "computed": 2})


def test_views_in_turns_show_the_same_to_both_students(tmp_path: Path) -> None:
    place = Place(tmp_path, {"data.views": 2, "train.epochs": 5})
    assert place.run("teacher-logits").views == 2
    seen = {}
    for role in ("baseline", "distilled"):
        run = place.run(role)
        images = feed.to_device(data.open_arrays(run, tmp_path / "data"), "train", ALONE.device)
        seen[role] = [
            torch.cat([shards[0].images for shards in epoch_batches(run, images, torch.arange(64), epoch, ALONE)])
            for epoch in range(5)
        ]
        order = [views.epoch_order(64, seed=0, epoch=epoch).argsort() for epoch in range(5)]
        back = [found[at] for found, at in zip(seen[role], order, strict=True)]  # by image
        assert torch.equal(back[0], back[2])
        assert torch.equal(back[1], back[3])
        assert not torch.equal(back[0], back[1])
    assert all(torch.equal(one, other) for one, other in zip(*seen.values(), strict=True))


@pytest.mark.parametrize(("batch_size", "micro_batch", "ranks"), [(16, None, 1), (16, 5, 2), (10, 3, 3), (2, None, 3)])
def test_a_batch_holds_one_view(place: Place, batch_size: int, micro_batch: int | None, ranks: int) -> None:
    """The logits beside each image are the teacher's of exactly these pixels, and a row of the epoch's view."""
    run = place.run("distilled")
    assert run.train is not None
    run = run.model_copy(
        update={"train": run.train.model_copy(update={"batch_size": batch_size, "micro_batch": micro_batch})}
    )
    images = feed.to_device(data.open_arrays(run, place.folder / "data"), "train", ALONE.device)
    index, _ = views.held_out(IMAGES, 0.2)
    for epoch in range(3):
        view = torch.from_numpy(np.load(place.store.path(epoch)))
        rows = {row.numpy().tobytes() for row in view[index]}
        for rank in range(ranks):
            targets = Targets(run, place.root, World(rank, ranks, ALONE.device), IMAGES)
            targets.begin(epoch)
            world = World(rank, ranks, ALONE.device)
            for shards in epoch_batches(run, images, index, epoch, world, first=1, targets=targets):
                for shard in shards:
                    assert shard.soft is not None
                    assert shard.soft.dtype == torch.float16
                    assert torch.equal(shard.soft, targets.forward(shard.images))
                    assert all(row.numpy().tobytes() in rows for row in shard.soft)


def test_what_is_stored_is_what_the_teacher_says_in_its_own_precision(place: Place) -> None:
    run = place.run("distilled")
    images = feed.to_device(data.open_arrays(run, place.folder / "data"), "train", ALONE.device)
    forward = load_teacher(place.root, run, ALONE)
    for view in range(3):
        index = torch.arange(IMAGES)
        pixels = views.augment(images.images, index, epoch=view, augment=run.data.augment, view_seed=run.data.view_seed)
        with torch.inference_mode():
            plain = round_logits(forward.net(pixels))
        found = np.load(place.store.path(view))
        assert found.dtype == np.float16
        assert np.abs(found.astype(np.float32) - plain.float().numpy()).max() <= 2e-3
        assert (found.argmax(-1) == plain.argmax(-1).numpy()).all()


def test_a_store_is_made_by_the_code_that_it_was_planned_with_and_needs_no_start_weights(tmp_path: Path) -> None:
    """Else it would hold another model's logits under the same id."""
    code, weights = tmp_path / "models.py", tmp_path / "start.safetensors"
    code.touch()
    save_file({}, weights)
    place = Place(tmp_path, {"imports": [str(code)], "teacher.pretrained": str(weights)})
    run_dir = tiny.prepare(place.root, place.run("teacher-logits"))
    weights.unlink()
    models.check_files(run_dir.load())
    code.write_text("1")
    with pytest.raises(ConfigError, match=r"models\.py was changed or deleted since this run was planned"):
        trainer.train(run_dir, run_dir.start_attempt({}), ALONE, tmp_path / "data", Progress())
    assert not (run_dir.path / "logits").exists()


# --- damage ---


def flip(store: Store, view: int) -> None:
    path = store.path(view)
    found = bytearray(path.read_bytes())
    found[-5] ^= 1
    path.write_bytes(found)


def cut(store: Store, view: int) -> None:
    path = store.path(view)
    path.write_bytes(path.read_bytes()[:-100])


def cut_a_little(store: Store, view: int) -> None:
    path = store.path(view)
    path.write_bytes(path.read_bytes()[:-1])


def swap(store: Store, view: int) -> None:
    shutil.copy(store.path((view + 1) % 3), store.path(view))


def other_type(store: Store, view: int) -> None:
    np.save(store.path(view), np.load(store.path(view)).astype(np.float32))


def other_shape(store: Store, view: int) -> None:
    np.save(store.path(view), np.load(store.path(view)).T)


def code(store: Store, view: int) -> None:
    np.save(store.path(view), np.array([{}] * 999, dtype=object), allow_pickle=True)


def gone(store: Store, view: int) -> None:
    store.path(view).unlink()


def link_to_nowhere(store: Store, view: int) -> None:
    store.path(view).unlink()
    store.path(view).symlink_to("nowhere")


def link_to_itself(store: Store, view: int) -> None:
    store.path(view).unlink()
    store.path(view).symlink_to(store.path(view).name)


def pipe(store: Store, view: int) -> None:
    store.path(view).unlink()
    os.mkfifo(store.path(view))


def empty(store: Store, view: int) -> None:
    store.path(view).write_bytes(b"")


def listed_as_other(store: Store, view: int) -> None:
    """The check sum is right, the array is not."""
    np.save(store.path(view), np.load(store.path(view)).astype(np.float32))
    manifest = store.manifest()
    entry = {**manifest["views"][str(view)], "crc32c": teacherlogits.crc32c_of(store.path(view))}
    write_json(store.folder / "manifest.json", {**manifest, "views": {**manifest["views"], str(view): entry}})


DAMAGE = (
    *(flip, cut, cut_a_little, swap, other_type, other_shape, listed_as_other, code, gone),
    *(link_to_nowhere, link_to_itself, pipe, empty),
)


@pytest.mark.parametrize(
    ("damage", "large"),
    [*((damage, False) for damage in DAMAGE), *((damage, True) for damage in (flip, cut, empty, listed_as_other))],
)
def test_a_damaged_view_costs_time_and_the_next_submit_makes_it_again(
    place: Place, computed: Any, damage: Callable[[Store, int], None], large: bool, monkeypatch: Any, caplog: Any
) -> None:
    if large:
        monkeypatch.setattr(teacher_logits, "_free", lambda device: 0)
    store, run = place.store, place.run("teacher-logits")
    before = content(store)
    assert problem(place) == ""
    damage(store, 1)
    times = {view: store.path(view).stat().st_mtime_ns for view in (0, 2)}
    stored = place.make("distilled")
    assert bits(stored) == computed
    assert origin(stored) == {"read": 2, "computed": 1}
    (said,) = [record for record in caplog.records if "computed along the way" in record.message]
    assert said.levelno == logging.WARNING
    assert said.message.startswith(f"view 1 of {run.id}")
    assert (store.folder / "view-00001.damaged").exists()
    assert problem(place) == "view 1 is damaged"

    place.make("teacher-logits")
    assert content(store) == before
    assert problem(place) == ""
    assert {view: store.path(view).stat().st_mtime_ns for view in (0, 2)} == times
    assert not store.path(1).is_symlink()


def problem(place: Place, views_: int = 3) -> str:
    weights = read_json(place.root / place.run("teacher").id / "result.json")["weights"]["best"]["sha256"]
    return teacherlogits.problem(place.store.run, views_, {**place.store.of, "weights": weights})


def test_a_store_that_may_not_be_written_is_read_and_its_damage_is_only_said(place: Place, monkeypatch, caplog) -> None:
    flip(place.store, 1)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(teacherlogits, "write_json", refused)
    stored = place.make("distilled")
    assert origin(stored) == {"read": 2, "computed": 1}
    assert "view 1 of " in caplog.text
    assert not (place.store.folder / "view-00001.damaged").exists()


def test_a_marker_of_a_view_that_is_whole_after_all_goes(place: Place) -> None:
    """A file server that failed for a moment: else each submit would begin the store again, for ever."""
    write_json(place.store.folder / "view-00001.damaged", {"why": "Input/output error"})
    assert problem(place) == "view 1 is damaged"
    before = place.store.path(1).stat().st_ino
    place.make("teacher-logits")
    assert problem(place) == ""
    assert place.store.path(1).stat().st_ino == before


def test_a_view_that_is_damaged_between_two_epochs_of_a_student(place, computed, monkeypatch, caplog) -> None:
    begin = Targets.begin

    def damaged(self: Targets, epoch: int) -> None:
        begin(self, epoch)
        if epoch < 2:
            for view in range(epoch, epoch + 2):  # the one that is being read, and the next one
                other_type(place.store, view)

    monkeypatch.setattr(Targets, "begin", damaged)
    stored = place.make("distilled")
    assert bits(stored) == computed
    assert origin(stored) == {"read": 1, "computed": 2}
    assert "WARNING" in caplog.text


def manifest_is(change: Callable[[dict[str, Any]], Any]) -> Callable[[Store], None]:
    def damage(store: Store) -> None:
        write_json(store.folder / "manifest.json", change(read_json(store.folder / "manifest.json")))

    return damage


def cut_manifest(store: Store) -> None:
    path = store.folder / "manifest.json"
    path.write_text(path.read_text()[:-30])


def altered_manifest(store: Store) -> None:
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"precision": "none"', '"precision": "bf16"'))


def linked_manifest(store: Store) -> None:
    (store.folder / "manifest.json").unlink()
    (store.folder / "manifest.json").symlink_to("nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        cut_manifest,
        altered_manifest,
        linked_manifest,
        manifest_is(lambda known: {**known, "weights": "0" * 64}),
        manifest_is(lambda known: {**known, "run": "teacher-logits-other-s0-00000000"}),
        manifest_is(lambda known: {**known, "precision": "bf16"}),
        manifest_is(lambda known: {**known, "images": 71}),
        manifest_is(lambda known: {**known, "classes": "10"}),
        manifest_is(lambda known: {**known, "schema": "kdcluster.teacher-logits/0"}),
        manifest_is(lambda known: [known]),
        manifest_is(lambda known: {key: value for key, value in known.items() if key != "views"}),
        manifest_is(lambda known: {**known, "views": [0, 1, 2]}),
        manifest_is(lambda known: {**known, "views": {"0": 7, "1": None, "2": {}}}),
        manifest_is(lambda known: {**known, "views": {"x": {"crc32c": 1}, "-1": {"crc32c": 1}}}),
    ],
)
def test_a_manifest_that_is_damaged_or_of_something_else(place, computed, damage, caplog) -> None:
    before = content(place.store)
    damage(place.store)
    assert problem(place)
    assert teacherlogits.held(place.store.run) >= 0
    stored = place.make("distilled")
    assert bits(stored) == computed
    assert origin(stored) == {"computed": 3}
    assert "WARNING" in caplog.text or "not there (yet)" in caplog.text
    place.make("teacher-logits")
    assert content(place.store) == before


def test_the_logits_of_a_teacher_that_was_trained_again_to_other_weights_are_never_read(place: Place, caplog) -> None:
    teacher = RunDir(place.root, place.run("teacher").id)
    old = content(place.store)
    tensors = {name: value + 0.01 for name, value in load_file(teacher.weights("best")).items()}
    teacher.weights("best").unlink()
    save_file(tensors, teacher.weights("best"))
    result = read_json(teacher.path / "result.json")
    result["weights"]["best"] = weights_record(teacher.weights("best"))
    write_json(teacher.path / "result.json", result)
    assert problem(place) == "its teacher has other weights now"
    computed = place.elsewhere("computed", stored=False).make("distilled")
    caplog.clear()
    stored = place.make("distilled")
    assert origin(stored) == {"computed": 3}
    assert bits(stored) == bits(computed)
    assert "weights" in caplog.text
    place.make("teacher-logits")
    assert "all views are made again" in caplog.text
    new = content(place.store)
    assert all(new[name] != old[name] for name in old)
    shutil.rmtree(stored.path)
    again = place.make("distilled")
    assert bits(again) == bits(computed)
    assert origin(again) == {"read": 3}


# --- making it ---


class Crash(BaseException):
    """The machine is gone; nothing may catch it."""


def test_a_store_that_is_stopped_at_every_round_always_gains(bare: Place, untouched: Any) -> None:
    """Also where the stop came before it began: each attempt makes a round, or the whole of a small view."""
    place = bare
    asked = Progress(stop=True)
    seen = []
    run_dir = RunDir(place.root, place.run("teacher-logits").id)
    while not run_dir.result():
        place.make("teacher-logits", asked)
        kept = read_json(place.store.folder / ".partial.json")
        seen.append((teacherlogits.held(run_dir.path), kept["rows"] if kept else 0))
        assert seen == sorted(set(seen))
    assert len(seen) == 15  # rounds: 5 a view
    assert content(place.store) == untouched
    assert run_dir.attempt(1).read("preempted")
    assert not run_dir.attempt(15).read("preempted")


def test_a_store_of_one_round_a_view_stops_between_two_views(bare: Place, monkeypatch: Any) -> None:
    monkeypatch.setattr(storing, "ROWS", 128)
    for views_ in (1, 2, 3):
        run_dir = bare.make("teacher-logits", Progress(stop=True))
        assert teacherlogits.held(run_dir.path) == views_
        assert bool(run_dir.result()) == (views_ == 3)


@pytest.mark.parametrize("at", range(1, 22, 2))
def test_a_kill_costs_at_most_a_view(bare: Place, untouched: Any, monkeypatch: Any, at: int) -> None:
    place = bare
    place.make("teacher-logits", Progress(stop=True))  # something is kept
    calls = 0
    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Part, "add"), (Part, "finish"), (Store, "list")):
            original = getattr(owner, name)

            def crash(*given: Any, original: Any = original, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at:
                    raise Crash
                return original(*given, **more)

            patch.setattr(owner, name, crash)
        try:
            place.make("teacher-logits")
        except Crash:
            pass
        else:
            pytest.fail("it was not killed")
    held = teacherlogits.held(place.store.run)
    made: list[int] = []
    monkeypatch.setattr(Part, "open", lambda store, view, begin=Part.open: made.append(view) or begin(store, view))
    run_dir = place.make("teacher-logits")
    assert made == list(range(held, 3))
    assert content(place.store) == untouched
    assert run_dir.result()


@pytest.mark.parametrize("damage", ["rows", "file", "json", "list", "gone", "longer", "cut"])
def test_what_was_kept_of_a_view_and_is_damaged_is_made_anew(bare: Place, untouched: Any, damage: str) -> None:
    place = bare
    for _ in range(2):
        place.make("teacher-logits", Progress(stop=True))
    npy, known = place.store.folder / ".partial.npy", place.store.folder / ".partial.json"
    if damage == "rows":
        write_json(known, {**read_json(known), "rows": 16})
    elif damage == "file":
        npy.write_bytes(npy.read_bytes()[:-4] + b"abcd")
    elif damage in ("json", "list"):
        known.write_text({"json": "{", "list": "[]"}[damage])
    elif damage == "gone":
        npy.unlink()
    else:
        npy.write_bytes(npy.read_bytes()[:-7] if damage == "cut" else npy.read_bytes() + b"left by a kill after that")
    place.make("teacher-logits")
    assert content(place.store) == untouched


def test_what_a_kill_left_half_written_goes(place: Place) -> None:
    stale = [place.store.folder / f".{name}.abcd_123.aside" for name in ("manifest.json", ".partial.json")]
    others = [place.store.folder / ".view-00001.damaged.abcd_123.aside"]  # a reader's, who may be at it
    for path in (*stale, *others):
        path.touch()
    place.make("teacher-logits")
    assert [path for path in (*stale, *others) if path.exists()] == others


def test_a_store_goes_on_before_all_that_it_has_is_read(place: Place, monkeypatch: Any) -> None:
    """780 GB, where it holds 300 views of ImageNet: each preemption would end it before it had gained anything."""
    monkeypatch.setattr(teacherlogits, "crc32c_of", lambda path, first=None: pytest.fail(f"{path} is read"))
    more = Place(place.folder, {"train.epochs": 4})
    assert (more.make("teacher-logits").result() or {})["views"] == 4


def test_more_views_are_only_added_and_fewer_take_nothing_away(place: Place) -> None:
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in place.store.folder.glob("view-*.npy")}
    assert problem(place, 5) == "holds 3 of 5 views"
    more = Place(place.folder, {"train.epochs": 5})
    assert more.run("teacher-logits").id == place.run("teacher-logits").id
    run_dir = more.make("teacher-logits")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before
    assert (run_dir.result() or {})["views"] == 5
    fewer = Place(place.folder, {"train.epochs": 1})
    fewer.make("teacher-logits")
    assert run_dir.load().views == 5
    assert teacherlogits.held(run_dir.path) == 5
    assert problem(fewer, 1) == ""
    whole = place.elsewhere("whole", stored=False)
    whole.changes = {"train.epochs": 5}
    whole.make("teacher-logits")
    assert content(whole.store) == content(place.store)


def test_more_that_are_asked_for_while_it_runs_are_made_by_the_same_attempt(place: Place, monkeypatch: Any) -> None:
    shutil.rmtree(place.store.run)
    wide = Place(place.folder, {"train.epochs": 5}).run("teacher-logits")
    made: list[int] = []
    begin = Part.open

    def asked_for_more(store: Store, view: int) -> Part:
        made.append(view)
        if view == 2:
            RunDir(place.root, wide.id).widen(wide)
        return begin(store, view)

    monkeypatch.setattr(Part, "open", asked_for_more)
    run_dir = place.make("teacher-logits")
    assert made == [0, 1, 2, 3, 4]
    assert (run_dir.result() or {})["views"] == 5
    assert problem(place, 5) == ""


def test_an_attempt_that_was_overtaken_lists_no_view(place: Place, monkeypatch: Any) -> None:
    shutil.rmtree(place.store.run)
    run_dir = tiny.prepare(place.root, place.run("teacher-logits"))
    old = run_dir.start_attempt({})
    run_dir.start_attempt({})
    with pytest.raises(KdclusterError, match="overtaken by attempt 2"):
        trainer.train(run_dir, old, ALONE, place.folder / "data", Progress())
    assert teacherlogits.held(run_dir.path) == 0
    assert run_dir.result() is None


def test_an_attempt_that_is_overtaken_in_the_middle_of_a_view_spoils_nothing(
    bare: Place, untouched: Any, monkeypatch: Any
) -> None:
    """Where the file system has no locks: the other one has a file of its own."""
    original = Part.add

    def overtaken(self: Part, *given: Any) -> None:
        original(self, *given)
        if self.view == 1 and self.rows == 32:
            monkeypatch.setattr(Part, "add", original)
            bare.make("teacher-logits")

    monkeypatch.setattr(Part, "add", overtaken)
    with pytest.raises(KdclusterError, match="overtaken by attempt 2"):
        bare.make("teacher-logits")
    assert content(bare.store) == untouched


@pytest.mark.parametrize("moment", ["open", "finish"])
def test_a_full_disk_fails_the_store_with_words_and_no_student(
    made: Place, untouched: Any, computed: Any, tmp_path: Path, monkeypatch: Any, moment: str
) -> None:
    """As the view is begun, and where its manifest is written; what is written on a page that is there has room."""
    with small_disk(tmp_path / "disk") as disk:
        small = made.elsewhere(str(disk / "small"), stored=False)
        original = getattr(Part, "_write" if moment == "open" else moment)

        def full(self: Part, *given: Any) -> Any:
            if self.view == 1:
                fill(disk)
            return original(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(Part, original.__name__, full)
            with pytest.raises(OSError, match="No space left") as caught:
                small.make("teacher-logits")
        said = worker.explain(caught.value, small.run("teacher-logits"))
        assert "the disk is full" in said
        (disk / "filler").unlink()
        assert not [path.name for path in small.store.folder.glob(".*")]
        assert teacherlogits.held(small.store.run) == 1
        stored = small.make("distilled")
        assert origin(stored) == {"read": 1, "computed": 2}
        assert bits(stored) == computed
        small.make("teacher-logits")
        assert content(small.store) == untouched


# --- large views ---


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_a_large_view_is_mapped_read_ahead_in_order_and_gives_the_same_bits(place, computed, monkeypatch) -> None:
    monkeypatch.setattr(teacher_logits, "_free", lambda device: 0)
    asked: list[list[int]] = []
    rows = Targets._rows

    def spy(self: Targets, view: Rows, index: feed.Index) -> Tensor:
        asked.append(index.host.tolist())
        return rows(self, view, index)

    monkeypatch.setattr(Targets, "_rows", spy)
    stored = place.make("distilled")
    assert bits(stored) == computed
    order = [views.epoch_order(IMAGES, seed=0, epoch=epoch)[:64].view(4, 16).tolist() for epoch in range(3)]
    assert asked == [batch for epoch in order for batch in epoch]
    assert reading_threads() == []


@pytest.mark.parametrize("good", [0, 1, 5])
def test_a_large_view_that_cannot_be_read_any_more_costs_time_alone(
    place: Place, computed: Any, monkeypatch: Any, caplog: Any, good: int
) -> None:
    """A mapped page that a file server has no more would end the process with SIGBUS."""
    monkeypatch.setattr(teacher_logits, "_free", lambda device: 0)
    taken: list[int] = []

    def stale(self: Rows, index: Any, take: Any = Rows.take) -> bytearray:
        taken.append(1)
        if len(taken) > good:
            raise OSError(errno.ESTALE, "Stale file handle")
        return take(self, index)

    monkeypatch.setattr(Rows, "take", stale)
    assert bits(place.make("distilled")) == computed
    assert "is computed along the way, with the same numbers: [Errno 116] Stale file handle" in caplog.text
    assert not list(place.root.glob("*/logits/*.damaged"))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_no_thread_is_left_by_an_epoch_that_was_broken_off(place: Place, monkeypatch: Any, taken: int) -> None:
    monkeypatch.setattr(teacher_logits, "_free", lambda device: 0)
    run = place.run("distilled")
    images = feed.to_device(data.open_arrays(run, place.folder / "data"), "train", ALONE.device)
    targets = Targets(run, place.root, ALONE, IMAGES)
    targets.begin(0)
    batches = epoch_batches(run, images, torch.arange(IMAGES), 0, ALONE, targets=targets)
    for _ in range(taken):
        next(batches)
    assert len(reading_threads()) == (taken > 0)
    batches.close()  # type: ignore[attr-defined]
    assert reading_threads() == []

    def fails(self: Targets, view: Rows, index: feed.Index) -> Tensor:
        raise RuntimeError("as asked")

    monkeypatch.setattr(Targets, "_rows", fails)
    with pytest.raises(RuntimeError, match="as asked"):
        list(epoch_batches(run, images, torch.arange(IMAGES), 0, ALONE, targets=targets))
    assert reading_threads() == []


def test_a_student_whose_views_are_all_stored_builds_no_teacher(place: Place, monkeypatch: Any) -> None:
    built: list[str] = []
    build = models.build
    monkeypatch.setattr(models, "build", lambda model, *a, **k: built.append(model.model) or build(model, *a, **k))
    place.make("distilled")
    assert len(built) == 1


def test_a_view_that_stays_from_epoch_to_epoch_is_read_once(place: Place, monkeypatch: Any) -> None:
    asked: list[int] = []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, view, *a: asked.append(view) or read(self, view, *a))
    for shown, expected in ((1, [0]), (2, [0, 1, 0])):
        run = Place(place.folder, {"data.views": shown}).run("distilled")
        targets = Targets(run, place.root, ALONE, IMAGES)
        for epoch in range(3):
            targets.begin(epoch)
        assert asked == expected
        assert targets.counted() == {"read": 3}
        asked.clear()


def test_the_reader_names_what_is_missing(place: Place) -> None:
    with pytest.raises(Missing, match=r"not there \(yet\)") as caught:
        place.store.read(7, 1 << 20)
    assert not caught.value.damaged
