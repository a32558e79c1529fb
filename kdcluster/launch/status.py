"""Which state is true: derived from what is on disk, from processes that are looked up and from what a run's place says
of it, never remembered. A run's own record comes first, then its place (backend.py).

How late a shown state may be: a run that has died is known at once where its place can be asked; one that hangs is
shown with its age after `LATE_S`; what its place does not know, and was silent for `STALE_S`, is lost. What cannot be
asked is unknown: its last known state stands, `Status.unknown` says why, and nothing starts it until it is cancelled;
a damaged record likewise, where no other one tells (damaged.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcluster.launch import backend, damaged
from kdcluster.launch.backend import End, Phase, Seen
from kdcluster.launch.damaged import both
from kdcluster.launch.watching import Watching
from kdcluster.plan import Plan, Run
from kdcluster.processes import is_alive, is_stopped
from kdcluster.runs import Attempt, RunDir, renamed
from kdcluster.states import GIVEN_UP, INTERRUPTED, State

FAILURE = ("rank", "host", "returncode", "signal", "out_of_memory")
LATE_S = 60.0
"""Seconds without a heartbeat after which the age of a running run is said: it may start, or hang."""
STALE_S = 600.0
"""Seconds without a heartbeat after which a run that nobody knows is no longer taken to be alive."""
KNOWN_S = 10.0
"""For whoever looks again and again: how old the answer of a place may be that others pay for, as a scheduler's."""

GIVE_UP = "if it is gone for good: kdcluster cancel, then submit --retry"
"""What to do about what stays unknown."""


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
    backend: str | None = None
    """The place that has the run, or had it at last."""
    job_id: str | None = None
    """What that place calls it, where people use that name: a job's number."""
    ref: Mapping[str, Any] | None = None
    """Its reference there, as complete as the place knows it."""
    unknown: str = ""
    """Why the state is only the last known one; empty: it is true."""
    damage: str = ""
    """What is wrong with the run's records; stands in the reason, too."""


def statuses(
    plan: Plan, root: Path, within_s: float = 0.0, watching: Watching[Status] | None = None
) -> dict[str, Status]:
    """The status of every run of a plan, in its order; each place is asked once.

    `watching`: of whoever looks again and again, to look only at what may have changed.
    """
    own = statuses_of((RunDir(root, run.id) for run in plan.runs), within_s, watching)
    found: dict[str, Status] = {}
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
    waiting = (run for run in plan.runs if found[run.id].state not in (State.DONE, State.RUNNING))
    for need in dict.fromkeys(need for run in waiting for need in run.needs):
        # the table needs no weights, but a student that is still to be trained does
        if found[need].state == State.DONE and (problem := RunDir(root, need).weights_problem("best")):
            why = f"its best weights are {problem}, and a student needs them; submit makes them again"
            found[need] = replace(found[need], state=State.LOST, reason=why)
    return found


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


def derived(run_dir: RunDir, seen: Seen | None) -> Status:
    """A run's own state from its records, and from what its place knows of it (None: nobody has it)."""
    newest = run_dir.newest()
    found, damage = _derived(run_dir, newest, seen), run_dir.damage(newest)
    if found.state == State.DONE and damage and run_dir.holds() != run_dir.id and not run_dir.result():
        found = replace(found, state=State.LOST)  # what is done is another run; with its own result, only a line is
    return replace(found, reason=damaged.told(found.reason, found.state, damage), damage="; ".join(damage))


def _derived(run_dir: RunDir, newest: Attempt | None, seen: Seen | None) -> Status:
    cancelled = run_dir.is_cancelled()
    if newest is None and (result := run_dir.result()):
        return Status(State.DONE, "its attempts are gone", top1=result["best"]["test/top1"])
    if newest is None and run_dir.is_shut():
        return Status(State.CANCELLED) if cancelled else Status(State.RUNNING, unknown="its attempts cannot be read")
    ticket, lost_ticket = damaged.who(run_dir.ticket)
    started = newest if newest is not None and (ticket is None or newest.number > ticket.after_attempt) else None
    if seen is None and newest is None:
        return Status(State.CANCELLED, "before it started") if cancelled else Status(State.PLANNED)
    begun, lost_start = damaged.who(newest.given_to) if newest else (None, False)
    known: dict[str, Any] = {"job_id": seen.id, "ref": seen.ref} if seen else {}
    known |= {"backend": place.backend} if (place := ticket or begun) else {}
    if seen is None:  # it has published its result, or nobody knows who began it
        assert newest is not None
        started, seen = newest, Seen(Phase.ACTIVE) if _is_ending(newest) else _gone(newest)
    if started is None:
        found = _not_started(run_dir, newest, seen)
    else:
        alive = is_alive(started.read("agent"))
        ended = _ended(run_dir, started)  # after the looks at its place and its agent: they write it, and go
        if lost_start and not ended:
            seen = damaged.without_start(started, seen, ticket)
        found = _of_ended(run_dir, ended, seen) if ended else _of_unended(run_dir, started, seen, alive=alive)
    if lost_ticket and seen.phase is Phase.UNKNOWN and not (cancelled or found.unknown or found.state == State.DONE):
        found = replace(found, reason=both(found.reason, seen.why), unknown=seen.why)  # it may have been queued again
    return replace(found, **{key: value for key, value in known.items() if value is not None})


