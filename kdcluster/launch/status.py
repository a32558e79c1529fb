"""Which state is true: derived from what is on disk, from processes that are looked up and from what SLURM says of
jobs, never remembered. A run's own record comes first, then the queue, then accounting.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcluster.launch.slurm import queue as slurm
from kdcluster.launch.slurm.answers import Job
from kdcluster.launch.slurm.queue import Jobs
from kdcluster.plan import Plan, Run
from kdcluster.processes import is_alive
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import GIVEN_UP, INTERRUPTED, State

FAILURE = ("rank", "host", "returncode", "signal", "out_of_memory")
STALE_S = 600.0
"""Seconds without a heartbeat after which a run whose job nobody knows counts as lost."""


@dataclass(frozen=True)
class Status:
    """One run's state, why, and how far it is."""

    state: State
    reason: str = ""
    attempts: int = 0
    log: Path | None = None
    heartbeat: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    """Of a failed run: rank, host, returncode, signal, out_of_memory."""
    top1: float | None = None
    """Best test accuracy so far, in percent, once the run is done."""
    job_id: str | None = None
    """Of a run that SLURM has, or had at last."""


def statuses(plan: Plan, root: Path) -> dict[str, Status]:
    """The status of every run of a plan, in its order."""
    refs = {run.id: job_of(RunDir(root, run.id)) for run in plan.runs}
    jobs = slurm.look(ref for ref in refs.values() if ref)
    found: dict[str, Status] = {}
    for run in plan.runs:
        own = run_status(RunDir(root, run.id), jobs)
        unstarted = own.state in (State.PLANNED, State.QUEUED) or (own.state == State.LOST and own.log is None)
        if unstarted and (why := blocked_by(run, found)):
            own = Status(State.BLOCKED, why, own.attempts, job_id=own.job_id)
        found[run.id] = own
    for run in plan.runs:
        if found[run.id].state in (State.DONE, State.RUNNING):
            continue
        for need in run.needs:  # the table needs no weights, but a student that is still to be trained does
            if found[need].state == State.DONE and not RunDir(root, need).weights("best").is_file():
                why = "its best weights are gone, and a student needs them; submit makes them again"
                found[need] = replace(found[need], state=State.LOST, reason=why)
    return found


def next_steps(found: Mapping[str, Status], again: Mapping[str, str], where: str) -> list[str]:
    """What to type where runs ended without being done: first what says why, then what goes on with them.

    Args:
        found: the runs' states.
        again: of each run, the arguments of `kdcluster submit` that start it.
        where: arguments that name their runs directory, or nothing.
    """
    failed = next((run_id for run_id, status in found.items() if status.state == State.FAILED), None)
    steps = [f"kdcluster logs {failed}{where}"] if failed else []
    states: dict[str, set[str]] = {}
    for run_id, status in found.items():
        states.setdefault(again[run_id], set()).add(status.state)
    for words, seen in states.items():
        if seen & set(GIVEN_UP):
            steps.append(f"kdcluster submit {words}{where} --retry")
        elif seen & {*INTERRUPTED, State.PLANNED}:  # what a search has stopped early needs nobody
            steps.append(f"kdcluster submit {words}{where}")
    return steps


def job_of(run_dir: RunDir) -> dict[str, Any] | None:
    """The job that SLURM is to be asked about, as {"id", "name", ...}; None for a run that is done or has none.

    An id that was never written down (the submit died) is None: the job is then found by its name.
    """
    newest = run_dir.newest()
    number = newest.number if newest else 0
    result = run_dir.result()
    if result and result["attempt"] == number:
        return None
    ticket = run_dir.ticket()
    if ticket:
        job: dict[str, Any] | None = ticket.get("job")
        return job
    start = newest.read("start") if newest else {}
    return {"id": start["job_id"], "name": None} if start.get("job_id") else None


def statuses_of(run_dirs: Iterable[RunDir]) -> dict[RunDir, Status]:
    """Each run's own state; SLURM is asked once for all of them."""
    run_dirs = list(run_dirs)
    jobs = slurm.look(ref for run_dir in run_dirs if (ref := job_of(run_dir)))
    return {run_dir: run_status(run_dir, jobs) for run_dir in run_dirs}


