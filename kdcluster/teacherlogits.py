"""The store of a teacher's logits on disk, without torch: what is in it, what of it can be trusted.

runs/teacher-logits-…/logits/manifest.json      what they are of, and a check sum for each view
                             view-00012.npy     float16 (N, C): row i is of image i of the whole training set
                             view-00012.damaged where it was found wrong: nobody reads it, the next submit heals it
                             .partial.npy .partial.json   the view that is being made, kept where that was interrupted

Letters: N images of the whole training set, C classes. View v is what epoch v shows (train/views.py).
docs/teacher-logits.md has the format and a reader of twenty lines.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.errors import Damaged, KdclusterError
from kdcluster.files import write_json
from kdcluster.rows import ITEM, WRONG, Rows, behind_header, crc32c_of, size_of_file, sum_of

SCHEMA = "kdcluster.teacher-logits/1"
NO_FILE = (errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.ENOTDIR)
"""What a view's path says where there is none; of other errors this machine may be the reason."""
EARLIER = "bf16"
"""What `amp: auto` was before results said in which precision a run was trained."""


class Missing(KdclusterError):
    """A view that does not stand whole in the store, with why; whoever wants it computes it."""

    def __init__(self, why: str, *, damaged: bool = True) -> None:
        super().__init__(why)
        self.damaged = damaged