def _not_started(run_dir: RunDir, newest: Attempt | None, seen: Seen) -> Status:
    """A run that was given to a place and has begun no attempt there."""
    cancelled = run_dir.is_cancelled()
    number = newest.number if newest else 0
    waiting = Status(State.QUEUED, both(seen.why, seen.trouble), number, heartbeat=so_far(run_dir))
    if seen.phase in (Phase.WAITING, Phase.ACTIVE):
        return replace(waiting, reason=both("being cancelled", seen.trouble)) if cancelled else waiting
    if cancelled:
        why = _and_safe("before it started again", run_dir) if number else "before it started"
        return replace(waiting, state=State.CANCELLED, reason=why)
    if seen.phase is Phase.UNKNOWN:
        return replace(waiting, reason=f"was queued; {seen.why}; {GIVE_UP}", unknown=seen.why)
    if newest is not None and seen.end is End.WITHDRAWN:  # as if nobody had been given it again
        return _ended(run_dir, newest) or _of_unended(run_dir, newest, _gone(newest))
    if seen.phase is Phase.ABSENT:
        return replace(waiting, state=State.LOST, reason=f"{seen.why}, and it never started")
    if seen.end is End.WITHDRAWN:
        return replace(waiting, state=State.PLANNED, reason=seen.why and f"{seen.why} before it started")
    why = f"{seen.why} before training began"
    return replace(waiting, state=State.FAILED, reason=why, log=seen.log, failure=dict.fromkeys(FAILURE))


def _of_ended(run_dir: RunDir, ended: Status, seen: Seen) -> Status:
    """A run whose newest attempt has written how it ended: its place may be about to begin it again."""
    if ended.state == State.DONE:
        return ended
    cancelled, goes_on = run_dir.is_cancelled(), run_dir.attempt(ended.attempts).read("outcome").get("next")
    how = f"attempt {ended.attempts} ({ended.state}: {ended.reason})"
    if seen.phase is Phase.WAITING:
        reason = "being cancelled" if cancelled else f"was requeued after {how}; {seen.why}"
        return replace(ended, state=State.QUEUED, reason=reason, log=None, failure=None, heartbeat=so_far(run_dir))
    if seen.phase is Phase.ACTIVE and seen.after:
        if not goes_on and ended.state != State.PREEMPTED:
            return ended
        reason = "being stopped" if cancelled else f"{how}; {'it is requeued' if goes_on else seen.after}"
        return replace(ended, state=State.RUNNING, reason=reason, failure=None)
    if ended.state in INTERRUPTED and cancelled and seen.phase is not Phase.ACTIVE:  # while it waited to go on
        return replace(ended, state=State.CANCELLED)
    if seen.phase is Phase.UNKNOWN and goes_on:
        why = f"whether it goes on is unknown: {seen.why}; {GIVE_UP}"
        return replace(ended, reason=f"{ended.reason}; {why}", unknown=seen.why)
    if seen.phase is Phase.ENDED and seen.why and ended.state not in GIVEN_UP:
        return replace(ended, reason=f"{ended.reason} ({seen.why})")
    return ended


