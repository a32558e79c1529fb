"""The framing of a TensorBoard event file, with every lost byte found.

A file is a row of records, little-endian: length (uint64), masked CRC32C of the length, data, masked CRC32C
of the data (tensorflow/core/lib/io/record_writer.h). TensorBoard's own reader stops without a word at the
first wrong checksum, so one flipped bit costs it the rest of the run; this one looks for the next header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import google_crc32c

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_FRAME = _HEADER.size + _CHECKSUM.size


@dataclass(frozen=True)
class Frames:
    """The records of one file, and what is not one."""

    records: list[bytes]
    lost: list[tuple[int, int]]
    """Damaged places as (offset, size), in bytes."""
    tail: int
    """Bytes of an unfinished last record; 0: the file ends with a whole one."""
    settled: int
    """Up to which byte all stays as it is, whatever the file is given yet."""
    open: bool
    """Whether there are records behind that."""


def split(data: bytes, base: int = 0) -> Frames:
    """The records of a file whose checksums hold; after a wrong one, on from the next valid header.

    Args:
        data: the file from byte `base` on, where a record begins.
        base: that is added to all places.
    """
    records: list[bytes] = []
    lost: list[tuple[int, int]] = []
    settled: int | None = None
    behind = at = tail = 0
    while at < len(data):
        record = _record(data, at)
        if record is not None:
            records.append(record)
            behind += settled is not None
            at += len(record) + _FRAME
            continue
        following = _next_header(data, at + 1)
        begun = _begun(data, at)
        if settled is None and (begun or following == len(data)):  # more of the file may make a record of it
            settled = at
        if begun and following == len(data):
            tail = following - at
        else:
            lost.append((base + at, following - at))
        at = following
    return Frames(records, lost, tail, base + (at if settled is None else settled), behind > 0)


def _record(data: bytes, at: int) -> bytes | None:
    """The record that begins at `at`, or None where it is not whole or a checksum is wrong."""
    begin = at + _HEADER.size
    length = _length(data[at:begin])
    if length is None or begin + length + _CHECKSUM.size > len(data):
        return None
    record = data[begin : begin + length]
    (checksum,) = _CHECKSUM.unpack_from(data, begin + length)
    return record if _masked(record) == checksum else None


def _begun(data: bytes, at: int) -> bool:
    """Whether what stands from `at` to the end is the beginning of a record that is still being written."""
    length = _length(data[at : at + _HEADER.size])
    return len(data) - at < (_HEADER.size if length is None else length + _FRAME)


@lru_cache(maxsize=4096)
def _length(header: bytes) -> int | None:
    """The length in bytes that a valid header gives; remembered, since a run's records have few lengths."""
    if len(header) < _HEADER.size:
        return None
    length, checksum = _HEADER.unpack(header)
    return int(length) if _masked(header[:8]) == checksum else None


def _next_header(data: bytes, start: int) -> int:
    """Where the next valid header begins, or the end; a length below 4 GB has four zeros above."""
    at = data.find(b"\0\0\0\0", start + 4)
    while at >= 0:
        if _length(data[at - 4 : at + 8]) is not None:
            return at - 4
        at = data.find(b"\0\0\0\0", at + 1)
    return len(data)


def _masked(data: bytes) -> int:
    """TensorFlow's masked CRC32C (tensorflow/core/lib/hash/crc32c.h)."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
