"""How long what is left of a sweep takes, from what runs like its own took in the runs directory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdcluster.history import history
from kdcluster.plan import Run
from kdcluster.runs import run_dirs
from kdcluster.states import State
from kdcluster.wording import count

ENOUGH = 20
"""Runs of one kind that are looked at: a look takes milliseconds, and there may be a thousand."""


def forecast(steps: Sequence[Iterable[Run]], root: Path, at_once: int) -> str:
    """How long these runs take, in words; from runs of the same models and data, whatever else they had.

    Args:
        steps: runs that go on at the same time; each step begins when the one before has ended.
        root: the runs directory.
        at_once: how many go on at the same time.
    """
    wanted = [list(runs) for runs in steps]
    known = _seconds_per_epoch([run for runs in wanted for run in runs], root)
    unknown = [run for runs in wanted for run in runs if _kind(run) not in known]
    total = sum(max(_packed(runs, known, at_once), default=0.0) for runs in wanted)
    if not total:
        return f"how long that takes is not known yet: no run of these models is done in {root}" if unknown else ""
    more = f", without {count(len(unknown), 'run')} of a kind that was never done here" if unknown else ""
    together = f"{at_once} at a time" if at_once > 1 else "one after another"
    return f"about {span(total)}, {together}, as such runs took here{more}"


def _packed(runs: Iterable[Run], known: dict[Any, float], at_once: int) -> list[float]:
    """When each of so many places is free again if they take the runs in their order, in seconds."""
    free = [0.0] * at_once
    for run in runs:
        seconds = known.get(_kind(run), 0.0) * _epochs(run)
        at = free.index(min(free))
        free[at] += seconds
    return free


def _seconds_per_epoch(runs: Iterable[Run], root: Path) -> dict[Any, float]:
    """Kind of run -> the median, start and end of a run included."""
    kinds = {_kind(run): run for run in runs}
    beginnings = {run.id.rpartition("-s")[0]: run for run in kinds.values()}
    found: defaultdict[Any, list[float]] = defaultdict(list)
    looked: defaultdict[str, int] = defaultdict(int)
    for run_dir in run_dirs(root):
        beginning = run_dir.id.rpartition("-s")[0]
        if beginning not in beginnings or looked[beginning] == ENOUGH:
            continue
        run, attempts = run_dir.known()[0], history(run_dir)
        if not attempts or attempts[-1].state != State.DONE or (kind := _kind(run)) not in kinds:
            continue
        looked[beginning] += 1
        spans = [one.ended - one.started for one in attempts if one.ended is not None and one.started is not None]
        found[kind].append(sum(spans) / _epochs(run))
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def _epochs(run: Run) -> int:
    """Times that it goes through the images, at least."""
    return run.views or (run.train.epochs if run.train else 1)


def _kind(run: Run) -> Any:
    """What decides about the time of an epoch, as text: blocks with a dict inside have no hash."""
    teacher = run.teacher.model if run.teacher else None
    return repr((run.role, run.model, teacher, run.data and (run.data.name, run.data.path)))


def span(seconds: float) -> str:
    """A time to wait, as roughly as it is known."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
