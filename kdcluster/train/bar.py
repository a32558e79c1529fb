"""How far long work is: a bar in the last line of a terminal, else a line of the log now and then."""

from __future__ import annotations

import logging
import math
import os
import sys
import time

from kdcluster.columns import has_cursor

log = logging.getLogger(__name__)

BAR_S = 0.1
"""Seconds between two drawings of the bar."""
BAR = 20
"""Its width, in characters."""
LOG_S = 30.0
"""Seconds between two lines of a log that has no bar."""


class Bar(logging.Filter):
    """Where long work is, in the last line of a terminal; nowhere else. As a filter it makes way for the log."""

    def __init__(self, active: bool) -> None:
        super().__init__()
        self._stream = sys.stderr
        self.shows = active and has_cursor(self._stream)
        self._drawn_at = -math.inf
        self._shown = False
        if self.shows:
            for handler in logging.getLogger().handlers:
                handler.addFilter(self)

    def draw(self, before: str, share: float, after: str) -> None:
        """A bar of which `share` is done, between two texts; at most ten times a second."""
        if not self.shows or time.monotonic() < self._drawn_at + BAR_S:
            return
        self._drawn_at, self._shown = time.monotonic(), True
        done, left = ("━", "─") if (self._stream.encoding or "").lower().startswith("utf") else ("#", "-")
        full = round(BAR * share)
        text = f"{before} {done * full}{left * (BAR - full)} {after}"
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        self._stream.write(f"\r{text[: columns - 1]}\x1b[K")
        self._stream.flush()

    def clear(self) -> None:
        """Leave an empty line."""
        if self._shown:
            self._shown = False
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def close(self) -> None:
        """Leave an empty line, and the log to itself."""
        self.clear()
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes, over an empty line."""
        self.clear()
        return True


class Pace:
    """Counts images that are done, and says how fast and how long it will take."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self._total = what, total
        self._done = 0
        self._started = self._logged_at = time.monotonic()
        self._bar = Bar(active=True)

    def __enter__(self) -> Pace:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, images: int) -> None:
        """So many more are done."""
        self._done += images
        now = time.monotonic()
        per_s = self._done / max(now - self._started, 1e-3)
        said = f"{per_s:,.0f} images/s, {duration((self._total - self._done) / per_s)} left"
        self._bar.draw(self.what, self._done / self._total, f"{self._done:,}/{self._total:,} {said}")
        if not self._bar.shows and now >= self._logged_at + LOG_S:
            self._logged_at = now
            log.info("%s: %s of %s, %s", self.what, f"{self._done:,}", f"{self._total:,}", said)


def duration(seconds: float) -> str:
    """`40 s`, `4 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
