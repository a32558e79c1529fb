"""The accuracy of a run once more, from the logits that it has kept: what is said of single images is said of the same
evaluation as the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcluster import predictions
from kdcluster.errors import Damaged
from kdcluster.rereading import stamp_of
from kdcluster.results import scores
from kdcluster.results.index import Counts, Index
from kdcluster.runs import RunDir

CLOSE = 1e-4
"""Percentage points: an event file has float32, and one image of a million is as much."""


def problems(
    directory: RunDir, result: Mapping[str, Any], protocol: str, top1: float, index: Index | None
) -> list[str]:
    """Where what a run has kept contradicts its accuracy; nothing where it keeps none, as an earlier version's."""
    path = predictions.path_of(directory.path, result[protocol]["step"])
    try:
        found = counted(path, index)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"its predictions cannot be read: {error.strerror}"]
    except Damaged as error:
        return [f"its predictions are damaged: {error.why}"]
    low, high = (100 * n / found.images for n in (found.right, found.at_most))
    if low - CLOSE <= top1 <= high + CLOSE:
        return []
    said = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    return [f"its predictions contradict the event files: {said} % of them are right, not {top1:.2f}"]


def counted(path: Path, index: Index | None) -> Counts:
    """How many predictions are right; looked up where the file is as it was.

    Raises:
        OSError: there are none.
        Damaged: they cannot be read.
    """
    stamp = stamp_of(path.stat())
    if index and (known := index.counts(path)) and known.stamp == stamp:
        return known
    test = predictions.load(path)["test"]
    found = Counts(stamp, *scores.right(test.logits, test.labels), len(test.labels))
    if index:
        index.note(path, found)
    return found
