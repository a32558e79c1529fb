"""What is measured of a run while it trains, and what the log, the events and a terminal are told of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from kdcluster.errors import KdclusterError
from kdcluster.plan import Run
from kdcluster.train import models
from kdcluster.train.bar import Bar, duration
from kdcluster.train.checkpoint import Saver
from kdcluster.train.distributed import World
from kdcluster.train.precision import Norms, first_not_finite
from kdcluster.train.publish import Publisher
from kdcluster.train.step import Shard, Training
from kdcluster.wording import count

log = logging.getLogger(__name__)


@dataclass
class Meter:
    """Checks each step's loss, logs the mean over a tenth of an epoch, and takes the time."""

    training: Training
    publish: Publisher
    bar: Bar
    norms: Iterable[Norms]
    """Of the last steps: a loss is read one step late, and what spoilt it came a step before."""
    epoch: int
    steps_per_epoch: int
    first: int
    last: int
    """Step of the epoch at which it ends: the last one, or where a debug run stops."""
    before: tuple[int, float] = (0, 0.0)
    """Steps and seconds of the attempt's epochs before: speeds are the mean over them, too, and do not jump."""
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    since: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    images_per_s: float = 0.0

    def waiting(self, batches: Iterator[list[Shard]]) -> Iterator[list[Shard]]:
        """The same batches; the time until each comes is counted as waiting for data."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def read(self, numbers: tuple[int, list[float]] | None) -> None:
        """Sums of one step over all ranks, as `Lagged` hands them out.

        Raises:
            KdclusterError: the loss is not finite.
        """
        if numbers is None:
            return
        step, sums = numbers
        run = self.training.run
        assert run.train is not None
        means = [value / run.train.batch_size for value in sums]
        if not all(math.isfinite(value) for value in means):
            raise KdclusterError(self._not_finite(step, means))
        self.since.append(means)
        self.losses.append(means[0])
        if self.publish.attempt is None:
            log.info("step %d: loss %.4f, ce %.4f, kd %.4f", step, *means)
        done = step - self.epoch * self.steps_per_epoch
        if done % max(1, self.steps_per_epoch // 10) == 0 or done == self.steps_per_epoch:
            loss, ce, kd = (sum(column) / len(self.since) for column in zip(*self.since, strict=True))
            values = {"train/loss": loss, "train/ce": ce, "train/lr": self.training.lr}
            if run.distill:
                values["train/kd"] = kd
            self.publish.tracker.scalars(values, step)
            self.since.clear()
        speed, after = self._speed(done), f"{done}/{self.last} loss {means[0]:.3f}"
        if speed is None:
            self.publish.beat(self.epoch, step, loss=means[0])
        else:
            images_per_s = speed * run.train.batch_size
            self.publish.beat(self.epoch, step, loss=means[0], steps_per_s=speed, images_per_s=images_per_s)
            after += f" {images_per_s:.0f} images/s {duration((self.last - done) / speed)} left"
        self.bar.draw(f"epoch {self.epoch + 1}/{run.train.epochs}", done / self.last, after)

    def _speed(self, done: int) -> float | None:
        """Steps a second, the mean of the attempt without its first step, which may take many times as long as others.

        None: that one alone is done.
        """
        now = time.perf_counter()
        if not self.before[0] and done == self.first + 1:
            self.before = -1, self.started - now
        steps, seconds = self._took(done, now)
        return steps / seconds if steps > 0 else None

    def _took(self, done: int, now: float) -> tuple[int, float]:
        return self.before[0] + done - self.first, self.before[1] + now - self.started

    def finish(self, step: int, saver: Saver) -> None:
        """Say in the events how fast the epoch was, and what share of it was waiting for data and checkpoints."""
        assert self.training.run.train is not None
        now = time.perf_counter()
        elapsed = now - self.started
        self.before = self._took(self.steps_per_epoch, now)
        self.images_per_s = (self.steps_per_epoch - self.first) * self.training.run.train.batch_size / elapsed
        values = {
            "perf/images_per_s": self.images_per_s,
            "perf/data_wait_pct": 100 * self.waited / elapsed,
            "perf/checkpoint_pct": 100 * saver.take_seconds() / elapsed,
        }
        self.publish.tracker.scalars(values, step)

    def said(self) -> list[str]:
        """The epoch's mean loss, its last learning rate and its speed, for its line in the log."""
        loss = sum(self.losses) / len(self.losses)
        return [f"loss {loss:.4f}", f"lr {self.training.lr:.2g}", f"{self.images_per_s:.0f} images/s"]

    def _not_finite(self, step: int, means: list[float]) -> str:
        """A loss that is not finite: where that began, and what to try."""
        run = self.training.run
        found = first_not_finite(self.norms)
        where = "every gradient before was finite"
        if found and found[0] < step:
            where = f"the gradient of {found[1]} was not finite first, at step {found[0]}"
        smaller = "a smaller train.lr or train.grad_clip"
        return (
            f"the loss is not finite at step {step} (loss {means[0]}, ce {means[1]}, kd {means[2]}; "
            f"lr {self.training.lr:g}; run {run.id}); {where}; "
            f"try {smaller if run.amp == 'none' else f'amp: none (it was {run.amp}), then {smaller}'}"
        )


def say_start(run: Run, world: World, net: models.Classifier, teacher: torch.nn.Module | None, steps: int) -> None:
    """The model, where it runs and how long, in the first lines of the first rank's log.

    Args:
        steps: optimizer steps of an epoch; 0 for a model that is only evaluated.
    """
    if world.rank != 0:
        return
    model = f"{run.role}: {run.model.model}, {models.parameters(net):,} parameters"
    if run.teacher and run.distill and teacher is not None:
        model += f"; from {run.teacher.model.model}, {models.parameters(teacher):,}"
        model += f" (alpha {run.distill.alpha:g}, temperature {run.distill.temperature:g})"
    log.info(model if run.train else f"{model}, taken as it is")
    cuda = world.device.type == "cuda"
    where = torch.cuda.get_device_name(world.device) if cuda else "cpu"
    threads = "" if cuda else f" with {count(torch.get_num_threads(), 'thread')}{' each' * (world.size > 1)}"
    precision = "float32" if run.amp == "none" else run.amp
    log.info("on %s: %s%s; precision %s", where, count(world.size, "process"), threads, precision)
    if run.train:
        whole = f"{count(steps, 'step')} an epoch, {steps * run.train.epochs:,} in {count(run.train.epochs, 'epoch')}"
        batch = f"batch of {run.train.batch_size}; lr {run.train.lr:g}, {run.train.schedule}"
        log.info("%s; %s", whole, batch)


def say_epoch(epoch: int, run: Run, metrics: Mapping[str, float], meter: Meter | None) -> None:
    """An epoch in one line of the log, which fits 80 columns.

    Args:
        metrics: of the evaluation after it, as `test/top1`.
        meter: of the epoch; None where it was trained by an earlier attempt, or not at all.
    """
    found = [f"{name} {metrics[f'{name}/top1']:.2f} %" for name in ("test", "val") if f"{name}/top1" in metrics]
    if run.train is None:
        return log.info("%s", "  ".join(found))
    loss, *others = meter.said() if meter else [""]
    log.info("  ".join(filter(None, [f"epoch {epoch}/{run.train.epochs}", loss, *found, *others])))
