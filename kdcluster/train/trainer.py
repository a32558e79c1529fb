"""One run from its directory to events and weights: the loop around `step.py`. The file to read first."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdcluster import inputs
from kdcluster.errors import KdclusterError
from kdcluster.plan import Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.train import data, models, optim, views
from kdcluster.train.begin import begin
from kdcluster.train.checkpoint import Saver
from kdcluster.train.distributed import World
from kdcluster.train.evaluate import Splits, Stopped, evaluate_all
from kdcluster.train.metrics import Lagged
from kdcluster.train.publish import Publisher
from kdcluster.train.step import Shard, Training, epoch_batches, seed_step, set_up, settle_buckets, train_step

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far this process is, and whether somebody asked it to stop; signal handlers write, the loop reads."""

    step: int = 0
    stop: bool = False


def train(
    run_dir: RunDir,
    attempt: Attempt | None,
    world: World,
    data_dir: Path,
    progress: Progress,
    max_steps: int = 0,
) -> None:
    """Train (or only evaluate) one run from its last checkpoint on; publish its events, weights and result.

    Args:
        run_dir: holds config.yaml.
        attempt: which start this is; None for a debug run.
        world: this process among the others.
        data_dir: decoded arrays.
        progress: kept up to date for whoever reports a failure; `stop` ends the run at the next step, or between two
            batches of an evaluation.
        max_steps: stop after so many optimizer steps, without evaluation or result; 0: to the end.

    Raises:
        KdclusterError: the data, the weights or the loss are not usable; says what to do.
    """
    run = run_dir.load()
    models.check_files(run)
    models.import_files(run.imports)
    arrays = data.open_arrays(run, data_dir)
    if world.rank == 0:
        log.info("%s", _seen(run, arrays))
    images, test = (data.to_device(arrays, split, world.device) for split in ("train", "test"))
    train_index, val_index = views.held_out(len(images.labels), run.data.val_fraction)
    splits = {"test": (test, torch.arange(len(test.labels)))}
    if len(val_index):
        splits["val"] = (images, val_index)
    if run.train is None:
        return _evaluate_only(run_dir, run, attempt, world, splits, progress, arrays.skipped)
    steps_per_epoch = len(train_index) // run.train.batch_size
    if steps_per_epoch == 0:
        raise KdclusterError(f"train.batch_size {run.train.batch_size} is more than the {len(train_index)} images")
    training = set_up(run_dir, run, world, steps_per_epoch, debug=attempt is None)
    saver = Saver(run_dir, run, world)
    if attempt is not None:
        begin(run_dir, run, attempt, world)
    state = saver.newest() if attempt is not None else None
    if state is not None:
        training.restore(state)
        progress.step = state["step"]
    settle_buckets(training, data.gather(test, torch.arange(min(2, len(test.labels))))[0])
    sizes = _sizes(splits)
    publish = Publisher(run_dir, run, attempt, world, training.student, steps_per_epoch, state, arrays.skipped, sizes)
    try:
        loop = Loop(training, images, train_index, splits, steps_per_epoch, publish, saver, progress, max_steps)
        finished = loop.run()
        if finished:
            publish.result()
    except BaseException:
        publish.tracker.close(success=False)
        raise
    publish.tracker.close(success=finished)


def _seen(run: Run, arrays: data.Arrays) -> str:
    """What its models see, in a line."""
    return inputs.line(arrays.seen, inputs.eyes([run], lambda model, _: (models.image_size(model), 1)))


