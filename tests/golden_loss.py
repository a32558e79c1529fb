"""The loss of every step of a tiny distilled run on one CPU thread, kept as a text file.

`python -m tests.golden_loss` writes the file anew: only after a change of the numbers that is meant.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from kdcluster.results import events
from tests import tiny

FILE = Path(__file__).parent / "golden" / "loss.txt"
SEED = 0
HEADER = """\
# Loss of every optimizer step of a tiny distilled run: ViT from ViT, 64 synthetic images, CPU, one thread.
# Made with torch {torch}, seed {seed}. Compared with rtol 1e-4 by tests/unit/test_step.py.
# To renew: make golden  (python -m tests.golden_loss), only after a change of the numbers that is meant; say why.
# step loss
"""


def curve() -> dict[int, float]:
    """Step -> loss, from the run's own event file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tiny.put_images(folder / "data")
            changes = {
                "seeds": [SEED],
                "train.epochs": 5,
                "train.schedule": "cosine",
                "train.warmup_epochs": 1,
                "train.lr": 1e-2,
                "train.label_smoothing": 0.1,
                "train.grad_clip": 1.0,
                "train.micro_batch": 6,
            }
            for run in tiny.make_plan(folder, changes).only(["distilled"]).runs:  # the teacher comes first
                run_dir = tiny.train_here(folder / "runs", run, folder / "data")
            points = events.read_scalars(run_dir.events, ("train/loss",)).points["train/loss"]
    finally:
        torch.set_num_threads(threads)
    return {point.step: point.value for point in points}


def read(path: Path = FILE) -> dict[int, float]:
    """The curve as the file has it."""
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    return {int(step): float(loss) for step, loss in lines}


def main() -> None:
    header = HEADER.format(torch=torch.__version__.partition("+")[0], seed=SEED)
    FILE.write_text(header + "".join(f"{step} {loss!r}\n" for step, loss in curve().items()))
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
