"""An .npy file of float16 (N, C): its check sum, its header, and rows of it that are read one by one. Without torch."""

from __future__ import annotations

import errno
import math
import os
import stat
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO

ITEM = 2
"""Bytes of a float16."""
WRONG = "its check sum is wrong"


class Rows:
    """A view that is too large for memory, in its open file; a page of a mapping that cannot be read ends a process.

    Raises:
        ValueError: its check sum is not the `expected` one, or it holds something else than float16 of this `shape`.
    """

    def __init__(self, path: Path, shape: tuple[int, int], expected: int) -> None:
        if crc32c_of(path) != expected:
            raise ValueError(WRONG)
        with path.open("rb") as file:
            self._first = behind_header(file, shape)
        self._path, self._row = path, shape[1] * ITEM
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def take(self, index: Iterable[int]) -> bytearray:
        """The rows of some images.

        Raises:
            OSError: they cannot be read any more.
        """
        found = bytearray()
        for image in index:
            row = os.pread(self._handle, self._row, self._first + image * self._row)
            if len(row) < self._row:
                raise OSError(errno.EIO, f"{self._path} has become shorter")
            found += row
        return found


def behind_header(file: IO[bytes], shape: tuple[int, int]) -> int:
    """Where the rows of an .npy file begin; ValueError: it holds something else than float16 of this shape."""
    import numpy as np

    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is not of this version")
    found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if (tuple(found), by_columns, str(kind)) != (shape, False, "float16"):
        raise ValueError(f"it holds {kind}{found}")
    return file.tell()


def crc32c_of(path: Path, first: int | None = None) -> int:
    """CRC-32C of a file, or of its first bytes."""
    left = size_of_file(path) if first is None else first
    with path.open("rb") as file:
        return sum_of(file, left)


def sum_of(file: IO[bytes], left: float = math.inf) -> int:
    """CRC-32C of what is left of a file, without holding it in memory."""
    from google_crc32c import extend

    found = 0
    while left > 0 and (block := file.read(int(min(left, 1 << 24)))):
        found, left = extend(found, block), left - len(block)
    return found


def size_of_file(path: Path) -> int:
    """Bytes of a file; of a pipe, which would be waited for, and of whatever else is none: OSError."""
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):
        raise OSError(errno.EINVAL, "it is no file")
    return known.st_size
