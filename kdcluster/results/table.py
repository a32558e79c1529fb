"""Run directories to the results table: means over seeds, gain over the baseline of the same seeds, and all
that did not enter them.

Accuracies are test/top1 in percent, gains in percentage points. A number that cannot be had is None, never 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from kdcluster.experiment.config import Experiment
from kdcluster.history import Cost, Record, cost, history
from kdcluster.inputs import in_both
from kdcluster.plan import Plan, Role
from kdcluster.results.conditions import local_batchnorm, unlike, where
from kdcluster.results.index import Index
from kdcluster.results.measured import TOP1, Measured, Protocol, measure, selected_by
from kdcluster.results.seeds import SeedRow, by_seed, took
from kdcluster.results.spread import compared, interval95
from kdcluster.run import STORE, TRAINED
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, State
from kdcluster.wording import count

Standing = tuple[State, str, str | None]
"""State of a run that is not done, why, and its log, where there is one."""
NO_DISTILLATION = "no distillation"
"""The baseline in words."""
NEVER_STARTED: Standing = (State.PLANNED, "not started", None)


@dataclass(frozen=True)
class Row:
    """One role of an experiment. The field names are those of `results --format json`."""

    configuration: str
    role: Role
    params: int | None
    reduction: float | None
    """The teacher's parameters / these; None for the teacher."""
    n: int
    """Runs that are done and have a number."""
    n_expected: int
    top1_mean: float | None
    """Percent."""
    top1_sd: float | None
    """Sample standard deviation (n - 1) over the seeds, in percentage points; None below 2 runs."""
    gain: float | None
    """Distilled - baseline over the seeds that both have, in percentage points."""
    gain_ci95: tuple[float, float] | None
    """95 % t interval of the gain over its seeds; None below 2."""
    retention: float | None
    """Mean / the teacher's accuracy, in percent; None for the teacher."""
    reference: float | None
    """Published accuracy, in percent."""
    runs: tuple[str, ...]
    note: int | None = None
    """Number of the note that belongs to this row."""


@dataclass(frozen=True)
class Problem:
    """A run that needs looking at: it is not done, or its files disagree."""

    run: str
    state: State
    reason: str
    log: str | None


@dataclass(frozen=True)
class ExperimentTable:
    """One experiment: its rows by role, the runs that are missing or odd, and what else has to be said."""

    name: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    cost: Cost = field(default_factory=Cost)
    """Of all its runs; what another experiment shares counts in both."""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """Of each run that has started."""
    seeds: tuple[SeedRow, ...] = ()


