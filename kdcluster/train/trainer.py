"""One run from its directory to events and weights. The file to read first.

B batch (global), b images of one micro-batch, C classes, W ranks.

The global batch is what the experiment says. It is split over ranks and micro-batches with exact remainders:
every example's loss is divided by B and multiplied by W (DDP averages over W), so the gradient is the mean over
the B images on any number of processes; a rank without images sends one through with weight zero.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdcluster.errors import KdclusterError
from kdcluster.plan import Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.train import data, models, optim, views
from kdcluster.train.distributed import World
from kdcluster.train.losses import distillation_loss, round_logits
from kdcluster.train.metrics import Lagged, accuracies, evaluation_sums
from kdcluster.train.publish import Publisher
from kdcluster.train.tracking import Tracker

log = logging.getLogger(__name__)

EVAL_BATCH = 256
"""Images of one process in an evaluation step; without gradients they need little memory."""


@dataclass
class Progress:
    """How far this process is; a failure file quotes it."""

    step: int = 0


@dataclass(frozen=True)
class Shard:
    """One micro-batch of one rank: images (b, C, H, W), labels (b,), and 0.0 where it only fills a gap."""

    images: Tensor
    labels: Tensor
    weight: float


@dataclass
class Training:
    """Everything that one optimizer step touches."""

    run: Run
    world: World
    student: models.Classifier
    model: nn.Module  # the student as it is called: compiled, in DDP
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    lr: float = 0.0

    @property
    def evaluated(self) -> models.Classifier:
        """The weights that count: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.student


def train(
    run_dir: RunDir,
    attempt: Attempt | None,
    world: World,
    data_dir: Path,
    progress: Progress,
    max_steps: int = 0,
) -> None:
    """Train (or only evaluate) one run, publish its events, weights and result.

    Args:
        run_dir: holds config.yaml.
        attempt: which start this is; None for a debug run.
        world: this process among the others.
        data_dir: decoded arrays.
        progress: kept up to date for whoever reports a failure.
        max_steps: stop after so many optimizer steps, without evaluation or result; 0: to the end.

    Raises:
        KdclusterError: the data, the weights or the loss are not usable; says what to do.
    """
    run = run_dir.load()
    models.import_files(run.imports)
    arrays = data.open_arrays(run, data_dir)
    images, test = (data.to_device(arrays, split, world.device) for split in ("train", "test"))
    train_index, val_index = views.held_out(len(images.labels), run.data.val_fraction)
    splits = {"test": (test, torch.arange(len(test.labels)))}
    if len(val_index):
        splits["val"] = (images, val_index)
    if run.train is None:
        return _evaluate_only(run_dir, run, attempt, world, splits)
    steps_per_epoch = len(train_index) // run.train.batch_size
    if steps_per_epoch == 0:
        raise KdclusterError(f"train.batch_size {run.train.batch_size} is more than the {len(train_index)} images")
    training = set_up(run_dir, run, world, steps_per_epoch, debug=attempt is None)
    publish = Publisher(run_dir, run, attempt, world, training.student, steps_per_epoch)
    try:
        for epoch in range(run.train.epochs):
            batches = epoch_batches(run, images, train_index, epoch, world)
            train_epoch(training, batches, epoch, steps_per_epoch, publish.tracker, progress, max_steps)
            if max_steps and progress.step >= max_steps:
                log.info("stopped after %d steps, as asked", progress.step)
                break
            metrics = evaluate_all(training.evaluated, run, splits, world)
            publish.epoch(epoch + 1, progress.step, metrics, training.evaluated)
        else:
            publish.result()
    except BaseException:
        publish.tracker.close(success=False)
        raise
    publish.tracker.close(success=True)


def set_up(run_dir: RunDir, run: Run, world: World, steps_per_epoch: int, *, debug: bool = False) -> Training:
    """Student, teacher, optimizer and schedule of a run, on this rank's device."""
    assert run.train is not None
    torch.manual_seed(run.seed)  # the same start on every rank, and for baseline and distilled alike
    student = models.build(run.model, run.num_classes, run.channels).to(world.device)
    if run.train.channels_last:
        student.in_channels_last()
    student.net = world.sync_batchnorm(student.net)
    optimizer = optim.build_optimizer(student.net, run.train)
    model: nn.Module = torch.compile(student) if run.train.compile else student  # type: ignore[assignment]
    torch.manual_seed(run.seed + 1_000_003 * (world.rank + 1))  # dropout differs between ranks
    return Training(
        run,
        world,
        student,
        world.parallel(model),
        _load_teacher(run_dir, run, world, debug) if run.teacher else None,
        optimizer,
        optim.build_schedule(optimizer, run.train, steps_per_epoch),
        ModelEmaV3(student, decay=run.train.ema_decay) if run.train.ema_decay else None,
    )


