"""An experiment with labelled and unlabelled images, typed as a user would, on two processes a run: as on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdcluster.results import events
from kdcluster.runs import RunDir
from tests import tiny

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

STEPS = 23
CHANGES = {
    "data.labelled": 24,
    "data.val_fraction": 0.25,
    "train": {"steps": STEPS, "warmup_steps": 3, "batch_size": 9, "micro_batch": 2, "lr": 3e-3, "amp": "none"},
    "distill.alpha": 0.7,
}
"""5 steps an epoch for distilled, 2 for the others; shares of 5 and 4 images, in micro-batches of 2 and 1."""


def curves(run_dir: RunDir) -> dict[str, dict[int, float]]:
    found = events.read_scalars(run_dir.events, ("train/", "test/", "val/"))
    assert found.problems == ()
    return {tag: {point.step: point.value for point in points} for tag, points in found.points.items()}


def test_an_experiment_on_two_ranks_is_that_on_one(tmp_path: Path) -> None:
    tiny.put_images(tmp_path / "data")
    made = tiny.make_plan(tmp_path, CHANGES)
    env = {**os.environ, "COLUMNS": "200"}

    def kdcluster(*words: str) -> str:
        command = [sys.executable, "-m", "kdcluster.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = kdcluster("submit", "tiny.yaml", "--backend", "local", "--procs", "2", "--wait")
    assert "48 train (24 with labels, 24 without), 16 val, 32 test" in said
    table = kdcluster("results", "tiny.yaml", "--strict")
    assert "distilled: the same labels as teacher and baseline (24), and 24 images without" in table
    for run in made.runs:
        ours = RunDir(tmp_path / "runs", run.id)
        theirs = tiny.train_here(tmp_path / "alone", run, tmp_path / "data")
        if run.role == "teacher-logits":
            assert (ours.result() or {})["views"] == 1  # as many as 23 steps are epochs of cifar10's 50,000 images
            continue
        if run.role == "distilled":
            assert (ours.result() or {})["views"] == (theirs.result() or {})["views"] == {"read": 1, "computed": 4}
        two, one = curves(ours), curves(theirs)
        assert two.keys() == one.keys()
        for tag, values in one.items():
            assert two[tag].keys() == values.keys()
            if tag.startswith("train/") or tag.endswith("/loss"):
                assert two[tag] == pytest.approx(values, rel=2e-3), tag
        if run.role == "baseline":  # distilled ones have teachers that rounding has made different
            assert two["train/loss"][1] == pytest.approx(one["train/loss"][1], rel=1e-6)
        assert max(one["test/top1"]) == STEPS
        (attempt,) = ours.attempts()
        trainer = attempt.read("trainer")
        assert (trainer["procs"], trainer["steps_per_epoch"]) == (2, 5 if run.role == "distilled" else 2)
        images = {"test": 32, "val": 16, "labelled": 24, "unlabelled": 24 if run.role == "distilled" else 0}
        assert trainer["images"] == images
