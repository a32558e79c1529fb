"""What came of a sweep's points, from their run directories alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcluster.launch.status import statuses_of
from kdcluster.results.events import PREFIXES, Follower
from kdcluster.results.index import Index
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.sweep.points import Point, Space, best_of
from kdcluster.sweep.trial import values_of


@dataclass(frozen=True)
class Tried:
    """What came of a point: the mean over its seeds of the best evaluation's metric; None where a run has none."""

    point: Point
    states: tuple[State, ...]
    value: float | None
    sd: float | None
    """Sample standard deviation (n - 1) over its seeds; None below 2."""
    images: int | None = None
    """On how many an accuracy was measured; None: it is no accuracy, or the run is of an earlier version."""
    epochs: int = 0
    """Of the run that is furthest, or tenths where its length is in steps."""
    reason: str = ""
    """Why a run of it failed."""

    @property
    def is_done(self) -> bool:
        """Whether all its runs came to their end."""
        return set(self.states) == {State.DONE}

    @property
    def se(self) -> float | None:
        """Binomial standard error of an accuracy on so many images, in percentage points; None where there is none."""
        if self.value is None or self.images is None:
            return None
        return math.sqrt(self.value * (100 - self.value) / self.images)

    @property
    def shown(self) -> str:
        """The value with its ±: the standard deviation over several seeds, else the standard error."""
        spread = self.se if self.sd is None else self.sd
        return "" if self.value is None else f"{self.value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")

    @property
    def state(self) -> str:
        """Of its runs, in one word where they agree."""
        return ", ".join(dict.fromkeys(self.states))


def tried(chosen: Sequence[Point], metric: str, root: Path, index: Index | None = None) -> list[Tried]:
    """All points, the best first; one that was stopped early or failed comes last. `index`: of their event files."""
    best, tags = best_of(metric), PREFIXES if index else (metric,)
    known = statuses_of(RunDir(root, run_id) for point in chosen for run_id in point.ids)
    found, well = [], (State.DONE, State.STOPPED)
    for point in chosen:
        run_dirs = [RunDir(root, run_id) for run_id in point.ids]
        measured = [values_of(Follower(run_dir.events, tags, index), metric) for run_dir in run_dirs]
        values = [best(values) for values in measured if values]
        whole = len(values) == len(run_dirs)
        spread = statistics.stdev(values) if len(values) > 1 else None
        found.append(
            Tried(
                point,
                tuple(known[run_dir].state for run_dir in run_dirs),
                statistics.fmean(values) if whole else None,
                spread,
                _images(run_dirs, metric),
                max(map(len, measured)),
                next((known[one].reason for one in run_dirs if known[one].state not in well), ""),
            )
        )
    sign = 1 if best is min else -1

    def order(one: Tried) -> tuple[bool, bool, float]:
        return one.value is None, not one.is_done, sign * (one.value or 0.0)

    return sorted(found, key=order)


def _images(run_dirs: Sequence[RunDir], metric: str) -> int | None:
    """On how many images an accuracy was measured: the same ones by every seed."""
    if metric.endswith("loss"):
        return None
    newest = (run_dir.newest() for run_dir in run_dirs)
    known = (one.read("trainer").get("images", {}).get(metric.split("/")[0]) for one in newest if one)
    return next(filter(None, known), None)


def best(found: Sequence[Tried]) -> Tried | None:
    """The best of those that came to an end; None: none did."""
    return next((one for one in found if one.is_done and one.value is not None), None)


def of_baseline(searched: Space, root: Path, index: Index | None = None) -> tuple[list[Tried], Point | None]:
    """The trials of the baseline, where a search of it was begun (`sweep --both`), and the best of them."""
    space = searched.of_baseline()
    found = tried(space.recorded(root), searched.sweep.metric, root, index) if space else []
    first = best(found)
    return found, first.point if first else None
