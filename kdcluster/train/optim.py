"""Optimizer, learning rate and weight averaging, from timm and torch."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from kdcluster.course import Course
from kdcluster.errors import KdclusterError
from kdcluster.experiment.training import Train

FUSED = frozenset(("adam", "adamw", "momentum", "nesterov", "sgd"))
"""Torch's own, in its fused form: the plain CPU AdamW reads a number back in each step."""


def build_optimizer(net: nn.Module, train: Train) -> torch.optim.Optimizer:
    """timm's optimizer of that name.

    timm leaves biases, norms and what the model names (position embeddings) out of the weight decay.

    Raises:
        KdclusterError: layer decay of a model that is one layer to timm.
    """
    options: dict[str, Any] = {"fused": True} if train.optimizer in FUSED else {}
    if train.betas is not None:
        options["betas"] = train.betas
    made: torch.optim.Optimizer = create_optimizer_v2(
        net,
        opt=train.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
        momentum=0.9 if train.momentum is None else train.momentum,
        layer_decay=train.layer_decay,
        **options,
    )
    if train.layer_decay and len({group.get("lr_scale") for group in made.param_groups}) == 1:
        name = type(net).__name__
        raise KdclusterError(
            f"train.layer_decay: timm finds one layer in {name}; give it a group_matcher, or leave layer_decay out"
        )
    return made


def build_schedule(optimizer: torch.optim.Optimizer, train: Train, steps_per_epoch: int) -> Scheduler:
    """timm's schedule over optimizer steps: linear warm-up from 0, then constant or cosine to `min_lr`."""
    total = Course.of(train, steps_per_epoch).steps
    warmup = train.warmup_steps if train.steps else train.warmup_steps or round(train.warmup_epochs * steps_per_epoch)
    warmup = min(warmup, total - 1)  # rounding up must not take the last step
    if train.schedule == "cosine":
        return CosineLRScheduler(
            optimizer,
            t_initial=total - warmup,
            lr_min=train.min_lr,
            warmup_t=warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
    return MultiStepLRScheduler(optimizer, decay_t=[], warmup_t=warmup, t_in_epochs=False)


def set_learning_rate(schedule: Scheduler, step: int) -> float:
    """Set and return the rate of optimizer step `step` (from 0): a pure function of the step.

    Taken in the middle of the step, so that neither the first step of a warm-up nor the last of a cosine is 0.
    """
    schedule.step_update(step + 0.5)
    first = schedule.optimizer.param_groups[0]
    return float(first["lr"]) / float(first.get("lr_scale", 1.0))  # a layer's part of it, where there is layer_decay
