"""Ask a child process that has torch to try the models and to fetch data and weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcluster import inputs
from kdcluster.errors import ConfigError
from kdcluster.launch.child import asked
from kdcluster.launch.finished import found_in
from kdcluster.plan import Run


def _asked(module: str, runs: Iterable[Run], data_dir: Path, options: list[str], what: str) -> Any:
    return asked(module, runs, ["--data-dir", str(data_dir), *options], f"checking {what}; nothing was started")


def verify(
    stores: Iterable[Run], root: Path, data_dir: Path, *, images: int, seed: int, whole: bool
) -> list[dict[str, Any]]:
    """What `kdcluster.train.verify` found of stores of a teacher's logits.

    Args:
        stores: their runs, as they are planned today.
        root: the runs directory.
        data_dir: decoded arrays.
        images: of the sample that is computed again.
        seed: which ones.
        whole: also read every view from its beginning to its end: check sums, and all labels.
    """
    options = ["--runs-dir", str(root), "--images", str(images), "--seed", str(seed), *(["--whole"] if whole else [])]
    found: list[dict[str, Any]] = _asked("verify", stores, data_dir, options, "stored logits")
    return found


def contact_sheet(runs: Iterable[Run], data_dir: Path, into: Path) -> dict[str, Any]:
    """What `kdcluster.train.contact` says of the PNG that it has written of an experiment's views.

    Raises:
        KdclusterError: the images are not here.
    """
    options = ["--data-dir", str(data_dir), "--into", str(into)]
    found: dict[str, Any] = found_in(asked("contact", runs, options, "drawing views; nothing was written"))
    return found


def preflight(runs: Iterable[Run], data_dir: Path, *, fetch: bool) -> dict[str, Any]:
    """What `kdcluster.train.preflight` found: {"models": {run id: {"params", …}}, "notes": [text]}.

    Raises:
        ConfigError: a model, its weights or the data are not usable; every problem at once.
    """
    runs = list(runs)
    found: dict[str, Any] = _asked("preflight", runs, data_dir, ["--fetch"] if fetch else [], "models and data")
    if found["problems"]:
        raise ConfigError(*found["problems"])
    for run in {f"{run.model!r} {run.imports}": run for run in runs}.values():
        if built := found["models"][run.id]:  # none of a store whose teacher is done
            inputs.remember(run, built["image_size"], built["patch"])
    return found
