"""The experiment file's fields: what each means, its unit, its default, and whether it decides the numbers.

Frozen pydantic models; `kdcluster schema` prints this file. A field that is `hashed` enters the run's id
(see plan.py), one that is not says only where and how a run is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from kdcluster.experiment import distilling, images, recipes, training
from kdcluster.experiment.distilling import Distill
from kdcluster.experiment.fields import Block, Contradictions, field
from kdcluster.experiment.images import Augment, Data
from kdcluster.experiment.space import domain_problem
from kdcluster.experiment.training import Train


class Model(Block):
    """A timm model and its start weights."""

    model: str = field("timm name; with its tag where `pretrained: true` (resnet18.a1_in1k).", min_length=1)
    pretrained: bool | str = field(
        "Start weights: true (timm's, by tag), false (random), or a file relative to this one (safetensors, or "
        "a torch file of weights). A head of another size is replaced; anything else must fit.",
        False,
    )
    image_size: int | None = field(
        "Side at which this model sees the images; null: the size of its pretrained_cfg.",
        None,
        unit="pixels",
        ge=1,
    )
    model_args: dict[str, Any] = field("Keyword arguments passed to timm.create_model.", {})


def _none_word(value: Any) -> Any:
    if value is None:  # `train:` with nothing behind it is no decision to leave the teacher untrained
        raise ValueError("must be a block of keys, or none to take its weights as they are")
    return None if value == "none" else value


class Teacher(Model):
    """The model that is distilled; trained once, shared by everything that needs it."""

    seed: int = field("The teacher's own seed; `seeds` multiply the students only.", 0, ge=0, lt=2**31)
    min_top1: float | None = field(
        "Gate: students are not distilled from a teacher below this test accuracy.",
        None,
        unit="percent",
        hashed=False,
        ge=0.0,
        le=100.0,
    )
    augment: Augment | None = field(
        "Random views of the images that the teacher is trained on; null: as `data.augment`.", None
    )
    train: Annotated[Train | None, BeforeValidator(_none_word)] = field(
        "What differs from the experiment's `train`; `none` takes the weights as they are and only evaluates them. "
        "`epochs` where that has `steps`, or `steps` where it has `epochs`, puts its warm-up aside, too.",
        Train(),
    )


class Student(Model):
    """The small model; baseline and distilled runs differ in the loss alone."""


class Resources(Block):
    """Where each training run runs; decides no number."""

    device: Literal["auto", "cpu", "cuda"] = field(
        "auto: GPUs where this machine has some, else the CPU. cuda without a GPU is an error.",
        "auto",
        hashed=False,
    )
    gpus: int | None = field("GPUs of each training run, one process each; null: 1.", None, hashed=False, ge=1)
    procs: int | None = field("Processes of each training run on the CPU; null: 1.", None, hashed=False, ge=1)
    threads: int | None = field(
        "CPU threads of each CPU process; null: the cores shared out over the processes. Runs that leave cores "
        "free run side by side.",
        None,
        hashed=False,
        ge=1,
    )

    collective_timeout_min: float = field(
        "A process that waits so long for the others (one of them hangs) gives up, and the run fails.",
        10.0,
        unit="minutes",
        hashed=False,
        gt=0.0,
    )


def _some_key(space: dict[str, Any] | None) -> dict[str, Any] | None:
    if space is not None and not space:
        raise ValueError("must have at least one key")
    return space


def _domain(domain: Any) -> Any:
    if problem := domain_problem(domain):
        raise ValueError(problem)
    return domain


class Sweep(Block):
    """The search for better settings of the distilled student (`kdcluster sweep`)."""

    space: Annotated[dict[str, Annotated[Any, AfterValidator(_domain)]] | None, AfterValidator(_some_key)] = field(
        "What is searched: dotted keys of this file, each with uniform, loguniform, quniform, randint, choice or "
        "grid. null: alpha (uniform, 0.05 to 0.95) and, where distill.loss has one, temperature (loguniform, 1 to 16).",
        None,
        hashed=False,
    )
    trials: int = field("Points that are tried; a grid is tried as a whole.", 12, hashed=False, ge=1)
    metric: Literal["val/top1", "val/top5", "val/loss"] = field(
        "What is optimised, on images that no trial trains on; val/loss is to be small.", "val/top1", hashed=False
    )
    search: Literal["random", "optuna"] = field(
        "How points are found: drawn at random (and each of a grid), or by Optuna from the results of those before.",
        "random",
        hashed=False,
    )
    scheduler: Literal["none", "asha"] = field(
        "asha stops a trial early that is worse than others were after as many evaluations.", "none", hashed=False
    )
    seeds: int = field(
        "Runs of each point with different seeds, whose mean is optimised; more than 1 needs scheduler none.",
        1,
        hashed=False,
        ge=1,
    )
    val_fraction: float = field(
        "Share of the training images that trials do not train on, where data.val_fraction is 0.",
        0.1,
        hashed=False,
        gt=0.0,
        lt=1.0,
    )
    seed: int = field("Seed of the search.", 0, hashed=False, ge=0, lt=2**31)
    at_once: int | None = field(
        "Most trials at the same time; null: as many as there is room for.", None, hashed=False, ge=1
    )
    time_budget_min: float | None = field(
        "No trial starts, and none goes on, after so long in one call or job; null: no limit.",
        None,
        unit="minutes",
        hashed=False,
        gt=0.0,
    )
    max_failures: int = field("How often a trial that fails is started again.", 1, hashed=False, ge=0)


class Reference(Block):
    """Published figures, shown in a column of their own."""

    teacher: float | None = field("Published test accuracy.", None, unit="percent", hashed=False, ge=0.0, le=100.0)
    baseline: float | None = field("Published test accuracy.", None, unit="percent", hashed=False, ge=0.0, le=100.0)
    distilled: float | None = field("Published test accuracy.", None, unit="percent", hashed=False, ge=0.0, le=100.0)


class Experiment(Block):
    """One experiment file: a teacher, a student, and how they are trained and compared."""

    recipe: recipes.Name | None = field(
        "A published recipe: its keys (kdcluster schema --recipe NAME) hold where this file has none. null: none.",
        None,
        hashed=False,
    )
    data: Data = field("The images.")
    teacher: Teacher = field("The big model.")
    student: Student = field("The small model.")
    distill: Distill = field("The distillation loss.", Distill())
    control: Literal["none", "label_smoothing"] = field(
        "Another arm to compare with: the baseline with soft targets that carry no teacher, the share `alpha` of the "
        "probability spread evenly over the classes. What distillation brings beyond it is what the teacher knows.",
        "none",
        hashed=False,
    )
    train: Train = field("How teacher and students are trained.", Train())
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = field(
        "One baseline and one distilled run for each.", (0,), min_length=1, strict=False
    )
    variant: str = field("Free text; another text makes other student runs of the same settings.", "")
    resources: Resources = field("Where each run runs.", Resources(), hashed=False)
    imports: tuple[str, ...] = field(
        "Python files that register timm models; relative to this file. Their content enters the id.",
        (),
        strict=False,
    )
    sweep: Sweep = field("The search for better settings.", Sweep(), hashed=False)
    reference: Reference = field("Published figures.", Reference(), hashed=False)

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("each seed may stand only once")
        return seeds

    def teacher_train(self) -> Train | None:
        """The teacher's training settings: the experiment's, with the teacher's own on top; None: evaluate only."""
        return None if self.teacher.train is None else training.merged(self.teacher.train, self.train)

    def contradictions(self) -> Contradictions:
        """What no single field can know: (dotted key, what is wrong)."""
        found = [((role, *key), what) for role in ("teacher", "student") for key, what in _model(getattr(self, role))]
        found += [(("data", key), what) for key, what in images.contradictions(self.data)]
        found += [(("distill", key), what) for key, what in distilling.contradictions(self.distill)]
        for block, augment in (("data", self.data.augment), ("teacher", self.teacher.augment)):
            wrong = images.augment_contradictions(augment, self.data.name) if augment else ()
            found += [((block, "augment", *key), what) for key, what in wrong]
        found += [(("resources", key), what) for key, what in _resources(self.resources)]
        found += [(("train", key), what) for key, what in training.contradictions(self.train, self.train)]
        if self.control != "none" and round((1 - self.distill.alpha) * (1 - self.train.label_smoothing), 12) == 0:
            what = "needs distill.alpha below 1: with all of the probability spread evenly there is nothing to learn"
            found.append((("control",), what))
        if self.distill.loss == "dist" and self.train.micro_batch is not None:
            what = "distill.loss dist relates all images of a batch to each other; leave it out (use more "
            what += "processes, or train.grad_checkpointing, where memory is short)"
            found.append((("train", "micro_batch"), what))
        if self.sweep.seeds > 1 and self.sweep.scheduler != "none":
            what = f"must be 1 with scheduler {self.sweep.scheduler}, which stops single runs (got {self.sweep.seeds})"
            found.append((("sweep", "seeds"), what))
        if "train.steps" in (self.sweep.space or {}) and self.sweep.scheduler == "asha":
            what = "asha compares trials after each tenth of their steps, so train.steps must be the same for all"
            found.append((("sweep", "scheduler"), what))
        grids = [key for key, domain in (self.sweep.space or {}).items() if "grid" in domain]
        if grids and self.sweep.search == "optuna":
            what = f"optuna tries no grid as a whole; make {grids[0]} a choice, or search at random"
            found.append((("sweep", "search"), what))
        own, merged = self.teacher.train, self.teacher_train()
        if own is None or merged is None:
            if self.teacher.augment is not None:
                what = "is for a teacher that is trained, and teacher.train is none; leave it out"
                found.append((("teacher", "augment"), what))
            if self.teacher.pretrained is False:
                found.append((("teacher", "train"), "none needs weights: set teacher.pretrained to true or a file"))
        else:
            found += [(("teacher", "train", key), what) for key, what in training.contradictions(own, merged)]
        return found


