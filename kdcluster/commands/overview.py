"""Runs as a screen: by experiment and sweep, in what they differ, those that run first. Pure but for `grouped`.

A short screen folds what is done, then what else does not run; without one everything is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdcluster import records
from kdcluster.commands.cells import BOLD, PLAIN, TROUBLE, Paper, table
from kdcluster.commands.curves import CurveOf, drawn
from kdcluster.differing import in_words
from kdcluster.launch.status import Status
from kdcluster.plan import ROLES, Plan, Run
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.wording import count

LATER = (State.PREEMPTED, State.CANCELLED, State.QUEUED, State.PLANNED, State.STOPPED)
ORDER = (State.RUNNING, *TROUBLE, *LATER, State.DONE)
FOLDS: tuple[tuple[State, ...], ...] = (
    (),
    (State.DONE,),
    tuple(state for state in State if state not in (State.RUNNING, *TROUBLE)),
    tuple(state for state in State if state != State.RUNNING),
)
"""States whose runs are counted only, on shorter and shorter screens; at last whole groups are where nothing runs."""


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
    """The runs, each once: by the experiment of the plan that they were started for, else by one that wants them.

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
        started_for = [name for name in run_dir.experiments() if name in plan.wanted or run_id not in by_plan]
        names = list(dict.fromkeys((*started_for, *by_plan.get(run_id, ())))) or [""]
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


def rows(groups: Iterable[Group], found: Mapping[str, Status], *, spell: Callable[[str], str] = str) -> list[str]:
    """Every run, for a file or a pipe."""
    return _lines(list(groups), found, (), Paper(spell=spell), lambda _: ())


def screen(
    groups: Sequence[Group],
    found: Mapping[str, Status],
    size: os.terminal_size,
    *,
    spell: Callable[[str], str] = str,
    colour: bool = True,
    curve_of: CurveOf = lambda _: (),
) -> list[str]:
    """The same on a terminal: in its width, and folded as far as its height wants it.

    `curve_of`: asked for the accuracy of the runs that have a row.
    """
    paper, curve_of = Paper(size.columns, spell, colour), cache(curve_of)  # for all that is tried below
    for folded in FOLDS:
        if sum(found[run.id].state not in folded for group in groups for run in group.runs) < size.lines:
            for with_way in (True, False):
                shown = _lines(groups, found, folded, paper, curve_of, with_way=with_way)
                if len(shown) <= size.lines:
                    return shown
    busy = [group for group in groups if any(found[run.id].state == State.RUNNING for run in group.runs)]
    idle = [group for group in groups if group not in busy]
    shown = _lines(busy, found, FOLDS[-1], paper, curve_of, with_reasons=False)
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
    curve_of: CurveOf,
    *,
    with_way: bool = False,
    with_reasons: bool = True,
) -> list[str]:
    chosen = [[run for run in _sorted(group, found) if found[run.id].state not in folded] for group in groups]
    shown = [run for runs in chosen for run in runs]
    differs = {run_id: text for group in groups for run_id, text in group.differs.items()}
    curves: dict[str, str] = {}
    for runs in chosen:  # each group has a scale of its own
        curves |= drawn({run.id: curve_of(run.id) for run in runs}, found)
    fit = table(shown, found, differs, curves, paper)
    head, *body = fit.rows
    lines = list(head) if body else []
    rest = iter(body)
    for number, (group, runs) in enumerate(zip(groups, chosen, strict=True)):
        title = paper.text(_title(group, found))
        lines += [""] if number and not folded else []
        lines += [f"{BOLD}{line}{PLAIN}" for line in title] if paper.colour else title
        if with_way and (way := _way(group, found)):
            lines += paper.text(f"  {way}", "  ")
        for _ in runs:
            lines += next(rest)
        if hidden := _hidden(group, found, folded):
            lines += paper.text(f"  {hidden}", "  ")
    if with_reasons and "why" in fit.left_out:
        why = reasons((run for run in shown if not (with_way and _is_on_the_way(run, groups, found))), found)
        lines += [""] if why and not folded else []
        lines += [line for one in why for line in paper.text(one, "  ")]
    return lines


