"""What a person sees while runs go on: a screen on a terminal, one line per change of state off it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdcluster.errors import WaitTimeout
from kdcluster.launch.status import KNOWN_S, Status, statuses
from kdcluster.launch.watching import Watching
from kdcluster.plan import Plan
from kdcluster.states import ENDED, State
from kdcluster.wording import one_line

if TYPE_CHECKING:
    from rich.console import Group

POLL_S = 0.5
SHARE, REST_S = 0.03, 10.0
"""Of a core that looking may take: so long the pause gets, up to a limit, however many runs there are."""
COLUMNS = ("run", "state", "epoch", "images/s", "best", "left")
BAR_FROM = 110
"""Terminal columns from which there is room for progress bars."""


def follow(plan: Plan, root: Path, stream: TextIO, *, timeout_min: float | None = None) -> dict[str, Status]:
    """Show progress until every run of the plan has ended; returns the states then.

    Raises:
        WaitTimeout: `timeout_min` minutes have passed.
    """
    deadline = time.monotonic() + 60 * timeout_min if timeout_min is not None else None
    if stream.isatty():
        return _follow_screen(plan, root, stream, deadline)
    said: dict[str, str] = {}

    def show(found: Mapping[str, Status]) -> None:
        for run_id, status in found.items():
            if said.get(run_id) != status.state:
                said[run_id] = status.state
                stream.write(one_line(line(run_id, status)) + "\n")
                stream.flush()

    return _poll(plan, root, deadline, show)


def _poll(
    plan: Plan, root: Path, deadline: float | None, show: Callable[[Mapping[str, Status]], None]
) -> dict[str, Status]:
    watching, is_first = Watching[Status](), True
    while True:
        began = time.process_time()
        found = statuses(plan, root, KNOWN_S, watching)
        show(found)
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


def _follow_screen(plan: Plan, root: Path, stream: TextIO, deadline: float | None) -> dict[str, Status]:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    with Live(console=console, auto_refresh=False) as live:
        return _poll(
            plan, root, deadline, lambda found: live.update(screen(found, bars=console.width >= BAR_FROM), refresh=True)
        )


def screen(found: Mapping[str, Status], *, bars: bool = False) -> Group:
    """The runs as a rich table, and below it why some of them did not go well."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # so that a run's id fits into 80 columns
    for name in COLUMNS:
        table.add_column(
            name, justify="left" if name in ("run", "state") else "right", no_wrap=name != "run", overflow="fold"
        )
    if bars:
        table.add_column("progress", width=20)
    for run_id, status in found.items():
        row = [Text(one_line(cell)) for cell in cells(run_id, status)]
        steps, step = status.heartbeat.get("steps"), status.heartbeat.get("step", 0)
        bar = [ProgressBar(steps, step, width=20) if steps else ""] if bars else []
        table.add_row(*row, *bar)
    why = [
        Text(one_line(f"{run_id}: {status.reason}"))
        for run_id, status in found.items()
        if status.reason and status.state in (State.FAILED, State.BLOCKED, State.LOST)
    ]
    return Group(table, *why)


def cells(run_id: str, status: Status) -> tuple[str, ...]:
    """One run in the columns of the screen."""
    beat = status.heartbeat
    best = status.top1 if status.top1 is not None else beat.get("best_top1")
    speed = beat.get("images_per_s") if status.state == State.RUNNING else None
    return (
        run_id,
        status.state,
        f"{beat.get('epoch', 0)}/{beat['epochs']}" if beat.get("epochs") else "",
        f"{speed:.0f}" if speed else "",
        f"{best:.2f} %" if best is not None else "",
        time_left(status),
    )


def time_left(status: Status) -> str:
    """Minutes and seconds to the end of training at the present speed, evaluations not counted."""
    beat: dict[str, Any] = status.heartbeat
    if status.state != State.RUNNING or not beat.get("steps_per_s"):
        return ""
    seconds = max(0, round((beat.get("steps", 0) - beat.get("step", 0)) / beat["steps_per_s"]))
    return (
        f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02}"
    )


def line(run_id: str, status: Status) -> str:
    """One run as one line, for a file or a pipe."""
    words = [run_id, status.state]
    if status.top1 is not None:
        words.append(f"best test top-1 {status.top1:.2f} %")
    if status.reason:
        words.append(f"({status.reason})")
    return "  ".join(words)
