"""The experiment file's `train`: how a model is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator

from kdcluster.experiment.fields import Block, field

LENGTH = ("epochs", "warmup_epochs", "steps", "warmup_steps")


def _cadence(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d*steps|\d*\.?\d+min", value):
        raise ValueError("must be a number of steps or of minutes, as in 500steps or 5min")
    return value


Cadence = Annotated[str, AfterValidator(_cadence)]


class Train(Block):
    """How a model is trained."""

    epochs: int = field("Passes over the training images.", 10, ge=1)
    steps: int | None = field(
        "Optimizer steps in all, instead of `epochs`: as many for a few images as for many, which go round as often as "
        "it takes. Evaluated ten times, after each tenth.",
        None,
        ge=1,
    )
    batch_size: int = field(
        "Images per optimizer step, over all processes and micro-batches; an epoch's incomplete last batch is "
        "left out.",
        128,
        unit="images",
        ge=1,
    )
    optimizer: Literal["adamw", "sgd"] = field("Optimizer (torch's, fused); sgd has Nesterov momentum 0.9.", "adamw")
    lr: float = field("Peak learning rate.", 3e-4, gt=0.0)
    schedule: Literal["constant", "cosine"] = field("Learning rate after the warm-up.", "constant")
    warmup_epochs: float = field("Linear warm-up of the learning rate from 0.", 0.0, unit="epochs", ge=0.0)
    warmup_steps: int = field("Linear warm-up where the length is in `steps`.", 0, unit="steps", ge=0)
    weight_decay: float = field(
        "Weight decay: decoupled in adamw, L2 in sgd; biases and norms are left out.", 0.01, ge=0.0
    )
    label_loss: Literal["ce", "bce"] = field(
        "The label's term. ce: cross-entropy. bce: binary cross-entropy, each class a question of its own, summed over "
        "the classes (Wightman 2021).",
        "ce",
    )
    label_smoothing: float = field("Share of the label that is spread over all classes.", 0.0, ge=0.0, lt=1.0)
    grad_clip: float | None = field("Largest gradient norm; null: no clipping.", None, gt=0.0)
    ema_decay: float | None = field(
        "Exponential moving average of the weights, which is then evaluated and kept; null: none.",
        None,
        gt=0.0,
        lt=1.0,
    )
    amp: Literal["auto", "bf16", "none"] = field(
        "Autocast of the forward passes: auto is bf16 on a GPU that has it, and none elsewhere; the loss is always "
        "float32.",
        "auto",
    )
    channels_last: bool = field("NHWC memory layout, faster for CNNs.", True, hashed=False)
    compile: Literal["auto", True, False] = field(
        "torch.compile for student and teacher: auto is true on a GPU where 30000 steps or more are left, which "
        "earn back the minute that it takes (2 ms a step), and false elsewhere; evaluation stays eager.",
        "auto",
        hashed=False,
    )
    checkpoint_every: Cadence = field(
        "How often to save, besides after each evaluation: as in 500steps or 5min.",
        "5min",
        unit="steps or minutes",
        hashed=False,
    )
    micro_batch: int | None = field(
        "Most images that one process takes through the model at once; null: its whole share. Less memory, "
        "same gradient (but for BatchNorm).",
        None,
        unit="images",
        hashed=False,
        ge=1,
    )


def contradictions(written: Train, train: Train) -> Iterator[tuple[str, str]]:
    """What is wrong with the length and the warm-up of a training, as far as a block has `written` them itself."""
    ours = written.model_fields_set
    if written.steps is not None and "epochs" in ours:
        yield "steps", "excludes epochs, and both are here; leave one of them out"
        return
    unit, other = ("epochs", "steps") if train.steps is None else ("steps", "epochs")
    if f"warmup_{other}" in ours and getattr(written, f"warmup_{other}"):
        yield f"warmup_{other}", f"counts {other}, but the length is in {unit}; set warmup_{unit} instead"
    length, warmup = getattr(train, unit), getattr(train, f"warmup_{unit}")
    if warmup >= length and ours & {unit, f"warmup_{unit}"}:
        key = unit if unit in ours and f"warmup_{unit}" not in ours else f"warmup_{unit}"
        yield key, f"{length} {unit} leave none after {warmup:g} of warm-up"
