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
class Curves:
    """Those of an experiment."""

    unit: str
    """Of the x axis: `epoch` or `step`."""
    of: Mapping[Role, Curve]
    left_out: tuple[str, ...] = ()
    """Runs that are not done, and so not in the means."""
    unfinished: tuple[Role, ...] = ()
    """Roles that have no run that is done: these curves are of those that are not."""
    pairs: tuple[tuple[int | None, int], ...] = ()
    """Of each seed with both students: where the distilled one first has its baseline's best (None: nowhere), and
    where that has it."""


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
    pairs = (_sooner(taught[seed], alone[seed]) for seed in taught if seed in alone)
    return Curves(unit, found, tuple(left_out), tuple(unfinished), tuple(pairs))


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


def _sooner(taught: Course, alone: Course) -> tuple[int | None, int]:
    level = max(alone.values())
    return next((at for at in sorted(taught) if taught[at] >= level), None), min(a for a in alone if alone[a] == level)


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
    if len(curves.pairs) > 1:
        sooner = sum(ours is not None and ours < theirs for ours, theirs in curves.pairs)
        yield (
            f"In {sooner} of {len(curves.pairs)} seeds the distilled run gets to the best accuracy of its baseline in "
            f"fewer {unit}s."
        )
    if alone.n != taught.n:
        yield f"These means are not over the same seeds: baseline has {alone.n}, distilled {taught.n}."
    share = f"{100 * SETTLED:g} % of its own best"
    yield f"The distilled mean has {share} after {unit} {taught.settled:,}, the baselines' after {alone.settled:,}."
    higher, settles = there is not None and there < at, taught.settled < alone.settled
    first, own = "the best accuracy of the baselines", f"{100 * SETTLED:g} % of their own best"
    here = "So distilled students converge faster here"
    if higher and settles:
        yield f"{here}: they have both {first} and {own} earlier."
    elif higher:
        yield f"{here} by one measure of two: they have {first} earlier, but not {own}."
    elif settles:
        yield f"{here} by one measure of two: they have {own} earlier, but not {first}."
    else:
        yield f"So distilled students do not converge faster here: they have neither {first} nor {own} earlier."
