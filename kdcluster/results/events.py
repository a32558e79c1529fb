"""TensorBoard event files to scalars, with every lost byte reported; read on while a run writes."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kdcluster.rereading import stamp_of
from kdcluster.results import sound
from kdcluster.results.frames import Frames, split
from kdcluster.results.index import Index, Known
from kdcluster.wording import count

if TYPE_CHECKING:
    from tensorboard.compat.proto import event_pb2

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


PREFIXES = ("test/", "val/")
"""Of the tags that are read where no others are named; an index has these."""


def read_scalars(folder: Path, prefixes: Sequence[str] = PREFIXES, index: Index | None = None) -> Scalars:
    """All scalars of a run whose tag begins with one of `prefixes`, over all files of its `events/` folder.

    A START record at step k removes what came before it with a step >= k, across files. Without one a newer
    point still removes older points of its tag from its step on; where the same attempt wrote both (two
    writers, or a damaged START) that is reported. Values that are not finite, and a top1 or top5 outside
    0..100 (percent), are reported and left out. A folder that is not there holds nothing.

    `index`: where to look up what a file holds that is as it was, and to note what was read; of PREFIXES alone.
    """
    return Follower(folder, prefixes, index).look()


Told = tuple[int, float, bool, list[tuple[str, float]]]
"""What a record says: step, time, whether an attempt begins with it, (tag, value) of each scalar."""


@dataclass
class _Read:
    """What has been read of one file."""

    inode: int = 0
    size: int = 0
    frames: Frames = field(default_factory=lambda: Frames([], [], 0, 0, False))
    """Of the last look, from where the one before was settled."""
    lost: list[tuple[int, int]] = field(default_factory=list)
    """Damaged places before that."""


class Follower:
    """`read_scalars` again and again while a run writes: each look goes on from where the last one ended.

    It gives what reading everything would, and does that where another file than the newest has changed, or where
    damage leaves open which records there are.
    """

    def __init__(self, folder: Path, prefixes: Sequence[str] = PREFIXES, index: Index | None = None) -> None:
        self.folder, self._prefixes = folder, tuple(prefixes)
        self._index = index if self._prefixes == PREFIXES else None
        self._begin()

    def _begin(self) -> None:
        self._history = _History(self._prefixes)
        self._files: dict[Path, _Read] = {}
        self._again = False

    def look(self) -> Scalars:
        """What there is now."""
        files = event_files(self.folder)
        if self._again or not self._only_grown(files):
            self._begin()
        newest = next(reversed(self._files), None)
        problems: list[str] = []
        incomplete: list[str] = []
        for path in files:
            try:
                if path == newest or path not in self._files:
                    self._read_on(path)
            except OSError as error:
                problems.append(f"{path.name}: cannot be read: {error.strerror}")
                self._again = True
                continue
            read = self._files[path]
            if lost := [*read.lost, *read.frames.lost]:
                where = f"{count(len(lost), 'damaged place')}, the first at byte {lost[0][0]}"
                problems.append(f"{path.name}: {count(sum(size for _, size in lost), 'byte')} lost in {where}")
            if tail := read.frames.tail:
                incomplete.append(f"{path.name}: ends inside a record, after {count(tail, 'byte')} of it")
        points, odd = self._history.sound()
        return Scalars(points, (*problems, *odd), tuple(incomplete))

    def _only_grown(self, files: Sequence[Path]) -> bool:
        """Whether all that was read is still there, and what is new stands behind it."""
        known = list(self._files)
        if files[: len(known)] != known:
            return False
        for path, read in self._files.items():
            try:
                now = path.stat()
            except OSError:
                return False
            grown = now.st_size > read.size and path == known[-1]
            if now.st_ino != read.inode or not (grown or now.st_size == read.size):
                return False
        return True

    def _read_on(self, path: Path) -> None:
        is_first = path not in self._files
        known = self._index.of(path) if self._index and is_first else None
        attempt, told = attempt_of(path), []
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            if known and known.stamp == stamp:
                return self._look_up(path, known)
            read = self._files.get(path, _Read())
            base = read.frames.settled
            file.seek(base)
            content = file.read()
        read.inode, read.size = stamp[3], base + len(content)
        read.lost += [place for place in read.frames.lost if place[0] < base]
        if known and known.is_begun_by(content):
            base, told = known.settled, known.told
            read.lost += [place for place in known.lost if place[0] < base]
            self._history.add(told, attempt)
        data = content[base:] if is_first else content
        begun, records = sound.records(data, [prefix.encode() for prefix in self._prefixes])
        frames = split(data[begun:], base + begun)
        told += [said for record in (*records, *frames.records) if (said := self._history.take(record, attempt))]
        read.frames = replace(frames, records=[])
        self._files[path] = read
        self._again |= frames.open
        if self._index and is_first and len(content) == stamp[0]:
            whole = replace(read.frames, lost=[*read.lost, *frames.lost])
            self._index.note(path, Known.of(stamp, whole, content, told))

    def _look_up(self, path: Path, known: Known) -> None:
        """Take a file that is as it was for what was in it."""
        self._history.add(known.told, attempt_of(path))
        frames = Frames([], known.lost, known.tail, known.settled, known.open)
        self._files[path] = _Read(known.stamp[3], known.stamp[0], frames)
        self._again |= known.open


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


@dataclass
class _History:
    """The points of a run while its records are taken in one after the other."""

    prefixes: tuple[str, ...]
    points: dict[str, list[Point]] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.worth_parsing = re.compile("|".join(map(re.escape, (_SESSION_LOG_KEY, *self.prefixes))).encode())

    def take(self, record: bytes, attempt: int) -> Told | None:
        """Add what a record says, after removing what it supersedes; None where it says nothing that is wanted.

        A record that can hold neither a wanted tag nor a SessionLog is not parsed: that is half the time.
        """
        if not self.worth_parsing.search(record):
            return None
        event = _event().FromString(record)
        begins = event.session_log.status == event.session_log.START
        values = [(tag, value) for tag, value in _scalars(event) if tag.startswith(self.prefixes)]
        if not (begins or values):
            return None
        told = (event.step, event.wall_time, begins, values)
        self.add([told], attempt)
        return told

    def add(self, told: Iterable[Told], attempt: int) -> None:
        """Add what records say, one after the other."""
        for step, wall_time, begins, values in told:
            if begins:
                for points in self.points.values():
                    _cut(points, step)
            for tag, value in values:
                points = self.points.setdefault(tag, [])
                if again := sum(point.attempt == attempt for point in _cut(points, step)):
                    self.doubled[tag] = self.doubled.get(tag, 0) + again
                points.append(Point(step, wall_time, value, attempt))

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


@cache
def _event() -> type[event_pb2.Event]:
    """Imported where one is parsed: it takes a while, and what an index knows needs none of it."""
    from tensorboard.compat.proto import event_pb2

    made: type[event_pb2.Event] = event_pb2.Event
    return made


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
