"""Published recipes by name: plain keys of the experiment file, under those that the file has itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

Name = Literal["deit", "patient", "a2", "finetune"]


class Recipe(NamedTuple):
    """What a recipe says."""

    source: str
    keys: Mapping[str, Any]
    """By dotted key."""


RECIPES: dict[Name, Recipe] = {
    "deit": Recipe(
        "Touvron et al. 2021, Training data-efficient image transformers & distillation through attention, table 9",
        {
            "data.augment.crop.scale": [0.08, 1.0],
            "data.augment.policy": "rand",
            "data.augment.rand.magnitude": 27,  # of 30; timm's 9 is of 10
            "data.augment.erase.probability": 0.25,
            "data.augment.mixup.alpha": 0.8,
            "data.augment.mixup.share": 0.5,
            "data.augment.cutmix.alpha": 1.0,
            "data.augment.cutmix.share": 0.5,
            "distill.alpha": 0.5,
            "distill.loss": "hard",
            "train.epochs": 300,
            "train.batch_size": 1024,
            "train.optimizer": "adamw",
            "train.lr": 1e-3,  # 5e-4 for each 512 images
            "train.schedule": "cosine",
            "train.min_lr": 1e-5,
            "train.warmup_epochs": 5.0,
            "train.weight_decay": 0.05,
            "train.label_smoothing": 0.1,
        },
    ),
    "patient": Recipe(
        "Beyer et al. 2022, Knowledge distillation: A good teacher is patient and consistent; epochs and temperature "
        "are big_vision's for ImageNet, batch, rate, warm-up and weight decay those for Pets (3,000 epochs, T 10 "
        "there), where the latter is a share of the weights, not of the learning rate: 3e-4 / 3e-3",
        {
            "data.augment.crop.scale": [0.05, 1.0],
            "data.augment.mixup.alpha": 1.0,
            "data.augment.mixup.share": 1.0,
            "distill.alpha": 1.0,
            "distill.loss": "kd",
            "distill.temperature": 1.0,
            "train.epochs": 1200,
            "train.batch_size": 512,
            "train.optimizer": "adamw",
            "train.lr": 3e-3,
            "train.schedule": "cosine",
            "train.warmup_steps": 1500,
            "train.weight_decay": 0.1,
            "train.grad_clip": 1.0,
        },
    ),
    "a2": Recipe(
        "Wightman, Touvron, Jégou 2021, ResNet strikes back: An improved training procedure in timm, table 2, A2",
        {
            "data.augment.crop.scale": [0.08, 1.0],
            "data.augment.policy": "rand",
            "data.augment.rand.magnitude": 21,  # of 30; timm's 7 is of 10
            "data.augment.mixup.alpha": 0.1,
            "data.augment.mixup.share": 0.5,
            "data.augment.cutmix.alpha": 1.0,
            "data.augment.cutmix.share": 0.5,
            "train.epochs": 300,
            "train.batch_size": 2048,
            "train.optimizer": "lamb",
            "train.lr": 5e-3,
            "train.schedule": "cosine",
            "train.min_lr": 1e-6,
            "train.warmup_epochs": 5.0,
            "train.weight_decay": 0.02,
            "train.label_loss": "bce",
        },
    ),
    "finetune": Recipe(
        "Layer decay as in BEiT (Bao et al. 2022) and MAE (He et al. 2022, table 9), over fewer epochs, for models "
        "that begin with pretrained weights",
        {
            "data.augment.crop.scale": [0.5, 1.0],
            "train.epochs": 20,
            "train.batch_size": 128,
            "train.optimizer": "adamw",
            "train.lr": 5e-4,
            "train.layer_decay": 0.75,
            "train.schedule": "cosine",
            "train.min_lr": 1e-6,
            "train.warmup_epochs": 2.0,
            "train.weight_decay": 0.05,
            "train.label_smoothing": 0.1,
            "train.grad_clip": 1.0,
        },
    ),
}

INSTEAD = {
    "train.steps": ("train.epochs", "train.warmup_epochs", "train.warmup_steps"),
    "train.warmup_steps": ("train.warmup_epochs",),
    "train.warmup_epochs": ("train.warmup_steps",),
    "train.schedule": ("train.min_lr",),
    "distill.loss": ("distill.temperature",),
    "data.augment.pad": ("data.augment.crop.scale",),
    "data.augment.policy": ("data.augment.rand.magnitude",),
}
"""A key, and those of a recipe that are put aside where the file has another value there: what it stands for, or what
goes with the recipe's own value alone."""


def keys(name: Name) -> dict[str, Any]:
    """A recipe as a file has it: blocks inside blocks."""
    return _with({}, RECIPES[name].keys)


def expanded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file's values and, where it names a recipe, that one's under them: what the file has stays.

    What is wrong with the name, or stands where a block should, is left for the validation to say.
    """
    name = values.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        return values
    recipe: Mapping[str, Any] = RECIPES[name].keys
    other = (key for key, value in _dotted(values) if value != recipe.get(key))
    aside = {key for mine in other for key in INSTEAD.get(mine, ())}
    return _with(values, {key: value for key, value in recipe.items() if key not in aside})


def _dotted(values: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{above}{key}", value
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{above}{key}.")


def _with(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with dotted keys put in where there are none."""
    found = dict(values)
    for dotted, value in more.items():
        first, _, rest = dotted.partition(".")
        if not rest:
            found.setdefault(first, value)
        elif isinstance(inner := found.get(first, {}), Mapping):
            found[first] = _with(inner, {rest: value})
    return found
