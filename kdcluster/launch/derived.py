"""Which state is true: derived from what is on disk, from processes that are looked up and from what a run's place says
of it, never remembered. A run's own record comes first, then its place (backend.py).

How late a shown state may be: a run that has died is known at once where its place can be asked; one that hangs is
shown with its age after `LATE_S`; what its place does not know, and was silent for `STALE_S`, is lost. What cannot be
asked is unknown: its last known state stands, `Status.unknown` says why, and nothing starts it until it is cancelled;
a damaged record likewise, where no other one tells (damaged.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcluster import teacherlogits
from kdcluster.launch import damaged
from kdcluster.launch.backend import End, Phase, Seen
from kdcluster.launch.damaged import both
from kdcluster.processes import is_alive, is_stopped
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import GIVEN_UP, INTERRUPTED, State
from kdcluster.wording import count

FAILURE = ("rank", "host", "returncode", "signal", "out_of_memory")
LATE_S = 60.0
"""Seconds without a heartbeat after which the age of a running run is said: it may start, or hang."""
STALE_S = 600.0
"""Seconds without a heartbeat after which a run that nobody knows is no longer taken to be alive."""
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
        return Status(State.DONE, "its attempts are gone", top1=_best(result))
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
        best = _best(result) if result else newest.read("heartbeat").get("best_top1")
        return _of(run_dir, newest, State.DONE, "", top1=best)
    if not outcome:
        return None
    more: dict[str, Any] = {"log": newest.log(outcome["rank"])} if outcome.get("rank") is not None else {}
    if outcome["state"] == State.FAILED:
        more["failure"] = {key: outcome.get(key) for key in FAILURE}
    return _of(run_dir, newest, State(outcome["state"]), _and_safe(outcome.get("reason", ""), run_dir), **more)


def _best(result: Mapping[str, Any]) -> float | None:
    """The accuracy in a result; a store's has none."""
    return result["best"]["test/top1"] if "best" in result else None


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
    if views := teacherlogits.held(run_dir.path):
        return f"{why}; {count(views, 'view')} {'is' if views == 1 else 'are'} stored"
    step = run_dir.saved_step()
    return f"{why}; step {step} is saved" if step else f"{why}; nothing is saved yet"


def _ago(seconds: float) -> str:
    """45 s, 4 min or 3 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