def run_status(run_dir: RunDir, jobs: Jobs | None = None) -> Status:
    """A run's own state, whatever becomes of the runs that it needs.

    Args:
        run_dir: the run.
        jobs: what SLURM says of `job_of` of this run; None: SLURM is asked for this run alone.
    """
    newest = run_dir.newest()
    number = newest.number if newest else 0
    ref = job_of(run_dir)
    if ref and jobs is None:
        jobs = slurm.look([ref])
    if ref and jobs:
        return _in_queue(run_dir, newest, ref, jobs)
    ticket = run_dir.ticket()
    cancelled = run_dir.is_cancelled()
    if ticket and ticket["after_attempt"] == number and is_alive(ticket.get("supervisor")) and not cancelled:
        return Status(State.QUEUED, "waits for its turn", number)
    if newest is None:
        return Status(State.CANCELLED, "before it started") if cancelled else Status(State.PLANNED)
    start = newest.read("start")
    alive = is_alive(newest.read("agent")) or is_alive(start.get("supervisor"))
    if ended := _ended(run_dir, newest, alive):  # after the look at the processes: they write it and go
        return ended
    if alive:
        return _of(run_dir, newest, State.RUNNING, "being stopped" if cancelled else "")
    if saved := newest.read("preempted"):
        return _of(run_dir, newest, State.PREEMPTED, _and_safe(f"stopped at step {saved['step']}", run_dir))
    silent_s = time.time() - last_sign(newest)
    if start.get("host") != socket.gethostname() and silent_s < STALE_S:  # as a trial on another node of a Ray
        return _of(run_dir, newest, State.RUNNING, f"on {start['host']}, last heard of {silent_s:.0f} s ago")
    if cancelled:
        return _of(run_dir, newest, State.CANCELLED, _and_safe(State.STOPPED, run_dir))
    return _of(run_dir, newest, State.LOST, _and_safe(f"its processes on {start.get('host', '?')} are gone", run_dir))


def _of(run_dir: RunDir, attempt: Attempt, state: State, reason: str, **more: Any) -> Status:
    """The status of a run that has started, with where to read and how far it is."""
    logs = [path for _, path in attempt.logs() if path.exists()]
    log = logs[-1] if len(logs) == 2 else attempt.path
    if state == State.RUNNING and attempt.read("start").get("code_changed"):
        reason = "; ".join(filter(None, [reason, "by other trainer code than was submitted"]))
    beat = attempt.read("heartbeat") or so_far(run_dir)
    given = {"log": log, "heartbeat": beat, "job_id": attempt.read("start").get("job_id"), **more}
    return Status(state, reason, attempt.number, **given)


def so_far(run_dir: RunDir) -> dict[str, Any]:
    """How far a run is that goes on from what earlier attempts saved: the last heartbeat, without its speed."""
    beats = (attempt.read("heartbeat") for attempt in reversed(run_dir.attempts()))
    beat = next((beat for beat in beats if beat), {})
    return {key: value for key, value in beat.items() if not key.endswith("_per_s")}


def _ended(run_dir: RunDir, newest: Attempt, alive: bool) -> Status | None:
    """What the run's own record says of its end."""
    outcome, result = newest.read("outcome"), run_dir.result()
    if outcome.get("state") == State.DONE or (result and result["attempt"] == newest.number and not alive):
        best = result["best"]["test/top1"] if result else newest.read("heartbeat").get("best_top1")
        return _of(run_dir, newest, State.DONE, "", top1=best)
    if not outcome:
        return None
    more: dict[str, Any] = {"log": newest.log(outcome["rank"])} if outcome.get("rank") is not None else {}
    if outcome["state"] == State.FAILED:
        more["failure"] = {key: outcome.get(key) for key in FAILURE}
    return _of(run_dir, newest, State(outcome["state"]), _and_safe(outcome["reason"], run_dir), **more)