@dataclass(frozen=True)
class Store:
    """The logits of one run of role teacher-logits.

    Args:
        run: the run's folder.
        of: what the manifest has to say of what the logits are of: run, teacher, weights, precision, images, classes.
    """

    run: Path
    of: Mapping[str, Any]

    @property
    def row(self) -> int:
        """Bytes of the logits of an image."""
        return int(self.of["classes"]) * ITEM

    @property
    def folder(self) -> Path:
        return self.run / "logits"

    def path(self, view: int) -> Path:
        return self.folder / f"view-{view:05}.npy"

    def manifest(self) -> dict[str, Any]:
        """What stands in it; with no view where there is nothing, or what is there is of something else.

        Raises:
            Missing: it cannot be read.
        """
        try:
            values = records.read(self.folder / "manifest.json")
        except Damaged as error:
            raise Missing(f"the store's manifest is damaged: {error.why}") from None
        if values is None:
            return self.empty()
        for key, wanted in {"schema": SCHEMA, **self.of}.items():
            if values.get(key) != wanted:
                raise Missing(f"the store's manifest says {key} {values.get(key)!r}, and {wanted!r} is wanted")
        return dict(values)

    def empty(self) -> dict[str, Any]:
        """The manifest of no view."""
        return {"schema": SCHEMA, **self.of, "views": {}}

    def read(self, view: int, largest: int) -> Any:
        """A view whose check sum was right: an array, float16 (N, C), or `Rows` of a file larger than `largest` bytes.

        What is read into memory nobody can change any more.

        Raises:
            Missing: it is not there, or damaged; then that is noted for the next submit.
        """
        import numpy as np

        path, expected = self._listed(view)
        with self._noting(view):
            if size_of_file(path) > largest:
                return Rows(path, self._shape, expected)
            content = bytearray(size_of_file(path))
            with path.open("rb") as file:
                file.readinto(content)
            if sum_of(io.BytesIO(content)) != expected:
                raise ValueError(WRONG)
            first = behind_header(io.BytesIO(content[:256]), self._shape)
            return np.frombuffer(content, np.float16, offset=first).reshape(self._shape)

    def mapped(self, view: int, *, summed: bool) -> Any:
        """A view as an array that is mapped from its file, for whoever looks at it once; `summed`: check it before.

        Raises:
            Missing: as `read`.
        """
        import numpy as np

        path, expected = self._listed(view)
        with self._noting(view):
            if summed and crc32c_of(path) != expected:
                raise ValueError(WRONG)
            with path.open("rb") as header:
                behind_header(header, self._shape)
            return np.load(path, mmap_mode="c")  # nobody writes to it, but torch warns of what cannot be written to

    @property
    def _shape(self) -> tuple[int, int]:
        return self.of["images"], self.of["classes"]

    def _listed(self, view: int) -> tuple[Path, int]:
        """Where a view lies, and its check sum."""
        known = self.manifest()["views"].get(str(view))
        if known is None:
            raise Missing("it is not there (yet)", damaged=False)
        marker = records.found(self.path(view).with_suffix(".damaged")) or {}
        if marker.get("crc32c") == known["crc32c"]:
            raise Missing(marker["why"])
        return self.path(view), known["crc32c"]

    @contextmanager
    def _noting(self, view: int) -> Iterator[None]:
        """Note what is wrong with a view for the next submit, unless it may be this machine that cannot read it."""
        try:
            yield
        except (OSError, ValueError) as error:
            why = f"{getattr(error, 'strerror', None) or error}"
            if isinstance(error, OSError) and error.errno not in NO_FILE:
                raise Missing(f"it cannot be read ({why})") from None
            self.mark(view, why)
            raise Missing(f"it is damaged ({why})") from None

    def mark(self, view: int, why: str, crc32c: int | None = None) -> None:
        """Have a view that is not right be made again by the next submit.

        `crc32c`: of one that is wrong although its check sum is right, so that nobody reads it meanwhile.
        """
        with suppress(OSError):  # another user's, or a full disk
            write_json(self.path(view).with_suffix(".damaged"), {"why": why, "crc32c": crc32c})

    def list(self, manifest: Mapping[str, Any], view: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Put a view that is on disk into the manifest; returns the new one."""
        listed = {**manifest, "views": {**manifest["views"], str(view): dict(entry)}}
        write_json(self.folder / "manifest.json", listed)
        self.path(view).with_suffix(".damaged").unlink(missing_ok=True)
        return listed

    def whole(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest without the views whose files are not as it says.

        By sizes, and by the check sum of what a reader has found damaged, which may be whole after all: to read all
        views of a large store takes longer than some preemptions leave, and it would never gain.
        """
        views = {}
        for view, entry in manifest["views"].items():
            path = self.path(int(view))
            note = path.with_suffix(".damaged")
            with suppress(Missing):
                if note.exists() or not _is_whole(path, manifest):
                    self.mapped(int(view), summed=True)
                    note.unlink(missing_ok=True)
                views[view] = entry
        return {**manifest, "views": views}


def precision(teacher: Path) -> str:
    """The precision in which the teacher in a run's folder was trained and evaluated; float32 where there is no result.

    Raises:
        Damaged: its result cannot be read.
    """
    result = records.read(teacher / "result.json")
    if not result:
        return "none"
    known = str(result.get("amp") or records.config(teacher / "config.yaml")[0].amp)
    return EARLIER if known == "auto" else known


def held(run: Path) -> int:
    """How many views a run's folder holds by its manifest; 0 for a run that is no store."""
    return len((records.found(run / "logits" / "manifest.json") or {}).get("views", ()))


def about(run: Path) -> dict[str, Any]:
    """What a run's folder holds by its manifest.

    {"views", "bytes", "images", "classes", "precision", "devices", "tolerance", "top1": [least, most]}: what is not
    known is null.
    """
    known: dict[str, Any] = records.found(run / "logits" / "manifest.json") or {"views": {}}
    entries = known["views"].values()
    right, far = ([e[key] for e in entries if e.get(key) is not None] for key in ("top1", "tolerance"))
    found = {key: known.get(key) for key in ("images", "classes", "precision")}
    return {
        "views": len(entries),
        "bytes": size_of(known["images"], known["classes"], len(entries)) if entries else 0,
        **found,
        "devices": sorted({entry["device"] for entry in entries if "device" in entry}),
        "tolerance": max(far, default=None),
        "top1": [min(right, default=None), max(right, default=None)],
    }


def problem(run: Path, views: int, of: Mapping[str, Any]) -> str:
    """Why a store has to be made further before it has so many views; empty where it has. By names and sizes alone.

    `of`: what its manifest has to say of what the logits are of, as far as that is known.
    """
    known = records.found(run / "logits" / "manifest.json") or {}
    if other := [key for key, wanted in {"schema": SCHEMA, **of}.items() if known and known.get(key) != wanted]:
        return "its teacher has other weights now" if other == ["weights"] else f"it is of another {', '.join(other)}"
    listed, names = known.get("views", {}), set(records.entries(run / "logits"))
    wrong = [v for v in range(views) if f"view-{v:05}.damaged" in names and str(v) in listed]
    wrong += [int(v) for v in listed if not _is_whole(run / "logits" / f"view-{int(v):05}.npy", known)]
    if wrong:
        return f"view {min(wrong)} is damaged"
    there = sum(str(view) in listed for view in range(views))
    return f"holds {there} of {views} views" if there < views else ""


def _is_whole(path: Path, known: Mapping[str, Any]) -> bool:
    try:
        return size_of_file(path) > size_of(known["images"], known["classes"], 1)  # there is a header
    except OSError:
        return False


def size_of(images: int, classes: int, views: int) -> int:
    """Bytes of so many views."""
    return images * classes * ITEM * views
