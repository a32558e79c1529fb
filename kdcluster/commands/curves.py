"""How the test accuracy of runs has grown, in a few signs each: `▁▃▅▆▇▇────`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdcluster.launch.status import Status
from kdcluster.results.events import Follower, Point
from kdcluster.results.index import Index
from kdcluster.runs import RunDir
from kdcluster.states import State

TAG = "test/top1"
WIDTH = 10
"""Signs of a whole run."""
SIGNS = "▁▂▃▄▅▆▇"
"""From the lowest to the highest; a block as high as the line would touch the one above."""

Curve = Sequence[Point]
"""By rising step."""
CurveOf = Callable[[str], Curve]
"""Of a run, by its id."""


class Curves:
    """Those of the runs that are asked for; whoever asks again pays for what is new."""

    def __init__(self, root: Path) -> None:
        self._root, self._index = root, Index(root)
        self._followers: dict[str, Follower] = {}

    def of(self, run_id: str) -> Curve:
        """What its event files hold now; nothing where they cannot be read, which `results` says."""
        if run_id not in self._followers:
            self._followers[run_id] = Follower(RunDir(self._root, run_id).events, index=self._index)
        try:
            return self._followers[run_id].look().points.get(TAG, ())
        except OSError:  # deleted at this moment, or another user's
            return ()


def drawn(curves: Mapping[str, Curve], found: Mapping[str, Status]) -> dict[str, str]:
    """Run id -> its curve; all have the scale of the lowest and the highest accuracy among them."""
    values = [point.value for curve in curves.values() for point in curve]
    low, high = min(values, default=0.0), max(values, default=0.0)
    return {run_id: _drawn(curve, found[run_id], low, high) for run_id, curve in curves.items()}


def _drawn(curve: Curve, status: Status, low: float, high: float) -> str:
    """Each sign is the last evaluation of its tenth of the run, or the next one; then what is left of the run."""
    steps = status.heartbeat.get("steps")
    if not curve or not steps:
        return ""
    at = {min(WIDTH, math.ceil(WIDTH * point.step / steps)): point.value for point in curve}
    signs = []
    for place in range(1, max(at) + 1):
        value = next(at[after] for after in range(place, WIDTH + 1) if after in at)
        signs.append(SIGNS[round((len(SIGNS) - 1) * (value - low) / (high - low))] if high > low else SIGNS[0])
    return "".join(signs) + "─" * (WIDTH - len(signs)) * (status.state != State.DONE)
