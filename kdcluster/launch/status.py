"""The states of runs: each its own (derived.py), and in a plan what follows from those of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from kdcluster import teacherlogits
from kdcluster.launch import backend
from kdcluster.launch.derived import Status as Status
from kdcluster.launch.derived import derived as derived
from kdcluster.launch.derived import last_sign as last_sign
from kdcluster.launch.watching import Watching
from kdcluster.ownership import foreign
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.runs import RunDir, renamed
from kdcluster.saved import weights_digest
from kdcluster.states import GIVEN_UP, LIVE, State

KNOWN_S = 10.0
"""For whoever looks again and again: how old the answer of a place may be that others pay for, as a scheduler's."""

ANOTHERS = "it is another user's, and students compute what is missing"
"""Why nobody makes what a store lacks."""


def statuses(
    plan: Plan, root: Path, within_s: float = 0.0, watching: Watching[Status] | None = None
) -> dict[str, Status]:
    """The status of every run of a plan, in its order; each place is asked once.

    `watching`: of whoever looks again and again, to look only at what may have changed.
    """
    own = statuses_of((RunDir(root, run.id) for run in plan.runs), within_s, watching)
    found: dict[str, Status] = {}
    for run in plan.runs:
        if run.role == STORE:
            own[RunDir(root, run.id)] = _of_store(plan, run, root, own)
    is_missing = any(not run_dir.path.exists() for run_dir, one in own.items() if one.state == State.PLANNED)
    moved = (watching.renamed(root) if watching else renamed(root)) if is_missing else {}
    for run in plan.runs:
        one = own[RunDir(root, run.id)]
        if run.id in moved and one.state == State.PLANNED:
            one = replace(one, reason=f"{root / moved[run.id]} holds it; rename that back, or submit makes it again")
        unstarted = one.state in (State.PLANNED, State.QUEUED) or (one.state == State.LOST and one.log is None)
        if unstarted and (why := blocked_by(run, found)):
            one = replace(one, state=State.BLOCKED, reason=why)
        found[run.id] = one
    over = {STORE: (State.DONE, State.RUNNING, *GIVEN_UP)}  # one that failed is made no more by itself
    waiting = (run for run in plan.runs if found[run.id].state not in over.get(run.role, (State.DONE, State.RUNNING)))
    for need in dict.fromkeys(need for run in waiting for need in run.needs):
        # the table needs no weights, but a student that is still to be trained does
        if found[need].state == State.DONE and (problem := RunDir(root, need).weights_problem("best")):
            why = f"its best weights are {problem}, and a student needs them; submit makes them again"
            found[need] = replace(found[need], state=State.LOST, reason=why)
    return found


def _of_store(plan: Plan, run: Run, root: Path, own: Mapping[RunDir, Status]) -> Status:
    """The state of a store among those who read it: done where nobody will any more, not done where they want more."""
    one, readers = own[RunDir(root, run.id)], plan.readers(run.id)
    if one.state in LIVE or one.state in GIVEN_UP or one.unknown:
        return one
    if readers and all(own[RunDir(root, reader.id)].state == State.DONE for reader in readers):
        return one if one.state == State.DONE else replace(one, state=State.DONE, reason="nobody reads it any more")
    if one.state == State.DONE and run.teacher:
        of = {"run": run.id, "teacher": run.teacher.id, "classes": run.num_classes}
        teacher = root / run.teacher.id
        if weights := weights_digest(teacher, "best"):
            of |= {"weights": weights, "precision": teacherlogits.precision(teacher)}
        why = teacherlogits.problem(root / run.id, run.views or 0, of)
        if why and foreign(root / run.id):
            return replace(one, reason=f"{why}; {ANOTHERS}")
        if why:
            return replace(one, state=State.PLANNED, reason=f"{why}; submit makes what is missing")
    return one


def statuses_of(
    run_dirs: Iterable[RunDir], within_s: float = 0.0, watching: Watching[Status] | None = None
) -> dict[RunDir, Status]:
    """Each run's own state; each place is asked once for all of its runs."""
    run_dirs = list(run_dirs)
    seen = backend.look(run_dirs, within_s, watching.given_to if watching else None)
    if watching:
        return {run_dir: watching.derived(run_dir, seen.get(run_dir), derived) for run_dir in run_dirs}
    return {run_dir: derived(run_dir, seen.get(run_dir)) for run_dir in run_dirs}


def run_status(run_dir: RunDir, within_s: float = 0.0) -> Status:
    """A run's own state, whatever becomes of the runs that it needs."""
    return statuses_of([run_dir], within_s)[run_dir]


def blocked_by(run: Run, found: Mapping[str, Status]) -> str:
    """Why a run cannot start for what it needs; empty where it can, or may later."""
    gate = run.teacher.min_top1 if run.teacher else None
    for need in run.needs:
        state, reason, top1 = found[need].state, found[need].reason, found[need].top1
        if state in (*GIVEN_UP, State.BLOCKED):
            return f"{need} is {state}" + (f": {reason}" if reason else "")
        if gate is None or state != State.DONE:
            continue
        if top1 is None:
            return f"{need} has no accuracy to hold against teacher.min_top1; delete it, then submit again"
        if top1 < gate:
            return f"{need} reached {top1:.2f} %, under teacher.min_top1 {gate:g}; train it longer or lower the gate"
    return ""
