"""One run, fully resolved, and its content-addressed id. Pure.

A run id is `<role>-<model>-s<seed>-<hash8>`. The hash covers what decides the numbers, and of that only what
differs from its default, so that a default written out, a new field or another order of keys moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcluster.errors import ConfigError
from kdcluster.experiment import yamlfile
from kdcluster.experiment.config import Model, Resources
from kdcluster.experiment.distilling import Distill
from kdcluster.experiment.identity import changed, digest
from kdcluster.experiment.images import Data
from kdcluster.experiment.training import Train
from kdcluster.ownership import own_text
from kdcluster.wording import first_problem

Role = Literal["teacher", "teacher-logits", "baseline", "distilled"]
STORE: Role = "teacher-logits"
"""The run that stores the teacher's logits of every view (teacherlogits.py)."""
ROLES: tuple[Role, ...] = ("teacher", STORE, "baseline", "distilled")
FIRST: tuple[Role, ...] = ("teacher", STORE)
"""Those that students wait for."""
TRAINED: tuple[Role, ...] = ("teacher", "baseline", "distilled")
"""Those that have an accuracy."""

Arm = Literal[Role, "tuned", "control"]
"""What a run is to an experiment: its role, or another baseline that is compared with: `tuned` has the settings that a
search found for it, `control` the label smoothing that distillation would be with a teacher that knows nothing."""
ARMS: tuple[Arm, ...] = ("teacher", "baseline", "tuned", "control", "distilled")
"""The rows of the table."""
NAMED: Mapping[Arm, str] = {"tuned": "baseline, tuned", "control": "label smoothing"}
"""In words, where the name alone would not do."""

RECIPES: Mapping[Role, int] = {"teacher": 1, STORE: 1, "baseline": 1, "distilled": 2}
"""Raised by hand when the trainer's numerics or a default change: runs made before are then other runs.

distilled 2: the teacher's forward pass has the precision in which the teacher was trained, not the student's.
"""

RunId = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Also the name of a folder, and of no other."""


class TeacherRef(BaseModel):
    """The run whose best weights a student is distilled from."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    id: RunId
    model: Model
    min_top1: float | None
    hash: str = ""
    """Of that run; empty in what earlier versions wrote."""


class Run(BaseModel):
    """One training run, fully resolved: all that a trainer needs to know, written to the run's config.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    id: RunId
    hash: str
    recipe: int
    role: Role
    seed: int
    model: Model
    data: Data
    num_classes: int
    channels: int
    train: Train | None
    distill: Distill | None
    teacher: TeacherRef | None
    variant: str
    imports: tuple[str, ...]
    digests: dict[str, str]
    resources: Resources
    store: RunId | None = None
    """Of a distilled run: where the teacher's logits stand, if they do."""
    views: int | None = None
    """Of a store: how many views it is to hold at least."""

    @property
    def needs(self) -> list[str]:
        """Ids of the runs that must be done before this one starts."""
        return [self.teacher.id] if self.teacher else []

    @property
    def after(self) -> list[str]:
        """Ids of the runs that it waits for, whatever becomes of them."""
        return [self.store] if self.store else []

    @property
    def amp(self) -> str:
        """Autocast type; a model that is only evaluated runs in float32."""
        return self.train.amp if self.train else "none"

    def with_amp(self, amp: Literal["auto", "bf16", "none"]) -> Run:
        """The same run in a precision that the place has decided (train/precision.py); its id stays."""
        assert self.train is not None
        return self.model_copy(update={"train": self.train.model_copy(update={"amp": amp})})

    def as_today(self) -> Run:
        """The run with today's default precision where an earlier version has written out its own, bf16."""
        if self.amp == "bf16" and (auto := self.with_amp("auto")).has_identity():
            return auto
        return self

    def to_yaml(self) -> str:
        """The run's config.yaml."""
        return yamlfile.dump(self.model_dump(mode="json"))

    def digest(self) -> str:
        """The hash that its settings give: SHA-256 over what decides the numbers, of that what is not the default.

        Raises:
            KeyError: `digests` lacks a file.
        """
        model, distill = changed(self.model), self.distill and changed(self.distill)
        if isinstance(self.model.pretrained, str):
            model["pretrained"] = self.digests[self.model.pretrained]
        if self.teacher:
            distill = {**(distill or {}), "teacher": self.teacher.hash}
        data = changed(self.data)
        if not self.train and self.role != STORE:  # a model that is only evaluated sees no augmented view
            data = {key: value for key, value in data.items() if key not in ("augment", "view_seed", "labelled")}
        identity = {
            "recipe": self.recipe,
            "seed": self.seed,
            "model": model,
            "data": data,
            "folder": self.digests.get(self.data.path or ""),
            "train": changed(self.train) if self.train else "none",
            "distill": distill,
            "variant": self.variant or None,
            "imports": [self.digests[path] for path in self.imports] or None,
        }
        return digest({key: value for key, value in identity.items() if value is not None})

    def has_identity(self) -> bool | None:
        """Whether id and hash are those of its settings; None where an earlier version has not written all of them."""
        if self.teacher and not self.teacher.hash:
            return None
        try:
            return self.hash == self.digest() and self.id.endswith(f"-{self.hash[:8]}")
        except KeyError:
            return False

    def check_identity(self) -> None:
        """Hold id and hash against the settings, as far as all of them are known.

        Raises:
            ConfigError: they are not those of these settings.
        """
        if self.has_identity() is False:
            raise ConfigError(
                f"{self.id}: its config.yaml was changed, or written by another version: these settings are another "
                f"run's; submit its experiment instead"
            )

    def check_recipe(self) -> None:
        """Refuse to go on with what an earlier version began: its numbers would be of two recipes.

        Raises:
            ConfigError: it was made by another one than today's.
        """
        if self.recipe != (today := RECIPES[self.role]):
            raise ConfigError(
                f"{self.id} was begun with recipe {self.recipe} of an earlier version (today's is {today}): submit its "
                f"experiment, which makes it anew"
            )

    @classmethod
    def from_yaml(cls, path: Path) -> Run:
        """Read a run's config.yaml.

        Raises:
            ConfigError: it is not one, was written by another version, or can have been written by another user.
        """
        try:
            return cls.model_validate(yamlfile.parse(own_text(path)), strict=False).as_today()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError as error:  # not YAML, or not such a one
            why = first_problem(error) if isinstance(error, ValidationError) else error
            raise ConfigError(f"{path}: not a run's configuration of this version: {why}") from None
