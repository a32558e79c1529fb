"""TensorBoard event files to scalars, with every lost byte reported.

A file is a row of records, little-endian: length (uint64), masked CRC32C of the length, data, masked CRC32C
of the data (tensorflow/core/lib/io/record_writer.h). TensorBoard's own reader stops without a word at the
first wrong checksum, so one flipped bit costs it the rest of the run; this one looks for the next header.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import google_crc32c
from tensorboard.compat.proto import event_pb2

from kdcluster.wording import count

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_FRAME = _HEADER.size + _CHECKSUM.size
_SESSION_LOG_KEY = ":"
"""First byte of Event.session_log on the wire (field 7): a record without it cannot hold one."""
_DT_FLOAT = 1


class Point(NamedTuple):
    """One value of one tag."""

    step: int
    """Optimizer step."""
    wall_time: float
    """Seconds since 1970."""
    value: float
    """A float32, as read."""
    attempt: int
    """The attempt that wrote it; 0 where the file's name does not say."""


@dataclass(frozen=True)
class Scalars:
    """What the event files of one run hold."""

    points: dict[str, list[Point]]
    """Per tag, by rising step."""
    problems: tuple[str, ...]
    """Damage, doubled points and impossible values, each naming the file or the tag."""
    incomplete: tuple[str, ...]
    """Files that end inside a record: no damage while the run is alive, or where an attempt was killed."""


@dataclass(frozen=True)
class Frames:
    """The records of one file, and what is not one."""

    records: list[bytes]
    lost: list[tuple[int, int]]
    """Damaged places as (offset, size), in bytes."""
    tail: int
    """Bytes of an unfinished last record; 0: the file ends with a whole one."""


def read_scalars(folder: Path, prefixes: Sequence[str] = ("test/", "val/")) -> Scalars:
    """All scalars of a run whose tag begins with one of `prefixes`, over all files of its `events/` folder.

    A START record at step k removes what came before it with a step >= k, across files. Without one a newer
    point still removes older points of its tag from its step on; where the same attempt wrote both (two
    writers, or a damaged START) that is reported. Values that are not finite, and a top1 or top5 outside
    0..100 (percent), are reported and left out. A folder that is not there holds nothing.
    """
    history = _History(tuple(prefixes))
    problems: list[str] = []
    incomplete: list[str] = []
    for path in event_files(folder):
        try:
            frames = split(path.read_bytes())
        except OSError as error:
            problems.append(f"{path.name}: cannot be read: {error.strerror}")
            continue
        if frames.lost:
            size, first = sum(size for _, size in frames.lost), frames.lost[0][0]
            where = f"{count(len(frames.lost), 'damaged place')}, the first at byte {first}"
            problems.append(f"{path.name}: {count(size, 'byte')} lost in {where}")
        if frames.tail:
            incomplete.append(f"{path.name}: ends inside a record, after {count(frames.tail, 'byte')} of it")
        for record in frames.records:
            history.take(record, attempt_of(path))
    points, odd = history.sound()
    return Scalars(points, (*problems, *odd), tuple(incomplete))


def event_files(folder: Path) -> list[Path]:
    """Event files in the order in which they were written: by attempt, creation time (s), name."""
    if not folder.is_dir():
        return []
    created = {p: re.match(r"events\.out\.tfevents\.(\d+)", p.name) for p in folder.iterdir()}
    found = [(attempt_of(path), int(match[1]), path.name, path) for path, match in created.items() if match]
    return [path for *_, path in sorted(found)]


def attempt_of(path: Path) -> int:
    """The attempt in an event file's name (suffix `.a<attempt>`), or 0."""
    match = re.search(r"\.a(\d+)$", path.name)
    return int(match[1]) if match else 0


def split(data: bytes) -> Frames:
    """The records of a file whose checksums hold; after a wrong one, on from the next valid header."""
    records: list[bytes] = []
    lost: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        record = _record(data, at)
        if record is not None:
            records.append(record)
            at += len(record) + _FRAME
            continue
        following = _next_header(data, at + 1)
        if following == len(data) and _begun(data, at):
            return Frames(records, lost, following - at)
        lost.append((at, following - at))
        at = following
    return Frames(records, lost, 0)


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


@dataclass
class _History:
    """The points of a run while its records are taken in one after the other."""

    prefixes: tuple[str, ...]
    points: dict[str, list[Point]] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.worth_parsing = re.compile("|".join(map(re.escape, (_SESSION_LOG_KEY, *self.prefixes))).encode())

    def take(self, record: bytes, attempt: int) -> None:
        """Add a record's scalars, after removing what they supersede.

        A record that can hold neither a wanted tag nor a SessionLog is not parsed: that is half the time.
        """
        if not self.worth_parsing.search(record):
            return
        event = event_pb2.Event.FromString(record)
        if event.session_log.status == event_pb2.SessionLog.START:
            for points in self.points.values():
                _cut(points, event.step)
        for tag, value in _scalars(event):
            if tag.startswith(self.prefixes):
                points = self.points.setdefault(tag, [])
                if again := sum(point.attempt == attempt for point in _cut(points, event.step)):
                    self.doubled[tag] = self.doubled.get(tag, 0) + again
                points.append(Point(event.step, event.wall_time, value, attempt))

    def sound(self) -> tuple[dict[str, list[Point]], list[str]]:
        """The points that a measurement can have given, and what was wrong with the others."""
        kept: dict[str, list[Point]] = {}
        problems = [
            f"{tag}: {count(number, 'point')} replaced by the same attempt, without a purge (two writers?)"
            for tag, number in self.doubled.items()
        ]
        for tag, points in self.points.items():
            kept[tag] = [point for point in points if possible(tag, point.value)]
            if wrong := [point for point in points if not possible(tag, point.value)]:
                first = f"{wrong[0].value:g} at step {wrong[0].step}"
                problems.append(f"{tag}: {count(len(wrong), 'impossible value')} left out, the first {first}")
        return {tag: points for tag, points in kept.items() if points}, problems


def _cut(points: list[Point], step: int) -> list[Point]:
    """Remove, and return, the points from `step` on."""
    keep = len(points)
    while keep and points[keep - 1].step >= step:
        keep -= 1
    removed = points[keep:]
    del points[keep:]
    return removed


def _scalars(event: event_pb2.Event) -> Iterator[tuple[str, float]]:
    """(tag, value) of the scalars: `simple_value`, or a float tensor of one element (torch's new_style)."""
    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, value.simple_value
        elif value.HasField("tensor") and value.tensor.dtype == _DT_FLOAT:
            content = value.tensor.tensor_content
            numbers = [n for (n,) in struct.iter_unpack("<f", content)] if content else value.tensor.float_val
            if len(numbers) == 1:
                yield value.tag, numbers[0]


def possible(tag: str, value: float) -> bool:
    """Whether a measurement can have this value; top1 and top5 are in percent."""
    percent = tag.rpartition("/")[2] in ("top1", "top5")
    return math.isfinite(value) and (not percent or 0 <= value <= 100)
