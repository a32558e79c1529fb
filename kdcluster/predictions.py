"""What the weights of a run say of each image that it was evaluated on, kept beside them; read without torch.

runs/<id>/predictions/step-00000120.safetensors        written by train/weights.py
    test  test_labels             float16 (N, C) logits and int32 (N,) labels, in the order of the data set
    val  val_labels  val_index    of the held-out images, and which of the training set (M,) they are

There is a file for each evaluation whose weights may still count, named by its step like a checkpoint: weights that are
restored find the predictions that are theirs.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcluster.errors import Damaged
from kdcluster.files import file_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER = "predictions"
LARGEST = 65504.0
"""The largest float16: logits beyond are cut off there, so that they stay in their order, or become equal."""


@dataclass(frozen=True)
class Predictions:
    """Of one split."""

    logits: NDArray[np.float16]
    """(N, C)"""
    labels: NDArray[np.int32]
    """(N,)"""
    index: NDArray[np.int32] | None = None
    """(N,) which images of the training set; None of the test set, of which it is all."""


def path_of(run: Path, step: int) -> Path:
    """Those of an evaluation after so many optimizer steps."""
    return run / FOLDER / f"step-{step:08}.safetensors"


def keep(run: Path, steps: Collection[int]) -> None:
    """Remove the predictions of all other steps."""
    kept = {path_of(run, step) for step in steps}
    for path in (run / FOLDER).glob("step-*.safetensors"):
        if path not in kept:
            path.unlink(missing_ok=True)


def record(run: Path, step: int) -> dict[str, Any] | None:
    """What result.json says of them; None where there are none, as of an evaluation by an earlier version."""
    path = path_of(run, step)
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)} if path.is_file() else None


def per_class(of: Predictions) -> dict[str, list[int]]:
    """By class: how many images it has, and of how many it has the largest logit, the lower class of equals."""
    import numpy as np

    classes = of.logits.shape[1]
    hit = of.labels[of.logits.astype(np.float32).argmax(axis=1) == of.labels]
    counts = {"images": of.labels, "right": hit}
    return {name: np.bincount(labels, minlength=classes).tolist() for name, labels in counts.items()}


def load(path: Path) -> dict[str, Predictions]:
    """By split: `test`, and `val` where one is held out.

    Raises:
        OSError: there are none.
        Damaged: they cannot be read.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    try:
        arrays = load(content)
        found: dict[str, Predictions] = {
            split: Predictions(arrays[split], arrays[f"{split}_labels"], arrays.get(f"{split}_index"))
            for split in ("test", "val")
            if split in arrays
        }
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(path, str(error)) from error
    for split, one in found.items():
        n, classes = one.logits.shape if one.logits.ndim == 2 else (-1, 0)
        fits = one.logits.dtype == np.float16 and one.labels.dtype == np.int32 and one.labels.shape == (n,)
        if not fits or (n and not 0 <= one.labels.min() <= one.labels.max() < classes):
            raise Damaged(path, f"its {split} is not float16 (N, C) with labels below C")
    if "test" not in found:
        raise Damaged(path, "it has no test")
    return found
