"""Experiments to the DAG of runs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from kdcluster import course
from kdcluster.errors import ConfigError
from kdcluster.experiment.config import Experiment, Model
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.experiment.distilling import Distill
from kdcluster.experiment.images import DATASETS, Data
from kdcluster.experiment.training import Train
from kdcluster.run import FIRST, RECIPES, STORE, Arm, TeacherRef
from kdcluster.run import ROLES as ROLES
from kdcluster.run import Role as Role
from kdcluster.run import Run as Run


@dataclass(frozen=True)
class Plan:
    """The runs in an order in which each comes after what it needs, and which experiment wants which."""

    runs: tuple[Run, ...]
    wanted: Mapping[str, Mapping[Arm, tuple[str, ...]]]
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
        """The plan cut down to some roles, what they need, and what they wait for."""
        return self.cut({run.id for run in self.runs if run.role in roles})

    def cut(self, ids: Set[str]) -> Plan:
        """The plan cut down to some runs, what they need, and what they wait for."""
        kept = set(ids)
        kept |= {need for run in self.runs if run.id in kept for need in (*run.needs, *run.after)}
        return Plan(tuple(run for run in self.runs if run.id in kept), self.wanted, self.experiments)

    def joined(self, runs: Iterable[Run]) -> Plan:
        """The plan with further runs, each after what it needs, which no experiment here wants."""
        every: dict[str, Run] = {}
        for run in (*self.runs, *runs):
            every[run.id] = _enough(run, every.get(run.id, run))
        return Plan(tuple(every.values()), self.wanted, self.experiments)

    def readers(self, run_id: str) -> list[Run]:
        """The runs that read a store."""
        return [run for run in self.runs if run_id in run.after]


def plan(loaded: Iterable[LoadedExperiment]) -> Plan:
    """The DAG of runs of one or more experiments; equal runs are one run.

    Raises:
        ConfigError: two different runs have the same id (eight equal digits of different hashes), or two
            experiments the same name.
    """
    runs: list[Run] = []
    wanted: dict[str, Mapping[Arm, tuple[str, ...]]] = {}
    experiments: dict[str, Experiment] = {}
    for experiment in loaded:
        if experiments.get(experiment.name, experiment.config) != experiment.config:
            raise ConfigError(f"two different experiments are named {experiment.name}; rename one of the files")
        ours = _runs_of(experiment)
        runs += chain.from_iterable(ours.values())
        wanted[experiment.name] = {arm: tuple(run.id for run in made) for arm, made in ours.items()}
        experiments[experiment.name] = experiment.config
    ordered = sorted(_unique(runs), key=lambda run: FIRST.index(run.role) if run.role in FIRST else len(FIRST))
    return Plan(tuple(ordered), wanted, experiments)


def _unique(runs: Iterable[Run]) -> list[Run]:
    """Each run once.

    Raises:
        ConfigError: two different runs have the same id.
    """
    found: dict[str, Run] = {}
    for run in runs:
        known = found.setdefault(run.id, run)
        if known.hash != run.hash:
            raise ConfigError(f"two different runs have the id {run.id}; set `variant` in one of them")
        found[run.id] = _enough(known, run)
    return list(found.values())


def _enough(run: Run, other: Run) -> Run:
    """The run; a store that somebody else asks for, too, with the views and the gate of whoever asks for most."""
    if not (run.views and other.views and run.teacher and other.teacher):
        return run
    gates = [one.min_top1 for one in (run.teacher, other.teacher) if one.min_top1 is not None]
    teacher = run.teacher.model_copy(update={"min_top1": min(gates) if len(gates) == 2 else None})
    return run.model_copy(update={"views": max(run.views, other.views), "teacher": teacher})


def trial(loaded: LoadedExperiment, seeds: Iterable[int], val_fraction: float, role: Role = "distilled") -> list[Run]:
    """The students of one point of a sweep, which hold images out to be measured on.

    Their teacher is the experiment's own run: it sees all training images, also those that the trials hold out.

    Args:
        loaded: the experiment at that point.
        seeds: of the runs.
        val_fraction: share that is held out where the file holds out none.
        role: baseline or distilled.
    """
    return _runs_of(loaded, _holding_out(loaded, tuple(seeds), val_fraction))[role]


def trial_stores(loaded: LoadedExperiment, val_fraction: float) -> list[Run]:
    """The store that trials read, with as many views as they see: of fewer images they see more in as many steps."""
    return _runs_of(loaded, _holding_out(loaded, loaded.config.seeds, val_fraction))[STORE]


def _holding_out(loaded: LoadedExperiment, seeds: tuple[int, ...], val_fraction: float) -> LoadedExperiment:
    data = loaded.config.data
    held = data if data.val_fraction else data.model_copy(update={"val_fraction": val_fraction})
    return replace(loaded, config=loaded.config.model_copy(update={"data": held, "seeds": seeds}))


def _runs_of(loaded: LoadedExperiment, students: LoadedExperiment | None = None) -> dict[Arm, list[Run]]:
    """All runs; `students`: the experiment as they see it, where that differs from how the teacher does."""
    config = loaded.config
    own = {"views": None, "augment": config.teacher.augment or config.data.augment}
    seen = config.data.model_copy(update=own)
    teacher = _run(loaded, "teacher", config.teacher.seed, config.teacher, config.teacher_train(), data=seen)
    loaded = students or loaded
    config = loaded.config
    ref = TeacherRef(id=teacher.id, model=teacher.model, min_top1=config.teacher.min_top1, hash=teacher.hash)
    baseline = [_run(loaded, "baseline", seed, config.student, config.train) for seed in config.seeds]
    if config.distill.alpha == 0:  # the teacher's term has no weight: the same numbers, hence the same runs
        return {"teacher": [teacher], STORE: [], "baseline": baseline, "distilled": baseline, "control": []}
    stores = [_store(loaded, ref)] if config.distill.logits == "stored" else []
    distilled = [
        _run(loaded, "distilled", seed, config.student, config.train, config.distill, ref).model_copy(
            update={"store": stores[0].id if stores else None}
        )
        for seed in config.seeds
    ]
    smoothed = _smoothed(config.train, config.distill.alpha)
    controls = config.seeds if config.control == "label_smoothing" else ()
    control = [_run(loaded, "baseline", seed, config.student, smoothed) for seed in controls]
    return {"teacher": [teacher], STORE: stores, "baseline": baseline, "distilled": distilled, "control": control}


def _smoothed(train: Train, alpha: float) -> Train:
    """As the baseline is trained, but with the share `alpha` of each target spread evenly over all classes.

    Label smoothing as a teacher that is uniform: Yuan et al. (2020), "Revisiting Knowledge Distillation via Label
    Smoothing Regularization", section 3.
    """
    share = round(1 - (1 - alpha) * (1 - train.label_smoothing), 12)  # 0.3 is to be what 0.3 in a file is
    return train.model_copy(update={"label_smoothing": share})


def _store(loaded: LoadedExperiment, teacher: TeacherRef) -> Run:
    """The store of a teacher's logits of all views that the distilled students see, of the whole training set."""
    config = loaded.config
    seen = config.data.model_copy(update={"views": None, "val_fraction": 0.0, "labelled": None})
    run = _run(loaded, STORE, config.teacher.seed, config.teacher, None, None, teacher, data=seen)
    shown = loaded.train_images - round(loaded.train_images * config.data.val_fraction)
    epochs = course.epochs(config.train, shown)
    return run.model_copy(update={"views": min(config.data.views or epochs, epochs)})


def _run(
    loaded: LoadedExperiment,
    role: Role,
    seed: int,
    model: Model,
    train: Train | None,
    distill: Distill | None = None,
    teacher: TeacherRef | None = None,
    *,
    data: Data | None = None,
) -> Run:
    """`data`: as it sees them, where that is not as the file has them."""
    config = loaded.config
    run = Run(
        id="unknown",
        hash="",
        recipe=RECIPES[role],
        role=role,
        seed=seed,
        model=Model(**{name: getattr(model, name) for name in Model.model_fields}),
        data=data or config.data,
        num_classes=loaded.num_classes,
        channels=DATASETS[config.data.name].channels if config.data.name in DATASETS else 3,
        train=train,
        distill=distill,
        teacher=teacher,
        variant="" if role in ("teacher", STORE) else config.variant,
        imports=config.imports,
        digests=dict(loaded.digests),
        resources=config.resources,
    )
    hash = run.digest()
    name = re.sub(r"[^a-z0-9_]+", "_", model.model.split(".")[0].lower())
    return run.model_copy(update={"id": f"{role}-{name}-s{seed}-{hash[:8]}", "hash": hash})