def _in_queue(run_dir: RunDir, newest: Attempt | None, ref: Mapping[str, Any], jobs: Jobs) -> Status:
    """A run that was given to SLURM: its own record, and what SLURM says of the job."""
    job = jobs.of(ref)
    ticket = run_dir.ticket()
    number = newest.number if newest else 0
    started = newest if newest is not None and (not ticket or number > ticket["after_attempt"]) else None
    job_id = job.id if job else ref["id"]
    cancelled = run_dir.is_cancelled()
    ended = _ended(run_dir, started, alive=False) if started else None
    if job and job.state in slurm.WAITING:
        again = f"was requeued after attempt {number}{_how(ended)}; " if started else ""
        why = "being cancelled" if cancelled else again + slurm.why_waiting(job)
        return Status(State.QUEUED, why, number, heartbeat=so_far(run_dir), job_id=job_id)
    if job and job.state in slurm.ACTIVE:
        if started is None:
            why = f"job {job_id} starts on {job.nodes}"
            return Status(State.QUEUED, why, number, heartbeat=so_far(run_dir), job_id=job_id)
        after = "SLURM requeues it" if started.read("outcome").get("next") else "its job is ending"
        if ended and ended.state != State.PREEMPTED and after == "its job is ending":
            return ended
        why = "being stopped" if cancelled else f"attempt {number}{_how(ended)}; {after}" if ended else ""
        return _of(run_dir, started, State.RUNNING, why)
    said = _last_word(job, job_id, jobs.problem)
    if started is None:
        return _never_started(run_dir, ref, job, said, number, jobs.problem)
    if ended:
        if cancelled and ended.state in INTERRUPTED:  # while it waited to go on
            return replace(ended, state=State.CANCELLED)
        known = ended.state in (State.DONE, *GIVEN_UP) or job is None
        return ended if known else replace(ended, reason=f"{ended.reason} ({said})")
    if job is None and time.time() - last_sign(started) < STALE_S:
        return _of(run_dir, started, State.RUNNING, said)
    if cancelled:
        return _of(run_dir, started, State.CANCELLED, _and_safe(State.STOPPED, run_dir))
    if job and job.state in ("FAILED", "OUT_OF_MEMORY"):
        failure = {**dict.fromkeys(FAILURE), "out_of_memory": job.state == "OUT_OF_MEMORY"}
        return _of(run_dir, started, State.FAILED, _and_safe(said, run_dir), failure=failure)
    return _of(run_dir, started, State.LOST, _and_safe(said, run_dir))


def _how(ended: Status | None) -> str:
    return f" ({ended.state}: {ended.reason})" if ended else ""


def _last_word(job: Job | None, job_id: str | None, problem: str) -> str:
    """What SLURM says of a job that does not run any more."""
    if job is None:
        return problem or f"SLURM does not know job {job_id} any more"
    if job.state in slurm.ENDED:
        detail = job.reason if job.reason.startswith(job.state) else job.state
        return f"SLURM ended job {job_id}: {detail}"
    return f"unknown: SLURM says that job {job_id} is {job.state or 'in no state'}"


def last_sign(attempt: Attempt) -> float:
    """When an attempt was heard of last, seconds since the epoch."""
    return float(attempt.read("heartbeat").get("time") or attempt.read("start").get("started") or 0)


def _never_started(
    run_dir: RunDir, ref: Mapping[str, Any], job: Job | None, said: str, number: int, problem: str
) -> Status:
    """A run whose job began no attempt and does not wait any more."""
    if run_dir.is_cancelled():
        why = _and_safe("before it started again", run_dir) if number else "before it started"
        return Status(State.CANCELLED, why, number, heartbeat=so_far(run_dir), job_id=ref["id"])
    if problem:
        return Status(State.QUEUED, problem, number, job_id=ref["id"])
    if job is None and ref["id"] is None:
        here = ref["submitter"]["host"] == socket.gethostname()
        going = is_alive(ref["submitter"]) if here else time.time() - ref["time"] < STALE_S
        return Status(State.QUEUED, "is being submitted", number) if going else Status(State.PLANNED, "", number)
    log = Path(ref["folder"]) / f"{job.id if job else ref['id']}.log" if "folder" in ref else None
    if job is None:
        return Status(State.LOST, f"{said}, and it never started", number, job_id=ref["id"])
    if job.state in ("CANCELLED", "COMPLETED", "PREEMPTED", "REVOKED"):
        return Status(State.PLANNED, f"{said} before it started", number, job_id=job.id)
    return Status(
        State.FAILED, f"{said} before training began", number, log, failure=dict.fromkeys(FAILURE), job_id=job.id
    )


def _and_safe(why: str, run_dir: RunDir) -> str:
    """Why a run ended, and what of it is safe."""
    step = run_dir.saved_step()
    return f"{why}; step {step} is saved" if step else f"{why}; nothing is saved yet"


def blocked_by(run: Run, found: dict[str, Status]) -> str:
    """Why a run cannot start for what it needs; empty where it can, or may later."""
    for need in run.needs:
        state = found[need]
        if state.state in (*GIVEN_UP, State.BLOCKED):
            return f"{need} is {state.state}" + (f": {state.reason}" if state.reason else "")
        gate = run.teacher.min_top1 if run.teacher else None
        if state.state == State.DONE and gate is not None and state.top1 is not None and state.top1 < gate:
            return (
                f"{need} reached {state.top1:.2f} %, under teacher.min_top1 {gate:g}; train it longer or lower the gate"
            )
    return ""
