"""Images without labels, and a length in steps: what each arm trains on, for how long, and that no label leaks."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from kdcluster.cli import main
from kdcluster.plan import Run
from kdcluster.results import events
from kdcluster.results.measured import measure
from kdcluster.run import STORE, TRAINED
from kdcluster.runs import RunDir
from kdcluster.train import feed, views
from kdcluster.train.distributed import World
from kdcluster.train.trainer import Progress, train
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

N, LABELLED, STEPS = 64, 24, 23
CHANGES: dict[str, Any] = {
    "data.labelled": LABELLED,
    "data.val_fraction": 0.25,
    "train": {"steps": STEPS, "warmup_steps": 3, "schedule": "cosine", "batch_size": 8, "lr": 1e-2, "amp": "none"},
    "distill.alpha": 0.7,
}
"""48 images that are not held out, 24 of them labelled: 6 steps an epoch for distilled, 3 for the others."""
ENDS = [2, 4, 6, 9, 11, 13, 16, 18, 20, 23]
"""The tenths of 23 steps."""
KNOWN = set(views.labelled(N, LABELLED, 0.25).tolist())
HELD = set(views.held_out(N, 0.25)[1].tolist())


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    """Teacher, the store of its logits, baseline and distilled, with images for them."""
    tiny.put_images(tmp_path / "data", train=N)
    return {run.role: run for run in tiny.make_plan(tmp_path, CHANGES).runs}


def trained(root: Path, runs: Mapping[str, Run], data_dir: Path) -> dict[str, RunDir]:
    return {role: tiny.train_here(root, run, data_dir) for role, run in runs.items()}


def scrambled(source: Path, target: Path, which: set[int], what: str = "labels") -> Path:
    """A copy of the images with other labels, or other pixels, for some of the training images."""
    shutil.copytree(source, target)
    path = target / "arrays" / "cifar10" / f"train_{what}.npy"
    array = np.load(path)
    chosen = sorted(which)
    array[chosen] = (array[chosen] + 3) % 10 if what == "labels" else 255 - array[chosen]
    np.save(path, array)
    return target


def numbers(run_dir: RunDir, but: str = "perf/") -> dict[str, list[tuple[int, float]]]:
    """All scalars but speeds."""
    found = events.read_scalars(run_dir.events, ("",)).points
    return {tag: [(p.step, p.value) for p in points] for tag, points in found.items() if not tag.startswith(but)}


def same_weights(one: RunDir, other: RunDir, which: str = "last") -> bool:
    ours, theirs = load_file(one.weights(which)), load_file(other.weights(which))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def same_logits(one: RunDir, other: RunDir) -> bool:
    ours, theirs = ([path.read_bytes() for path in sorted(run.path.glob("logits/*.npy"))] for run in (one, other))
    assert ours
    return ours == theirs


def test_labels_of_unlabelled_images_decide_nothing(tmp_path: Path, runs: dict[str, Run]) -> None:
    plain = trained(tmp_path / "plain", runs, tmp_path / "data")
    without = set(range(N)) - KNOWN - HELD
    assert len(without) == 24
    other = trained(tmp_path / "other", runs, scrambled(tmp_path / "data", tmp_path / "changed", without))
    assert same_logits(plain[STORE], other[STORE])
    for role in TRAINED:
        assert numbers(plain[role]) == numbers(other[role])
        assert same_weights(plain[role], other[role])
        assert same_weights(plain[role], other[role], "best")


def test_labels_that_are_there_do_decide(tmp_path: Path, runs: dict[str, Run]) -> None:
    plain = trained(tmp_path / "plain", runs, tmp_path / "data")
    changed = scrambled(tmp_path / "data", tmp_path / "changed", {max(KNOWN)})
    root = tmp_path / "other"
    shutil.copytree(plain["teacher"].path, root / runs["teacher"].id)
    for role in ("baseline", "distilled"):
        assert not same_weights(plain[role], tiny.train_here(root, runs[role], changed))


def test_only_distilled_and_its_store_see_the_images_without_labels(tmp_path: Path, runs: dict[str, Run]) -> None:
    plain = trained(tmp_path / "plain", runs, tmp_path / "data")
    changed = scrambled(tmp_path / "data", tmp_path / "changed", set(range(N)) - KNOWN - HELD, "images")
    other = trained(tmp_path / "other", runs, changed)
    assert {role: same_weights(plain[role], other[role]) for role in TRAINED} == {
        "teacher": True,
        "baseline": True,
        "distilled": False,
    }
    assert not same_logits(plain[STORE], other[STORE])


def test_held_out_images_are_evaluated_with_their_labels(tmp_path: Path, runs: dict[str, Run]) -> None:
    plain = trained(tmp_path / "plain", runs, tmp_path / "data")
    changed = scrambled(tmp_path / "data", tmp_path / "changed", HELD)
    root = tmp_path / "other"
    shutil.copytree(plain["teacher"].path, root / runs["teacher"].id)  # they pick its best weights
    for role in ("baseline", "distilled"):
        run_dir = tiny.train_here(root, runs[role], changed)
        ours, theirs = numbers(plain[role]), numbers(run_dir)
        assert all(a != b for a, b in zip(ours["val/loss"], theirs["val/loss"], strict=True))
        assert ours["train/loss"] == theirs["train/loss"]
        assert ours["test/loss"] == theirs["test/loss"]
        assert same_weights(plain[role], run_dir)


def test_both_arms_take_as_many_steps_and_are_evaluated_at_the_same_ones(
    tmp_path: Path, runs: dict[str, Run], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = trained(tmp_path / "runs", runs, tmp_path / "data")
    for role in TRAINED:
        run_dir = made[role]
        per_epoch, unlabelled = (6, 24) if role == "distilled" else (3, 0)
        found = numbers(run_dir)
        assert [step for step, _ in found["test/top1"]] == [step for step, _ in found["val/top1"]] == ENDS
        assert [step for step, _ in found["train/loss"]] == list(range(1, STEPS + 1))
        result = run_dir.result()
        assert result is not None
        assert (result["steps"], result["epochs"]) == (STEPS, -(-STEPS // per_epoch))
        (attempt,) = run_dir.attempts()
        facts, beat = attempt.read("trainer"), attempt.read("heartbeat")
        assert facts["steps_per_epoch"] == per_epoch
        assert facts["images"] == {"test": 32, "val": 16, "labelled": 24, "unlabelled": unlabelled}
        epochs = result["epochs"]
        assert [beat[name] for name in ("step", "steps", "epoch", "epochs")] == [STEPS, STEPS, epochs, epochs]
        measured = measure(runs[role], run_dir, "best")
        assert (measured.problems, measured.done) == ((), True)
        rates = [rate for _, rate in found["train/lr"]]
        assert rates[:3] == pytest.approx([1e-2 * part / 6 for part in (1, 3, 5)])
        assert rates[-1] < 1e-4
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == 3 * [f"step {step}/23" for step in ENDS]
    assert {line for line in caplog.messages if "an epoch" in line} == {
        f"{steps} steps an epoch of {images} images, 23 in {epochs} epochs; batch of 8; lr 0.01, cosine"
        for steps, images, epochs in ((3, 24, 8), (6, 48, 4))
    }
    seen = "10 classes, 48 train (24 with labels, 24 without), 16 val, 32 test, 16×16 px; "
    assert sum(line.startswith(seen) for line in caplog.messages) == 3


def test_the_cross_entropy_in_the_events_is_a_mean_over_the_labelled_images(
    tmp_path: Path, runs: dict[str, Run]
) -> None:
    found = numbers(trained(tmp_path / "runs", runs, tmp_path / "data")["distilled"])
    loss, ce, kd = (dict(found[f"train/{name}"]) for name in ("loss", "ce", "kd"))
    train_index = views.held_out(N, 0.25)[0]
    shares = {}
    for step in range(STEPS):
        epoch, at = divmod(step, 6)
        order = train_index[views.epoch_order(48, seed=0, epoch=epoch)][8 * at : 8 * at + 8]
        shares[step + 1] = len(KNOWN & set(order.tolist())) / 8
    assert 0 < min(shares.values()) < max(shares.values())
    for step, share in shares.items():
        assert loss[step] == pytest.approx(0.3 * ce[step] * share + 0.7 * kd[step], rel=1e-5)


def test_steps_in_which_no_image_has_a_label_have_no_cross_entropy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tiny.put_images(tmp_path / "data", train=N)
    changes = {**CHANGES, "data.labelled": 1, "train": {"steps": 8, "batch_size": 8, "amp": "none"}}
    changes["teacher.train"] = {"batch_size": 1}
    runs = {run.role: run for run in tiny.make_plan(tmp_path, changes).only(["distilled"]).runs}
    found = numbers(trained(tmp_path / "runs", runs, tmp_path / "data")["distilled"])
    assert len(found["train/loss"]) == len(found["train/kd"]) == 8
    assert 1 <= len(found["train/ce"]) <= 2  # one image comes once an epoch, of 6 steps
    tiny.train_here(tmp_path / "runs", runs["distilled"], tmp_path / "data", max_steps=6)  # as `debug` says them
    lines = [line for line in caplog.messages if line.startswith("step ") and "kd" in line]
    assert len(lines) == 6
    assert sum(", ce " in line for line in lines) == 1


@pytest.mark.parametrize("role", ["baseline", "distilled"])
def test_a_run_of_steps_that_is_stopped_at_any_step_goes_on_there(
    tmp_path: Path, runs: dict[str, Run], role: str
) -> None:
    def attempt(root: Path, progress: Progress) -> RunDir:
        run_dir = tiny.prepare(root, runs[role])
        train(run_dir, run_dir.start_attempt({}), World(0, 1, torch.device("cpu")), tmp_path / "data", progress)
        return run_dir

    for name in ("whole", "stopped"):
        tiny.train_here(tmp_path / name, runs["teacher"], tmp_path / "data")
    whole = attempt(tmp_path / "whole", Progress())
    for number in range(1, STEPS + 1):
        run_dir = attempt(tmp_path / "stopped", Progress(stop=True))  # one step an attempt
        newest = run_dir.newest()
        assert newest is not None
        assert newest.read("preempted") == {"step": number}
    run_dir = attempt(tmp_path / "stopped", Progress())
    ours, theirs = run_dir.result(), whole.result()
    assert ours is not None
    assert theirs is not None
    assert [ours[key] for key in ("best", "last", "steps", "epochs")] == [
        theirs[key] for key in ("best", "last", "steps", "epochs")
    ]
    assert same_weights(run_dir, whole)
    assert same_weights(run_dir, whole, "best")
    assert numbers(run_dir) == numbers(whole)
    assert measure(runs[role], run_dir, "best").problems == ()


def test_a_batch_larger_than_the_labelled_images_is_refused(tmp_path: Path) -> None:
    tiny.put_images(tmp_path / "data", train=N)
    run = tiny.make_run(tmp_path, "baseline", {**CHANGES, "data.labelled": 7})
    with pytest.raises(Exception, match="batch_size: 8 is more than the 7 images that baseline"):
        tiny.train_here(tmp_path, run, tmp_path / "data")


def test_a_split_without_labels_holds_none() -> None:
    images, labels = (torch.from_numpy(array) for array in tiny.images(20))
    split = feed.Split(images, labels, torch.device("cpu"))
    known = torch.tensor([2, 3, 19])
    found = feed.only_labels_of(split, known)
    assert found.images is images
    assert found.labels[known].tolist() == labels[known].tolist()
    assert found.labels.tolist().count(-1) == 17
    assert labels.min() >= 0  # the true ones stay as they are


def test_an_experiment_from_its_file_to_its_table(tmp_path: Path, runs: dict[str, Run]) -> None:
    trained(tmp_path / "runs", runs, tmp_path / "data")
    where = [str(tmp_path / "tiny.yaml"), "--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(main, ["results", *where, "--format", "json"])
    assert result.exit_code == 0, result.output
    (experiment,) = json.loads(result.stdout)["experiments"]
    assert [row["n"] for row in experiment["rows"]] == [1, 1, 1]
    assert "distilled: the same labels as teacher and baseline (24), and 24 images without" in experiment["notes"]
    assert "protocol best: each run counts with test/top1 of its best val/top1 evaluation" in experiment["notes"]
    result = CliRunner().invoke(main, ["status", *where, "--json"])
    rows = {row["role"]: row for row in json.loads(result.stdout)["runs"]}
    store = rows.pop(STORE)  # one view, as of all of CIFAR-10's images; its steps are rounds over them
    assert [store[name] for name in ("step", "epoch", "epochs", "state")] == [1, 1, 1, "done"]
    for row in rows.values():
        assert (row["step"], row["state"]) == (STEPS, "done")
        assert row["epoch"] == row["epochs"] == (4 if row["role"] == "distilled" else 8)
