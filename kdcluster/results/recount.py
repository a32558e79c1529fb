"""The accuracy of a run once more, from the logits that it has kept: what is said of single images is said of the same
evaluation as the table."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from kdcluster import predictions
from kdcluster.errors import Damaged
from kdcluster.rereading import stamp_of
from kdcluster.results import scores
from kdcluster.results.index import Counts, Index
from kdcluster.runs import RunDir

CLOSE = 1e-4
"""Percentage points: an event file has float32, and one image of a million is as much."""


def recounted(
    directory: RunDir, result: Mapping[str, Any], protocol: str, top1: float, index: Index | None
) -> tuple[list[str], Counts | None]:
    """Where what a run has kept contradicts its accuracy, and which images are right; None where it does, and where it
    keeps nothing, as an earlier version's."""
    path = predictions.path_of(directory.path, result[protocol]["step"])
    try:
        found = counted(path, index)
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [f"its predictions cannot be read: {error.strerror}"], None
    except Damaged as error:
        return [f"its predictions are damaged: {error.why}"], None
    low, high = (100 * n / found.images for n in (found.right, found.at_most))
    if low - CLOSE <= top1 <= high + CLOSE:
        return [], found
    said = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    return [f"its predictions contradict the event files: {said} % of them are right, not {top1:.2f}"], None


def counted(path: Path, index: Index | None) -> Counts:
    """How many predictions are right, and which; looked up where the file is as it was.

    Raises:
        OSError: there are none.
        Damaged: they cannot be read.
    """
    import numpy as np

    stamp = stamp_of(path.stat())
    if index and (known := index.counts(path)) and known.stamp == stamp:
        return known
    test = predictions.load(path)["test"]
    hits = np.packbits(scores.predicted(test.logits) == test.labels).tobytes()
    images, labels = len(test.labels), google_crc32c.value(test.labels.tobytes())
    found = Counts(stamp, *scores.right(test.logits, test.labels), images, labels, base64.b64encode(hits).decode())
    if index:
        index.note(path, found)
    return found


def fixed_and_broken(ours: Counts, theirs: Counts) -> tuple[int, int] | None:
    """How many images only ours has right, and how many only theirs; None where they are not of the same images."""
    if (ours.images, ours.labels) != (theirs.images, theirs.labels):
        return None
    mine, others = (int.from_bytes(base64.b64decode(one.hits)) for one in (ours, theirs))
    return (mine & ~others).bit_count(), (others & ~mine).bit_count()
