"""The loss of every step of tiny distilled runs on one CPU thread, which read stored logits, kept as text files.

`python -m tests.golden_loss` writes the files anew: only after a change of the numbers that is meant.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from kdcluster.results import events
from tests import tiny

FOLDER = Path(__file__).parent / "golden"
SEED = 0
TRAIN = {"batch_size": 16, "amp": "none", "schedule": "cosine", "lr": 1e-2}
TRAIN |= {"label_smoothing": 0.1, "grad_clip": 1.0, "micro_batch": 6}
CURVES: dict[str, dict[str, Any]] = {
    "loss": {"train": {**TRAIN, "epochs": 5, "warmup_epochs": 1}},
    "loss_unlabelled": {
        "train": {**TRAIN, "steps": 20, "warmup_steps": 4},
        "data.labelled": 20,
        "data.val_fraction": 0.1,
    },
    "loss_mixed": {
        "train": {**TRAIN, "epochs": 5, "warmup_epochs": 1},
        "data.augment": {"crop": {"scale": [0.3, 1]}, "mixup": {}, "cutmix": {"share": 0.3}},
        "teacher.image_size": 24,
    },
    "loss_crop": {
        "train": {**TRAIN, "epochs": 5, "warmup_epochs": 1},
        "data.augment": {"crop": {"scale": [0.3, 1]}, "color": {"contrast": 0.4, "hue": 0.1}, "erase": {}},
        "teacher.image_size": 24,
    },
}
"""File -> the experiment of its run."""
HEADER = """\
# Loss of every optimizer step of a tiny distilled run: ViT from ViT, {images}, CPU, one thread.
# Made with torch {torch}, seed {seed}. Compared with rtol 1e-4 by tests/unit/test_step.py.
# To renew: make golden  (python -m tests.golden_loss), only after a change of the numbers that is meant; say why.
# step loss
"""


def curve(name: str = "loss") -> dict[int, float]:
    """Step -> loss, from the run's own event file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            tiny.put_images(folder / "data")
            made = tiny.make_plan(folder, {"seeds": [SEED], **CURVES[name]})
            for run in made.only(["distilled"]).runs:  # the teacher comes first, then the store, with enough views
                wide = run.model_copy(update={"views": 7}) if run.views else run
                run_dir = tiny.train_here(folder / "runs", wide, folder / "data")
            views = (run_dir.result() or {})["views"]
            assert views.keys() == {"read"}, views
            points = events.read_scalars(run_dir.events, ("train/loss",)).points["train/loss"]
    finally:
        torch.set_num_threads(threads)
    return {point.step: point.value for point in points}


def path(name: str) -> Path:
    """Of a curve's file."""
    return FOLDER / f"{name}.txt"


def read(path: Path) -> dict[int, float]:
    """The curve as a file has it."""
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    return {int(step): float(loss) for step, loss in lines}


def main() -> None:
    for name, changes in CURVES.items():
        labelled = changes.get("data.labelled")
        images = f"64 synthetic images{f', {labelled} labelled' if labelled else ''}"
        header = HEADER.format(images=images, torch=torch.__version__.partition("+")[0], seed=SEED)
        path(name).write_text(header + "".join(f"{step} {loss!r}\n" for step, loss in curve(name).items()))
        print(f"wrote {path(name)}")


if __name__ == "__main__":
    main()
