"""The sound beginning of a long event file, checked at once and not record by record: 8 times as fast.

Nothing is taken on trust: each check sum is held against its record, as frames.py does. Where a record is damaged or
unfinished, this ends before it, and frames.py goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import google_crc32c

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONG = 1 << 15
"""Bytes from which a file is worth it."""
MANY = 64
"""Records of one length from which they are worth being looked at together."""
LONGEST = 256
"""Bytes of a record beyond which it is looked at alone."""
_HEADER, _FRAME = 12, 16
"""Bytes before a record, and around it."""


def records(data: bytes, prefixes: Sequence[bytes]) -> tuple[int, list[bytes]]:
    """Up to which byte a file is a row of whole records, and those of them that can matter.

    Left out are those that hold one scalar whose tag begins with none of `prefixes`, and nothing else.
    """
    if len(data) < LONG:
        return 0, []
    import numpy as np

    begins, lengths = _chain(data)
    matters = np.zeros(len(begins), bool)
    sound = np.zeros(len(begins), bool)
    stored_sums = _words_at(data, begins + _HEADER + lengths)
    for length in np.flatnonzero(np.bincount(lengths)).tolist():
        which = np.flatnonzero(lengths == length)
        stored = stored_sums[which]
        if length > LONGEST or len(which) < MANY or not length:
            bodies = [data[at : at + length] for at in (begins[which] + _HEADER).tolist()]
            sound[which] = _masked(np.array([google_crc32c.value(body) for body in bodies], np.uint32)) == stored
            matters[which] = True
            continue
        rows = np.ndarray((len(data) - length + 1, length), np.uint8, data, strides=(1, 1))[begins[which] + _HEADER]
        differs = (rows != rows[0]).any(axis=0).tolist()
        sound[which] = _masked(_check_sums(rows, differs)) == stored
        matters[which] = ~_is_other(rows, differs, prefixes)
    whole = len(sound) if sound.all() else int(sound.argmin())
    if not whole:
        return 0, []
    kept = np.flatnonzero(matters[:whole])
    places = zip((begins[kept] + _HEADER).tolist(), lengths[kept].tolist(), strict=True)
    return int(begins[whole - 1] + lengths[whole - 1]) + _FRAME, [data[at : at + length] for at, length in places]


def _words_at(data: bytes, places: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The little-endian numbers of 4 bytes at these places, wherever they are."""
    import numpy as np

    found: NDArray[np.uint32] = np.ndarray((len(data) - 3, 4), np.uint8, data, strides=(1, 1))[places].view("<u4")[:, 0]
    return found


