"""A finished run: its model with its best weights, the names of its classes, and its images where they are here.

Letters: H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster import inputs
from kdcluster.errors import ConfigError, Damaged, KdclusterError, explain_disk
from kdcluster.files import read_json
from kdcluster.plan import Run
from kdcluster.runs import RunDir
from kdcluster.train import data, models


@dataclass(frozen=True)
class Finished:
    """What a run has left."""

    run: Run
    net: models.Classifier
    """In evaluation mode, float32, on the CPU."""
    classes: tuple[str, ...]
    """By label; none where nobody knows them any more."""
    arrays: data.Arrays | None
    """None where the data directory has not got them."""
    without: str = ""
    """Why there are none."""

    input_size: tuple[int, int] | None = None
    """(H, W) at which the images are stored that it was trained on; None: nobody knows any more."""


def open_run(run: Run, root: Path, data_dir: Path, weights: Path | None = None) -> Finished:
    """A run with its best weights.

    Args:
        run: as its directory has it.
        root: the runs directory.
        data_dir: decoded arrays.
        weights: a copy of them.

    Raises:
        ConfigError: a file of `imports` is not what it was, or the model cannot be built here.
        KdclusterError: the weights cannot be read.
    """
    place = RunDir(root, run.id)
    models.check_files(run.model_copy(update={"model": run.model.model_copy(update={"pretrained": False})}))
    models.import_files(run.imports)
    net = models.build(run.model, run.num_classes, run.channels, start=False)
    models.load_saved(net.net, weights or place.weights("best"))
    arrays, without = None, ""
    try:
        arrays = data.open_arrays(run, data_dir)
    except KdclusterError as error:
        without = str(error)
    classes = _classes(place) or (arrays.classes if arrays else ())
    return Finished(run, net.eval().requires_grad_(False), tuple(classes), arrays, without, _stored_at(run, data_dir))


def _stored_at(run: Run, data_dir: Path) -> tuple[int, int] | None:
    try:
        seen = inputs.images(run, data_dir)
    except ConfigError:  # an image folder that is away
        side = run.data.image_size
        return (side, side) if side else None
    return seen.size if not seen.looked_at else None


def _classes(place: RunDir) -> Sequence[str]:
    """As the run has kept them, if it has."""
    try:
        names = (read_json(place.path / "config.json") or {})["label_names"]
    except (Damaged, LookupError, TypeError):
        return ()
    return [str(name) for name in names]


def told(work: Callable[[], Any]) -> dict[str, Any]:
    """The answer of a child process: what it has found, or what is wrong, for launch/finished.py."""
    try:
        return {"found": work()}
    except ConfigError as error:
        return {"problems": list(error.problems), "exit_code": error.exit_code}
    except KdclusterError as error:
        return {"problems": [str(error)], "exit_code": error.exit_code}
    except OSError as error:
        if (message := explain_disk(error, "type the command again")) is None:
            raise
        return {"problems": [message], "exit_code": 1}


def written(path: Path, document: Any) -> None:
    """A document for people and timm, into a folder that nobody reads yet."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
