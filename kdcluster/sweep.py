"""A sweep: which points are tried, what came of them, and how the best is confirmed. Trials run in trials.py."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from kdcluster import configfile, space
from kdcluster.config import Sweep
from kdcluster.configfile import LoadedExperiment
from kdcluster.errors import ConfigError
from kdcluster.launch.status import run_status
from kdcluster.plan import Plan, plan, trial
from kdcluster.results.events import read_scalars
from kdcluster.runs import RunDir
from kdcluster.trials import Point

log = logging.getLogger(__name__)

FRESH = 1000
"""First seed of the confirmation: no trial has used it."""


def points(loaded: LoadedExperiment, overrides: Sequence[str], trials: int | None = None) -> list[Point]:
    """The points of a sweep in the order in which they are tried, the same ones each time.

    Args:
        loaded: the experiment.
        overrides: `KEY=VALUE` that hold for every point.
        trials: instead of the file's number; a grid is tried as a whole.

    Raises:
        ConfigError: the space holds what is not allowed, or what changes the teacher.
    """
    sweep = loaded.config.sweep
    _check(loaded, overrides)
    drawn = any("grid" not in domain for domain in domains(sweep).values())
    wanted = trials or (sweep.trials if drawn else space.grid_size(domains(sweep)))
    found: dict[tuple[str, ...], Point] = {}
    for values in islice(space.points(domains(sweep), sweep.seed), 20 * wanted):  # small spaces repeat themselves
        made = _trial(loaded, overrides, values)
        found.setdefault(tuple(run.id for run in made.runs), made)
        if len(found) == wanted:
            break
    return list(found.values())


def _trial(loaded: LoadedExperiment, overrides: Sequence[str], values: dict[str, Any]) -> Point:
    sweep = loaded.config.sweep
    settings = [f"{key}={value}" for key, value in values.items()]
    there = configfile.load(str(loaded.path), [*overrides, *settings])
    return Point(values, tuple(trial(replace(there, name=loaded.name), seeds(sweep), sweep.val_fraction)))


def domains(sweep: Sweep) -> dict[str, Any]:
    """What is searched, by key."""
    return sweep.space or {"distill.alpha": {"uniform": [0.05, 0.95]}, "distill.temperature": {"loguniform": [1, 16]}}


def seeds(sweep: Sweep) -> range:
    """Seeds of the runs of each point."""
    return range(sweep.seeds)


def _check(loaded: LoadedExperiment, overrides: Sequence[str]) -> None:
    """Every corner of the space must be an experiment with the same teacher."""
    teacher = plan([loaded]).runs[0]
    problems = []
    for key, domain in domains(loaded.config.sweep).items():
        for value in space.corners(domain):
            try:
                there = configfile.load(str(loaded.path), [*overrides, f"{key}={value}"])
            except ConfigError as error:
                problems += [f"sweep.space: {problem.removeprefix('--set ')}" for problem in error.problems]
                continue
            if plan([there]).runs[0].id != teacher.id:
                problems.append(f"sweep.space: {key}={value} makes another teacher; only the students can be searched")
                break
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


@dataclass(frozen=True)
class Tried:
    """What came of a point: the mean over its seeds of the best epoch's metric; None where a run has none."""

    point: Point
    states: tuple[str, ...]
    value: float | None
    sd: float | None


def tried(chosen: Sequence[Point], sweep: Sweep, root: Path) -> list[Tried]:
    """All points from their run directories, the best first; a point that was stopped early or failed comes last."""
    best = min if sweep.metric == "val/loss" else max
    found = []
    for point in chosen:
        states = tuple(run_status(RunDir(root, run.id)).state for run in point.runs)
        measured = [
            [p.value for p in read_scalars(RunDir(root, run.id).events, (sweep.metric,)).points.get(sweep.metric, [])]
            for run in point.runs
        ]
        values = [best(values) for values in measured if values]
        whole = len(values) == len(point.runs)
        spread = statistics.stdev(values) if len(values) > 1 else None
        found.append(Tried(point, states, statistics.fmean(values) if whole else None, spread))
    sign = 1 if sweep.metric == "val/loss" else -1

    def order(one: Tried) -> tuple[bool, bool, float]:
        return one.value is None, set(one.states) != {"done"}, sign * (one.value or 0.0)

    return sorted(found, key=order)


def confirmation(loaded: LoadedExperiment, overrides: Sequence[str], best: Point, count: int) -> Plan:
    """The winner, the file's own settings, and the baseline on the whole training set, with seeds no trial had."""
    fresh = f"seeds=[{', '.join(str(FRESH + number) for number in range(count))}]"
    own = configfile.load(str(loaded.path), [*overrides, fresh])
    winner = configfile.load(str(loaded.path), [*overrides, *best.settings, fresh])
    return plan([own, replace(winner, name=f"{loaded.name}-best")])


def table(found: Sequence[Tried], metric: str) -> list[str]:
    """The trials as lines, the best first."""
    rows = [["", *found[0].point.values, metric, "state", "runs"]]
    for number, one in enumerate(found, 1):
        value = "-" if one.value is None else f"{one.value:.2f}" + (f" ± {one.sd:.2f}" if one.sd is not None else "")
        state = ", ".join(dict.fromkeys(one.states))
        rows.append([str(number), *map(str, one.point.values.values()), value, state, one.point.runs[0].id])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