def _sorted(group: Group, found: Mapping[str, Status]) -> list[Run]:
    """As the plan has them, but first what runs, then what is in trouble, then what may still run."""
    classes = ((State.RUNNING,), TROUBLE, LATER, (State.DONE,))
    rank = {state: number for number, states in enumerate(classes) for state in states}
    return sorted(group.runs, key=lambda run: rank[found[run.id].state])


def _title(group: Group, found: Mapping[str, Status]) -> str:
    done = sum(found[run.id].state == State.DONE for run in group.runs)
    more = f"{count(group.above, 'more run')} of it in another group" if group.above else "no run"
    if not group.runs:
        return f"{group.title}: {more.replace(' more', '')}"
    return f"{group.title}: {done} of {len(group.runs)} done" + f" ({more})" * bool(group.above)


def _way(group: Group, found: Mapping[str, Status]) -> str:
    """What waits for what while not all is done: `teacher done ─▶ logits running ─▶ distilled 0/3; baseline 2/3`."""
    role_of: dict[str, str] = {run.id: run.role for run in group.runs}
    links = {(role_of[need], run.role) for run in group.runs for need in (*run.needs, *run.after) if need in role_of}
    linked = {role for link in links for role in link}
    if not links or all(found[run_id].state == State.DONE for run_id in role_of):
        return ""
    stages = {role: _stage([found[run.id] for run in group.runs if run.role == role]) for role in ROLES}
    names = {role: f"{'logits' if role == STORE else role} {stage}" for role, stage in stages.items() if stage}
    chain = " ─▶ ".join(name for role, name in names.items() if role in linked)
    return "; ".join([chain, *(name for role, name in names.items() if role not in linked)])


def _is_on_the_way(run: Run, groups: Iterable[Group], found: Mapping[str, Status]) -> bool:
    """Whether a run waits only for what stands before it in `_way`."""
    needs = waited_for(found[run.id])
    return bool(needs) and any({run.id, *needs} <= {one.id for one in group.runs} for group in groups)


def waited_for(status: Status) -> list[str]:
    """The runs that a queued one waits for, as its place says it; none where it waits for something else."""
    needs = re.fullmatch(r"waits for ([\w.-]+(?:, [\w.-]+)*)", status.reason)
    return needs[1].split(", ") if needs and status.state == State.QUEUED else []


def _stage(ours: Sequence[Status]) -> str:
    states = [one.state for one in ours]
    if len(states) < 2:
        return "".join(states)
    wrong = [f"{states.count(state)} {state}" for state in TROUBLE if state in states]
    return ", ".join([f"{states.count(State.DONE)}/{len(states)}", *wrong])


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


def reasons(runs: Iterable[Run], found: Mapping[str, Status]) -> list[str]:
    """Why runs are as they are, each reason once, what is wrong first."""
    why: dict[tuple[State, str], list[str]] = {}
    for run in runs:
        if found[run.id].reason:
            why.setdefault((found[run.id].state, found[run.id].reason), []).append(run.id)
    return [
        f"{state}: {ids[0] if len(ids) == 1 else count(len(ids), 'run')}: {reason}"
        for (state, reason), ids in sorted(why.items(), key=lambda one: one[0][0] not in TROUBLE)
    ]


def total(found: Iterable[Status], left: str, spent: str = "") -> str:
    """The last line: `2 of 7 done, about 4 min left; 1 running, 4 queued`; it does not break behind a number."""
    states = [one.state for one in found]
    if not states:
        return count(0, "run")
    done = f"{states.count(State.DONE)} of {len(states)} done" + (f", {left}" if left else "")
    kinds = [f"{states.count(state)}\xa0{state}" for state in ORDER[:-1] if state in states]
    return "; ".join(filter(None, (done, ", ".join(kinds), spent)))