def _load_teacher(run_dir: RunDir, run: Run, world: World, debug: bool) -> nn.Module:
    """The teacher with its best weights, in eval mode, without gradients."""
    assert run.teacher is not None
    assert run.train is not None
    weights = RunDir(run_dir.root, run.teacher.id).weights("best")
    trained = weights.is_file()
    if not trained and not debug:
        raise KdclusterError(f"the teacher {run.teacher.id} has no best weights yet ({weights})")
    teacher = models.build(run.teacher.model, run.num_classes, run.channels, start=not trained)
    if trained:
        teacher.net.load_state_dict(load_file(weights))
    else:
        log.warning("the teacher %s is not trained yet: debugging with its start weights", run.teacher.id)
    teacher.to(world.device).eval().requires_grad_(False)
    if run.train.channels_last:
        teacher.in_channels_last()
    return torch.compile(teacher) if run.train.compile else teacher  # type: ignore[return-value]


def epoch_batches(run: Run, images: data.Split, train_index: Tensor, epoch: int, world: World) -> Iterator[list[Shard]]:
    """This rank's shards of every batch of an epoch; all ranks yield equally many shards."""
    assert run.train is not None
    size = run.train.batch_size
    order = train_index[views.epoch_order(len(train_index), seed=run.seed, epoch=epoch)]
    mine = data.share(size, world.rank, world.size)
    pieces = micro_batches(run.train.batch_size, world.size, run.train.micro_batch)
    for step in range(len(train_index) // size):
        batch = order[step * size : (step + 1) * size]
        index = batch[mine.start : mine.stop] if len(mine) else batch[:1]
        pixels, labels = data.gather(images, index)
        pixels = views.augment(
            pixels,
            index.to(pixels.device),
            epoch=epoch,
            augment=run.data.augment,
            view_seed=run.data.view_seed,
        )
        parts = [data.share(len(mine), piece, pieces) for piece in range(pieces)]
        yield [
            Shard(pixels[p.start : p.stop], labels[p.start : p.stop], 1.0)
            if len(p)
            else Shard(pixels[:1], labels[:1], 0.0)
            for p in parts
        ]


def micro_batches(batch_size: int, world_size: int, micro_batch: int | None) -> int:
    """Into how many pieces every rank's share of a batch is cut; the same for all, SyncBatchNorm counts on it."""
    largest = len(data.share(batch_size, 0, world_size))
    return math.ceil(largest / min(micro_batch or largest, largest))


def train_step(training: Training, shards: list[Shard]) -> Tensor:
    """One optimizer step on this rank's shards of a batch; no host sync.

    Returns:
        (3,) sums over this rank's images of total, cross-entropy and teacher term.
    """
    run, world = training.run, training.world
    assert run.train is not None
    scale = world.size / run.train.batch_size
    sums = torch.zeros(3, device=world.device)
    for number, shard in enumerate(shards):
        last = number == len(shards) - 1
        with nullcontext() if last or world.size == 1 else training.model.no_sync():  # type: ignore[operator]
            with torch.autocast(world.device.type, torch.bfloat16, enabled=run.amp == "bf16"):
                logits = training.model(shard.images)
                with torch.inference_mode():
                    soft = None if training.teacher is None else training.teacher(shard.images)
            terms = distillation_loss(
                logits,
                shard.labels,
                None if soft is None else round_logits(soft),
                alpha=run.distill.alpha if run.distill else 0.0,
                temperature=run.distill.temperature if run.distill else 1.0,
                label_smoothing=run.train.label_smoothing,
            )
            (terms.total.sum() * (scale * shard.weight)).backward()
        sums += torch.stack([term.detach().sum() for term in terms]) * shard.weight
    if run.train.grad_clip is not None:
        nn.utils.clip_grad_norm_(training.student.parameters(), run.train.grad_clip)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    if training.ema is not None:
        training.ema.update(training.student)
    return sums


def train_epoch(
    training: Training,
    batches: Iterator[list[Shard]],
    epoch: int,
    steps_per_epoch: int,
    tracker: Tracker,
    progress: Progress,
    max_steps: int,
) -> None:
    """All steps of an epoch. Step N-1's loss is read, checked and logged while step N runs."""
    run = training.run
    assert run.train is not None
    training.model.train()
    meter = _Meter(training, tracker, max(1, steps_per_epoch // 10), epoch, steps_per_epoch)
    lagged = Lagged()
    started = waited = time.perf_counter()
    wait_s = 0.0
    for shards in batches:
        wait_s += time.perf_counter() - waited
        lr = optim.set_learning_rate(training.schedule, progress.step)
        sums = training.world.sum(train_step(training, shards))
        progress.step += 1
        meter.read(lagged.push(progress.step, sums))
        training.lr = lr  # only now: what was read is of the step before, and so is the rate that goes with it
        if max_steps and progress.step >= max_steps:
            break
        waited = time.perf_counter()
    meter.read(lagged.flush())
    elapsed = time.perf_counter() - started
    images = (progress.step - epoch * steps_per_epoch) * run.train.batch_size
    speed = {"perf/images_per_s": images / elapsed, "perf/data_wait_pct": 100 * wait_s / elapsed}
    tracker.scalars(speed, progress.step)


@dataclass
class _Meter:
    """Checks each step's loss, and logs the mean over every `every` steps."""

    training: Training
    tracker: Tracker
    every: int
    epoch: int
    steps_per_epoch: int
    started: float = field(default_factory=time.perf_counter)
    since: list[list[float]] = field(default_factory=list)

    def read(self, numbers: tuple[int, list[float]] | None) -> None:
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
        done = step - self.epoch * self.steps_per_epoch
        if done % self.every == 0 or done == self.steps_per_epoch:
            loss, ce, kd = (sum(column) / len(self.since) for column in zip(*self.since, strict=True))
            values = {"train/loss": loss, "train/ce": ce, "train/lr": self.training.lr}
            if run.distill:
                values["train/kd"] = kd
            self.tracker.scalars(values, step)
            self.since.clear()
        steps_per_s = done / (time.perf_counter() - self.started)
        self.tracker.heartbeat(
            step=step,
            steps=self.steps_per_epoch * run.train.epochs,
            epoch=self.epoch,
            epochs=run.train.epochs,
            loss=means[0],
            steps_per_s=steps_per_s,
            images_per_s=steps_per_s * run.train.batch_size,
        )


@torch.inference_mode()
def evaluate(net: nn.Module, run: Run, split: data.Split, index: Tensor, world: World) -> dict[str, float]:
    """top1 and top5 in percent and the loss over images `index` of a split, each image once on any number of ranks."""
    net.eval()
    mine = data.share(len(index), world.rank, world.size)
    index = index[mine.start : mine.stop]
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for batch in index.split(EVAL_BATCH):
        images, labels = data.gather(split, batch)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=run.amp == "bf16"):
            logits = net(images)
        sums += evaluation_sums(logits, labels)
    return accuracies(world.sum(sums).tolist())


def evaluate_all(
    net: nn.Module, run: Run, splits: dict[str, tuple[data.Split, Tensor]], world: World
) -> dict[str, float]:
    """`evaluate` over every split, as `test/top1 …` and `val/top1 …`."""
    world.same_buffers(net)
    found = {name: evaluate(net, run, split, index, world) for name, (split, index) in splits.items()}
    return {f"{name}/{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}


def _evaluate_only(
    run_dir: RunDir,
    run: Run,
    attempt: Attempt | None,
    world: World,
    splits: dict[str, tuple[data.Split, Tensor]],
) -> None:
    """A teacher that is taken as it is: one evaluation at step 0."""
    net = models.build(run.model, run.num_classes, run.channels, exact=True).to(world.device)
    publish = Publisher(run_dir, run, attempt, world, net, steps_per_epoch=0)
    publish.epoch(0, 0, evaluate_all(net, run, splits, world), net)
    publish.result()
    publish.tracker.close(success=True)
