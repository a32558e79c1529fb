"""How a model was trained, in words for people who know the field and not kdcluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from kdcluster.columns import escaped
from kdcluster.experiment.distilling import Distill
from kdcluster.experiment.training import Train
from kdcluster.plan import Run
from kdcluster.settings import of_run
from kdcluster.wording import count

_OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD with Nesterov momentum 0.9"}
_SAID = {
    "role",
    "seed",
    "recipe",
    "model",
    "image_size",
    "teacher",
    "train",
    "data.name",
    "data.labelled",
    "data.views",
}
_SAID |= {"data.image_size", "data.augment.pad", "data.augment.flip"} | {
    f"distill.{key}" for key in Distill.model_fields
}
_SAID |= {f"train.{key}" for key in ("epochs", "steps", "batch_size", "optimizer", "lr", "schedule", "weight_decay")}
_SAID |= {"train.warmup_epochs", "train.warmup_steps", "train.amp"}
"""What has a sentence of its own; all else that decides the numbers is named where it is not the default."""


def sentences(run: Run, teacher_top1: float | None) -> Iterator[str]:
    """Paragraphs in Markdown; of a path its last part alone, since the others are nobody's business.

    Args:
        run: the run.
        teacher_top1: percent; None: not known.
    """
    if run.train is None:
        yield f"Its weights were taken as they are, {_start(run)}, and not trained further."
        return
    yield f"It started from {_start(run)} and was trained for {_length(run.train)}: {_steps(run.train)}."
    if run.distill and run.teacher:
        good = f", which has {teacher_top1:.2f} % top-1 on the same test set" if teacher_top1 is not None else ""
        yield (
            f"It was distilled: beside the labels it learnt from the logits of its teacher, a "
            f"{escaped(run.teacher.model.model)}{good}. "
            f"{run.distill.formula()}, with {run.distill.in_words()}."
        )
    yield f"Images in training: {_views(run)}."
    if others := list(_others(run)):
        yield f"Further settings: {', '.join(others)}."


def _start(run: Run) -> str:
    start = run.model.pretrained
    if isinstance(start, str):
        return f"the weights in `{escaped(PurePath(start).name)}`"
    return f"timm's weights {escaped(run.model.model)}" if start else "random weights"


def _length(train: Train) -> str:
    length = count(train.steps, "step") if train.steps else f"{count(train.epochs, 'epoch')}"
    return f"{length} with {count(train.batch_size, 'image')} a step"


def _steps(train: Train) -> str:
    warm_up = count(train.warmup_steps, "step") if train.steps else f"{train.warmup_epochs:g} epochs"
    has_warm_up = train.warmup_steps if train.steps else train.warmup_epochs
    then = {"constant": "constant", "cosine": "cosine decay"}[train.schedule]
    rate = f"learning rate {train.lr:g} ({f'{warm_up} of warm-up, then ' if has_warm_up else ''}{then})"
    return f"{_OPTIMIZERS.get(train.optimizer, escaped(train.optimizer))}, {rate}, weight decay {train.weight_decay:g}"


def _views(run: Run) -> str:
    augment = run.data.augment
    how = [f"shifted at random by up to {augment.pad} px"] if augment.pad else []
    how += ["mirrored at random"] if augment.flip else []
    views = f", in {count(run.data.views, 'fixed version')} of each" if run.data.views else ""
    return (" and ".join(how) or "as they are") + views


def _others(run: Run) -> Iterator[str]:
    files = {run.data.path, run.model.pretrained, *run.imports}
    for key, one in of_run(run).items():
        layout = key.startswith("model_args.")
        if key in _SAID or (one.is_default and not layout) or not one.hashed or key.endswith("(content)"):
            continue
        if isinstance(one.value, str) and one.value in files:
            continue
        yield f"{escaped(key.rpartition('.')[2].replace('_', ' '))} {escaped(one.text)}"
