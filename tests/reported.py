"""A whole experiment as a report finds it, made by hand: students of two seeds, a sweep, what failed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kdcluster import predictions
from kdcluster.experiment import configfile
from kdcluster.files import read_json, write_json
from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir
from kdcluster.sweep.points import Space
from tests.fabricated import ended, evaluated, publish, put, started
from tests.tiny import put_arrays

TOPS = {
    ("teacher", 0): [60.0, 90.0],
    ("baseline", 0): [40.0, 70.0],
    ("baseline", 1): [44.0, 74.0],
    ("distilled", 0): [71.0, 80.0],
    ("distilled", 1): [75.0, 78.0],
}
"""Test accuracy after each of two epochs, by role and seed."""
STEPS = 4
"""Of an epoch."""
LABELS = [0, 1, 0, 1]
LOGITS = {
    ("teacher", 0): [[4, 0], [0, 4], [4, 0], [0, 4]],
    ("baseline", 0): [[2, 0], [2, 0], [0, 2], [0, 2]],
    ("baseline", 1): [[2, 0], [2, 0], [0, 2], [0, 2]],
    ("distilled", 0): [[3, 0], [0, 3], [0, 3], [0, 3]],
    ("distilled", 1): [[3, 0], [0, 3], [0, 3], [3, 0]],
}
"""(N, 2) of four test images whose labels are LABELS; the other eight classes have no chance."""

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "\u202egnp.exe",
    "$\\frac{",
    "W" * 200,
    "</svg></style><b>",
    "דג",
    "a&b\udcff",
    "]]>",
    "x" * 24 + "<i>",
]
"""Names of ten classes as somebody may have called their folders."""


def finished(root: Path, made: Plan, tops: dict[tuple[str, int], list[float]] = TOPS) -> None:
    """Runs of an experiment as their trainers leave them."""
    for one in made.runs:
        if (one.role, one.seed) in tops:
            finish(root, one, tops[one.role, one.seed])


def finish(root: Path, run: Run, tops: list[float], tag: str = "test/top1") -> RunDir:
    """One that was evaluated after each epoch."""
    run_dir = RunDir(root, run.id)
    run_dir.prepare(run)
    attempt = started(run_dir)
    params = 1000 if run.role == "teacher" else 100
    attempt.write("trainer", {"steps_per_epoch": STEPS, "params": params, "images": {"test": 4, "val": 400}})
    epochs = [{"epoch": n, "step": STEPS * n, "test/top1": top1, tag: top1} for n, top1 in enumerate(tops, 1)]
    evaluated(run_dir, epochs)
    best = max(epochs, key=lambda epoch: epoch["test/top1"])
    publish(run_dir, 0.0, best=best, last=epochs[-1], params=params)
    ended(attempt, "done")
    return run_dir


def with_predictions(root: Path, made: Plan, leave_out: tuple[str, int] | None = None) -> None:
    """`finished` with logits that give the accuracies of the last epoch."""
    tops = {}
    for key, rows in LOGITS.items():
        right = 25.0 * sum(row.index(max(row)) == label for row, label in zip(rows, LABELS, strict=True))
        tops[key] = [right / 2, right]
    finished(root, made, tops)
    for one in made.runs:
        if (one.role, one.seed) in LOGITS and (one.role, one.seed) != leave_out:
            logits = np.full((4, 10), -60000, np.float16)
            logits[:, :2] = LOGITS[one.role, one.seed]
            path = predictions.path_of(root / one.id, STEPS * 2)
            path.parent.mkdir()
            save_file({"test": logits, "test_labels": np.array(LABELS, np.int32)}, path)


def with_names(root: Path, made: Plan, names: list[str]) -> None:
    """The names of the classes, as a run has them."""
    write_json(root / made.runs[0].id / "config.json", {"label_names": names})


def with_pixels(data_dir: Path, names: list[str] | None = None) -> Any:
    """The four test images, uint8 (N, C, H, W), whose classes have these names."""
    random = np.random.RandomState(0)
    images = {f"{split}_images": random.randint(0, 256, (4, 3, 16, 16)).astype(np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.array(LABELS, np.int64) for split in ("train", "test")}
    meta = put_arrays(data_dir, "cifar10", {**images, **labels}) / "meta.json"
    if names:
        write_json(meta, {**read_json(meta), "classes": names})
    return images["test_images"]


def with_sweep(root: Path, file: Path) -> Space:
    """Trials of an experiment of four epochs: most done, some stopped early, one failed."""
    searched = Space(configfile.load(str(file)))
    for number, point in enumerate(searched.drawn(searched.size())):
        run = point.runs[0]
        best = 50 + 3.0 * number
        rising = [best - 20, best - 8, best - 2, best]
        if number % 4 == 3:
            put(root, run, "failed")
        elif number % 4 == 1:
            put(root, run, "stopped")
            evaluated(RunDir(root, run.id), [_trial(n, top1) for n, top1 in enumerate(rising[:2], 1)])
        else:
            run_dir = put(root, run, "done")
            evaluated(run_dir, [_trial(n, top1) for n, top1 in enumerate(rising, 1)])
        RunDir(root, run.id).note_trial(searched.loaded.name, point.values)
    return searched


def _trial(number: int, top1: float) -> dict[str, float]:
    return {"step": STEPS * number, "val/top1": top1, "test/top1": top1}
