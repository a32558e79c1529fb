"""What the event files and predictions of a runs directory hold, so that those which are as they were need not be read
again.

`.index/events-<uid>` in the runs directory: a line that says by which code it was written, then a line for each file,
with a check sum. It is only ever a shortcut: whoever cannot write it, or cannot trust it (it is damaged, other
users can change it, other code has written it), reads the files. Each user has one, and believes no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from kdcluster.errors import ConfigError
from kdcluster.files import write_aside
from kdcluster.ownership import own_text, shared_folder
from kdcluster.rereading import Stamp, is_settled
from kdcluster.results.frames import Frames

_NAME = re.compile(r"[\w.-]+/(events|predictions)/[\w.-]+", re.ASCII)
"""Of such a file below the runs directory; one with another name is read each time."""


class Known(NamedTuple):
    """An event file as it was when it was read."""

    stamp: Stamp
    lost: list[tuple[int, int]]
    tail: int
    settled: int
    open: bool
    """These as in frames.Frames, of the whole file."""
    check: int
    """CRC32C of what is settled."""
    told: list[Any]
    """What its records say, as events.py has it."""

    @classmethod
    def of(cls, stamp: Stamp, frames: Frames, content: bytes, told: list[Any]) -> Known:
        """Of a file that was read as a whole."""
        check = google_crc32c.value(content[: frames.settled])
        return cls(stamp, frames.lost, frames.tail, frames.settled, frames.open, check, told)

    def is_begun_by(self, content: bytes) -> bool:
        """Whether a file is this one, with more behind it."""
        return not self.open and self.check == google_crc32c.value(content[: self.settled])


class Counts(NamedTuple):
    """Predictions as they were when they were read."""

    stamp: Stamp
    right: int
    at_most: int
    """These as `scores.right` has them."""
    images: int
    labels: int
    """CRC32C of the labels: whose are equal are of the same images in the same order."""
    hits: str
    """A bit for each image, in base64: whether the largest logit is the label's. 1.7 kB for 10,000 images of 2 MB."""


class Index:
    """The files of a runs directory; reading never creates anything, `save` does."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / ".index" / f"events-{os.geteuid()}"
        self._lines = _read(self._path)
        self._changed = False

    def of(self, path: Path) -> Known | None:
        """What is known of an event file, whatever it is now."""
        if not (found := self._found(path)):
            return None
        stamp, lost, *rest = found
        return Known(tuple(stamp), list(map(tuple, lost)), *rest)

    def counts(self, path: Path) -> Counts | None:
        """What is known of predictions, whatever they are now."""
        if not (found := self._found(path)):
            return None
        stamp, *rest = found
        return Counts(tuple(stamp), *rest)

    def note(self, path: Path, known: Known | Counts) -> None:
        """Remember a file that was read; not where it may be changing just now."""
        name = self._name(path)
        if _NAME.fullmatch(name) and is_settled(known.stamp):
            text = json.dumps(known, separators=(",", ":"))
            self._lines[name] = f"{_check(text)}\t{text}"
            self._changed = True

    def save(self) -> None:
        """Write what is new, without the runs that are gone."""
        if not self._changed:
            return
        there = {name for name in {name.partition("/")[0] for name in self._lines} if (self._root / name).is_dir()}
        lines = (f"{name}\t{line}" for name, line in self._lines.items() if name.partition("/")[0] in there)
        try:
            shared_folder(self._path.parent)
            write_aside(self._path, "\n".join([_version(), *lines, ""]), sync=False)
        except OSError:
            pass  # a directory that is another user's, or a full disk, is no reason to refuse a table

    def _found(self, path: Path) -> list[Any]:
        check, _, text = self._lines.get(self._name(path), "").partition("\t")
        found: list[Any] = json.loads(text) if text and check == _check(text) else []
        return found

    def _name(self, path: Path) -> str:
        return os.fspath(path)[len(os.fspath(self._root)) + 1 :]


def _read(path: Path) -> dict[str, str]:
    """By file: its check sum and what is known of it, not looked at yet."""
    try:
        version, *lines = own_text(path).split("\n")
    except (OSError, ConfigError, ValueError):  # not there, others can have written it, no text
        return {}
    if version != _version():
        return {}
    cut = (line.partition("\t") for line in lines if line)
    return {name: rest for name, _, rest in cut}


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


@cache
def _version() -> str:
    """Of the code that reads these files: what it has read may be read otherwise tomorrow."""
    digest = hashlib.sha256()
    for name in ("events", "frames", "index", "recount", "scores", "sound"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return f"kdcluster.events/1 {digest.hexdigest()}"
