"""The images of a folder to pixels: the size to keep them at, each into its place, and which of them cannot be read.

Letters: N images, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL

from kdcluster.errors import ConfigError
from kdcluster.files import trainer_code, write_aside
from kdcluster.inputs import kept_at
from kdcluster.train import pixels
from kdcluster.train.pixels import Unreadable
from kdcluster.train.pool import each

log = logging.getLogger(__name__)

SHOWN = 20
"""So many broken images are named in a message; a file has all of more."""
MARKS = ".marks"
"""Suffix of the files beside the pixels that say which images are there."""


def size_rule(paths: Sequence[Path], size: int | None) -> tuple[tuple[int, int], str]:
    """The (H, W) at which a folder's images are kept, and in words what is done to get there.

    Raises:
        Unreadable: an image.
    """
    if size is not None:
        return kept_at({(size, size)}, size)
    return kept_at(set(each(pixels.sizes, paths, "looking up sizes")))


def write_images(paths: Sequence[Path], out: Any, folder_digest: str) -> list[bytes]:
    """Decode every image into its place in `out` (N, 3, H, W), a mapped file; returns a digest of each one's pixels.

    Goes on where an earlier start was killed that wrote the same images into the same file: another folder, other
    names, another decoder or another kdcluster begin with marks of their own.

    Raises:
        Unreadable: an image.
        OSError: the disk is full.
    """
    key = hashlib.blake2b(f"{folder_digest} {PIL.__version__} {trainer_code()} {out.shape}".encode(), digest_size=8)
    for path in paths:
        key.update(b"\0" + os.fsencode(path))
    file = Path(out.filename)
    marked = file.with_name(f"{file.stem}-{key.hexdigest()}{MARKS}")
    marks = pixels.writable(marked, pixels.MARK, (len(paths),))
    log.info("decoding %d images", len(paths))
    there = sum(each(pixels.Writer(file, marked), paths, "decoding"))
    if there:
        log.info("of these %d were there, whole, from an earlier start that was killed", there)
    return [digest.tobytes() for digest in marks["digest"]]


def unreadable(paths: Sequence[Path]) -> list[Unreadable]:
    """Every image that cannot be read, in the order of the paths; decodes them all."""
    log.info("looking for images that cannot be read, among %d", len(paths))
    return each(pixels.refused, paths, "looking for broken images")


def refusal(found: Sequence[Unreadable], among: int, names: Path) -> ConfigError:
    """An error that names them all; of more than fit a screen the paths are in the file `names`."""
    broken = sum(one.is_broken for one in found)
    todo = "; data.skip_broken: true leaves them out" if broken == len(found) else ""
    lines = [f"data.path: {len(found):,} of {among:,} images cannot be read; replace or remove them{todo}:"]
    lines += [f"  {one.path}: {one.why}" for one in found[:SHOWN]]
    if len(found) > SHOWN:
        write_aside(names, b"".join(os.fsencode(one.path) + b"\n" for one in found))
        lines.append(f"  and {len(found) - SHOWN} more: all paths are in {names}")
    if any(one.is_deep for one in found):
        lines.append("  to 8 bits, in a copy of the folder: mogrify -depth 8 FILE... (ImageMagick; 65535 becomes 255)")
    return ConfigError(*lines)


def in_both(train: Sequence[bytes], test: Sequence[bytes]) -> list[tuple[int, int]]:
    """(place in test, place in train) of the test images that are training images, too, by their digests."""
    places = {digest: i for i, digest in reversed([*enumerate(train)])}
    return [(i, places[digest]) for i, digest in enumerate(test) if digest in places]
