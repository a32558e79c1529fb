"""One run from its directory to events and weights: the loop around `step.py`. The file to read first."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from kdcluster import inputs
from kdcluster.course import Course
from kdcluster.parts import check_runs
from kdcluster.plan import Run
from kdcluster.run import STORE
from kdcluster.runs import Attempt, RunDir
from kdcluster.train import data, feed, models, optim, precision, speed, views
from kdcluster.train.bar import Bar
from kdcluster.train.begin import begin
from kdcluster.train.board import show_end
from kdcluster.train.checkpoint import Saver
from kdcluster.train.distributed import World
from kdcluster.train.evaluate import Splits, Stopped, evaluate_all
from kdcluster.train.meter import Meter, say_epoch, say_start
from kdcluster.train.metrics import Lagged
from kdcluster.train.parts import Parts
from kdcluster.train.publish import Publisher
from kdcluster.train.step import Shard, Training, epoch_batches, seed_step, set_up, settle_buckets, train_step
from kdcluster.train.storing import store_logits
from kdcluster.train.teacher_logits import Targets
from kdcluster.train.trace import Trace

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
    profile: bool = False,
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
        profile: of a debug run, write a trace of its steps and print what took longest in them.

    Raises:
        KdclusterError: the data, the weights or the loss are not usable; says what to do.
    """
    parts = Parts(attempt)
    run = run_dir.load()
    models.check_files(run)
    models.import_files(run.imports)
    arrays = data.open_arrays(run, data_dir)
    if world.rank == 0:
        log.info("%s", _seen(run, arrays))
    if run.role == STORE:
        assert attempt is not None
        images = feed.to_device(arrays, "train", world.device)
        return store_logits(run_dir, run, attempt, world, images, lambda: progress.stop)
    images, test = (feed.to_device(arrays, split, world.device) for split in ("train", "test"))
    train_index, val_index = views.held_out(len(images.labels), run.data.val_fraction)
    splits: Splits = {"test": (test, torch.arange(len(test.labels)))}
    if len(val_index):
        splits["val"] = (images, val_index)
    if run.train is None:
        return _evaluate_only(run_dir, run, attempt, world, splits, progress, arrays)
    check_runs([run], len(train_index))
    images, train_index, sizes = feed.taught(run, images, train_index, _sizes(splits))
    steps_per_epoch = len(train_index) // run.train.batch_size
    course = Course.of(run.train, steps_per_epoch)
    saver = Saver(run_dir, run, world)
    if attempt is not None:
        begin(run_dir, run, attempt, world)
    state = saver.newest() if attempt is not None else None
    run = precision.decided(run, world, state)
    run = speed.decided(run, world, max_steps or course.steps - (state["step"] if state else 0), state)
    targets = Targets(run, run_dir.root, world, len(images.labels), debug=attempt is None) if run.teacher else None
    training = set_up(run, world, steps_per_epoch, targets)
    if state is not None:
        training.restore(state)
        progress.step = state["step"]
    first = feed.Index.placed(torch.arange(min(2, len(test.labels))), world.device)
    settle_buckets(training, feed.gather(test, first)[0])
    say_start(run, world, training.student, steps_per_epoch, len(train_index))
    about = (arrays.noted, sizes, arrays.classes)
    publish = Publisher(run_dir, run, attempt, world, training.student, steps_per_epoch, state, *about)
    trace = Trace(run_dir.path, world.device, min(max_steps, course.steps)) if profile else None
    loop = Loop(training, images, train_index, splits, course, publish, saver, progress, parts, max_steps, trace)
    try:
        finished = loop.run()
        if finished:
            publish.result({"views": targets.counted()} if targets else {})
            show_end(publish, arrays)
    except BaseException:
        publish.writer.close()
        publish.tracker.close(success=False)
        raise
    finally:
        loop.bar.clear()
    publish.writer.close()
    publish.tracker.close(success=finished)
    if world.rank == 0:
        log.info("%s", parts.line())
    if trace:
        sys.stdout.write(trace.finish() + "\n")


def _seen(run: Run, arrays: data.Arrays) -> str:
    """What its models see, in a line."""
    return inputs.line(arrays.seen, inputs.eyes([run], lambda model, _: (models.image_size(model), 1)))


