"""Runs as a screen: by experiment and sweep, in what they differ, those that run first. Pure but for `grouped`.

A short screen folds what is done, then what else does not run; without one everything is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcluster import records
from kdcluster.columns import Fitted, fitted
from kdcluster.commands.remaining import clock
from kdcluster.differing import in_words
from kdcluster.launch.status import Status
from kdcluster.plan import ROLES, Plan, Run
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.wording import count, wrapped

COLUMNS = ("run", "differs in", "state", "epoch", "left", "best", "images/s", "progress", "why")
RIGHT = ("epoch", "left", "best", "images/s")
RANKS = {"best": 1, "left": 2, "epoch": 3, "images/s": 4, "progress": 5, "why": 6}
"""Columns that give way on a narrow terminal, the highest first."""
NEEDED = ("epoch", "left", "best")
"""Columns that are worth more than the whole ids of runs."""
BAR = 12
"""Columns of a bar of progress."""
TROUBLE = (State.FAILED, State.LOST, State.BLOCKED)
LATER = (State.PREEMPTED, State.CANCELLED, State.QUEUED, State.PLANNED, State.STOPPED)
ORDER = (State.RUNNING, *TROUBLE, *LATER, State.DONE)
FOLDS: tuple[tuple[State, ...], ...] = (
    (),
    (State.DONE,),
    tuple(state for state in State if state not in (State.RUNNING, *TROUBLE)),
    tuple(state for state in State if state != State.RUNNING),
)
"""States whose runs are counted only, on shorter and shorter screens; at last whole groups are where nothing runs."""
INK = {State.RUNNING: "\x1b[32m", **dict.fromkeys(TROUBLE, "\x1b[31m")}
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Group:
    """Runs that belong together: an experiment's, or the trials of its sweep."""

    title: str
    runs: tuple[Run, ...]
    differs: Mapping[str, str]
    """Run id -> in what it differs from others of its role."""
    above: int = 0
    """Runs of the experiment that stand in another group."""


def grouped(plan: Plan, root: Path, shown: Iterable[str], unread: Container[str] = ()) -> list[Group]:
    """The runs by who wants them, each once; run directories say it of those that no experiment of the plan wants.

    `unread`: runs whose settings are not all known; no other is held against them.
    """
    wanted: dict[str, list[str]] = {name: [] for name in plan.wanted}
    sweeps: dict[str, list[str]] = {}
    runs, owner = {run.id: run for run in plan.runs}, {}
    by_plan: dict[str, list[str]] = {}
    for name, roles in plan.wanted.items():
        for run_id in dict.fromkeys(run_id for ids in roles.values() for run_id in ids):
            by_plan.setdefault(run_id, []).append(name)
    for run_id in shown:
        run_dir = RunDir(root, run_id)
        trial_of = [] if run_id in by_plan else sweeps_of(run_dir)
        if trial_of:
            sweeps.setdefault(trial_of[0], []).append(run_id)
            continue
        names = by_plan.get(run_id) or run_dir.experiments() or [""]
        owner[run_id] = names[0]
        for name in names:
            wanted.setdefault(name, []).append(run_id)
    made = []
    for name in dict.fromkeys((*(n for n in (*wanted, *sweeps) if n), "")):
        ids = [run_id for run_id in wanted.get(name, ()) if owner[run_id] == name]
        if ids or name in plan.wanted:
            made.append(_group(name or "other runs", [runs[i] for i in ids], unread, len(wanted[name]) - len(ids)))
        if name in sweeps:
            made.append(_group(f"sweep of {name}", [runs[run_id] for run_id in sweeps[name]], unread))
    return made


def sweeps_of(run_dir: RunDir) -> list[str]:
    """Names of the experiments whose sweeps have a run as a trial."""
    return [one["experiment"] for one in records.found(run_dir.path / "trials.json") or []]


def _group(title: str, runs: Sequence[Run], unread: Container[str], above: int = 0) -> Group:
    ordered = sorted(runs, key=lambda run: (ROLES.index(run.role) if run.role in ROLES else len(ROLES), run.seed or 0))
    differs = dict.fromkeys((run.id for run in ordered), "")
    for role in dict.fromkeys(run.role for run in ordered):
        differs |= in_words([run for run in ordered if run.role == role and run.id not in unread])
    return Group(title, tuple(ordered), differs, above)


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


def rows(groups: Iterable[Group], found: Mapping[str, Status], *, spell: Callable[[str], str] = str) -> list[str]:
    """Every run, for a file or a pipe."""
    return _lines(list(groups), found, (), Paper(spell=spell))


def screen(
    groups: Sequence[Group],
    found: Mapping[str, Status],
    size: os.terminal_size,
    *,
    spell: Callable[[str], str] = str,
    colour: bool = True,
) -> list[str]:
    """The same on a terminal: in its width, and folded as far as its height wants it."""
    paper = Paper(size.columns, spell, colour)
    for folded in FOLDS:
        if sum(found[run.id].state not in folded for group in groups for run in group.runs) < size.lines:
            shown = _lines(groups, found, folded, paper)
            if len(shown) <= size.lines:
                return shown
    busy = [group for group in groups if any(found[run.id].state == State.RUNNING for run in group.runs)]
    idle = [group for group in groups if group not in busy]
    shown = _lines(busy, found, FOLDS[-1], paper, reasons=False)
    if idle:
        said = total((found[run.id] for group in idle for run in group.runs), "")
        shown += paper.text(f"{count(len(idle), 'other group')}: {said}", "  ")
    if len(shown) <= size.lines:
        return shown
    last = paper.text("more lines than the window has: pipe this into less", "  ")
    return [*shown[: max(0, size.lines - len(last))], *last]


