"""What TensorBoard shows of a run that is done: its configuration, and what its counted weights get wrong.

It stands in the run's own event file, behind everything else, under tags that no reader of results asks for.
"""

from __future__ import annotations

import numpy as np
import torch

from kdcluster import predictions
from kdcluster.train import pictures
from kdcluster.train.data import Arrays
from kdcluster.train.publish import Publisher

CONFIG, CONFUSION, WRONG = "run/config.yaml", "predictions/confusion", "predictions/misclassified"
"""Tags: a text, and two images at the step of the counted epoch."""


def show_end(publish: Publisher, arrays: Arrays) -> None:
    """Show it, once result.json is written; not again where the run is begun anew behind the counted epoch."""
    run_dir, step, tracker = publish.run_dir, publish.best["step"], publish.tracker
    if not publish.active or tracker.knows(CONFIG, step):
        return
    config = run_dir.config.read_text(encoding="utf-8")
    tracker.text(CONFIG, "".join(f"    {line}\n" for line in config.splitlines()), step)  # Markdown: as it is
    path = predictions.path_of(run_dir.path, step)
    if not path.exists():  # an earlier version made these weights
        return
    test = predictions.load(path)["test"]
    log_p = torch.from_numpy(test.logits).double().log_softmax(1).numpy()
    if page := pictures.misclassified(arrays.images["test"], test.labels, log_p, arrays.classes):
        tracker.image(WRONG, page, step)
    if (classes := log_p.shape[1]) <= pictures.MOST:
        cells = np.bincount(test.labels * classes + log_p.argmax(axis=1), minlength=classes**2)
        tracker.image(CONFUSION, pictures.confusion(cells.reshape(classes, classes), arrays.classes), step)
