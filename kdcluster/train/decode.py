"""Image files to pixels, in threads: the size to keep them at, each into its place, and which of them cannot be read.

Letters: N images, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import write_aside
from kdcluster.imagefolder import upright_size
from kdcluster.inputs import kept_at
from kdcluster.processes import threads_available

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

log = logging.getLogger(__name__)

_CHUNK = 64
"""Images that a thread takes at once: few enough to share out evenly, enough to keep the queue short."""
SHOWN = 20
"""So many broken images are named in a message; a file has all of more."""


class Unreadable(KdclusterError):
    """An image that cannot be read; `is_broken` where its content is to blame, and not its disk or its kind."""

    def __init__(self, path: Path, why: str, *, is_broken: bool) -> None:
        self.path, self.why, self.is_broken = path, why, is_broken
        super().__init__(f"cannot read the image {path}: {why}")


class _TooDeep(ValueError):
    """More bits than are kept."""


def size_rule(paths: Sequence[Path], size: int | None) -> tuple[tuple[int, int], str]:
    """The (H, W) at which a folder's images are kept, and in words what is done to get there.

    Raises:
        Unreadable: an image.
    """
    if size is not None:
        return kept_at({(size, size)}, size)
    return kept_at(set(_in_threads(lambda chunk: (_size(paths[i]) for i in chunk), len(paths))))


def write_images(paths: Sequence[Path], out: Pixels) -> list[bytes]:
    """Decode every image into its place in `out` (N, 3, H, W); returns a digest of each one's pixels.

    Raises:
        Unreadable: an image.
    """
    height, width = out.shape[2:]

    def write(chunk: range) -> Iterator[bytes]:
        for i in chunk:
            out[i] = pixels = _decoded(paths[i], height, width)
            yield hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()

    log.info("decoding %d images", len(paths))
    return _in_threads(write, len(paths))


def unreadable(paths: Sequence[Path]) -> list[Unreadable]:
    """Every image that cannot be read, in the order of the paths; decodes them all."""

    def refused(chunk: range) -> Iterator[Unreadable]:
        for i in chunk:
            try:
                _decoded(paths[i], 1, 1)
            except Unreadable as error:
                yield error

    log.info("looking for images that cannot be read, among %d", len(paths))
    return _in_threads(refused, len(paths))


def refusal(found: Sequence[Unreadable], among: int, names: Path) -> ConfigError:
    """An error that names them all; of more than fit a screen the paths are in the file `names`."""
    broken = sum(one.is_broken for one in found)
    todo = "; data.skip_broken: true leaves them out" if broken == len(found) else ""
    lines = [f"data.path: {len(found):,} of {among:,} images cannot be read; replace or remove them{todo}:"]
    lines += [f"  {one.path}: {one.why}" for one in found[:SHOWN]]
    if len(found) > SHOWN:
        write_aside(names, b"".join(os.fsencode(one.path) + b"\n" for one in found))
        lines.append(f"  and {len(found) - SHOWN} more: all paths are in {names}")
    if any(isinstance(one.__cause__, _TooDeep) for one in found):
        lines.append("  to 8 bits, in a copy of the folder: mogrify -depth 8 FILE... (ImageMagick; 65535 becomes 255)")
    return ConfigError(*lines)


def in_both(train: Sequence[bytes], test: Sequence[bytes]) -> list[tuple[int, int]]:
    """(place in test, place in train) of the test images that are training images, too, by their digests."""
    places = {digest: i for i, digest in reversed([*enumerate(train)])}
    return [(i, places[digest]) for i, digest in enumerate(test) if digest in places]


def _in_threads(work: Callable[[range], Iterable[Result]], n: int) -> list[Result]:
    """All that `work` yields for range(n) in chunks; PIL releases the interpreter's lock, so threads share the work."""
    chunks = [range(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
    with ThreadPoolExecutor(min(threads_available(), 16)) as pool:
        return [result for results in pool.map(lambda chunk: [*work(chunk)], chunks) for result in results]


def _decoded(path: Path, height: int, width: int) -> Pixels:
    """One image as (3, H, W), upright."""
    with _opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise _TooDeep("it has more than 8 bits a channel, which would be cut off")
        rgb = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(fitted(rgb, height, width)).transpose(2, 0, 1)


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize by the shorter side and crop at the centre; nothing where the image has the size already."""
    if image.size == (width, height):
        return image
    scale = height / min(image.size)  # height is width here: only images of one size keep another shape
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return upright_size(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image; whatever goes wrong with it names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # for a broken file PIL raises OSError, SyntaxError, ValueError, struct.error, …
        of_disk = isinstance(error, OSError) and error.errno is not None  # a file server that is away breaks no image
        why = str(error).replace(f" {str(path)!r}", "")
        raise Unreadable(path, why, is_broken=not of_disk and not isinstance(error, _TooDeep)) from error
