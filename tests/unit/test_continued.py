"""A longer run begins at the end of a shorter one, with the same bits as from scratch, or says why it does not."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kdcluster import continued, records
from kdcluster.continued import begins_from
from kdcluster.plan import Run
from kdcluster.results.events import read_scalars
from kdcluster.runs import RunDir
from kdcluster.train import begin
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

CHANGES = {
    "train.ema_decay": 0.9,
    "train.warmup_epochs": 1.0,
    "student.model_args": {**tiny.VIT["model_args"], "drop_path_rate": 0.2, "proj_drop_rate": 0.1},  # random numbers
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny.put_images(tmp_path / "data")
    return tmp_path / "data"


def of(folder: Path, epochs: int, role: str = "baseline", **changes: Any) -> Run:
    return tiny.make_run(folder, role, {**CHANGES, "train.epochs": epochs, **changes})


def left_by(run_dir: RunDir) -> dict[str, Any]:
    """Everything that is published but times, and the order of a header, which safetensors leaves to chance."""
    found = read_scalars(run_dir.events, ("train/", "test/", "val/"))
    assert (found.problems, found.incomplete) == ((), ())
    events = {tag: [(point.step, point.value) for point in points] for tag, points in found.points.items()}
    left = {"events": events, "result": {**(run_dir.result() or {}), "weights": ""}}
    for which in ("best", "last"):
        with safe_open(run_dir.weights(which), "pt") as file:
            left[which] = {name: file.get_tensor(name).tolist() for name in file.keys()}, file.metadata()  # noqa: SIM118
    return left


def begun(run_dir: RunDir) -> tuple[str, int] | None:
    known = records.found(run_dir.path / "begun.json")
    return known and (known["run"], known["step"])


@pytest.mark.parametrize("role", ["baseline", "distilled"])
def test_two_epochs_continued_to_four_are_four_from_scratch_bit_for_bit(tmp_path: Path, data: Path, role: str) -> None:
    own_teacher = {"teacher.train": {"epochs": 1, "warmup_epochs": 0.0}}
    two, three, four = (of(tmp_path, epochs, role, **own_teacher) for epochs in (2, 3, 4))
    teacher = of(tmp_path, 2, "teacher", **own_teacher)
    roots = [tmp_path / "once", tmp_path / "on"]
    for root in roots:
        if role == "distilled":
            tiny.train_here(root, teacher, data)
    undisturbed = tiny.train_here(roots[0], four, data)
    shorter = tiny.train_here(roots[1], two, data)
    before = left_by(shorter)
    between = tiny.train_here(roots[1], three, data)  # which is gone on from in turn
    longer = tiny.train_here(roots[1], four, data)
    assert begun(undisturbed) is None
    assert (begun(between), begun(longer)) == ((two.id, 8), (three.id, 12))
    assert left_by(longer) == left_by(undisturbed)
    assert left_by(shorter) == before
    mine, theirs = (torch.load(unpacked(one, 16, tmp_path), weights_only=True) for one in (longer, undisturbed))
    assert_equal(mine, theirs)


def unpacked(run_dir: RunDir, step: int, folder: Path) -> Path:
    """A checkpoint without its header."""
    path = folder / f"{run_dir.root.name}-{step}"
    path.write_bytes((run_dir.checkpoints / f"step-{step:08}.ckpt").read_bytes()[20:])
    return path


def assert_equal(mine: Any, theirs: Any) -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert_equal(mine[key], theirs[key])
    else:
        assert mine == theirs


def test_a_start_that_was_killed_while_it_took_over_takes_over_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, four = of(tmp_path, 2), of(tmp_path, 4)
    undisturbed = tiny.train_here(tmp_path / "once", four, data)
    tiny.train_here(tmp_path / "on", two, data)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(begin, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny.train_here(tmp_path / "on", four, data)
    longer = tiny.train_here(tmp_path / "on", four, data)
    ours, theirs = left_by(longer), left_by(undisturbed)
    assert (ours["result"].pop("attempt"), theirs["result"].pop("attempt")) == (2, 1)
    assert ours == theirs


WHERE = {"device": "cpu", "procs": 1, "threads": 1}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"train.checkpoint_every": "3steps"}, ""),
        ({"train.schedule": "cosine"}, "another schedule: its learning rates depend on the number of epochs"),
        ({"train.warmup_epochs": 1.5}, "it ended in the warm-up"),
        ({"train.micro_batch": 4}, "train.micro_batch was another"),
        ({"train.lr": 2e-2}, None),
        ({"data.val_fraction": 0.25}, None),
    ],
)
def test_where_the_numbers_could_differ_it_starts_from_scratch_and_says_why(
    tmp_path: Path, data: Path, changed: dict[str, Any], why: str | None
) -> None:
    hashed = {key: value for key, value in changed.items() if key in ("train.schedule", "train.warmup_epochs")}
    two, four = of(tmp_path, 2, **hashed), of(tmp_path, 4, **changed)
    run_dir = tiny.train_here(tmp_path / "runs", two, data)
    found = begins_from(four, run_dir.root, [two.id], WHERE)
    assert found == (None if why is None else (run_dir, why))
    assert begins_from(two, run_dir.root, [two.id, four.id], WHERE) is None


def test_a_run_of_steps_begins_at_no_shorter_ones_end(tmp_path: Path, data: Path) -> None:
    """That was evaluated at steps at which it is not."""
    made = {steps: {"train": {"steps": steps, "batch_size": 16, "amp": "none"}} for steps in (10, 20)}
    short, long = (tiny.make_run(tmp_path, "baseline", changes) for changes in made.values())
    run_dir = tiny.train_here(tmp_path / "runs", short, data)
    assert begins_from(long, run_dir.root, [short.id], WHERE) is None
    assert begins_from(of(tmp_path, 4), run_dir.root, [short.id], WHERE) is None


def test_what_became_of_the_shorter_run_decides(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two, four = of(tmp_path, 2), of(tmp_path, 4)
    run_dir = tiny.train_here(tmp_path / "runs", two, data)

    def why(**where: Any) -> str:
        found = begins_from(four, run_dir.root, [two.id], {**WHERE, **where})
        assert found is not None
        return found[1]

    assert why() == ""
    assert why(procs=2, threads=4) == "it ran with other procs and threads"
    with monkeypatch.context() as other:
        other.setattr(continued, "trainer_code", lambda: "x")
        assert why() == "other trainer code made it"
    shutil.copytree(run_dir.attempt(1).path, run_dir.attempt(2).path)
    assert why() == "it was interrupted on its way"
    shutil.rmtree(run_dir.attempt(2).path)
    weights = run_dir.weights("best").read_bytes()
    run_dir.weights("best").unlink()
    assert why() == "its best weights are gone"
    run_dir.weights("best").write_bytes(weights)
    path = run_dir.checkpoints / "step-00000008.ckpt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with caplog.at_level(logging.INFO):
        longer = tiny.train_here(run_dir.root, four, data)
    assert begun(longer) is None
    assert f"starts from scratch, and not at the end of {two.id}: {path}: its checksum is wrong" in caplog.text
    path.unlink()
    assert why() == "its checkpoint was deleted"
    (run_dir.path / "result.json").unlink()
    assert begins_from(four, run_dir.root, [two.id], WHERE) is None