def _chain(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where records begin that stand one behind the other from the first byte on, and their lengths, in bytes.

    By their headers: a length below 65,536 has six zeros behind it, and what only looks so has another check sum.
    """
    import numpy as np

    found = np.flatnonzero(np.ndarray((len(data) - 7,), "<u8", data, strides=(1,)) < 1 << 16)  # at every byte
    found = found[found + _FRAME <= len(data)]
    headers = np.ndarray((len(data) - 11, _HEADER), np.uint8, data, strides=(1, 1))[found].view("<u4")
    are = _sums_of_lengths().take(headers[:, 0]) == headers[:, 2]
    found, lengths = found[are], headers[are, 0].astype(np.int64)
    ends = found + lengths + _FRAME
    follows = np.concatenate([found[:1] == 0, found[1:] == ends[:-1]]) & (ends <= len(data))
    many = len(follows) if follows.all() else int(follows.argmin())
    return found[:many], lengths[:many]


def _check_sums(rows: NDArray[np.uint8], differs: Sequence[bool]) -> NDArray[np.uint32]:
    """CRC32C of records of one length, (N, bytes).

    It is linear: that of the first one, and for each byte that differs from the first one's what that byte alone makes.
    Most bytes, as the tag's, are the same in all of them.
    """
    import numpy as np

    first = rows[0].tolist()
    same = np.uint32(google_crc32c.value(bytes(first)))
    sums = np.zeros(len(rows), np.uint32)
    for at, other in enumerate(differs):
        if other:
            table = _table(rows.shape[1] - 1 - at)
            same ^= table[first[at]]
            sums ^= table.take(rows[:, at])
    return sums ^ same


def _is_other(rows: NDArray[np.uint8], differs: Sequence[bool], prefixes: Sequence[bytes]) -> NDArray[np.bool_]:
    """Which records are an Event of a time, a step (a varint, or none) and one scalar with another tag, and no more.

    Its bytes: 09 time(8) [10 step] 2a length 0a length 0a length tag 15 value(4).
    """
    import numpy as np

    other = np.zeros(len(rows), bool)
    same = rows[0].tolist()
    for digits in (2, 1, 3, 4, 5, 0):
        bounds, tag, size = _layout(rows.shape[1], digits)
        if size < 0 or other.all():
            continue
        fits = _within(rows, same, differs, bounds)
        for prefix in prefixes if fits is not np.False_ else ():
            if len(prefix) <= size:
                fits = fits & ~_within(rows, same, differs, [(at, byte, byte) for at, byte in enumerate(prefix, tag)])
        other |= fits
    return other


@cache
def _layout(length: int, digits: int) -> tuple[tuple[tuple[int, int, int], ...], int, int]:
    """Of such a record whose step has so many bytes: (byte, lowest, highest), where its tag is, and its size.

    A negative size: there is no such record, or its lengths have more bytes.
    """
    summary = 9 + (1 + digits if digits else 0)
    tag, end = summary + 6, length - 5
    marks = {0: 0x09, summary: 0x2A, summary + 2: 0x0A, summary + 4: 0x0A, end: 0x15}
    marks |= {at: length - at - 1 for at in (summary + 1, summary + 3)} | {summary + 5: end - tag}
    marks |= {9: 0x10} if digits else {}
    step = ((at, *((0, 0x7F) if at == summary - 1 else (0x80, 0xFF))) for at in range(10, summary))
    return (*((at, mark, mark) for at, mark in marks.items()), *step), tag, end - tag if length <= 0x80 else -1


def _within(
    rows: NDArray[np.uint8], same: Sequence[int], differs: Sequence[bool], bounds: Sequence[tuple[int, int, int]]
) -> Any:
    """Of which rows each of these bytes is within its bounds; those that are the same in all are looked at once."""
    import numpy as np

    if not all(low <= same[at] <= high for at, low, high in bounds if not differs[at]):
        return np.False_
    fits: Any = np.True_
    for at, low, high in bounds:
        if differs[at]:
            column = rows[:, at]
            fits = fits & (column == low if low == high else (column >= low) & (column <= high))
    return fits


def _masked(sums: NDArray[np.uint32]) -> NDArray[np.uint32]:
    import numpy as np

    turned: NDArray[np.uint32] = (sums >> np.uint32(15)) | (sums << np.uint32(17))
    return turned + np.uint32(0xA282EAD8)


@cache
def _table(behind: int) -> NDArray[np.uint32]:
    """By byte: what it changes in the CRC32C of a record, against a zero, where so many bytes stand behind it."""
    import numpy as np

    zero = google_crc32c.value(bytes(1 + behind))
    return np.array([google_crc32c.value(bytes([byte]) + bytes(behind)) ^ zero for byte in range(256)], np.uint32)


@cache
def _sums_of_lengths() -> NDArray[np.uint32]:
    """By a length below 65,536: its masked CRC32C, as a header has it."""
    import numpy as np

    zero = google_crc32c.value(bytes(8))
    low = [google_crc32c.value(bytes([byte]) + bytes(7)) for byte in range(256)]
    high = [google_crc32c.value(bytes([0, byte]) + bytes(6)) ^ zero for byte in range(256)]
    return _masked((np.array(high, np.uint32)[:, None] ^ np.array(low, np.uint32)).ravel())
