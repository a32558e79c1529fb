"""The experiment file's `train`: how a model is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kdcluster.experiment.fields import Block, field
from kdcluster.experiment.optimizers import BETAS, MOMENTUM, Optimizer

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
    optimizer: Optimizer = field(
        "Optimizer, by timm's name: adamw, sgd (Nesterov), lamb, lion, adan and others. adam, adamw, sgd, nesterov and "
        "momentum are torch's, fused.",
        "adamw",
    )
    momentum: float | None = field("Of the optimizers that have one, as sgd; null: 0.9.", None, gt=0.0, lt=1.0)
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] | None = field(
        "Of the optimizers that have some: two, as of adamw, or three, as of adan; null: the optimizer's own.",
        None,
        strict=False,
    )
    lr: float = field("Peak learning rate.", 3e-4, gt=0.0)
    layer_decay: float | None = field(
        "Of the learning rate from layer to layer, counted from the head down, as for fine-tuning; null: the same in "
        "all.",
        None,
        gt=0.0,
        le=1.0,
    )
    schedule: Literal["constant", "cosine"] = field("Learning rate after the warm-up.", "constant")
    min_lr: float = field("Learning rate at the end of a cosine.", 0.0, ge=0.0)
    warmup_epochs: float = field("Linear warm-up of the learning rate from 0.", 0.0, unit="epochs", ge=0.0)
    warmup_steps: int = field("The same in steps, instead of `warmup_epochs`.", 0, unit="steps", ge=0)
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
    ema_warmup: bool = field(
        "The average's decay grows to ema_decay with the steps: 1 - step^(-2/3), so that it forgets the start early.",
        False,
    )
    amp: Literal["auto", "bf16", "none"] = field(
        "Autocast of the forward passes: auto is bf16 on a GPU that has it, and none elsewhere; the loss is always "
        "float32.",
        "auto",
    )
    channels_last: bool = field("NHWC memory layout, faster for CNNs.", True, hashed=False)
    grad_checkpointing: bool = field(
        "Forget the activations in the model and compute them again in the backward pass: less memory, a third more "
        "work, the same numbers. Not for models with BatchNorm, whose statistics would count each batch twice.",
        False,
        hashed=False,
    )
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
    """What is wrong with a training, as far as a block has `written` it itself."""
    yield from _length(written, train)
    ours = written.model_fields_set
    name = train.optimizer
    if train.momentum is not None and name not in MOMENTUM and ours & {"momentum", "optimizer"}:
        yield "momentum", f"{name} has none{'; its betas are train.betas' if name in BETAS else ''}; leave it out"
    if train.betas is not None and len(train.betas) != BETAS.get(name) and ours & {"betas", "optimizer"}:
        has = f"has {BETAS[name]} (got {len(train.betas)})" if name in BETAS else "has none; leave them out"
        yield "betas", f"{name} {has}"
    if train.min_lr and ours & {"min_lr", "schedule", "lr"}:
        if train.schedule != "cosine":
            yield "min_lr", f"is where a cosine ends, and the schedule is {train.schedule}; leave it out"
        elif train.min_lr >= train.lr:
            yield "min_lr", f"must be less than lr (got {train.min_lr:g}, and lr is {train.lr:g})"
    if train.ema_warmup and train.ema_decay is None and ours & {"ema_warmup", "ema_decay"}:
        yield "ema_warmup", "needs ema_decay, which it warms up to"


def merged(own: Train, others: Train) -> Train:
    """`own` as far as it is written, else the others'; what of theirs counts in another unit, or goes with another
    optimizer, schedule or average, is put aside."""
    given = {name: getattr(own, name) for name in own.model_fields_set}
    aside: tuple[str, ...] = ()
    counts_steps = (own if given.keys() & {"epochs", "steps"} else others).steps is not None
    if counts_steps != (others.steps is not None):
        aside += LENGTH
    elif given.keys() & {"warmup_epochs", "warmup_steps"}:
        aside += ("warmup_epochs", "warmup_steps")
    if given.get("optimizer", others.optimizer) != others.optimizer:
        aside += ("momentum", "betas")
    if given.get("schedule", others.schedule) != others.schedule:
        aside += ("min_lr",)
    if "ema_decay" in given and given["ema_decay"] is None:
        aside += ("ema_warmup",)
    return others.model_copy(update={name: Train.model_fields[name].default for name in aside} | given)


def _length(written: Train, train: Train) -> Iterator[tuple[str, str]]:
    ours = written.model_fields_set
    if written.steps is not None and "epochs" in ours:
        yield "steps", "excludes epochs, and both are here; leave one of them out"
        return
    if train.steps is not None and written.warmup_epochs and "warmup_epochs" in ours:
        yield "warmup_epochs", "counts epochs, but the length is in steps; set warmup_steps instead"
    elif written.warmup_epochs and written.warmup_steps:
        yield "warmup_steps", "excludes warmup_epochs, and both are here; leave one of them out"
    unit = "epochs" if train.steps is None else "steps"
    length, warmup = getattr(train, unit), getattr(train, f"warmup_{unit}")
    if warmup >= length and ours & {unit, f"warmup_{unit}"}:
        key = unit if unit in ours and f"warmup_{unit}" not in ours else f"warmup_{unit}"
        yield key, f"{length} {unit} leave none after {warmup:g} of warm-up"
