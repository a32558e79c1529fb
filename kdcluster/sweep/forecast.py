"""How long what is left of a sweep takes, from what runs like its own took in the runs directory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcluster.history import history
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Run
from kdcluster.runs import run_dirs
from kdcluster.states import State
from kdcluster.wording import count

ENOUGH = 20
"""Runs of one kind that are looked at: a look takes milliseconds, and there may be a thousand."""


def forecast(steps: Sequence[Iterable[Run]], root: Path, at_once: int) -> str:
    """How long these runs take, in words, as `took` says it, or that nobody knows."""
    wanted = [list(runs) for runs in steps]
    unknown = f"how long that takes is not known yet: no run of these models is done in {root}" if any(wanted) else ""
    return took(wanted, root, at_once) or unknown


def took(steps: Sequence[Sequence[Run]], root: Path, at_once: int, where: Mapping[str, Layout] | None = None) -> str:
    """How long these runs take, in words; from runs of the same models and data, whatever else they had.

    Empty where no such run is done.

    Args:
        steps: runs that go on at the same time; each step begins when the one before has ended.
        root: the runs directory.
        at_once: how many go on at the same time.
        where: run id -> on what it would run: runs that ran on something else then tell nothing.
    """
    kinds = [[_kind(run, asdict(where[run.id]) if where else None) for run in runs] for runs in steps]
    runs_of = {kind: run for pair in zip(kinds, steps, strict=True) for kind, run in zip(*pair, strict=True)}
    known = _seconds_each(runs_of, root, by_place=where is not None)
    unknown = [kind for of_step in kinds for kind in of_step if kind not in known]
    total = sum(
        max(_packed(runs, of_step, known, at_once), default=0.0) for runs, of_step in zip(steps, kinds, strict=True)
    )
    if not total:
        return ""
    more = f", without {count(len(unknown), 'run')} of a kind that was never done here" if unknown else ""
    together = f"{at_once} at a time" if at_once > 1 else "one after another"
    return f"about {span(total)}, {together}, as such runs took here{more}"


def _packed(runs: Sequence[Run], kinds: Sequence[str], known: Mapping[str, float], at_once: int) -> list[float]:
    """When each of so many places is free again if they take the runs in their order, in seconds."""
    free, ends = [0.0] * at_once, dict[str, float]()
    for run, kind in zip(runs, kinds, strict=True):
        at = free.index(min(free))
        begin = max([free[at], *(ends.get(need, 0.0) for need in run.needs)])
        free[at] = ends[run.id] = begin + known.get(kind, 0.0) * _length(run)
    return free


def _length(run: Run) -> int:
    """In epochs, or in steps where it is said in them, or in views."""
    return (run.train.steps or run.train.epochs) if run.train else run.views or 1


def _seconds_each(kinds: Mapping[str, Run], root: Path, *, by_place: bool) -> dict[str, float]:
    """Kind of run -> the median of an epoch, step or view, start and end of a run included."""
    beginnings = {run.id.rpartition("-s")[0]: run for run in kinds.values()}
    found: defaultdict[str, list[float]] = defaultdict(list)
    looked: defaultdict[str, int] = defaultdict(int)
    for run_dir in run_dirs(root):
        beginning = run_dir.id.rpartition("-s")[0]
        if beginning not in beginnings or looked[beginning] == ENOUGH or not run_dir.result():
            continue  # before its settings and attempts are read, which takes milliseconds
        run, attempts = run_dir.known()[0], history(run_dir)
        if not attempts or attempts[-1].state != State.DONE:
            continue
        if (kind := _kind(run, run_dir.attempts()[-1].read("start") if by_place else None)) not in kinds:
            continue
        looked[beginning] += 1
        spans = [one.ended - one.started for one in attempts if one.ended is not None and one.started is not None]
        found[kind].append(sum(spans) / _length(run))
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def _kind(run: Run, on: Mapping[str, Any] | None) -> str:
    """What decides about the time of an epoch or step, as text: blocks with a dict inside have no hash."""
    teacher = run.teacher.model if run.teacher else None
    place = on and [on.get(name) for name in ("device", "procs", "threads")]
    images = run.data and (run.data.name, run.data.path, run.data.labelled)
    return repr((run.role, run.model, teacher, images, bool(run.train and run.train.steps), place))


def span(seconds: float) -> str:
    """A time to wait, as roughly as it is known."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
