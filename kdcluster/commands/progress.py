"""What a person sees while runs go on: a screen on a terminal, one line per change of state off it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from kdcluster.columns import in_ascii
from kdcluster.commands.curves import CurveOf, Curves
from kdcluster.commands.overview import Group, grouped, screen, total, waited_for
from kdcluster.commands.remaining import in_words, until_done
from kdcluster.errors import WaitTimeout
from kdcluster.launch.status import KNOWN_S, Status, statuses
from kdcluster.launch.watching import Watching
from kdcluster.plan import Plan
from kdcluster.states import ENDED, LIVE, State
from kdcluster.terminal import Screen, has_colour, say, size
from kdcluster.wording import one_line, wrapped

POLL_S = 0.5
SHARE, REST_S = 0.03, 10.0
"""Of a core that looking may take: so long the pause gets, up to a limit, however many runs there are."""
SIZE = os.terminal_size((80, 24))
SAFE = "Ctrl-C ends this; the runs go on"
"""Said to whoever watches on a terminal."""


@dataclass
class Shown:
    """The runs that are looked at, in their groups; made again where others have come or gone."""

    plan: Plan
    root: Path
    ids: tuple[str, ...]
    """Of those that are shown; others are only needed by them."""
    unread: frozenset[str] = frozenset()
    """Of those whose config.yaml is damaged, or another version's."""
    groups: list[Group] = field(init=False)
    at_once: int = 1
    """The most that ran together while they were looked at: between two runs a place is not gone."""

    def __post_init__(self) -> None:
        self.groups = grouped(self.plan, self.root, self.ids, self.unread)

    @classmethod
    def all(cls, plan: Plan, root: Path) -> Shown:
        """Every run of a plan."""
        return cls(plan, root, tuple(run.id for run in plan.runs))

    def of(self, found: Mapping[str, Status]) -> dict[str, Status]:
        """What was found of the runs that are shown; their reasons without what is known better by now."""
        ours = {run_id: as_known(found[run_id], found) for run_id in self.ids}
        self.at_once = max(self.at_once, sum(one.state == State.RUNNING for one in ours.values()))
        return ours


def as_known(status: Status, found: Mapping[str, Status]) -> Status:
    """A queued run's reason without a run that it no longer waits for: its place may have said so seconds ago."""
    if status.state != State.QUEUED:
        return status

    def going(run_id: str) -> bool:
        return run_id not in found or found[run_id].state in LIVE

    held = re.search(r", held by ([\w.-]+)( and \d+ others?)?", status.reason)
    if held and not going(held[1]):
        return replace(status, reason=status.reason.replace(held[0], ""))
    if (needs := waited_for(status)) and not any(map(going, needs)):
        return replace(status, reason="waits for its turn")
    return status


Look = Callable[[Shown], Shown]
"""The runs as they were looked at -> as they are now; the same object where none has come or gone."""


def follow(
    plan: Plan | Shown,
    root: Path,
    stream: TextIO,
    *,
    timeout_min: float | None = None,
    look: Look = lambda shown: shown,
    keep: bool = True,
) -> dict[str, Status]:
    """Show progress until every run has ended; returns the states then.

    Args:
        plan: the runs to begin with.
        root: the runs directory.
        stream: a terminal, or not.
        timeout_min: minutes after which to give up.
        look: finds out what runs there are now.
        keep: whether the last screen stays on the terminal; that of an interrupted call does.

    Raises:
        WaitTimeout: `timeout_min` minutes have passed.
    """
    deadline = time.monotonic() + 60 * timeout_min if timeout_min is not None else None
    shown = plan if isinstance(plan, Shown) else Shown.all(plan, root)
    if size(stream) is None:
        return _poll(shown, deadline, look, _Lines(stream).show)
    say(SAFE)
    curves = Curves(root)
    with Screen(stream) as there:
        found = _poll(shown, deadline, look, lambda now, found: _draw(there, now, found, curves))
        if not keep:
            there.clear()
        return found


def _poll(
    shown: Shown, deadline: float | None, look: Look, show: Callable[[Shown, Mapping[str, Status]], None]
) -> dict[str, Status]:
    watching, is_first = Watching[Status](), True
    while True:
        began = time.process_time()
        shown = look(shown)
        found = statuses(shown.plan, shown.root, KNOWN_S, watching)
        show(shown, shown.of(found))
        # of a run whose records are damaged so that it may be alive, nothing more is heard before it is cancelled
        if all(one.state in (*ENDED, State.PLANNED) or (one.unknown and one.damage) for one in found.values()):
            return found
        if deadline is not None and time.monotonic() > deadline:
            going = [run_id for run_id, status in found.items() if status.state not in ENDED]
            raise WaitTimeout(
                f"still going after the time-out: {', '.join(going)}; they go on, and submit --wait looks at them again"
            )
        cost_s = 0.0 if is_first else time.process_time() - began  # the first look is at everything
        time.sleep(min(REST_S, max(POLL_S, cost_s / SHARE)))
        is_first = False


class _Lines:
    """One line for each change of state, for a file or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._said: dict[str, str] = {}

    def show(self, shown: Shown, found: Mapping[str, Status]) -> None:
        for run_id in [run_id for run_id in self._said if run_id not in found]:
            del self._said[run_id]
            self._say(f"{run_id}  gone: its directory was deleted")
        for run_id, status in found.items():
            if self._said.get(run_id) != status.state:
                self._said[run_id] = status.state
                self._say(line(run_id, status))

    def _say(self, text: str) -> None:
        self.stream.write(one_line(text) + "\n")
        self.stream.flush()


def _draw(there: Screen, shown: Shown, found: Mapping[str, Status], curves: Curves) -> None:
    there.show(drawn(shown, found, size(there.stream) or SIZE, curves.of, spell=_spelling(there.stream)))


def drawn(
    shown: Shown,
    found: Mapping[str, Status],
    room: os.terminal_size,
    curve_of: CurveOf = lambda _: (),
    *,
    spell: Callable[[str], str] = str,
) -> list[str]:
    """The screen: the runs, and a last line with the clock."""
    runs = [run for group in shown.groups for run in group.runs]
    now = f"{time.strftime('%H:%M:%S')}  {total(found.values(), in_words(until_done(runs, found, shown.at_once)))}"
    last = [spell(line) for line in wrapped(now, room.columns, "  ")]
    above = os.terminal_size((room.columns, room.lines - len(last) - 1))  # the cursor has a line of its own
    return [*screen(shown.groups, found, above, spell=spell, colour=has_colour(), curve_of=curve_of), *last]


def _spelling(stream: TextIO) -> Callable[[str], str]:
    """How text is spelt for a terminal: in ASCII where it takes nothing else."""
    try:
        "α━".encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return in_ascii
    return str


def line(run_id: str, status: Status) -> str:
    """One run as one line, for a file or a pipe."""
    words = [run_id, status.state]
    if status.top1 is not None:
        words.append(f"best test top-1 {status.top1:.2f} %")
    if status.reason:
        words.append(f"({status.reason})")
    return "  ".join(words)