@dataclass
class Loop:
    """Steps, evaluations and checkpoints of a run, from wherever `progress` stands."""

    training: Training
    images: feed.Split
    train_index: Tensor
    splits: Splits
    course: Course
    publish: Publisher
    saver: Saver
    progress: Progress
    parts: Parts
    max_steps: int = 0
    trace: Trace | None = None
    meter: Meter | None = None
    """Of the steps before the last evaluation."""
    norms: deque[precision.Norms] = field(default_factory=lambda: deque(maxlen=3))

    def __post_init__(self) -> None:
        self.bar = Bar(active=self.training.world.rank == 0)

    def run(self) -> bool:
        """To the end; False if the run was stopped before."""
        run, course = self.training.run, self.course
        assert run.train is not None
        self.parts.begin("training")
        while True:
            due, epoch = course.due(self.progress.step), course.epoch(self.progress.step)
            if len(self.publish.epochs) < due:
                heed = partial(_heed, self.publish, self.training.world, self.progress, epoch)
                try:
                    with self.parts.during("evaluation"):
                        found = evaluate_all(self.training.evaluated, run, self.splits, self.training.world, heed)
                except Stopped:  # what was trained is saved, so that the evaluation alone is done again
                    self.save()
                    self.publish.preempted(epoch, self.progress.step)
                    return False
                with self.parts.during("saving"):
                    self.publish.epoch(epoch, self.progress.step, found, self.training.evaluated)
                if self.training.world.rank == 0:
                    say_epoch(epoch if run.train.steps is None else self.progress.step, run, found.metrics, self.meter)
                self.save()
            if due == len(course.ends):
                return True
            going = self.train_until(course.ends[due], begun=course.ends[due - 1] if due else 0)
            self.parts.waited(self.meter.waited if self.meter else 0.0)
            if not going:
                return False

    def train_until(self, end: int, *, begun: int) -> bool:
        """The steps from one evaluation, after step `begun`, to the next, or what is left of them; False if the run is
        to stop.

        Step N-1's loss is read, checked and logged while step N runs.
        """
        training, progress = self.training, self.progress
        training.model.train()
        last = (min(end, self.max_steps) if self.max_steps else end) - begun
        trained = self.meter.before if self.meter else (0, 0.0)
        meter = self.meter = Meter(
            training, self.publish, self.bar, self.norms, self.course, begun, progress.step - begun, last, trained
        )
        lagged = Lagged()
        for shards in meter.waiting(self.batches(progress.step, end)):
            seed_step(training.run.seed, progress.step, training.world.rank)
            lr = optim.set_learning_rate(training.schedule, progress.step)
            sums = training.world.sum(train_step(training, shards))
            progress.step += 1
            if self.trace:
                self.trace.step()
            self.norms.append((progress.step, training.norms))
            meter.read(lagged.push(progress.step, sums))
            training.lr = lr  # only now: what was read is of the step before, and so is the rate that goes with it
            stop, save = training.world.agree(stop=progress.stop, save=self.saver.due(progress.step))
            if stop or (save and progress.step < end):  # after the last step comes the evaluation, and saves
                meter.read(lagged.flush())  # no checkpoint of weights whose loss was not looked at
                self.save()
            if stop:
                self.publish.preempted(self.course.epoch(progress.step), progress.step)
                return False
            if progress.step == self.max_steps:
                meter.read(lagged.flush())
                log.info("stopped after %d steps, as asked", progress.step)
                return False
        meter.read(lagged.flush())
        meter.finish(progress.step, self.saver)
        return True

    def batches(self, step: int, end: int) -> Iterator[list[Shard]]:
        """This rank's shards of every batch of the steps after `step` until `end`, from one epoch into the next."""
        while step < end:
            epoch, first = divmod(step, self.course.per_epoch)
            count = min(self.course.per_epoch - first, end - step)
            run, world, targets = self.training.run, self.training.world, self.training.targets
            if targets:
                targets.begin(epoch)
            batches = epoch_batches(run, self.images, self.train_index, epoch, world, first=first, targets=targets)
            yield from islice(batches, count)
            step += count

    def save(self) -> None:
        """Checkpoint, unless this is a debug run or its attempt was overtaken."""
        if self.publish.may_write():
            self.publish.writer.room()
            state = {**self.training.state(), "epochs": self.publish.epochs, "step": self.progress.step}
            run = self.training.run
            state |= {"amp": run.amp, "compile": run.train is not None and run.train.compile}
            state["best_step"] = self.publish.best_step(self.progress.step)
            with self.parts.during("saving"):
                self.saver.save(self.progress.step, state, self.publish.best_step, self.publish.beside)


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
    arrays: data.Arrays,
) -> None:
    """A teacher that is taken as it is: one evaluation at step 0."""
    net = models.build(run.model, run.num_classes, run.channels, exact=True).to(world.device)
    say_start(run, world, net, 0)
    about = (arrays.noted, _sizes(splits), arrays.classes)
    publish = Publisher(run_dir, run, attempt, world, net, 0, None, *about)
    finished = False
    try:
        found = evaluate_all(net, run, splits, world, partial(_heed, publish, world, progress, 0))
        publish.epoch(0, 0, found, net)
        if world.rank == 0:
            say_epoch(0, run, found.metrics, None)
        publish.result({})
        show_end(publish, arrays)
        finished = True
    except Stopped:
        publish.preempted(0, 0)
    finally:
        publish.writer.close()
        publish.tracker.close(success=finished)
