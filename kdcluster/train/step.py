"""One optimizer step: what it is made of, how a batch is shared out, and the step itself.

B batch (global), b images of one micro-batch, C classes or channels, H W pixels, W ranks.

The global batch is what the experiment says. It is split over ranks and micro-batches with exact remainders:
every example's loss is divided by B and multiplied by W (DDP averages over W), so the gradient is the mean over
the B images on any number of processes; a rank without images sends one through with weight zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdcluster.errors import KdclusterError
from kdcluster.plan import Run
from kdcluster.train import feed, models, optim, speed, views
from kdcluster.train.distributed import World, has_batchnorm
from kdcluster.train.losses import Labels, distillation_loss
from kdcluster.train.shown import shown
from kdcluster.train.teacher_logits import Targets
from kdcluster.train.teacher_terms import Whole


@dataclass(frozen=True)
class Shard:
    """One micro-batch of one rank: images (b, C, H, W), labels (b,), and 0.0 where it only fills a gap."""

    images: Tensor
    labels: Labels
    weight: float
    soft: Tensor | None = None
    """The teacher's logits (b, C), float16, where they are stored."""
    for_teacher: Tensor | None = None
    """The images as the teacher takes them, where its logits are to be computed; None: as the student does."""


@dataclass
class Training:
    """Everything that one optimizer step touches."""

    run: Run
    world: World
    student: models.Classifier
    model: nn.Module  # the student as it is called: compiled, in DDP
    targets: Targets | None
    """The teacher's logits, of a distilled run."""
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    lr: float = 0.0
    step: int = 0
    """Optimizer steps that were done."""
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the gradient of each parameter in the last step, unread."""

    @property
    def evaluated(self) -> models.Classifier:
        """The weights that count: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.student

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold; the rest is a function of the step."""
        return {
            "student": self.student.net.state_dict(),
            "ema": None if self.ema is None else self.ema.module.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "logits": dict(self.targets.origin) if self.targets else {},
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, on any number of ranks."""
        self.student.net.load_state_dict(state["student"])
        if self.ema is not None:
            self.ema.module.net.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if self.targets is not None:
            self.targets.origin.update(state.get("logits", {}))


def set_up(run: Run, world: World, steps_per_epoch: int, targets: Targets | None = None) -> Training:
    """Student, optimizer and schedule of a run, on this rank's device; `targets`: of a distilled run."""
    assert run.train is not None
    torch.manual_seed(run.seed)  # the same start on every rank, and for baseline and distilled alike
    student = models.build(run.model, run.num_classes, run.channels).to(world.device)
    if run.train.channels_last:
        student.in_channels_last()
    if run.train.grad_checkpointing:
        checkpoint_gradients(student, run.model.model)
    student.net = world.sync_batchnorm(student.net)
    optimizer = optim.build_optimizer(student.net, run.train)
    if world.device.type == "cuda":  # gpu only
        torch.backends.cudnn.benchmark = speed.worth_searching(student)
    pieces = micro_batches(run.train.batch_size, world.size, run.train.micro_batch)
    return Training(
        run,
        world,
        student,
        world.parallel(speed.compiled(student, run, world, pieces)),
        targets,
        optimizer,
        optim.build_schedule(optimizer, run.train, steps_per_epoch),
        ModelEmaV3(student, run.train.ema_decay, use_warmup=run.train.ema_warmup) if run.train.ema_decay else None,
    )


def checkpoint_gradients(student: models.Classifier, name: str) -> None:
    """Have timm's model forget its activations between the ends of its blocks.

    Raises:
        KdclusterError: it cannot, or its numbers would be others.
    """
    set_them = getattr(student.net, "set_grad_checkpointing", None)
    instead = "leave train.grad_checkpointing out, and use more processes, or train.micro_batch, where memory is short"
    if has_batchnorm(student.net):
        raise KdclusterError(f"{name} has BatchNorm, which would count each batch twice; {instead}")
    try:
        if set_them is None:
            raise AssertionError
        set_them(True)
    except AssertionError:  # timm's way of saying so
        raise KdclusterError(f"{name} has no gradient checkpointing in timm; {instead}") from None


def settle_buckets(training: Training, images: Tensor) -> None:
    """One forward and backward whose gradients are thrown away, after each start on several ranks.

    DDP sorts its buckets by the first backward; from 3 ranks on the second order sums differently, so a run that
    was resumed would differ in the last bits from one that was not.
    """
    if training.world.size == 1:
        return
    buffers = {name: buffer.clone() for name, buffer in training.student.named_buffers()}
    training.model.train()
    with torch.compiler.set_stance("force_eager"):  # else it is compiled for these few images, too
        training.model(images).sum().backward()
    training.optimizer.zero_grad(set_to_none=True)
    for name, buffer in training.student.named_buffers():
        buffer.copy_(buffers[name])