def _lines(
    groups: Sequence[Group],
    found: Mapping[str, Status],
    folded: Sequence[State],
    paper: Paper,
    *,
    reasons: bool = True,
) -> list[str]:
    chosen = [[run for run in _sorted(group, found) if found[run.id].state not in folded] for group in groups]
    shown = [run for runs in chosen for run in runs]
    fit = _table(groups, shown, found, paper)
    head, *body = fit.rows
    lines = list(head) if body else []
    rest = iter(body)
    for number, (group, runs) in enumerate(zip(groups, chosen, strict=True)):
        title = paper.text(_title(group, found))
        lines += [""] if number and not folded else []
        lines += [f"{BOLD}{line}{PLAIN}" for line in title] if paper.colour else title
        for _ in runs:
            lines += next(rest)
        if hidden := _hidden(group, found, folded):
            lines += paper.text(f"  {hidden}", "  ")
    if reasons and "why" in fit.left_out:
        lines += [""] if not folded else []
        lines += [line for why in _reasons(shown, found) for line in paper.text(why, "  ")]
    return lines


def _table(groups: Iterable[Group], runs: Sequence[Run], found: Mapping[str, Status], paper: Paper) -> Fitted:
    """Headings and rows; where whole ids would take the room of how far runs are, they are short."""
    differs = {run_id: text for group in groups for run_id, text in group.differs.items()}
    told = (_cells(run, found[run.id], differs[run.id], bar=paper.width is not None) for run in runs)
    cells = [[paper.spell(cell) for cell in row] for row in told]
    used = [at for at, name in enumerate(COLUMNS) if name == "run" or any(row[at] for row in cells)]
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
    return fit({names.index("differs in"): len("differs in")} if "differs in" in names else {})


def short_name(run_id: str) -> str:
    """Role, seed and last digits of an id, which name the run, too: `distilled s1 e5e567a3`, `logits s0 52e1ab07`."""
    match = re.fullmatch(r"(?:teacher-(?=logits-))?([a-z-]+)-\w+-(s\d+)-([0-9a-f]{8})", run_id)
    return " ".join(match.groups()).replace(" ", "\xa0") if match else run_id


def _sorted(group: Group, found: Mapping[str, Status]) -> list[Run]:
    """As the plan has them, but first what runs, then what is in trouble, then what may still run."""
    classes = ((State.RUNNING,), TROUBLE, LATER, (State.DONE,))
    rank = {state: number for number, states in enumerate(classes) for state in states}
    return sorted(group.runs, key=lambda run: rank[found[run.id].state])


def _title(group: Group, found: Mapping[str, Status]) -> str:
    done = sum(found[run.id].state == State.DONE for run in group.runs)
    if not group.runs:
        return (
            f"{group.title}: its {count(group.above, 'run')} stand above" if group.above else f"{group.title}: no run"
        )
    above = f" ({count(group.above, 'more run')} of it above)" if group.above else ""
    return f"{group.title}: {done} of {len(group.runs)} done{above}"


def _hidden(group: Group, found: Mapping[str, Status], folded: Sequence[State]) -> str:
    """The runs that are only counted: `14 done, best student 91.25 %; 3 queued`."""
    words = []
    for state in reversed(ORDER):
        ours = [run for run in group.runs if found[run.id].state == state]
        if state in folded and ours:
            words.append(", ".join(filter(None, (f"{len(ours)} {state}", _best(ours, found)))))
    return "; ".join(words)


def _best(runs: Iterable[Run], found: Mapping[str, Status]) -> str:
    """The best student of some runs; the best teacher where there is no other."""
    known = [(run.role != "teacher", top1) for run in runs if (top1 := found[run.id].top1) is not None]
    if not known:
        return ""
    is_student, top1 = max(known)
    return f"best {'student' if is_student else 'teacher'} {top1:.2f} %"


def _reasons(runs: Iterable[Run], found: Mapping[str, Status]) -> list[str]:
    """Why runs are as they are, each reason once, what is wrong first."""
    why: dict[tuple[State, str], list[str]] = {}
    for run in runs:
        if found[run.id].reason:
            why.setdefault((found[run.id].state, found[run.id].reason), []).append(run.id)
    return [
        f"{state}: {ids[0] if len(ids) == 1 else count(len(ids), 'run')}: {reason}"
        for (state, reason), ids in sorted(why.items(), key=lambda one: one[0][0] not in TROUBLE)
    ]


def _cells(run: Run, status: Status, differs: str, *, bar: bool) -> tuple[str, ...]:
    beat, running = status.heartbeat, status.state == State.RUNNING
    speed = beat.get("images_per_s") if running else None
    steps, step = beat.get("steps"), beat.get("step", 0)
    full = round(BAR * min(1.0, step / steps)) if steps else 0
    return (
        run.id,
        re.sub(r"(\S+) (\S+)(?= |$)", "\\1\xa0\\2", differs),  # a key and its value stay together
        status.state,
        f"{beat.get('epoch', 0)}/{beat['epochs']}" if beat.get("epochs") else "",
        time_left(status),
        f"{best:.2f} %" if (best := best_top1(status)) is not None else "",
        f"{speed:.0f}" if speed else "",
        "━" * full + "─" * (BAR - full) if bar and running and steps else "",
        status.reason,
    )


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


def total(found: Iterable[Status], left: str, spent: str = "") -> str:
    """The last line: `2 of 7 done, about 4 min left; 1 running, 4 queued`; it does not break behind a number."""
    states = [one.state for one in found]
    if not states:
        return count(0, "run")
    done = f"{states.count(State.DONE)} of {len(states)} done" + (f", {left}" if left else "")
    kinds = [f"{states.count(state)}\xa0{state}" for state in ORDER[:-1] if state in states]
    return "; ".join(filter(None, (done, ", ".join(kinds), spent)))