@dataclass
class Loop:
    """Steps, evaluations and checkpoints of a run, from wherever `progress` stands."""

    training: Training
    images: data.Split
    train_index: Tensor
    splits: Splits
    steps_per_epoch: int
    publish: Publisher
    saver: Saver
    progress: Progress
    max_steps: int = 0

    def run(self) -> bool:
        """To the end; False if the run was stopped before."""
        run = self.training.run
        assert run.train is not None
        while True:
            epoch, within = divmod(self.progress.step, self.steps_per_epoch)
            if within == 0 and len(self.publish.epochs) < epoch:
                heed = partial(_heed, self.publish, self.training.world, self.progress, epoch)
                try:
                    metrics = evaluate_all(self.training.evaluated, run, self.splits, self.training.world, heed)
                except Stopped:  # what was trained is saved, so that the evaluation alone is done again
                    self.save()
                    self.publish.preempted(epoch, self.progress.step)
                    return False
                self.publish.epoch(epoch, self.progress.step, metrics, self.training.evaluated)
                self.save()
            if epoch == run.train.epochs:
                return True
            if not self.train_epoch(epoch, first=within):
                return False

    def train_epoch(self, epoch: int, *, first: int) -> bool:
        """The steps of an epoch from step `first` on; False if the run is to stop.

        Step N-1's loss is read, checked and logged while step N runs.
        """
        training, progress = self.training, self.progress
        training.model.train()
        meter = _Meter(training, self.publish, epoch, self.steps_per_epoch, first)
        lagged = Lagged()
        for shards in meter.waiting(
            epoch_batches(training.run, self.images, self.train_index, epoch, training.world, first=first)
        ):
            seed_step(training.run.seed, progress.step, training.world.rank)
            lr = optim.set_learning_rate(training.schedule, progress.step)
            sums = training.world.sum(train_step(training, shards))
            progress.step += 1
            meter.read(lagged.push(progress.step, sums))
            training.lr = lr  # only now: what was read is of the step before, and so is the rate that goes with it
            stop, save = training.world.agree(stop=progress.stop, save=self.saver.due(progress.step))
            last = progress.step % self.steps_per_epoch == 0
            if stop or (save and not last):  # after an epoch's last step comes the evaluation, and saves
                meter.read(lagged.flush())  # no checkpoint of weights whose loss was not looked at
                self.save()
            if stop:
                self.publish.preempted(epoch, progress.step)
                return False
            if progress.step == self.max_steps:
                meter.read(lagged.flush())
                log.info("stopped after %d steps, as asked", progress.step)
                return False
        meter.read(lagged.flush())
        meter.speed(progress.step, self.saver)
        return True

    def save(self) -> None:
        """Checkpoint, unless this is a debug run or its attempt was overtaken."""
        if self.publish.may_write():
            state = {**self.training.state(), "epochs": self.publish.epochs, "step": self.progress.step}
            state["best_step"] = self.publish.best_step(self.progress.step)
            self.saver.save(self.progress.step, state, self.publish.best_step)


@dataclass
class _Meter:
    """Checks each step's loss, logs the mean over a tenth of an epoch, and takes the time."""

    training: Training
    publish: Publisher
    epoch: int
    steps_per_epoch: int
    first: int
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    since: list[list[float]] = field(default_factory=list)

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
        """Sums of one step over all ranks, as `Lagged` hands them out."""
        if numbers is None:
            return
        step, sums = numbers
        run = self.training.run
        assert run.train is not None
        means = [value / run.train.batch_size for value in sums]
        if not all(math.isfinite(value) for value in means):
            raise KdclusterError(
                f"the loss is not finite at step {step} (loss {means[0]}, ce {means[1]}, kd {means[2]}; "
                f"lr {self.training.lr:g}; run {run.id}); try a smaller train.lr, train.grad_clip, or amp: none"
            )
        self.since.append(means)
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
        steps_per_s = (done - self.first) / (time.perf_counter() - self.started)
        images_per_s = steps_per_s * run.train.batch_size
        self.publish.beat(self.epoch, step, loss=means[0], steps_per_s=steps_per_s, images_per_s=images_per_s)

    def speed(self, step: int, saver: Saver) -> None:
        """Log how fast the epoch was, and what share of it went into waiting for data and into checkpoints."""
        run = self.training.run
        assert run.train is not None
        elapsed = time.perf_counter() - self.started
        images = (self.steps_per_epoch - self.first) * run.train.batch_size
        values = {
            "perf/images_per_s": images / elapsed,
            "perf/data_wait_pct": 100 * self.waited / elapsed,
            "perf/checkpoint_pct": 100 * saver.take_seconds() / elapsed,
        }
        self.publish.tracker.scalars(values, step)
        log.info("  ".join(f"{name.removeprefix('perf/')} {value:.4g}" for name, value in values.items()))


def _heed(publish: Publisher, world: World, progress: Progress, epoch: int) -> None:
    """Between two batches of an evaluation: beat, and agree with the other ranks on whether to go on.

    Raises:
        Stopped: on all ranks alike.
    """
    publish.beat(epoch, progress.step)
    stop, _ = world.agree(stop=progress.stop, save=False)
    if stop:
        raise Stopped


def _sizes(splits: Splits) -> dict[str, int]:
    return {name: len(index) for name, (_, index) in splits.items()}


def _evaluate_only(
    run_dir: RunDir,
    run: Run,
    attempt: Attempt | None,
    world: World,
    splits: Splits,
    progress: Progress,
    skipped: int,
) -> None:
    """A teacher that is taken as it is: one evaluation at step 0."""
    net = models.build(run.model, run.num_classes, run.channels, exact=True).to(world.device)
    sizes = _sizes(splits)
    publish = Publisher(run_dir, run, attempt, world, net, steps_per_epoch=0, skipped=skipped, images=sizes)
    finished = False
    try:
        metrics = evaluate_all(net, run, splits, world, partial(_heed, publish, world, progress, 0))
        publish.epoch(0, 0, metrics, net)
        publish.result()
        finished = True
    except Stopped:
        publish.preempted(0, 0)
    finally:
        publish.tracker.close(success=finished)
