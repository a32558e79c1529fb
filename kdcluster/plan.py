"""Experiments to the DAG of training runs, and each run's content-addressed id. Pure.

A run id is `<role>-<model>-s<seed>-<hash8>`. The hash covers what decides the numbers, and of that only what
differs from its default, so that a default written out, a new field or another order of keys moves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcluster.errors import ConfigError
from kdcluster.experiment import yamlfile
from kdcluster.experiment.config import DATASETS, Data, Distill, Experiment, Model, Resources, Train
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.experiment.identity import changed, digest
from kdcluster.ownership import own_text
from kdcluster.wording import first_problem

RECIPE = 1
"""Raised by hand when the trainer's numerics or a default change: runs made before are then other runs."""

Role = Literal["teacher", "baseline", "distilled"]
ROLES: tuple[Role, ...] = ("teacher", "baseline", "distilled")


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

    @property
    def needs(self) -> list[str]:
        """Ids of the runs that must be done before this one starts."""
        return [self.teacher.id] if self.teacher else []

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
        if not self.train:  # a model that is only evaluated sees no augmented view
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


@dataclass(frozen=True)
class Plan:
    """The runs in an order in which each comes after what it needs, and which experiment wants which."""

    runs: tuple[Run, ...]
    wanted: Mapping[str, Mapping[Role, tuple[str, ...]]]
    experiments: Mapping[str, Experiment] = field(repr=False)

    def __getitem__(self, run_id: str) -> Run:
        return self._by_id[run_id]

    @cached_property
    def _by_id(self) -> Mapping[str, Run]:
        return {run.id: run for run in self.runs}

    def experiments_of(self, run_id: str) -> list[str]:
        """Names of the experiments that want a run."""
        return list(self._wanted_by.get(run_id, ()))

    @cached_property
    def _wanted_by(self) -> Mapping[str, Sequence[str]]:
        """Run id -> names of experiments."""
        found: dict[str, list[str]] = {}
        for name, roles in self.wanted.items():
            for run_id in dict.fromkeys(chain.from_iterable(roles.values())):
                found.setdefault(run_id, []).append(name)
        return found

    def only(self, roles: Sequence[str]) -> Plan:
        """The plan cut down to some roles and what they need."""
        return self.cut({run.id for run in self.runs if run.role in roles})

    def cut(self, ids: Set[str]) -> Plan:
        """The plan cut down to some runs and what they need."""
        kept = set(ids)
        kept |= {need for run in self.runs if run.id in kept for need in run.needs}
        return Plan(tuple(run for run in self.runs if run.id in kept), self.wanted, self.experiments)

    def joined(self, runs: Iterable[Run]) -> Plan:
        """The plan with further runs, each after what it needs, which no experiment here wants."""
        every = {run.id: run for run in (*self.runs, *runs)}
        return Plan(tuple(every.values()), self.wanted, self.experiments)


def plan(loaded: Iterable[LoadedExperiment]) -> Plan:
    """The DAG of runs of one or more experiments; equal runs are one run.

    Raises:
        ConfigError: two different runs have the same id (eight equal digits of different hashes), or two
            experiments the same name.
    """
    runs: dict[str, Run] = {}
    wanted: dict[str, Mapping[Role, tuple[str, ...]]] = {}
    experiments: dict[str, Experiment] = {}
    for experiment in loaded:
        if experiments.get(experiment.name, experiment.config) != experiment.config:
            raise ConfigError(f"two different experiments are named {experiment.name}; rename one of the files")
        ours = _runs_of(experiment)
        for run in (run for role in ROLES for run in ours[role]):
            if runs.setdefault(run.id, run).hash != run.hash:
                raise ConfigError(f"two different runs have the id {run.id}; set `variant` in one of them")
        wanted[experiment.name] = {role: tuple(run.id for run in ours[role]) for role in ROLES}
        experiments[experiment.name] = experiment.config
    ordered = sorted(runs.values(), key=lambda run: run.role != "teacher")
    return Plan(tuple(ordered), wanted, experiments)


def trial(loaded: LoadedExperiment, seeds: Iterable[int], val_fraction: float) -> list[Run]:
    """The distilled runs of one point of a sweep, which hold images out to be measured on.

    Their teacher is the experiment's own run: it sees all training images, also those that the trials hold out.

    Args:
        loaded: the experiment at that point.
        seeds: of the runs.
        val_fraction: share that is held out where the file holds out none.
    """
    data = loaded.config.data
    held = data if data.val_fraction else data.model_copy(update={"val_fraction": val_fraction})
    changes = {"data": held, "seeds": tuple(seeds)}
    return _runs_of(loaded, replace(loaded, config=loaded.config.model_copy(update=changes)))["distilled"]


def _runs_of(loaded: LoadedExperiment, students: LoadedExperiment | None = None) -> dict[Role, list[Run]]:
    """All runs; `students`: the experiment as they see it, where that differs from how the teacher does."""
    config = loaded.config
    teacher = _run(loaded, "teacher", config.teacher.seed, config.teacher, config.teacher_train())
    loaded = students or loaded
    config = loaded.config
    ref = TeacherRef(id=teacher.id, model=teacher.model, min_top1=config.teacher.min_top1, hash=teacher.hash)
    baseline = [_run(loaded, "baseline", seed, config.student, config.train) for seed in config.seeds]
    if config.distill.alpha == 0:
        distilled = baseline  # the teacher's term has no weight: the same numbers, hence the same runs
    else:
        distilled = [
            _run(loaded, "distilled", seed, config.student, config.train, config.distill, ref) for seed in config.seeds
        ]
    return {"teacher": [teacher], "baseline": baseline, "distilled": distilled}


def _run(
    loaded: LoadedExperiment,
    role: Role,
    seed: int,
    model: Model,
    train: Train | None,
    distill: Distill | None = None,
    teacher: TeacherRef | None = None,
) -> Run:
    config = loaded.config
    run = Run(
        id="unknown",
        hash="",
        recipe=RECIPE,
        role=role,
        seed=seed,
        model=Model(**{name: getattr(model, name) for name in Model.model_fields}),
        data=config.data,
        num_classes=loaded.num_classes,
        channels=DATASETS.get(config.data.name, (0, 3))[1],
        train=train,
        distill=distill,
        teacher=teacher,
        variant="" if role == "teacher" else config.variant,
        imports=config.imports,
        digests=dict(loaded.digests),
        resources=config.resources,
    )
    hash = run.digest()
    name = re.sub(r"[^a-z0-9_]+", "_", model.model.split(".")[0].lower())
    return run.model_copy(update={"id": f"{role}-{name}-s{seed}-{hash[:8]}", "hash": hash})
