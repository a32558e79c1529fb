"""The run that stores a teacher's logits, on all its ranks; view by view, so that what is there only grows.

Letters: N images of the whole training set, C classes, W ranks. A round is a forward pass of every rank, of W · ROWS
images.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from kdcluster import records
from kdcluster.errors import Damaged
from kdcluster.files import sync_folder, trainer_code, write_json
from kdcluster.plan import Run
from kdcluster.rows import crc32c_of
from kdcluster.runs import Attempt, RunDir
from kdcluster.teacherlogits import Missing, Store
from kdcluster.train import feed, models
from kdcluster.train.distributed import World
from kdcluster.train.publish import check_newest, surroundings, tidy
from kdcluster.train.shown import shown
from kdcluster.train.teacher_logits import ROWS, Forward, load_teacher, made_by, store_of
from kdcluster.wording import count

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between two heartbeats."""


def store_logits(
    run_dir: RunDir, run: Run, attempt: Attempt, world: World, images: feed.Split, asked_to_stop: Callable[[], bool]
) -> None:
    """Make the views that a store lacks, and its result.

    Args:
        run_dir: of the store.
        run: likewise.
        attempt: which start this is.
        world: its processes, of which the first one writes.
        images: the whole training set.
        asked_to_stop: whether somebody wants this process to end.

    Raises:
        KdclusterError: the teacher has no usable weights; another attempt has begun.
    """
    forward = load_teacher(run_dir.root, run, world)
    store = store_of(run_dir.root, run.id, run, len(images.labels))
    facts = {"params": models.parameters(forward.net), "amp": forward.amp, "trainer_code": trainer_code()}
    if world.rank == 0:
        assert run.teacher is not None
        log.info("the logits of %s, %s parameters; precision %s", run.teacher.id, f"{facts['params']:,}", forward.amp)
        attempt.write("trainer", {**facts, **surroundings(world)})
    maker = Maker(run_dir, run, attempt, world, images, forward, store, asked_to_stop)
    finished = maker.make()
    if world.rank != 0:
        return
    if not finished:
        attempt.write("preempted", {"step": maker.step})
        return log.info("stopped on request: what was made is kept, and goes on from there")
    check_newest(run_dir, attempt)
    known = {"schema": "kdcluster.result/1", "id": run.id, "hash": run.hash, "attempt": attempt.number}
    write_json(run_dir.path / "result.json", {**known, "views": len(maker.manifest["views"]), **facts})


