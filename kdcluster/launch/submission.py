"""Submit: decide what to start, one submit at a time, and leave it to a backend."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from kdcluster import records
from kdcluster.errors import KdclusterError, SchedulerError
from kdcluster.files import acquire, write_json
from kdcluster.launch.backend import Backend, find
from kdcluster.launch.status import ANOTHERS, Status, blocked_by, statuses, statuses_of
from kdcluster.ownership import foreign, keep_to_oneself, refuse_foreign
from kdcluster.plan import Plan, Run
from kdcluster.processes import process_record
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, INTERRUPTED, LIVE, UNSTARTED, State
from kdcluster.wording import command, one_line

log = logging.getLogger(__name__)

SOON_S = 1.0
"""Seconds after which it is said for whom one waits."""


@dataclass(frozen=True)
class Submission:
    """What a submit started, and what it left alone with the state it is in."""

    started: list[str]
    left: dict[str, Status]
    where: str = ""
    word: str = "started"
    """What was done with what was started: "started" or "queued"."""
    waits: Mapping[str, str] = field(default_factory=dict)
    """Of what was started: what has not begun yet though the place starts things at once, and why."""


def to_start(
    plan: Plan, found: Mapping[str, Status], root: Path, *, retry: bool = False, named: Collection[str] = ()
) -> list[str]:
    """The runs that a submit starts, in order: planned and interrupted ones; with `retry` failed and cancelled ones.

    Those `named` one by one go on where they were cancelled: who names a run has thought better of it. Another user's
    store is left alone: students compute what is not in it.
    """
    states = {*UNSTARTED, *INTERRUPTED, State.STOPPED, *(GIVEN_UP if retry else ())}
    states_of = {run.id: {*states, State.CANCELLED} if run.id in named else states for run in plan.runs}
    chosen: list[str] = []
    for run in plan.runs:
        own = found[run.id]
        needs = {need: Status(State.QUEUED) if need in chosen else found[need] for need in run.needs}
        unmet = [need for need in needs.values() if need.unknown or need.state not in (State.DONE, *LIVE)]
        if own.state not in states_of[run.id] or own.unknown or unmet or blocked_by(run, needs):
            continue
        if run.role != STORE or not foreign(root / run.id):
            chosen.append(run.id)
    return chosen


def submit(
    plan: Plan,
    root: Path,
    data_dir: Path,
    backend: Backend,
    prepare: Callable[[list[Run]], object],
    *,
    retry: bool = False,
    named: Collection[str] = (),
    words: str = "",
    waiting: Iterable[Run] = (),
) -> Submission:
    """Start what is missing; a second call starts nothing twice: it waits for the first, and finds everything started.

    Args:
        prepare: called with the runs that are about to be started; fetches what they need, or raises.
        retry: start failed and cancelled runs too.
        named: runs of which cancelled ones are started too.
        words: arguments of the `kdcluster submit` that this is, for whoever has to repeat it.
        waiting: runs that somebody else will start, and that need runs of the plan.

    Raises:
        KdclusterError: what is asked for cannot run there, or could not be started; nothing is then.
    """
    every = plan.joined(waiting)
    if not root.exists():  # a refusal leaves nothing behind
        backend.check(plan, to_start(plan, statuses(every, root), root, retry=retry, named=named), root)
    keep_to_oneself()
    with one_at_a_time(root, "submit"):
        found = statuses(every, root)
        adopt(root, found)
        chosen = to_start(plan, found, root, retry=retry, named=named)
        left = {run.id: _in_words(run, found[run.id], root) for run in plan.runs if run.id not in chosen}
        check(plan, found, chosen, root, backend)
        if not chosen:
            return Submission([], left)
        prepare([plan[run_id] for run_id in chosen])
        for run in plan.runs:
            run_dir = RunDir(root, run.id)
            if run.id in chosen:
                run_dir.prepare(run)
                run_dir.note_submit(words)
            elif run.views and found[run.id].state in LIVE and not foreign(run_dir.path):
                run_dir.widen(run)
            if os.access(run_dir.path, os.W_OK):  # a finished one may be another user's
                run_dir.add_experiments(plan.experiments_of(run.id))
        where = backend.start(plan, chosen, root, data_dir)
    waits = {}
    if backend.word == "started":
        now = statuses_of(RunDir(root, run_id) for run_id in chosen)
        waits = {run_dir.id: one.reason for run_dir, one in now.items() if one.state == State.QUEUED}
    return Submission(chosen, left, where, backend.word, waits)


def _in_words(run: Run, one: Status, root: Path) -> Status:
    """The status of a run that is left alone, with the reason where that is whose it is."""
    if run.role != STORE or one.state in (State.DONE, *LIVE) or not foreign(root / run.id):
        return one
    return replace(one, reason="; ".join(filter(None, (one.reason, ANOTHERS))))


def check(plan: Plan, found: Mapping[str, Status], chosen: Collection[str], root: Path, backend: Backend) -> list[str]:
    """Refuse to start these runs of a plan where it is known that this goes wrong; returns what is good to know.

    Raises:
        KdclusterError: why.
    """
    left = {run.id: found[run.id] for run in plan.runs if run.id not in chosen}
    unsure = (run_id for run_id, one in left.items() if not (chosen and (one.damage or plan[run_id].role == STORE)))
    refuse_unknown({run_id: left[run_id] for run_id in unsure})  # nobody needs a store: it never keeps a student
    for run_id in chosen:
        refuse_foreign(root / run_id)
    refuse_mixed(plan, found, chosen, root, backend)
    return backend.check(plan, list(chosen), root) if chosen else []


def adopt(root: Path, found: Mapping[str, Status]) -> None:
    """Write down what a place calls the runs of a submit that died before its record; they were found by name."""
    for run_id, status in found.items():
        if status.ref is None:  # nobody has it, or it is not known who
            continue
        run_dir = RunDir(root, run_id)
        if (ticket := run_dir.ticket()) and status.ref != ticket.ref:
            run_dir.note_ref(status.ref)
            log.warning("%s: job %s is there already, from a submit that was interrupted", run_id, status.job_id)


def refuse_unknown(left: Mapping[str, Status]) -> None:
    """Refuse to start anything while it is not known of a run whether it is alive: it could be started twice.

    Raises:
        SchedulerError: with each of them.
    """
    unsure = {run_id: status for run_id, status in left.items() if status.unknown}
    if unsure:
        lines = [one_line(f"{run_id}: {status.state}: {status.reason}") for run_id, status in unsure.items()]
        raise SchedulerError("\n".join(["it is not known what becomes of these runs, so nothing is started:", *lines]))


def refuse_mixed(
    plan: Plan, found: Mapping[str, Status], chosen: Collection[str], root: Path, backend: Backend
) -> None:
    """Refuse to start what needs a run that is under way somewhere else: nobody would start it when that is done.

    Raises:
        KdclusterError: with the command that waits.
    """
    for need in dict.fromkeys(need for run_id in chosen for need in plan[run_id].needs):
        status = found[need]
        if status.state in LIVE and status.backend != backend.name:
            place = find(status.backend).title if status.backend else "elsewhere"
            place += f", as job {status.job_id}" if status.job_id else ""
            words = (need, "--backend", status.backend or "auto", "--wait", "--runs-dir", str(root))
            raise KdclusterError(
                f"{need} is {status.state} {place}, and its students cannot wait for it with --backend {backend.name}; "
                f"first: kdcluster submit {command(words)}"
            )


@contextmanager
def one_at_a_time(root: Path, what: str) -> Iterator[None]:
    """The submit lock of a runs directory, for submit, cancel and rm; who holds it, and since when, is said.

    Where the file system has no locks, attempts and tickets alone protect.
    """
    root.mkdir(parents=True, exist_ok=True)
    mode = 0o644 | root.stat().st_mode & 0o022  # whoever may write here may come in
    lock = FileLock(root / ".submit.lock", mode=mode, fallback_to_soft=False)
    holder = root / ".submit.json"
    without = "do not submit twice at the same moment"
    try:
        acquire(lock, without, SOON_S)
    except Timeout:
        log.warning("waiting for %s", _holder(holder))
        acquire(lock, without)
    try:
        write_json(holder, {**process_record(os.getpid()), "what": what, "since": time.time()}, sync=False)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    """Who has the lock, in words."""
    known = records.found(path)
    if known is None:
        return "kdcluster submit"
    since = time.strftime("%H:%M:%S", time.localtime(known["since"]))
    return f"kdcluster {known['what']} (process {known['pid']} on {known['host']}), which is at it since {since}"