def _of_unended(run_dir: RunDir, started: Attempt, seen: Seen, *, alive: bool = False) -> Status:
    """A run that has begun, and of which nobody has written how it ended; `alive`: its torchrun is there."""
    cancelled = run_dir.is_cancelled()
    silent_s = time.time() - last_sign(started)
    age = f"last heard of {_ago(silent_s)} ago"
    if seen.phase is Phase.WAITING:
        reason = "being cancelled" if cancelled else f"was requeued after attempt {started.number}; {seen.why}"
        return Status(State.QUEUED, reason, started.number, heartbeat=so_far(run_dir))
    if seen.phase is Phase.ACTIVE or alive:
        trouble = seen.trouble
        if silent_s > LATE_S:  # SIGSTOP, a frozen machine, as far as it can be seen from here
            trouble = both(age, trouble or "its torchrun is stopped" * is_stopped(started.read("agent")))
        said = seen.why if seen.phase is Phase.UNKNOWN else ""
        return _of(run_dir, started, State.RUNNING, both("being stopped" if cancelled else "", said, trouble))
    if seen.phase is not Phase.UNKNOWN and (saved := started.read("preempted")):
        return _of(run_dir, started, State.PREEMPTED, _and_safe(f"stopped at step {saved['step']}", run_dir))
    if seen.phase is not Phase.ENDED and silent_s < STALE_S:
        return _of(run_dir, started, State.RUNNING, f"{seen.why}; {age}")
    if cancelled:
        why = _and_safe(both("stopped on request", seen.why * (seen.phase is Phase.UNKNOWN)), run_dir)
        return _of(run_dir, started, State.CANCELLED, why)
    if seen.phase is Phase.UNKNOWN:
        return _of(run_dir, started, State.RUNNING, f"{seen.why}; {age}; {GIVE_UP}", unknown=seen.why)
    why = _and_safe(seen.why, run_dir)
    if seen.end in (End.BROKEN, End.OUT_OF_MEMORY):
        failure = dict.fromkeys(FAILURE) | {"out_of_memory": seen.end is End.OUT_OF_MEMORY}
        return _of(run_dir, started, State.FAILED, why, failure=failure)
    return _of(run_dir, started, State.LOST, why)


def _of(run_dir: RunDir, attempt: Attempt, state: State, reason: str, **more: Any) -> Status:
    """The status of a run that has started, with where to read and how far it is."""
    if state == State.RUNNING and attempt.start.get("code_changed"):
        reason = both(reason, "by other trainer code than it was submitted or begun with")
    beat = attempt.read("heartbeat") or so_far(run_dir)
    given = {"log": attempt.log_to_read(), "heartbeat": beat, "job_id": attempt.start.get("job_id"), **more}
    return Status(state, reason, attempt.number, **given)


def so_far(run_dir: RunDir) -> dict[str, Any]:
    """How far a run is that goes on from what earlier attempts saved: the last heartbeat, without its speed."""
    beats = (attempt.read("heartbeat") for attempt in reversed(run_dir.attempts()))
    beat = next((beat for beat in beats if beat), {})
    return {key: value for key, value in beat.items() if not key.endswith("_per_s")}


def _ended(run_dir: RunDir, newest: Attempt) -> Status | None:
    """What the run's own record says of its end; a result counts once torchrun is gone, which has still to leave."""
    outcome, result = newest.read("outcome"), run_dir.result()
    published = result and result["attempt"] == newest.number
    if outcome.get("state") == State.DONE or (published and not _is_ending(newest)):
        best = result["best"]["test/top1"] if result else newest.read("heartbeat").get("best_top1")
        return _of(run_dir, newest, State.DONE, "", top1=best)
    if not outcome:
        return None
    more: dict[str, Any] = {"log": newest.log(outcome["rank"])} if outcome.get("rank") is not None else {}
    if outcome["state"] == State.FAILED:
        more["failure"] = {key: outcome.get(key) for key in FAILURE}
    return _of(run_dir, newest, State(outcome["state"]), _and_safe(outcome.get("reason", ""), run_dir), **more)


def _gone(newest: Attempt) -> Seen:
    return Seen(Phase.ENDED, f"its processes on {newest.read('start').get('host', '?')} are gone")


def _is_ending(newest: Attempt) -> bool:
    """Whether the processes of an attempt with a result are still there, on this machine."""
    return is_alive(newest.read("agent")) or is_alive(newest.start.get("supervisor"))


def last_sign(attempt: Attempt) -> float:
    """When an attempt was heard of last, seconds since the epoch."""
    return float(attempt.read("heartbeat").get("time") or attempt.start.get("started") or 0)


def _and_safe(why: str, run_dir: RunDir) -> str:
    """Why a run ended, and what of it is safe."""
    step = run_dir.saved_step()
    return f"{why}; step {step} is saved" if step else f"{why}; nothing is saved yet"


def _ago(seconds: float) -> str:
    """45 s, 4 min or 3 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


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
