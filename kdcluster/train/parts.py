"""Where the time of an attempt went, for the last line of its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kdcluster.runs import Attempt
from kdcluster.train.bar import duration

SHOWN = 4
"""Parts in the line, which fits 80 columns then; those below one percent are left out."""


class Parts:
    """A clock that always runs for one part of an attempt; together they are the whole. Start-up is the first."""

    def __init__(self, attempt: Attempt | None) -> None:
        started = (attempt.read("start") or {}).get("started") if attempt else None
        before = max(0.0, time.time() - started) if started else 0.0  # whoever started it may have another clock
        self.seconds = {"start-up": before, "training": 0.0}
        self._now, self._since = "start-up", time.perf_counter()

    def begin(self, part: str) -> str:
        """From now on the clock runs for `part`; returns for what it ran before."""
        before, now = self._now, time.perf_counter()
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._now, self._since = part, now
        return before

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """The clock runs for `part` inside, and goes on as before."""
        before = self.begin(part)
        try:
            yield
        finally:
            self.begin(before)

    def waited(self, seconds: float) -> None:
        """So much of the training was waiting for data."""
        self.seconds["training"] -= seconds
        self.seconds["data"] = self.seconds.get("data", 0.0) + seconds

    def line(self) -> str:
        """`of 4 min: training 82 %, evaluation 11 %, start-up 5 %, saving 2 %`."""
        self.begin(self._now)
        whole = sum(self.seconds.values())
        largest = sorted(self.seconds.items(), key=lambda part: -part[1])[:SHOWN]
        shares = [f"{part} {100 * seconds / whole:.0f} %" for part, seconds in largest if seconds >= whole / 100]
        return f"of {duration(whole)}: {', '.join(shares)}"
