"""What a person sees while a sweep goes on: the trials as a table on a terminal, one line a change of state off it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdcluster.columns import has_cursor
from kdcluster.states import ENDED, State
from kdcluster.sweep.forecast import span
from kdcluster.sweep.points import Point
from kdcluster.sweep.report import rows
from kdcluster.sweep.scored import Tried, tried
from kdcluster.wording import count, one_line, wrapped

if TYPE_CHECKING:
    from rich.text import Text

EVERY_S = 1.0
BEGUN_S = 60.0
"""After so long without a trial that has begun, somebody should look at what Ray does."""
SHARE = 20
"""A look at many run directories takes time: at most this part of all."""
SHOWN = 12
"""Trials on the screen: those that run, then the best; fewer where it is low."""


class Screen:
    """Shows the points of a search from their run directories.

    Args:
        points: those that were begun; it grows.
        total: how many there will be.
        metric: that is shown.
        root: the runs directory.
        stream: a terminal, or not.
        hint: where to look when nothing begins.
        what: is tried, "trial" or "confirmation".
    """

    def __init__(
        self,
        points: Sequence[Point],
        total: int,
        metric: str,
        root: Path,
        stream: TextIO,
        hint: str = "",
        what: str = "trial",
    ) -> None:
        self.points, self.total, self.metric, self.root, self.stream = points, total, metric, root, stream
        self.hint, self.what = hint, what
        self._next = 0.0
        self._look_at = time.monotonic() + BEGUN_S
        self._said: dict[tuple[str, ...], str] = {}
        self._live: Any = None
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Screen:
        if has_cursor(self.stream):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self.stream), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._next = 0.0
        self.show()
        if self._live is not None:
            self._live.stop()

    def show(self) -> None:
        """Look at the runs and say what has changed, unless that was just done."""
        begun = time.monotonic()
        if begun < self._next or not self.points:
            return
        found = tried(list(self.points), self.metric, self.root)
        if self._live is not None:
            size = self._live.console.size
            shown = screen(found, self.total, self.metric, width=size.width, height=size.height, left=self._left(found))
            self._live.update(shown, refresh=True)
        else:
            self._say(found)
        if time.monotonic() > self._look_at and all(one.state == State.PLANNED for one in found):
            self._look_at = math.inf
            self._tell(f"no trial has begun after {BEGUN_S:g} s; {self.hint}")
        self._next = time.monotonic() + max(EVERY_S, SHARE * (time.monotonic() - begun))

    def _left(self, found: Sequence[Tried]) -> str:
        """How long the others take at the pace since the first look; empty before one has ended."""
        ended = sum(set(one.states) <= set(ENDED) for one in found)
        self._first = self._first or (time.monotonic(), ended)
        since, before = self._first
        if ended == before or ended >= self.total:
            return ""
        return f"about {span((time.monotonic() - since) * (self.total - ended) / (ended - before))} left"

    def _say(self, found: Sequence[Tried]) -> None:
        known = {one.point.ids: one for one in found}
        for number, point in enumerate(list(self.points), 1):
            one = known[point.ids]
            if one.state != State.PLANNED and self._said.get(point.ids) != one.state:
                self._said[point.ids] = one.state
                said = line(f"{self.what} {number}/{self.total}", one, self.metric)
                self._tell("  ".join(filter(None, [said, self._left(found) if one.state in ENDED else ""])))

    def _tell(self, text: str) -> None:
        """One line; on a terminal above the table."""
        text = one_line(text)
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text))
        else:
            self.stream.write(text + "\n")
            self.stream.flush()


def line(what: str, one: Tried, metric: str) -> str:
    """One trial, or one run of the confirmation, for a file or a pipe."""
    words = [what, " ".join(one.point.settings), one.state]
    if one.value is not None and one.state != State.RUNNING:
        words.append(f"{metric} {one.shown} after {count(one.epochs, one.point.unit)}")
    return "  ".join([*words, *([f"({one.reason})"] if one.reason else [])])


def screen(found: Sequence[Tried], total: int, metric: str, *, width: int, height: int, left: str = "") -> Text:
    """The trials that run, then the best, and how many there are of each kind."""
    from rich.text import Text

    begun = [one for one in found if one.state != State.PLANNED]
    chosen = sorted(begun, key=lambda one: one.state != State.RUNNING)  # stable: the best come first
    chosen = chosen[: min(SHOWN, max(1, height - 4))]
    kinds = {state: sum(one.state == state for one in begun) for state in dict.fromkeys(one.state for one in begun)}
    waiting = total - len(begun)
    said = [f"{number} {state}" for state, number in kinds.items()] + ([f"{waiting} to come"] if waiting > 0 else [])
    caption = "; ".join(filter(None, [f"{count(total, 'run')}: {', '.join(said)}", left]))
    lines = [*rows(chosen, metric, width=width), *wrapped(caption, width, "  ")]
    return Text("\n".join(lines), no_wrap=True, overflow="crop")
