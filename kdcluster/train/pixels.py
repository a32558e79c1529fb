"""One image file after another to pixels, without torch: what the processes of pool.py do.

Letters: N images, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdcluster.errors import KdclusterError
from kdcluster.imagefolder import upright_size

Pixels = NDArray[np.uint8]

MARK = np.dtype([("digest", np.uint8, 16), ("mtime_ns", np.int64)])
"""Of an image that is decoded: a digest of its pixels, and when its file was last changed. Zeros: not yet."""


class Unreadable(KdclusterError):
    """An image that cannot be read.

    `is_broken` where its content is to blame, and not its disk or its kind; `is_deep`: it has more bits than are kept.
    """

    def __init__(self, path: Path, why: str, is_broken: bool, is_deep: bool) -> None:
        self.path, self.why, self.is_broken, self.is_deep = path, why, is_broken, is_deep
        super().__init__(f"cannot read the image {path}: {why}")

    def __reduce__(self) -> Any:
        return Unreadable, (self.path, self.why, self.is_broken, self.is_deep)


class _TooDeep(ValueError):
    """More bits than are kept."""


class Writer:
    """Decodes images into their places in a file of pixels (N, C, H, W), and marks each that is there in another.

    An image whose mark is there already, by an earlier start, is left as it is where digest and time still hold: the
    mark alone says nothing, as after a crash of the machine either file may lack what was written last.
    """

    def __init__(self, images: Path, marks: Path) -> None:
        self._files = images, marks
        # As plain arrays, of which a row is had in a fifth of the time.
        self._images: Pixels = np.asarray(np.lib.format.open_memmap(images, "r+"))
        self._marks = np.asarray(np.lib.format.open_memmap(marks, "r+"))

    def __reduce__(self) -> Any:
        return Writer, self._files

    def __call__(self, start: int, paths: Sequence[Path]) -> list[bool]:
        """Whether each of the images from place `start` on was there already.

        Raises:
            Unreadable: an image.
        """
        return [self._write(i, path) for i, path in enumerate(paths, start)]

    def _write(self, i: int, path: Path) -> bool:
        mark = self._marks[i]
        with _named(path):
            changed = path.stat().st_mtime_ns
        if mark["mtime_ns"] == changed and mark["digest"].tobytes() == _digest(self._images[i]):
            return True
        self._images[i] = pixels = _decoded(path, *self._images.shape[1:])
        self._marks[i] = np.frombuffer(_digest(pixels), np.uint8), changed
        return False


def refused(_: int, paths: Sequence[Path]) -> list[Unreadable]:
    """Those that cannot be read; decodes them all."""
    found = []
    for path in paths:
        try:
            _decoded(path, 3, 1, 1)
        except Unreadable as error:
            found.append(error)
    return found


def sizes(_: int, paths: Sequence[Path]) -> list[tuple[int, int]]:
    """The upright (H, W) of each image.

    Raises:
        Unreadable: an image.
    """
    found = []
    for path in paths:
        with _named(path), Image.open(path) as image:
            found.append(upright_size(image))
    return found


def writable(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A file with an array, mapped to be written: the one that is there where it fits, else a new one of zeros.

    Raises:
        OSError: the disk has no room for it.
    """
    array = None
    with suppress(Exception):  # a damaged header is Python text to numpy: TokenError, SyntaxError, ValueError, …
        array = np.lib.format.open_memmap(path, "r+")
    if array is None or (array.dtype, array.shape) != (dtype, shape):
        path.unlink(missing_ok=True)
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with path.open("rb+") as file:
        # A full disk then says so here; a page that cannot be written later would kill the process (SIGBUS).
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize by the shorter side and crop at the centre; nothing where the image has the size already."""
    if image.size == (width, height):
        return image
    scale = height / min(image.size)  # height is width here: only images of one size keep another shape
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def _decoded(path: Path, channels: int, height: int, width: int) -> Pixels:
    """One image as (C, H, W), upright: in RGB, or with one channel in grey."""
    with _named(path), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise _TooDeep("it has more than 8 bits a channel, which would be cut off")
        upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        pixels = np.asarray(fitted(upright, height, width)).reshape(height, width, channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _digest(pixels: Pixels) -> bytes:
    return hashlib.blake2b(pixels.data, digest_size=MARK["digest"].itemsize).digest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever goes wrong with an image names its file."""
    try:
        yield
    except Exception as error:  # for a broken file PIL raises OSError, SyntaxError, ValueError, struct.error, …
        of_disk = isinstance(error, OSError) and error.errno is not None  # a file server that is away breaks no image
        is_deep = isinstance(error, _TooDeep)
        why = str(error).replace(f" {str(path)!r}", "")
        raise Unreadable(path, why, not of_disk and not is_deep, is_deep) from error
