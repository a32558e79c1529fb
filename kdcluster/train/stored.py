"""The files of one decoded data set: written, mapped, and held against their meta.json."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from kdcluster.errors import Damaged, KdclusterError
from kdcluster.files import read_json
from kdcluster.inputs import ARRAYS
from kdcluster.train import pixels
from kdcluster.train.sources import Part


def write_part(folder: Path, split: str, part: Part) -> Sequence[bytes]:
    """The labels and, straight into their file, the images of one split; returns what `part.write` does."""
    np.save(folder / f"{split}_labels.npy", part.labels)
    images = pixels.writable(folder / f"{split}_images.npy", np.uint8, part.shape)
    digests = part.write(images)
    images.flush()
    return digests


def crc32c(path: Path, *, sync: bool = False) -> str:
    """Check sum of a file as 8 hexadecimal digits; `sync` sees to it that the disk has the file as well."""
    check = google_crc32c.Checksum()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(1 << 20):
            check.update(chunk)
    return str(check.digest().hex())


def meta(folder: Path) -> dict[str, Any]:
    """What the arrays hold, and what they were made from.

    Raises:
        KdclusterError: nothing says so, or not all of it.
    """
    try:
        found = read_json(folder / "meta.json")
    except Damaged as error:
        raise damaged(folder, f"meta.json: {error.why}") from None
    if not isinstance(found, dict) or found.get("schema") != ARRAYS:
        raise damaged(folder, f"meta.json is missing, or its schema is not {ARRAYS}")
    if lost := {"fingerprint", "shapes", "dtypes", "classes", "crc32c", "image_rule"} - found.keys():
        raise damaged(folder, f"meta.json lacks {', '.join(sorted(lost))}")
    return found


def mapped(folder: Path, name: str, meta: Mapping[str, Any]) -> Any:
    """One array, mapped read-only.

    Not copy-on-write, which would spare torch its warning: Linux refuses such a mapping of a file larger than
    the machine's memory (tried, 400 GB on 24 GB), and a big image folder is just that.
    """
    path = folder / f"{name}.npy"
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header is Python text to numpy: TokenError, SyntaxError, ValueError, …
        raise damaged(folder, f"{path.name}: {error}") from None
    found, wanted = (list(array.shape), str(array.dtype)), (meta["shapes"].get(name), meta["dtypes"].get(name))
    if found != wanted or path.stat().st_size != array.offset + array.nbytes:
        raise damaged(folder, f"{path.name} is not what meta.json says")
    return array


def damaged(folder: Path, what: str) -> KdclusterError:
    """An error that says how to have the arrays made again."""
    return KdclusterError(
        f"{folder} is damaged or was not made by this version of kdcluster ({what}); "
        "move the folder away and run `kdcluster prefetch` to make it again"
    )