def _model(model: Model) -> Iterator[tuple[tuple[str, ...], str]]:
    if model.pretrained is True and "." not in model.model:
        yield ("model",), "pretrained: true needs the tag of the weights in the name, as in resnet18.a1_in1k"
    for key, value in model.model_args.items():
        if key in _OURS:
            yield ("model_args", key), _OURS[key]
        elif not _is_plain(value):
            yield ("model_args", key), "must be made of text, finite numbers, true, false, null, lists and blocks"


_OURS = {
    "pretrained": "set `pretrained` beside model_args instead",
    "img_size": "set `image_size` beside model_args instead",
    "in_chans": "the colour channels follow from the data set: leave it out",
    "num_classes": "the class count follows from the data set: leave it out",
}


def _is_plain(value: Any) -> bool:
    """Whether a value can enter the run's hash: what JSON can hold, so no date, no bytes, no infinity."""
    if isinstance(value, list | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _resources(resources: Resources) -> Iterator[tuple[str, str]]:
    if resources.gpus is not None and resources.procs is not None:
        yield "gpus", "GPUs and CPU processes (procs) exclude each other; set one of them"
    elif resources.gpus is not None and resources.device == "cpu":
        yield "gpus", "needs device cuda or auto (device is cpu)"
    elif resources.procs is not None and resources.device == "cuda":
        yield "procs", "means CPU processes; with device cuda set gpus"