@dataclass
class Maker:
    """Adds to a store the views that it lacks; the arguments are those of `store_logits`."""

    run_dir: RunDir
    run: Run
    attempt: Attempt
    world: World
    images: feed.Split
    forward: Forward
    store: Store
    asked_to_stop: Callable[[], bool]
    manifest: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    """Of this attempt."""
    step: int = 0
    """Rounds in all, as heartbeats count them."""
    _started: float = field(default_factory=time.perf_counter)
    _beat_at: float = 0.0

    def make(self) -> bool:
        """Make what is missing; False: it was stopped before."""
        if self.world.rank == 0:
            self._begin()
        stop = False
        while (view := self.world.from_first(self._missing())) >= 0:
            if stop:
                return False
            stop = self._make(view)
        self._beat(0, force=True)
        return True

    def _missing(self) -> int:
        """On the first rank the first view that is not there, -1 for none; another submit may have asked for more."""
        listed = self.manifest.get("views", {})
        self.run = self.run_dir.load()
        return next((view for view in range(self.run.views or 0) if str(view) not in listed), -1)

    def _begin(self) -> None:
        """Take over what stands whole; what is of other weights, or damaged, is made again."""
        self.store.folder.mkdir(exist_ok=True)
        tidy(self.run_dir, self.attempt)
        try:
            known = self.store.manifest()
        except Missing as why:
            log.warning("all views are made again: %s", why)
            known = self.store.empty()
        self.manifest = self.store.whole(known)
        write_json(self.store.folder / "manifest.json", self.manifest)
        if gone := sorted(map(int, known["views"].keys() - self.manifest["views"].keys())):
            log.warning("damaged, and made again: view %s", ", ".join(map(str, gone)))
        if there := len(self.manifest["views"]):
            log.info("%s of %d there", count(there, "view"), self.run.views)

    def _make(self, view: int) -> bool:
        """One view, or some rounds of it that are kept; returns whether somebody wants this to end.

        At least one round, however early the stop was asked for: what is stopped again and again gains, too.
        """
        part = Part.open(self.store, view) if self.world.rank == 0 else None
        with closing(part.file) if part else nullcontext():
            return self._rest(view, part)

    def _rest(self, view: int, part: Part | None) -> bool:
        """What a view lacks, from the rows on that the first rank has of it in `part`."""
        total, each, stop = len(self.images.labels), ROWS * self.world.size, False
        for first in range(self.world.from_first(part.rows if part else 0), total, each):
            found = self.world.gather(self._round(view, first + ROWS * self.world.rank, total))
            if part:
                part.add(torch.cat(found)[: total - first], self.images.labels[first : first + each].cpu())
            self.rounds += 1
            self._beat(first + each)
            stop, _ = self.world.agree(stop=self.asked_to_stop(), save=False)
            if stop and first + each < total:
                if part:
                    part.keep()
                return stop
        if part:
            check_newest(self.run_dir, self.attempt)
            entry = part.finish() | {"device": self.world.device.type, "by": made_by(self.world.device)}
            entry["tolerance"] = self._tolerance
            self.manifest = self.store.list(self.manifest, view, entry)
            log.info("view %d: %.2f %% of its images as labelled", view, entry["top1"])
        return stop

    def _round(self, view: int, first: int, total: int) -> Tensor:
        """This rank's logits in a round, float16 (ROWS, C) on the CPU; what lies behind the last image is zero."""
        rows = torch.zeros(ROWS, self.run.num_classes, dtype=torch.float16)
        index = torch.arange(min(first, total), min(first + ROWS, total))
        if len(index):
            rows[: len(index)] = self.forward(pixels_of(self.run, self.images, view, index)).cpu()
        return rows

    @cached_property
    def _tolerance(self) -> float:
        """How far logits of one pass lie apart from those in another order, and on a GPU among fewer."""
        index = torch.arange(min(ROWS, len(self.images.labels)))
        pixels, other = pixels_of(self.run, self.images, 0, index), index.flip(0)
        size = ROWS // 4 if self.world.device.type == "cuda" else ROWS
        again = torch.cat([self.forward(some) for some in pixels[other].split(size)])
        return float((self.forward(pixels)[other].float() - again.float()).abs().nan_to_num().max())

    def _beat(self, rows: int, *, force: bool = False) -> None:
        """Say how far it is, unless forced at most once a second: a step is a round, an epoch a view."""
        now = time.perf_counter()
        if self.world.rank != 0:
            return
        each, total, there = ROWS * self.world.size, len(self.images.labels), len(self.manifest["views"])
        rounds, speed = -(-total // each), self.rounds / (now - self._started)
        self.step = there * rounds + -(-min(rows, total) // each)
        if now - self._beat_at < BEAT_S and not force:
            return
        self._beat_at = now
        check_newest(self.run_dir, self.attempt)
        values = {"step": self.step, "steps": (self.run.views or 0) * rounds}
        values |= {"epoch": there, "epochs": self.run.views or 0}
        beat = {"time": time.time(), **values, "steps_per_s": speed, "images_per_s": speed * each}
        self.attempt.write("heartbeat", beat, sync=False)


def pixels_of(run: Run, images: feed.Split, view: int, index: Tensor) -> Tensor:
    """What a view shows the teacher of some images of the whole training set, (b, channels, H, W)."""
    assert run.teacher is not None
    size = models.image_size(run.teacher.model)
    pixels, _ = shown(images, feed.Index.placed(index, images.device), run.data, view, [size])
    return pixels[size]


@dataclass
class Part:
    """A view while it is made: the rows so far, in a file aside."""

    store: Store
    view: int
    file: IO[bytes]
    rows: int
    right: int
    """Images whose label is the teacher's first choice."""
    crc32c: int

    @classmethod
    def open(cls, store: Store, view: int) -> Part:
        """Go on with what an attempt has kept that was stopped in the middle of this view, else begin."""
        path, header = store.folder / ".partial.npy", _header(store.of["images"], store.of["classes"])
        try:
            kept = records.read(store.folder / ".partial.json") or {}
            size = len(header) + kept.get("rows", 0) * store.row
            fits = (kept.get("view"), kept.get("of")) == (view, dict(store.of)) and path.stat().st_size >= size
            if fits and crc32c_of(path, size) == kept["crc32c"]:
                file: IO[bytes] = path.open("r+b")
                file.truncate(size)
                file.seek(size)
                log.info("view %d goes on at image %d", view, kept["rows"])
                return cls(store, view, file, kept["rows"], kept["right"], kept["crc32c"])
        except (Damaged, OSError):
            pass  # it is made from its beginning, which costs time alone
        path.unlink(missing_ok=True)  # an attempt that was overtaken may have it open
        part = cls(store, view, path.open("wb"), 0, 0, 0)
        part._write(header)
        return part

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Append logits, float16 (b, C), of images with these labels (b,)."""
        self._write(rows.numpy().tobytes())
        self.rows += len(rows)
        self.right += int((rows.float().argmax(-1) == labels).sum())

    def keep(self) -> None:
        """Have what was made on disk, for another attempt."""
        self._sync()
        known = {"view": self.view, "of": dict(self.store.of), "rows": self.rows, "right": self.right}
        write_json(self.store.folder / ".partial.json", {**known, "crc32c": self.crc32c})

    def finish(self) -> dict[str, Any]:
        """Give the whole view its name; returns what the manifest says of it."""
        self._sync()
        (self.store.folder / ".partial.npy").replace(self.store.path(self.view))
        (self.store.folder / ".partial.json").unlink(missing_ok=True)
        sync_folder(self.store.folder)
        return {"crc32c": self.crc32c, "top1": 100 * self.right / self.rows}

    def _write(self, content: bytes) -> None:
        with self._or_gone():
            self.file.write(content)
            self.file.flush()
        self.crc32c = google_crc32c.extend(self.crc32c, content)

    def _sync(self) -> None:
        with self._or_gone():
            os.fsync(self.file.fileno())
            self.file.close()

    @contextmanager
    def _or_gone(self) -> Iterator[None]:
        """Leave nothing where it cannot be written: a disk that is full has to have room for students' checkpoints."""
        try:
            yield
        except OSError:
            with suppress(OSError):
                self.file.close()
            Path(self.file.name).unlink(missing_ok=True)
            raise


def _header(images: int, classes: int) -> bytes:
    """What an .npy file of float16 (N, C) begins with."""
    buffer = io.BytesIO()
    shape = {"descr": "<f2", "fortran_order": False, "shape": (images, classes)}
    np.lib.format.write_array_header_1_0(buffer, shape)
    return buffer.getvalue()
