"""Checkpoints of one run: written aside, checked by a checksum; the last two and the best kept, of a done run the last.

How they lie on disk says saved.py; what is in them is a torch file of tensors and plain values, read with weights_only.
Only what cannot be computed again is in it. The learning rate, the position in the epoch, the views, the order of
the images and the random numbers of a step are functions of (seed, step, rank), so a step is all they need.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import google_crc32c
import torch

from kdcluster import predictions
from kdcluster.errors import KdclusterError
from kdcluster.files import aside
from kdcluster.plan import Run
from kdcluster.runs import RunDir
from kdcluster.saved import HEADER, MAGIC, checkpoint_problem, newest_step, path_of, steps
from kdcluster.train.distributed import World
from kdcluster.train.weights import weights_step, write_weights
from kdcluster.train.writer import on_host

log = logging.getLogger(__name__)

KEEP_LAST = 2


class Damaged(KdclusterError):
    """A checkpoint that was cut, altered, or is none."""


def save(folder: Path, step: int, state: dict[str, Any], keep: Iterable[int] = ()) -> Path:
    """Write the checkpoint of a step, then remove all but the last two and those of the steps `keep`.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps that are done.
        state: tensors and plain values.
        keep: steps whose checkpoints stay: the best.

    Raises:
        OSError: it cannot be written (disk full, read-only); what was there stays.
    """
    folder.mkdir(exist_ok=True)
    path = path_of(folder, step)
    with aside(path) as file:
        file.write(bytes(HEADER.size))
        body = _Checked(file)
        try:
            torch.save(state, cast(IO[bytes], body))
        except RuntimeError as error:
            raise body.error or error from None  # torch hides what write() raised
        file.seek(0)
        file.write(HEADER.pack(MAGIC, body.length, body.crc.digest()))
    kept = {*steps(folder)[-KEEP_LAST:], *keep, step}
    for old in steps(folder):
        if old not in kept:
            path_of(folder, old).unlink()
    return path


def keep_last(folder: Path) -> None:
    """Of a run that is done, remove all checkpoints but the newest one, which holds three times its weights.

    From that one its result can be published again, and a longer training can begin. The best weights are a file of
    their own; should that be lost, the run is trained again.
    """
    last = newest_step(folder)
    for step in steps(folder) if last else ():
        if step != last:
            path_of(folder, step).unlink()


def load(path: Path) -> dict[str, Any]:
    """One checkpoint, on the CPU.

    Raises:
        Damaged: with what is wrong with it.
    """
    if problem := checkpoint_problem(path):
        raise Damaged(f"{path}: {problem}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error
    body = memoryview(data)[HEADER.size :]
    if google_crc32c.Checksum(bytes(body)).digest() != HEADER.unpack_from(data)[2]:
        raise Damaged(f"{path}: its checksum is wrong")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise Damaged(f"{path}: {error}") from error
    return state


def newest(folder: Path, complete: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None; says which ones were passed over.

    `complete` gets each candidate and raises `Damaged` where something else that belongs to it is gone.
    """
    for step in reversed(steps(folder)):
        try:
            state = load(path_of(folder, step))
            complete(state)
            return state
        except Damaged as error:
            log.warning("passing over a damaged checkpoint: %s", error)
    return None


class _Checked:
    """A file that torch.save can write to, which counts and sums up what goes by."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.length = 0
        self.crc = google_crc32c.Checksum()
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        self.crc.update(bytes(data))
        self.length += len(data)
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class Saver:
    """When a run's checkpoints are due, and what goes into them. Rank 0 writes, every rank reads the same one."""

    def __init__(self, run_dir: RunDir, run: Run, world: World) -> None:
        assert run.train is not None
        self.folder = run_dir.checkpoints
        self._run, self._run_dir = run, run_dir
        self._world = world
        self._every = run.train.checkpoint_every
        self._saved_at = time.monotonic()
        self._seconds = 0.0

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, the same on every rank; None to start from the beginning.

        What it calls best and last is on disk as weights then, though a later attempt may have put others there.

        Raises:
            Damaged: this rank cannot read what rank 0 could.
        """
        state = newest(self.folder, self._restore_weights) if self._world.rank == 0 else None
        step = self._world.from_first(state["step"] if state else 0)
        if step == 0:
            return None
        if state is None:
            state = load(path_of(self.folder, step))
        if state["hash"] != self._run.hash:
            raise Damaged(f"{path_of(self.folder, step)} belongs to another run; move it away, then submit again")
        log.info("resuming at step %d", step)
        return state

    def _restore_weights(self, state: dict[str, Any]) -> None:
        """Have the weights on disk that belong to a checkpoint: not damaged ones, not those of a later attempt."""
        evaluated = state["epochs"][-1]["step"] if state["epochs"] else 0
        # The last weights of a step before this one's make way at the next evaluation.
        for which, step in (("best", state["best_step"]), ("last", evaluated if evaluated == state["step"] else 0)):
            path = self._run_dir.weights(which)
            if step == 0 or (weights_step(path) == step and not self._run_dir.weights_problem(which)):
                continue
            source = state if step == state["step"] else load(path_of(self.folder, step))
            write_weights(path, source["student"] if source["ema"] is None else source["ema"], self._run, step)
            log.info("%s weights of step %d restored", which, step)

    def due(self, step: int) -> bool:
        """Whether rank 0 wants to save after `step` steps."""
        if self._world.rank != 0:
            return False
        if self._every.endswith("steps"):
            return step % int(self._every.removesuffix("steps")) == 0
        return time.monotonic() - self._saved_at >= 60 * float(self._every.removesuffix("min"))

    def save(
        self,
        step: int,
        state: dict[str, Any],
        best_step: Callable[[int], int],
        beside: Callable[[Callable[[], None]], None],
    ) -> None:
        """Have a checkpoint written.

        Args:
            step: optimizer steps that are done.
            state: tensors and plain values as they are now.
            best_step: names the best evaluation up to a step, whose checkpoint is kept.
            beside: has something done while the training goes on.
        """
        started = time.perf_counter()
        kept = on_host({**state, "hash": self._run.hash})
        beside(lambda: self._write(step, kept, best_step))
        self._saved_at = time.monotonic()
        self._seconds += time.perf_counter() - started

    def _write(self, step: int, state: dict[str, Any], best_step: Callable[[int], int]) -> None:
        self.folder.mkdir(exist_ok=True)
        last = [*steps(self.folder)[-KEEP_LAST:], step]
        best = {best_step(at) for at in last}
        save(self.folder, step, state, best)
        evaluated = [epoch["step"] for epoch in state["epochs"][-1:]]
        predictions.keep(self._run_dir.path, {*best, *evaluated})

    def take_seconds(self) -> float:
        """Seconds for which training waited in `save` since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
