"""How long runs that go on will take, from speeds that were measured; nothing where nothing is known. Pure."""

from __future__ import annotations

import heapq
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdcluster.launch.status import Status
from kdcluster.plan import Run
from kdcluster.states import LIVE, State

Kind = tuple[object, ...]


def kind(run: Run) -> Kind:
    """What runs of the same speed share."""
    return run.role, run.model.model_dump_json(), run.train and run.train.batch_size, run.data and run.data.path


@dataclass(frozen=True)
class Left:
    """Seconds until the last of some runs has trained."""

    seconds: float
    whole: bool
    """Whether that is known of every run; else it takes at least so long."""


def until_done(runs: Sequence[Run], found: Mapping[str, Status], at_once: int = 1) -> Left | None:
    """How long the runs take that go on, or wait; None: nothing is known of any of them.

    Those that wait take turns on as many places as have a run now, but at least `at_once`, and run as fast as others
    like them did. Evaluations and start-up are not counted.
    """
    going = [run for run in runs if found[run.id].state in LIVE]
    speeds = _epochs_per_s(runs, found) if going else {}
    each = {run.id: _left(run, found[run.id], speeds) for run in going}
    known = {run_id: seconds for run_id, seconds in each.items() if seconds is not None}
    ends = {run.id: known.get(run.id, 0.0) for run in going if found[run.id].state == State.RUNNING}
    places = [*ends.values(), *[0.0] * (at_once - len(ends))]
    heapq.heapify(places)
    for run in (run for run in going if found[run.id].state == State.QUEUED):
        begin = max([heapq.heappop(places), *(ends.get(need, 0.0) for need in (*run.needs, *run.after))])
        ends[run.id] = begin + known.get(run.id, 0.0)
        heapq.heappush(places, ends[run.id])
    return Left(max(ends.values()), len(known) == len(going)) if known else None


def _left(run: Run, status: Status, speeds: Mapping[Kind, float]) -> float | None:
    beat = status.heartbeat
    share = 1 - beat.get("step", 0) / beat["steps"] if beat.get("steps") else 1.0
    if speed := beat.get("steps_per_s"):
        return max(0.0, share * beat["steps"] / speed) if beat.get("steps") else None
    if not (epochs := run.views or (run.train.epochs if run.train else 0)):
        return 0.0  # it is only evaluated
    alike = speeds.get(kind(run)) or speeds.get(kind(run)[1:])
    return share * epochs / alike if alike else None


def _epochs_per_s(runs: Iterable[Run], found: Mapping[str, Status]) -> dict[Kind, float]:
    """Of each kind, with its role and, where that has none, of the same model in another; of done ones if there are."""
    done: defaultdict[Kind, list[float]] = defaultdict(list)
    others: defaultdict[Kind, list[float]] = defaultdict(list)
    for run in runs:
        beat = found[run.id].heartbeat
        if beat.get("steps_per_s") and beat.get("steps") and beat.get("epochs"):
            speeds = done if found[run.id].state == State.DONE else others
            for key in (kind(run), kind(run)[1:]):
                speeds[key].append(beat["steps_per_s"] * beat["epochs"] / beat["steps"])
    return {key: statistics.median(speeds) for key, speeds in {**others, **done}.items()}


def in_words(left: Left | None) -> str:
    """`about 4 min left`, `at least 4 min left`; empty for None."""
    if left is None:
        return ""
    if left.seconds < 45:
        tens = int(left.seconds // 10) * 10
        return "less than a minute left" if left.whole else f"at least {tens} s left" if tens else ""
    minutes = round(left.seconds / 60) or 1
    span = f"{minutes} min" if minutes < 120 else f"{left.seconds / 3600:.0f} h"
    return f"{'about' if left.whole else 'at least'} {span} left"


def clock(seconds: float) -> str:
    """4:05, or 1:00:00."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"
