"""How long runs that go on will take, from speeds that were measured; nothing where nothing is known. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from kdcluster.launch.status import Status
from kdcluster.plan import Run
from kdcluster.states import LIVE, State

Kind = tuple[object, ...]


def kind(run: Run) -> Kind:
    """What runs of the same speed share."""
    return run.role, run.model.model_dump_json(), run.train and run.train.batch_size, run.data and run.data.path


def seconds_left(runs: Sequence[Run], found: Mapping[str, Status]) -> float | None:
    """Seconds until the last of the runs that go on, or wait, has trained; None: nobody can know.

    Those that wait take turns on as many places as have a run now, and run as fast as others like them did.
    Evaluations and start-up are not counted.
    """
    going = [run for run in runs if found[run.id].state in LIVE]
    speeds = _epochs_per_s(runs, found) if going else {}
    ends: dict[str, float] = {}
    for run in (run for run in going if found[run.id].state == State.RUNNING):
        left = _left(run, found[run.id], speeds)
        if left is None:
            return None
        ends[run.id] = left
    places = list(ends.values()) or [0.0]
    heapq.heapify(places)
    for run in (run for run in going if found[run.id].state == State.QUEUED):
        left = _left(run, found[run.id], speeds)
        if left is None:
            return None
        begin = max([heapq.heappop(places), *(ends.get(need, 0.0) for need in run.needs)])
        ends[run.id] = begin + left
        heapq.heappush(places, ends[run.id])
    return max(ends.values(), default=None)


def _left(run: Run, status: Status, speeds: Mapping[Kind, float]) -> float | None:
    beat = status.heartbeat
    share = 1 - beat.get("step", 0) / beat["steps"] if beat.get("steps") else 1.0
    if speed := beat.get("steps_per_s"):
        return max(0.0, share * beat["steps"] / speed) if beat.get("steps") else None
    if not run.train:
        return 0.0  # it is only evaluated
    alike = speeds.get(kind(run)) or speeds.get(kind(run)[1:])
    return share * run.train.epochs / alike if alike else None


def _epochs_per_s(runs: Iterable[Run], found: Mapping[str, Status]) -> dict[Kind, float]:
    """Of each kind, with its role and, where that has none, of the same model in another; the newest counts."""
    speeds: dict[Kind, float] = {}
    for run in runs:
        beat = found[run.id].heartbeat
        if beat.get("steps_per_s") and beat.get("steps") and beat.get("epochs"):
            speed = beat["steps_per_s"] * beat["epochs"] / beat["steps"]
            speeds[kind(run)] = speeds[kind(run)[1:]] = speed
    return speeds


def in_words(seconds: float | None) -> str:
    """`about 4 min left`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 45:
        return "less than a minute left"
    minutes = round(seconds / 60) or 1
    return f"about {minutes} min left" if minutes < 120 else f"about {seconds / 3600:.0f} h left"


def clock(seconds: float) -> str:
    """4:05, or 1:00:00."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"
