"""Submit: decide what to start, one submit at a time, and leave it to a backend."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from kdcluster.errors import KdclusterError
from kdcluster.files import acquire
from kdcluster.launch.status import Status, blocked_by, statuses
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, INTERRUPTED, LIVE, UNSTARTED, State

log = logging.getLogger(__name__)


class Backend(Protocol):
    """Where runs run."""

    name: str

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        """On what each run would run."""

    def scripts(self, plan: Plan, root: Path) -> dict[str, str]:
        """The batch script of each run, where runs have one."""

    def gpu_hours(self, plan: Plan, chosen: list[str]) -> float | None:
        """GPU-hours of the worst case; None where there is no limit."""

    def notes(self) -> list[str]:
        """What a plan should say of the place."""

    def check(self, plan: Plan, chosen: list[str], root: Path) -> None:
        """Refuse what could never run, before anything is written."""

    def start(self, plan: Plan, chosen: list[str], root: Path, data_dir: Path) -> str:
        """Start runs whose directories are ready, all or none; returns where they are, for the user."""


@dataclass(frozen=True)
class Submission:
    """What a submit started, and what it left alone with the state it is in."""

    started: list[str]
    left: dict[str, Status]
    where: str = ""
    word: str = "started"
    """What was done with what was started: "started" or "queued"."""


def to_start(plan: Plan, found: Mapping[str, Status], *, retry: bool = False) -> list[str]:
    """The runs that a submit starts, in order: planned and interrupted ones, with `retry` failed ones too."""
    states = {*UNSTARTED, *INTERRUPTED, State.STOPPED, *(GIVEN_UP if retry else ())}
    chosen: list[str] = []
    for run in plan.runs:
        going = {need: Status(State.QUEUED) if need in chosen else found[need] for need in run.needs}
        unmet = [n for n, s in going.items() if s.state not in (State.DONE, *LIVE)]
        if found[run.id].state in states and not unmet and not blocked_by(run, going):
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
    words: str = "",
    waiting: Iterable[Run] = (),
) -> Submission:
    """Start what is missing; a second call starts nothing twice.

    One submit at a time in a runs directory: those that come at the same moment wait, and then find everything
    started.

    Args:
        plan: the runs.
        root: the runs directory.
        data_dir: decoded arrays.
        backend: where the runs are to run.
        prepare: called with the runs that are about to be started; fetches what they need, or raises.
        retry: start failed and cancelled runs too.
        words: arguments of the `kdcluster submit` that this is, for whoever has to repeat it.
        waiting: runs that somebody else will start, and that need runs of the plan.

    Raises:
        KdclusterError: what is asked for cannot run there, or could not be started; nothing is then.
    """
    every = plan.joined(waiting)
    found = statuses(every, root)
    asked = to_start(plan, found, retry=retry)
    if asked:  # before anything is written
        refuse_mixed(plan, found, asked, backend.name)
        backend.check(plan, asked, root)
    root.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(root):
        found = statuses(every, root)
        adopt(root, found)
        chosen = to_start(plan, found, retry=retry)
        left = {run.id: found[run.id] for run in plan.runs if run.id not in chosen}
        if not chosen:
            return Submission([], left)
        refuse_mixed(plan, found, chosen, backend.name)
        if not set(chosen) <= set(asked):  # it has ended or failed meanwhile
            backend.check(plan, chosen, root)
        prepare([run for run in plan.runs if run.id in chosen])
        for run in plan.runs:
            if run.id in chosen:
                RunDir(root, run.id).prepare(run)
                RunDir(root, run.id).note_submit(words)
            if RunDir(root, run.id).path.is_dir():
                RunDir(root, run.id).add_experiments(plan.experiments_of(run.id))
        where = backend.start(plan, chosen, root, data_dir)
    return Submission(chosen, left, where, State.QUEUED if backend.name == "slurm" else "started")


def adopt(root: Path, found: Mapping[str, Status]) -> None:
    """Write down the ids of jobs whose submit died between sbatch and its record; they were found by name."""
    for run_id, status in found.items():
        job = (RunDir(root, run_id).ticket() or {}).get("job")
        if job and job["id"] is None and status.job_id is not None:
            RunDir(root, run_id).note_job({**job, "id": status.job_id})
            log.warning("%s: job %s is there already, from a submit that was interrupted", run_id, status.job_id)


def refuse_mixed(plan: Plan, found: Mapping[str, Status], chosen: list[str], backend: str) -> None:
    """Refuse to start what needs a run that is under way somewhere else: nobody would start it when that is done.

    Raises:
        KdclusterError: with the command that waits.
    """
    for need in dict.fromkeys(need for run_id in chosen for need in plan[run_id].needs):
        status = found[need]
        elsewhere = "local" if status.job_id is None else "slurm"
        if status.state in LIVE and elsewhere != backend:
            place = "on this machine" if elsewhere == "local" else f"in SLURM, as job {status.job_id}"
            names = shlex.join(plan.experiments_of(need))
            raise KdclusterError(
                f"{need} is {status.state} {place}, and its students cannot wait for it with --backend {backend}; "
                f"first: kdcluster submit {names} --role {plan[need].role} --backend {elsewhere} --wait"
            )


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """The submit lock; where the file system has no locks, attempts and tickets alone protect."""
    lock = FileLock(root / ".submit.lock", fallback_to_soft=False)
    acquire(lock, "do not submit twice at the same moment")
    try:
        yield
    finally:
        lock.release()