@dataclass(frozen=True)
class Table:
    """The results of one or more experiments."""

    protocol: Protocol
    metric: str
    experiments: tuple[ExperimentTable, ...]
    notes: tuple[str, ...] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every expected run is in the means (`results --strict`)."""
        return all(row.n == row.n_expected for experiment in self.experiments for row in experiment.rows)


def build(
    plan: Plan,
    root: Path,
    protocol: Protocol = "best",
    *,
    states: Mapping[str, Standing] | None = None,
    trainer_code: str | None = None,
) -> Table:
    """Read the run directories of a plan and compute its table.

    Args:
        plan: the experiments; a role that it was cut down by has no row.
        root: the runs directory.
        protocol: `best` takes test/top1 of the best validation epoch where there is a split, else of the best
            test epoch; `last` of the last epoch.
        states: of the runs that are not done; one that is not named was never started.
        trainer_code: digest of today's trainer; runs that were made by another are named.
    """
    index = Index(root)
    trained = [run for run in plan.runs if run.role in TRAINED]
    measured = {run.id: measure(run, RunDir(root, run.id), protocol, index) for run in trained}
    index.save()
    experiments = []
    for name, wanted in plan.wanted.items():
        runs: dict[Role, list[Measured]] = {
            role: [measured[run_id] for run_id in wanted[role] if run_id in measured] for role in TRAINED
        }
        config = plan.experiments[name]
        unique = list({m.run.id: m for role in TRAINED for m in runs[role]}.values())
        stores = [run_id for run_id in wanted.get(STORE, ()) if run_id in {run.id for run in plan.runs}]
        records = {run_id: history(RunDir(root, run_id)) for run_id in (*(m.run.id for m in unique), *stores)}
        costs = {run_id: cost(found) for run_id, found in records.items() if found}
        experiments.append(
            ExperimentTable(
                name,
                tuple(_row(role, runs, config) for role in TRAINED if runs[role]),
                (*_problems(unique, states or {}), *_of_stores(stores, states or {})),
                (*_notes(runs, unique, config, protocol, trainer_code), *took(costs.values()), *_uncounted(records)),
                cost(costs.values()),
                costs,
                by_seed(runs, costs),
            )
        )
    rows = [row for experiment in experiments for row in experiment.rows]
    needed = (any(row.top1_sd is not None for row in rows), any(row.gain is not None for row in rows))
    return Table(protocol, TOP1, tuple(experiments), tuple(compress(_LEGEND, needed)))


_LEGEND = (
    "± is the sample standard deviation (n - 1) over the students' seeds, which share teacher and views: "
    "it does not include the teacher's; n = 1 has none",
    "gain is distilled - baseline, paired by seed, in percentage points, with its 95 % t interval; "
    "retention is student / teacher",
)


def _row(role: Role, runs: Mapping[Role, Sequence[Measured]], config: Experiment) -> Row:
    ours = runs[role]
    top1 = [m.top1 for m in ours if m.top1 is not None]
    params, mean = _params(ours), _mean(top1)
    teacher = runs["teacher"] if role != "teacher" else ()
    if params is None and role != "teacher":  # baseline and distilled are one model
        params = _params((*runs["baseline"], *runs["distilled"]))
    teacher_params, teacher_mean = _params(teacher), _mean([m.top1 for m in teacher if m.top1 is not None])
    gains = list(_gains(runs).values()) if role == "distilled" else []
    return Row(
        configuration=_configuration(role, config),
        role=role,
        params=params,
        reduction=teacher_params / params if teacher_params and params else None,
        n=len(top1),
        n_expected=len(ours),
        top1_mean=mean,
        top1_sd=statistics.stdev(top1) if len(top1) > 1 else None,
        gain=_mean(gains),
        gain_ci95=interval95(gains),
        retention=100 * mean / teacher_mean if mean is not None and teacher_mean else None,
        reference=getattr(config.reference, role),
        runs=tuple(m.run.id for m in ours),
        note=1 if any(unlike(role, runs)) else None,
    )


def _configuration(role: Role, config: Experiment) -> str:
    model = (config.teacher if role == "teacher" else config.student).model.split(".")[0]
    distill = config.distill
    how = f" (α {distill.alpha:g}, T {distill.temperature:g})" if role == "distilled" else ""
    return f"{role}: {model}{how}"


def _params(runs: Iterable[Measured]) -> int | None:
    return next((m.params for m in runs if m.params is not None), None)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _gains(runs: Mapping[Role, Sequence[Measured]]) -> dict[int, float]:
    return differences(runs["distilled"], runs["baseline"])


def differences(ours: Iterable[Measured], others: Iterable[Measured]) -> dict[int, float]:
    """Seed -> ours - the other's accuracy in percentage points, for the seeds that have both."""
    known = {m.run.seed: m.top1 for m in others if m.top1 is not None}
    return {m.run.seed: m.top1 - known[m.run.seed] for m in ours if m.top1 is not None and m.run.seed in known}


def _problems(runs: Iterable[Measured], states: Mapping[str, Standing]) -> Iterable[Problem]:
    for m in runs:
        if not m.done:
            state, reason, log = states.get(m.run.id, NEVER_STARTED)
            yield Problem(m.run.id, state, reason, log)
        yield from (Problem(m.run.id, State.DONE, reason, m.log) for reason in m.problems)


def _of_stores(stores: Iterable[str], states: Mapping[str, Standing]) -> Iterator[Problem]:
    """Stores of the teacher's logits that failed, which costs students time and no number."""
    for run_id in stores:
        state, reason, log = states.get(run_id, NEVER_STARTED)
        if state in GIVEN_UP:
            yield Problem(run_id, state, f"{reason}; students computed its logits themselves", log)