def epoch_batches(
    run: Run,
    images: feed.Split,
    train_index: Tensor,
    epoch: int,
    world: World,
    *,
    first: int = 0,
    targets: Targets | None = None,
) -> Iterator[list[Shard]]:
    """This rank's shards of every batch of an epoch from batch `first` on; all ranks yield equally many shards.

    A batch holds one view: the teacher's logits that go with it are rows of one array, at the images' own indices.
    """
    assert run.train is not None
    size = run.train.batch_size
    order = feed.Index.placed(
        train_index[views.epoch_order(len(train_index), seed=run.seed, epoch=epoch)], images.device
    )
    mine = feed.share(size, world.rank, world.size)
    pieces = micro_batches(size, world.size, run.train.micro_batch)
    parts = [feed.share(len(mine), piece, pieces) for piece in range(pieces)]
    view = views.view_of(run, epoch)
    batches = [order[at * size : (at + 1) * size] for at in range(first, len(train_index) // size)]
    indices = [batch[mine.start : mine.stop] if len(mine) else batch[:1] for batch in batches]
    soft_targets = targets.batches(indices) if targets else (None for _ in indices)
    own = models.image_size(run.model)
    teachers = models.image_size(run.teacher.model) if run.teacher else own
    for index, soft in zip(indices, soft_targets, strict=True):
        pixels, labels = shown(images, index, run.data, view, (own, teachers) if soft is None else (own,))
        for_teacher = pixels.get(teachers) if teachers != own else None
        yield [_shard(part, pixels[own], labels, soft, for_teacher) for part in parts]


def _shard(part: range, pixels: Tensor, labels: Labels, soft: Tensor | None, for_teacher: Tensor | None) -> Shard:
    """Some of a rank's images; one of them, without weight, where there are none."""
    some = slice(part.start, part.stop) if len(part) else slice(1)
    soft, for_teacher = (None if one is None else one[some] for one in (soft, for_teacher))
    return Shard(pixels[some], labels.of(some), float(len(part) > 0), soft, for_teacher)


def micro_batches(batch_size: int, world_size: int, micro_batch: int | None) -> int:
    """Into how many pieces every rank's share of a batch is cut; the same for all, SyncBatchNorm counts on it."""
    largest = len(feed.share(batch_size, 0, world_size))
    return math.ceil(largest / min(micro_batch or largest, largest))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step (dropout) a function of the step, so that no checkpoint needs their state."""
    value = (seed * 1_000_003 + step) * 8191 + rank
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def _whole(run: Run, world: World, logits: Tensor, soft: Tensor | None) -> Whole | None:
    """All ranks' logits, for the one loss that relates images to each other; it has no micro-batches."""
    if soft is None or run.distill is None or run.distill.loss != "dist":
        return None
    assert run.train is not None
    shares = [feed.share(run.train.batch_size, rank, world.size) for rank in range(world.size)]
    both = torch.stack([logits.detach().float(), soft.float()], dim=1)
    student, teacher = world.every(both, [len(share) for share in shares]).unbind(1)
    return Whole(student, teacher, shares[world.rank])


def train_step(training: Training, shards: list[Shard]) -> Tensor:
    """One optimizer step on this rank's shards of a batch; no host sync.

    Returns:
        (4,) sums over this rank's images of total, cross-entropy, teacher term, and how many have a label.
    """
    run, world = training.run, training.world
    assert run.train is not None
    scale = world.size / run.train.batch_size
    sums = torch.zeros(4, device=world.device)
    for number, shard in enumerate(shards):
        last = number == len(shards) - 1
        with nullcontext() if last or world.size == 1 else training.model.no_sync():  # type: ignore[operator]
            with torch.autocast(world.device.type, torch.bfloat16, enabled=run.amp == "bf16"):
                logits = training.model(shard.images)
            seen = shard.images if shard.for_teacher is None else shard.for_teacher
            soft = training.targets.of(seen, shard.soft) if training.targets else None
            terms = distillation_loss(
                logits,
                shard.labels,
                soft,
                run.distill,
                label_loss=run.train.label_loss,
                label_smoothing=run.train.label_smoothing,
                whole=_whole(run, world, logits, soft),
            )
            (terms.total.sum() * (scale * shard.weight)).backward()
        sums += torch.stack([term.detach().sum() for term in terms]) * shard.weight
    gradient = {name: p.grad for name, p in training.student.net.named_parameters() if p.grad is not None}
    training.norms = dict(zip(gradient, torch._foreach_norm(list(gradient.values())), strict=True))
    if run.train.grad_clip is not None:
        total = torch.linalg.vector_norm(torch.stack(list(training.norms.values())))
        nn.utils.clip_grads_with_norm_(training.student.parameters(), run.train.grad_clip, total)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.step += 1
    if training.ema is not None:  # given a step, timm begins with a copy of the weights
        training.ema.update(training.student, training.step if run.train.ema_warmup else None)
    return sums
