"""Which state is true: derived from what is on disk and from processes that are looked up, never remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir, is_alive

ENDED = ("done", "failed", "blocked", "stopped", "cancelled", "lost", "preempted")
"""States in which nothing happens any more until someone submits again."""


FAILURE = ("rank", "host", "returncode", "signal", "out_of_memory")


@dataclass(frozen=True)
class Status:
    """One run's state, why, and how far it is."""

    state: str
    reason: str = ""
    attempts: int = 0
    log: Path | None = None
    heartbeat: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    """Of a failed run: rank, host, returncode, signal, out_of_memory."""
    top1: float | None = None
    """Best test accuracy so far, in percent, once the run is done."""


def statuses(plan: Plan, root: Path) -> dict[str, Status]:
    """The status of every run of a plan, in its order."""
    found: dict[str, Status] = {}
    for run in plan.runs:
        own = run_status(RunDir(root, run.id))
        if own.state in ("planned", "queued") and (why := blocked_by(run, found)):
            own = Status("blocked", why, own.attempts)
        found[run.id] = own
    for run in plan.runs:
        if found[run.id].state in ("done", "running"):
            continue
        for need in run.needs:  # the table needs no weights, but a student that is still to be trained does
            if found[need].state == "done" and not RunDir(root, need).weights("best").is_file():
                why = "its best weights are gone, and a student needs them; submit makes them again"
                found[need] = replace(found[need], state="lost", reason=why)
    return found


def next_steps(found: Mapping[str, Status], again: str, where: str) -> list[str]:
    """What to type where runs ended without being done: first what says why, then what goes on with them.

    Args:
        found: the runs' states.
        again: arguments of `kdcluster submit` that name these runs.
        where: arguments that name their runs directory, or nothing.
    """
    failed = next((run_id for run_id, status in found.items() if status.state == "failed"), None)
    states = {status.state for status in found.values()}
    steps = [f"kdcluster logs {failed}{where}"] if failed else []
    if states & {"failed", "cancelled"}:
        steps.append(f"kdcluster submit {again}{where} --retry  # goes on from what is saved")
    elif states & {"preempted", "lost", "stopped", "planned"}:
        steps.append(f"kdcluster submit {again}{where}  # starts what is missing, goes on from what is saved")
    return steps


def run_status(run_dir: RunDir) -> Status:
    """A run's own state, whatever becomes of the runs that it needs."""
    newest = run_dir.newest()
    number = newest.number if newest else 0
    ticket = run_dir.ticket()
    cancelled = run_dir.is_cancelled()
    if ticket and ticket["after_attempt"] == number and is_alive(ticket["supervisor"]) and not cancelled:
        return Status("queued", "waits for its turn", number)
    if newest is None:
        return Status("cancelled", "before it started") if cancelled else Status("planned")
    start = newest.read("start")
    alive = is_alive(newest.read("agent")) or is_alive(start.get("supervisor"))
    outcome = newest.read("outcome")  # after the look at the processes: they write it and go
    beat = newest.read("heartbeat")
    logs = [path for _, path in newest.logs() if path.exists()]
    log = logs[-1] if len(logs) == 2 else newest.path
    result = run_dir.result()
    if outcome.get("state") == "done" or (result and result["attempt"] == number and not alive):
        best = result["best"]["test/top1"] if result else beat.get("best_top1")
        return Status("done", "", number, log, beat, top1=best)
    if outcome:
        failed_log = newest.log(outcome["rank"]) if outcome.get("rank") is not None else log
        failure = {key: outcome.get(key) for key in FAILURE} if outcome["state"] == "failed" else None
        return Status(outcome["state"], _and_safe(outcome["reason"], run_dir), number, failed_log, beat, failure)
    if alive:
        return Status("running", "being stopped" if cancelled else "", number, log, beat)
    if saved := newest.read("preempted"):
        return Status("preempted", _and_safe(f"stopped at step {saved['step']}", run_dir), number, log, beat)
    if cancelled:
        return Status("cancelled", _and_safe("stopped", run_dir), number, log, beat)
    why = _and_safe(f"its processes on {start.get('host', '?')} are gone", run_dir)
    return Status("lost", why, number, log, beat)


def _and_safe(why: str, run_dir: RunDir) -> str:
    """Why a run ended, and what of it is safe."""
    step = run_dir.saved_step()
    return f"{why}; step {step} is saved" if step else f"{why}; nothing is saved yet"


def blocked_by(run: Run, found: dict[str, Status]) -> str:
    """Why a run cannot start for what it needs; empty where it can, or may later."""
    for need in run.needs:
        state = found[need]
        if state.state in ("failed", "cancelled", "blocked"):
            return f"{need} is {state.state}" + (f": {state.reason}" if state.reason else "")
        gate = run.teacher.min_top1 if run.teacher else None
        if state.state == "done" and gate is not None and state.top1 is not None and state.top1 < gate:
            return (
                f"{need} reached {state.top1:.2f} %, under teacher.min_top1 {gate:g}; train it longer or lower the gate"
            )
    return ""
