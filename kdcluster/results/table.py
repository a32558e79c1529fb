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
from kdcluster.plan import Plan
from kdcluster.results.conditions import unlike
from kdcluster.results.index import Index
from kdcluster.results.measured import TOP1, Measured, Protocol, measure
from kdcluster.results.notes import gains, notes
from kdcluster.results.paired import by_image
from kdcluster.results.paper import Paper, paper
from kdcluster.results.price import Price, prices
from kdcluster.results.seeds import SeedRow, by_seed, took
from kdcluster.results.spread import interval95
from kdcluster.run import ARMS, NAMED, STORE, TRAINED, Arm
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, State

Standing = tuple[State, str, str | None]
"""State of a run that is not done, why, and its log, where there is one."""
NEVER_STARTED: Standing = (State.PLANNED, "not started", None)


@dataclass(frozen=True)
class Row:
    """One arm of an experiment. The field names are those of `results --format json`."""

    configuration: str
    role: Arm
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
    """This - baseline over the seeds that both have, in percentage points; None for teacher and baseline."""
    gain_ci95: tuple[float, float] | None
    """95 % t interval of the gain over its seeds; None below 2."""
    retention: float | None
    """Mean / the teacher's accuracy, in percent; None for the teacher."""
    reference: float | None
    """Published accuracy, in percent."""
    runs: tuple[str, ...]
    note: int | None = None
    """Number of the note that belongs to this row."""
    size_bytes: int | None = None
    """Of the weights in fp32; None where it was not measured (`export --benchmark`)."""
    latency_ms: float | None = None
    """Of one image on one thread of a CPU, the median; None where it was not measured on one device for all rows."""


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
    paper: Paper = field(default_factory=Paper)


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
    measured = {run.id: measure(run, RunDir(root, run.id), protocol, index, recounted=True) for run in trained}
    index.save()
    experiments = []
    for name, wanted in plan.wanted.items():
        runs: dict[Arm, list[Measured]] = {
            arm: [measured[run_id] for run_id in wanted.get(arm, ()) if run_id in measured] for arm in ARMS
        }
        config = plan.experiments[name]
        unique = list({m.run.id: m for arm in ARMS for m in runs[arm]}.values())
        stores = [run_id for run_id in wanted.get(STORE, ()) if run_id in {run.id for run in plan.runs}]
        records = {run_id: history(RunDir(root, run_id)) for run_id in (*(m.run.id for m in unique), *stores)}
        costs = {run_id: cost(found) for run_id, found in records.items() if found}
        images = by_image(runs)
        said = notes(runs, unique, images, config, protocol, trainer_code)
        priced, of_prices = prices(root, runs)
        experiments.append(
            ExperimentTable(
                name,
                tuple(_row(arm, runs, config, priced.get(arm)) for arm in ARMS if runs[arm]),
                (*_problems(unique, states or {}), *_of_stores(stores, states or {})),
                (*said, *of_prices, *took(costs.values()), *_uncounted(records)),
                cost(costs.values()),
                costs,
                by_seed(runs, costs, images),
                paper(runs, unique, list(gains(runs)), config, protocol, of_prices),
            )
        )
    rows = [row for experiment in experiments for row in experiment.rows]
    needed = (any(row.top1_sd is not None for row in rows), any(row.gain is not None for row in rows))
    return Table(protocol, TOP1, tuple(experiments), tuple(compress(_LEGEND, needed)))


_LEGEND = (
    "± is the sample standard deviation (n - 1) over the students' seeds, which share teacher and views: "
    "it does not include the teacher's; n = 1 has none",
    "gain is distilled - baseline, paired by seed, in percentage points, with its 95 % t interval over the seeds; "
    "retention is student / teacher",
)


def _row(role: Arm, runs: Mapping[Arm, Sequence[Measured]], config: Experiment, price: Price | None) -> Row:
    ours = runs[role]
    top1 = [m.top1 for m in ours if m.top1 is not None]
    params, mean = _params(ours), _mean(top1)
    teacher = runs["teacher"] if role != "teacher" else ()
    if params is None and role != "teacher":  # baseline and distilled are one model
        params = _params((*runs["baseline"], *runs["distilled"]))
    teacher_params, teacher_mean = _params(teacher), _mean([m.top1 for m in teacher if m.top1 is not None])
    own = [] if role in ("teacher", "baseline") else list(gains(runs, role).values())
    return Row(
        configuration=_configuration(role, config),
        role=role,
        params=params,
        reduction=teacher_params / params if teacher_params and params else None,
        n=len(top1),
        n_expected=len(ours),
        top1_mean=mean,
        top1_sd=statistics.stdev(top1) if len(top1) > 1 else None,
        gain=_mean(own),
        gain_ci95=interval95(own),
        retention=100 * mean / teacher_mean if mean is not None and teacher_mean else None,
        reference=getattr(config.reference, role, None),
        runs=tuple(m.run.id for m in ours),
        note=1 if any(unlike(role, runs)) else None,
        size_bytes=price.size_bytes if price else None,
        latency_ms=price.latency_ms if price else None,
    )


def _configuration(role: Arm, config: Experiment) -> str:
    model = (config.teacher if role == "teacher" else config.student).model.split(".")[0]
    how = f" ({config.distill.in_words()})" if role == "distilled" else ""
    return f"{NAMED.get(role, role)}: {model}{how}"


def _params(runs: Iterable[Measured]) -> int | None:
    return next((m.params for m in runs if m.params is not None), None)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


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
            yield Problem(run_id, state, f"{reason}; students compute its logits themselves", log)


def _uncounted(records: Mapping[str, Sequence[Record]]) -> Iterable[str]:
    """Attempts whose GPU-hours nobody knows."""
    for run_id, found in records.items():
        for one in found:
            if one.started is None:
                yield f"the GPU-hours are without attempt {one.attempt} of {run_id}: {one.damage}"