def _notes(
    runs: Mapping[Role, Sequence[Measured]],
    unique: Sequence[Measured],
    config: Experiment,
    protocol: Protocol,
    trainer_code: str | None,
) -> Iterable[str]:
    """What a reader of the rows has to know, the numbered note first."""
    length, at = ("steps", "evaluation") if config.train.steps else ("epochs", "epoch")
    if odd := [what for role in TRAINED for what in unlike(role, runs)]:
        yield f"[1] {'; '.join(dict.fromkeys(odd))}"
    if protocol == "last":
        yield f"protocol last: {TOP1} of the last {at}"
    elif (selector := selected_by(config.data)) == TOP1:
        yield f"protocol best: {TOP1} of the best {selector} {at}, so the {at} is selected on test"
    else:
        yield f"protocol best: {TOP1} of the best {selector} {at}"
    yield from _labels(runs, config)
    if config.distill.alpha == 0 and runs["distilled"]:
        yield "α is 0: the distilled runs are the baseline runs, and the gain is 0 by construction"
    elif runs["distilled"]:
        seeds = list(_gains(runs))
        if 0 < len(seeds) < max(len(runs["distilled"]), len(runs["baseline"])):
            yield f"the gain is over the seeds that both have: {', '.join(map(str, seeds))}"
        elif not seeds:
            yield "no gain: no seed has both a baseline and a distilled run"
        elif (interval := interval95(list(_gains(runs).values()))) and interval[0] <= 0 <= interval[1]:
            words = f"with {len(seeds)} seeds distilled is {compared(interval, NO_DISTILLATION)}"
            yield f"{words}: the interval of the gain contains zero; more seeds may tell (--seeds)"
    done = [m for m in unique if m.done]
    students = [m for m in done if m.run.role != "teacher"]
    if (rising := sum(m.still_rising for m in students)) and 2 * rising >= len(students):
        yield f"{rising} of {count(len(students), 'student')} did best in the last {at}: more {length} may do better"
    yield from _computed(students)
    if skipped := max((m.trainer.get("images_skipped", 0) for m in done), default=0):
        data = config.data.path or config.data.name
        yield f"without {count(skipped, 'broken image')} of {data} (data.skip_broken)"
    if same := max((m.trainer.get("images_in_both", 0) for m in done), default=0):
        yield in_both(same)
    if places := sorted({text for m in done if (text := where(m))}):
        yield f"trained on {'; '.join(places)}"
    if partial := local_batchnorm(done):
        yield f"BatchNorm took its statistics over a part of each batch (images): {', '.join(partial)}"
    if trainer_code is not None:
        others = [m.run.id for m in done if m.trainer.get("trainer_code") not in (None, trainer_code)]
        if others:
            which = ", ".join(others) if len(others) < 4 else f"{len(others)} of {len(done)} runs"
            yield f"made by other trainer code than today's: {which}"
    for m in done:
        yield from (f"event files of {m.run.id}: {what}" for what in m.damage)


def _labels(runs: Mapping[Role, Sequence[Measured]], config: Experiment) -> Iterable[str]:
    """What the rows share and what they do not, where some training images have no labels."""
    if config.data.labelled is None or not runs["distilled"] or config.distill.alpha == 0:
        return
    without = sorted({n for m in runs["distilled"] if m.done and (n := m.trainer.get("images", {}).get("unlabelled"))})
    more = f"{' or '.join(f'{n:,}' for n in without)} images" if without else "images"
    yield f"distilled: the same labels as teacher and baseline ({config.data.labelled:,}), and {more} without"
    distilled, baseline = ({m.trainer.get("steps_per_epoch") for m in runs[role]} for role in ("distilled", "baseline"))
    if config.train.steps is None and None not in distilled | baseline and baseline and distilled != baseline:
        yield "distilled took more steps than baseline, whose epochs have fewer images: train.steps gives both as many"


def _computed(students: Sequence[Measured]) -> Iterator[str]:
    """That students ran the teacher themselves although they had a store: it cost time, and no number."""
    asked = [m for m in students if m.run.store]
    if missed := sum(m.views.get("computed", 0) for m in asked):
        epochs = missed + sum(m.views.get("read", 0) for m in asked)
        yield (
            f"the teacher's logits were computed along the way in {missed} of {count(epochs, 'epoch')} of the "
            f"distilled runs, where their store had none: the same numbers, more time"
        )


def _uncounted(records: Mapping[str, Sequence[Record]]) -> Iterable[str]:
    """Attempts whose GPU-hours nobody knows."""
    for run_id, found in records.items():
        for one in found:
            if one.started is None:
                yield f"the GPU-hours are without attempt {one.attempt} of {run_id}: {one.damage}"
