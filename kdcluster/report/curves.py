"""How the accuracy of each role rose, and whether distillation gets there sooner; test/top1 in percent."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from kdcluster.plan import Run
from kdcluster.results.events import read_scalars
from kdcluster.results.index import Index
from kdcluster.results.measured import TOP1
from kdcluster.run import TRAINED, Role
from kdcluster.runs import RunDir

SETTLED = 0.99
"""A curve has settled where it first has this share of its own best."""

Course = Mapping[int, float]
"""Epoch, or optimizer step -> accuracy."""


@dataclass(frozen=True)
class Curve:
    """One role: the mean over its runs, at the evaluations that all of them have."""

    role: Role
    at: tuple[int, ...]
    """Epochs or steps, ascending."""
    mean: tuple[float, ...]
    sd: tuple[float, ...] | None
    """Sample standard deviation (n - 1) over the seeds, in percentage points; None below 2 runs."""
    n: int

    @property
    def best(self) -> tuple[int, float]:
        """Where the mean is highest first, and how high."""
        highest = max(self.mean)
        return self.at[self.mean.index(highest)], highest

    def first(self, level: float) -> int | None:
        """Where the mean first is at least so high."""
        return next((at for at, value in zip(self.at, self.mean, strict=True) if value >= level), None)

    @property
    def settled(self) -> int:
        """Where it has settled."""
        at, highest = self.best
        return self.first(SETTLED * highest) or at


@dataclass(frozen=True)
class Race:
    """Both students of a seed: the epoch or step where each first is so far."""

    there: int | None
    """Where the distilled one has the best accuracy of its baseline; None: nowhere."""
    best: int
    """Where its baseline has that."""
    settled: int
    """Where the distilled one has SETTLED of its own best."""
    other_settled: int
    """Where the baseline has that of its own."""


@dataclass(frozen=True)
class Curves:
    """Those of an experiment."""

    unit: str
    """Of the x axis: `epoch` or `step`."""
    of: Mapping[Role, Curve]
    left_out: tuple[str, ...] = ()
    """Runs that are not done, and so not in the means."""
    unfinished: tuple[Role, ...] = ()
    """Roles that have no run that is done: these curves are of those that are not."""
    races: tuple[Race, ...] = ()
    """Of each seed with both students."""


def read(runs: Mapping[Role, Sequence[Run]], done: Set[str], unit: str, root: Path, index: Index) -> Curves:
    """The curves of an experiment.

    Args:
        runs: by role.
        done: ids of those that are.
        unit: of the x axis.
        root: the runs directory.
        index: of its event files.
    """
    courses = {run.id: _course(run, unit, root, index) for ours in runs.values() for run in ours}
    found: dict[Role, Curve] = {}
    left_out, unfinished = [], []
    for role in TRAINED:
        ours = [run.id for run in runs.get(role, ())]
        if any(run_id in done for run_id in ours) or not any(courses[run_id] for run_id in ours):
            left_out += [run_id for run_id in ours if run_id not in done]
            ours = [run_id for run_id in ours if run_id in done]
        else:
            unfinished.append(role)
        if made := _mean(role, [courses[run_id] for run_id in ours if courses[run_id]]):
            found[role] = made
    alone = {run.seed: courses[run.id] for run in runs.get("baseline", ()) if run.id in done and courses[run.id]}
    taught = {run.seed: courses[run.id] for run in runs.get("distilled", ()) if run.id in done}
    races = (_race(taught[seed], alone[seed]) for seed in taught if seed in alone and taught[seed])
    return Curves(unit, found, tuple(left_out), tuple(unfinished), tuple(races))


def _course(run: Run, unit: str, root: Path, index: Index) -> Course:
    """A run's evaluations; of one that is only evaluated none, and none whose epochs are not known."""
    run_dir = RunDir(root, run.id)
    points = read_scalars(run_dir.events, index=index).points.get(TOP1, [])
    if run.train is None or (run.train.steps is None) != (unit == "epoch"):
        return {}
    newest = run_dir.newest()
    per_epoch = (newest.read("trainer") if newest else {}).get("steps_per_epoch")
    if unit == "step":
        return {point.step: point.value for point in points}
    if not per_epoch:  # an earlier version's
        return {number: point.value for number, point in enumerate(points, 1)}
    return {point.step // per_epoch: point.value for point in points}


def _mean(role: Role, courses: Sequence[Course]) -> Curve | None:
    shared = sorted(set.intersection(*map(set, courses))) if courses else []
    if not shared:
        return None
    values = [[course[at] for course in courses] for at in shared]
    sd = tuple(map(statistics.stdev, values)) if len(courses) > 1 else None
    return Curve(role, tuple(shared), tuple(map(statistics.fmean, values)), sd, len(courses))


def _race(taught: Course, alone: Course) -> Race:
    def first(course: Course, level: float) -> int | None:
        return next((at for at in sorted(course) if course[at] >= level), None)

    best, own = max(alone.values()), max(taught.values())
    settled = [first(course, SETTLED * level) or max(course) for course, level in ((taught, own), (alone, best))]
    return Race(first(taught, best), first(alone, best) or max(alone), *settled)


def convergence(curves: Curves) -> Iterable[str]:
    """Whether the distilled student converges faster than the baseline, in sentences; none without both."""
    alone, taught = curves.of.get("baseline"), curves.of.get("distilled")
    if not (alone and taught) or len(alone.at) < 2:
        return
    yield from _told(alone, taught, curves)


def _told(alone: Curve, taught: Curve, curves: Curves) -> Iterator[str]:
    at, level = alone.best
    there, unit = taught.first(level), curves.unit
    best = f"The baselines' mean is best after {unit} {at:,}, with {level:.2f} %"
    if there is None:
        yield f"{best}. The distilled mean never gets there; its own best is {taught.best[1]:.2f} %."
    else:
        share = f", in {100 * there / at:.0f} % of the {unit}s" if 0 < there < at else ""
        yield f"{best}. The distilled mean gets there after {unit} {there:,}{share}."
    if alone.n != taught.n:
        yield f"These means are not over the same seeds: baseline has {alone.n}, distilled {taught.n}."
    share = f"{100 * SETTLED:g} % of its own best"
    yield f"The distilled mean has {share} after {unit} {taught.settled:,}, the baselines' after {alone.settled:,}."
    if curves.races:
        yield from _converges(curves.races, unit)


def _converges(races: Sequence[Race], unit: str) -> Iterator[str]:
    """Whether it converges faster, seed by seed and by both measures: a student that ends higher passes the best of
    another one earlier even if both rise alike."""
    n = len(races)
    there = sum(one.there is not None and one.there < one.best for one in races)
    settled = sum(one.settled < one.other_settled for one in races)
    share = f"{100 * SETTLED:g} %"
    yield (
        f"Seed by seed: in {there} of {n} the distilled student has the best accuracy of its baseline in fewer {unit}s "
        f"than that; in {settled} it has {share} of its own best before the baseline has {share} of its own."
    )
    if n > 1 and there == settled == n:
        yield "So distilled students converge faster here, by both measures in every seed."
    elif n > 1 and there == n:
        yield (
            "So they are earlier where the baselines end, as students that end higher are; that they get faster to "
            "their own best is not shown."
        )
    else:
        yield "So it is not shown that distilled students converge faster here."
