"""A sweep with a real Ray: trials are runs, stopped early, never trained twice, and confirmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcluster.runs import RunDir, run_dirs
from tests.desk import SLOW_MODEL
from tests.tiny import VIT, put_images, write_experiment

pytestmark = pytest.mark.integration


def kdcluster(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kdcluster.cli", *words]
    env = {**os.environ, "SLOW": str(folder / "SLOW")}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def attempts(root: Path) -> dict[str, int]:
    return {run_dir.id: len(run_dir.attempts()) for run_dir in run_dirs(root)}


def ours(folder: Path) -> list[int]:
    """Processes that were started from this folder, Ray's own among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                path.joinpath("cwd").resolve() == folder.resolve()
                or str(folder).encode() in path.joinpath("cmdline").read_bytes()
            ):
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_a_sweep_from_the_file_to_the_confirmed_winner(tmp_path: Path) -> None:
    put_images(tmp_path / "data")
    (tmp_path / "models.py").write_text(SLOW_MODEL)
    (tmp_path / "SLOW").touch()  # 0.6 s an epoch: whoever is worse after the first one can be stopped before the last
    changes = {
        "imports": ["models.py"],
        "teacher": {**VIT, "train": {"epochs": 2, "lr": 1e-2}},
        "student": {"model": "slow"},
        "train.epochs": 9,
        "sweep": {
            "space": {"train.lr": {"grid": [0.03, 1e-3, 1e-4, 1e-5, 1e-6]}, "distill.alpha": {"uniform": [0.4, 0.6]}},
            "trials": 5,
            "metric": "val/loss",
            "scheduler": "asha",
        },
    }
    write_experiment(tmp_path, changes)
    root = tmp_path / "runs"
    done = kdcluster(tmp_path, "sweep", "tiny.yaml", "--confirm", "1")
    assert done.returncode == 0, done.stderr
    assert "best of 5 trials, selected on held-out images: train.lr=0.03" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["train.lr", "distill.alpha", "val/loss", "state", "runs"]
    trials = [line.split() for line in lines[1:6]]
    states = [words[4] for words in trials]
    assert states[0] == "done"
    assert states.count("stopped") >= 3  # at most one of the worse ones can be the first to report
    assert set(states) <= {"done", "stopped"}
    assert "tiny-best: best test/top1 in percent" in done.stdout
    (teacher,) = (run_dir for run_dir in run_dirs(root) if run_dir.id.startswith("teacher"))
    assert len(teacher.attempts()) == 1
    stopped = RunDir(root, trials[states.index("stopped")][5])
    outcome = stopped.attempt(1).read("outcome")
    assert outcome["reason"].endswith("others were better after as many epochs")

    # Again: everything is known, nothing is trained, and the table is the same.
    before = attempts(root)
    assert set(before.values()) == {1}
    again = kdcluster(tmp_path, "sweep", "tiny.yaml", "--confirm", "0")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == lines[:6]
    assert attempts(root) == before
    document = json.loads(kdcluster(tmp_path, "status", "--json").stdout)
    assert {row["state"] for row in document["runs"]} == {"done", "stopped"}

    deadline = time.monotonic() + 120
    while left := ours(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
