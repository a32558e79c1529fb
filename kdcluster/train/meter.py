"""What is measured of a run while it trains, and what the log, the events and a terminal are told of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from kdcluster.course import Course
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
    """Checks each step's loss, logs the mean over a tenth of the steps to the next evaluation, and takes the time."""

    training: Training
    publish: Publisher
    bar: Bar
    norms: Iterable[Norms]
    """Of the last steps: a loss is read one step late, and what spoilt it came a step before."""
    course: Course
    begun: int
    """Step after which the evaluation before was; 0 for none."""
    first: int
    """So many steps later this attempt begins."""
    last: int
    """So many later it ends: at the next evaluation, or where a debug run stops."""
    before: tuple[int, float] = (0, 0.0)
    """The attempt's steps and seconds before: speeds are the mean over them, too, and do not jump."""
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
            log.info("step %d: %s", step, _terms(means))
        done = step - self.begun
        if done % max(1, self.length // 10) == 0 or done == self.length:
            loss, ce, kd = _over(self.since)
            values = {"train/loss": loss, "train/lr": self.training.lr}
            if ce is not None:
                values["train/ce"] = ce
            if run.distill:
                values["train/kd"] = kd
            self.publish.tracker.scalars(values, step)
            self.since.clear()
        epoch, number = (step - 1) // self.course.per_epoch, self.course.due(self.begun) + 1
        speed, after = self._speed(done), f"{done}/{self.last} loss {means[0]:.3f}"
        if speed is None:
            self.publish.beat(epoch, step, loss=means[0])
        else:
            images_per_s = speed * run.train.batch_size
            self.publish.beat(epoch, step, loss=means[0], steps_per_s=speed, images_per_s=images_per_s)
            after += f" {images_per_s:.0f} images/s {duration((self.last - done) / speed)} left"
        part = f"{'part' if run.train.steps else 'epoch'} {number}/{len(self.course.ends)}"
        self.bar.draw(part, done / self.last, after)

    @property
    def length(self) -> int:
        """Steps between the two evaluations."""
        return self.course.ends[self.course.due(self.begun)] - self.begun

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
        """Say in the events how fast these steps were, and what share of them was waiting for data and checkpoints."""
        assert self.training.run.train is not None
        now = time.perf_counter()
        elapsed = now - self.started
        self.before = self._took(self.length, now)
        self.images_per_s = (self.length - self.first) * self.training.run.train.batch_size / elapsed
        values = {
            "perf/images_per_s": self.images_per_s,
            "perf/data_wait_pct": 100 * self.waited / elapsed,
            "perf/checkpoint_pct": 100 * saver.take_seconds() / elapsed,
        }
        self.publish.tracker.scalars(values, step)

    def said(self) -> list[str]:
        """The mean loss, the last learning rate and the speed, for the line in the log."""
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
            f"the loss is not finite at step {step} ({_terms(means)}; "
            f"lr {self.training.lr:g}; run {run.id}); {where}; "
            f"try {smaller if run.amp == 'none' else f'amp: none (it was {run.amp}), then {smaller}'}"
        )


def _over(steps: Sequence[Sequence[float]]) -> tuple[float, float | None, float]:
    """Means over some steps of the loss, the cross-entropy and the teacher's term.

    The cross-entropy's is over the images that have a label, None where none has; the others' over all. Of each step
    come the means over its batch, and the share of it that has labels.
    """
    loss, ce, kd, labelled = (sum(column) / len(steps) for column in zip(*steps, strict=True))
    return loss, ce / labelled if labelled else None, kd


def _terms(means: Sequence[float]) -> str:
    """`loss 2.3026, ce 2.3026, kd 0.0000` of one step, without a ce where no image has a label."""
    named = zip(("loss", "ce", "kd"), _over([means]), strict=True)
    return ", ".join(f"{name} {value:.4f}" for name, value in named if value is not None)


def say_start(run: Run, world: World, net: models.Classifier, steps: int, images: int = 0) -> None:
    """The model, where it runs and how long, in the first lines of the first rank's log.

    Args:
        steps: optimizer steps of an epoch; 0 for a model that is only evaluated.
        images: how many it trains on.
    """
    if world.rank != 0:
        return
    model = f"{run.role}: {run.model.model}, {models.parameters(net):,} parameters"
    if run.teacher and run.distill:
        model += f"; from {run.teacher.model.model} ({run.distill.in_words().replace('α', 'alpha')})"
    log.info(model if run.train else f"{model}, taken as it is")
    cuda = world.device.type == "cuda"
    where = torch.cuda.get_device_name(world.device) if cuda else "cpu"
    threads = "" if cuda else f" with {count(torch.get_num_threads(), 'thread')}{' each' * (world.size > 1)}"
    precision = "float32" if run.amp == "none" else run.amp
    log.info("on %s: %s%s; precision %s", where, count(world.size, "process"), threads, precision)
    if run.train:
        course = Course.of(run.train, steps)
        of = "" if run.data.labelled is None else f" of {count(images, 'image')}"  # not all that are there
        whole = f"{count(steps, 'step')} an epoch{of}, {course.steps:,} in {count(course.epochs, 'epoch')}"
        batch = f"batch of {run.train.batch_size}; lr {run.train.lr:g}, {run.train.schedule}"
        log.info("%s; %s", whole, batch)


def say_epoch(at: int, run: Run, metrics: Mapping[str, float], meter: Meter | None) -> None:
    """What was trained before an evaluation in one line of the log, which fits 80 columns.

    Args:
        at: the epoch, or the step where the length is in steps.
        metrics: of the evaluation, as `test/top1`.
        meter: of the steps before it; None where an earlier attempt did them, or nobody.
    """
    found = [f"{name} {metrics[f'{name}/top1']:.2f} %" for name in ("test", "val") if f"{name}/top1" in metrics]
    if run.train is None:
        return log.info("%s", "  ".join(found))
    loss, *others = meter.said() if meter else [""]
    done = f"epoch {at}/{run.train.epochs}" if run.train.steps is None else f"step {at}/{run.train.steps}"
    log.info("  ".join(filter(None, [done, loss, *found, *others])))
