"""Runs as the rows of a table, as wide as a terminal or as wide as they are. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdcluster.columns import Fitted, fitted
from kdcluster.commands.remaining import clock
from kdcluster.launch.status import Status
from kdcluster.plan import Run
from kdcluster.states import State
from kdcluster.wording import wrapped

COLUMNS = ("run", "settings", "state", "epoch", "left", "best", "accuracy", "images/s", "progress", "why")
RIGHT = ("epoch", "left", "best", "images/s")
RANKS = {"best": 1, "left": 2, "epoch": 3, "accuracy": 4, "images/s": 5, "progress": 6, "why": 7}
"""Columns that give way on a narrow terminal, the highest first."""
NEEDED = ("epoch", "left", "best", "accuracy")
"""Columns that are worth more than the whole ids of runs."""
BAR = 12
"""Columns of a bar of progress."""
TROUBLE = (State.FAILED, State.LOST, State.BLOCKED)
INK = {State.RUNNING: "\x1b[32m", **dict.fromkeys(TROUBLE, "\x1b[31m")}
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Paper:
    """What is written on."""

    width: int | None = None
    """Columns; None: a file or a pipe."""
    spell: Callable[[str], str] = str
    colour: bool = False

    def text(self, text: str, indent: str = "") -> list[str]:
        """A line, or several where it is too long; a word that is, too, is broken: the screen counts its lines."""
        lines = wrapped(self.spell(text), self.width, indent)
        step = self.width or 1 + max(map(len, lines))
        return [line[at : at + step] for line in lines for at in range(0, max(1, len(line)), step)]


def table(
    runs: Sequence[Run],
    found: Mapping[str, Status],
    differs: Mapping[str, str],
    curves: Mapping[str, str],
    paper: Paper,
) -> Fitted:
    """Headings and rows; where whole ids would take the room of how far runs are, they are short.

    `differs`: run id -> its settings; `curves`: run id -> its accuracy, drawn.
    """
    told = (_cells(run, found[run.id], differs[run.id], curves.get(run.id, ""), paper) for run in runs)
    cells = [[paper.spell(cell) for cell in row] for row in told]
    going = ("epoch", "left", *["accuracy"] * bool(paper.width))
    stays = ("run", *(going * any(found[run.id].state == State.RUNNING for run in runs)))  # in a watch
    used = [at for at, name in enumerate(COLUMNS) if name in stays or any(row[at] for row in cells)]
    names = [COLUMNS[at] for at in used]
    right = [at for at, name in enumerate(names) if name in RIGHT]
    ranks = {at: RANKS[name] for at, name in enumerate(names) if name in RANKS}

    def paint(row: int, column: int, text: str) -> str:
        ink = INK.get(found[runs[row - 1].id].state, "") if row and names[column] == "state" else ""
        return f"{ink}{text}{PLAIN}" if ink else text

    def fit(wraps: Mapping[int, int]) -> Fitted:
        table = [[one[at] for at in used] for one in (COLUMNS, *cells)]
        ink = paint if paper.colour else None
        return fitted(table, right, width=paper.width, ranks=ranks, wraps=wraps, paint=ink)

    whole = fit({})
    if not set(whole.left_out) & set(NEEDED):
        return whole
    for row, run in zip(cells, runs, strict=True):
        row[0] = short_name(run.id)
    return fit({names.index("settings"): len("settings")} if "settings" in names else {})


def short_name(run_id: str) -> str:
    """Role, seed and last digits of an id, which name the run, too: `distilled s1 e5e567a3`, `logits s0 52e1ab07`."""
    match = re.fullmatch(r"(?:teacher-(?=logits-))?([a-z-]+)-\w+-(s\d+)-([0-9a-f]{8})", run_id)
    return " ".join(match.groups()).replace(" ", "\xa0") if match else run_id


def _cells(run: Run, status: Status, differs: str, curve: str, paper: Paper) -> tuple[str, ...]:
    beat, running = status.heartbeat, status.state == State.RUNNING
    speed = beat.get("images_per_s") if running else None
    steps, step = beat.get("steps"), beat.get("step", 0)
    full = round(BAR * min(1.0, step / steps)) if steps else 0
    return (
        run.id,
        _settings(differs, paper),
        status.state,
        f"{beat.get('epoch', 0)}/{beat['epochs']}" if beat.get("epochs") else "",
        time_left(status),
        f"{best:.2f} %" if (best := best_top1(status)) is not None else "",
        curve,
        f"{speed:.0f}" if speed else "",
        "━" * full + "─" * (BAR - full) if paper.width and running and steps else "",
        status.reason,
    )


def _settings(differs: str, paper: Paper) -> str:
    """A key and its value stay together; on a terminal, which is narrow, without the seed, which an id says, too."""
    if paper.width:
        differs = re.sub(r"(?:^| )seed \d+\b", "", differs).strip()
    return re.sub(r"(\S+) (\S+)(?= |$)", "\\1\xa0\\2", differs)


def best_top1(status: Status) -> float | None:
    """Best test accuracy so far, in percent."""
    best: float | None = status.top1 if status.top1 is not None else status.heartbeat.get("best_top1")
    return best


def time_left(status: Status) -> str:
    """Minutes and seconds to the end of training at the present speed, evaluations not counted."""
    beat = status.heartbeat
    if status.state != State.RUNNING or not beat.get("steps_per_s"):
        return ""
    return clock((beat.get("steps", 0) - beat.get("step", 0)) / beat["steps_per_s"])
