"""A file that is as it was is not read again: by one command that needs it several times, nor by one that watches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import time_ns
from typing import Any, TypeVar

Stamp = tuple[int, int, int, int]
"""What tells a file from any that was there before: size, times of change of content and of inode (ns), inode."""

SETTLED_NS = 2_000_000_000
"""How long ago a file was changed last at least, for its stamp to tell the next change: clocks of disks are coarse."""

_read_before: dict[tuple[str, Any], tuple[Stamp, Any]] = {}

Made = TypeVar("Made")


def stamp_of(found: os.stat_result) -> Stamp:
    """Of a file that was looked at."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def is_settled(stamp: Stamp) -> bool:
    """Whether a change of the file after this look would give it another stamp."""
    return time_ns() - max(stamp[1], stamp[2]) > SETTLED_NS


def once(path: str | Path, make: Callable[[str, bytes], Made]) -> Made:
    """What `make` gives for a file's content, which is read only where the file is another one than before.

    What it gives is shared by all who ask: it is not to be changed. The file is opened each time, since a network file
    system is sure to say only then how it is.

    Raises:
        OSError: it cannot be read.
    """
    key = (os.fspath(path), make)
    handle = os.open(key[0], os.O_RDONLY | os.O_CLOEXEC)
    try:
        stamp = stamp_of(os.fstat(handle))
        known = _read_before.get(key)
        if known and known[0] == stamp:
            made: Made = known[1]
            return made
        content = os.read(handle, stamp[0] + 1)
        while len(content) > stamp[0] and (more := os.read(handle, 1 << 20)):  # it has grown, or does not say its size
            content += more
    finally:
        os.close(handle)
    made = make(key[0], content)
    if is_settled(stamp):
        _read_before[key] = stamp, made
    return made
