"""Stop runs and keep what they have: a marker in the run directory, which a supervisor obeys, and scancel for jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from kdcluster.errors import WaitTimeout
from kdcluster.launch.slurm import ask as scheduler
from kdcluster.launch.status import Status, statuses_of
from kdcluster.plan import Plan
from kdcluster.runs import RunDir, run_dirs
from kdcluster.states import LIVE, State

GRACE_S = 90.0
"""torchrun gives its processes 30 s to save before it kills them; a supervisor looks once a second."""


def shared(plan: Plan, root: Path) -> dict[str, list[str]]:
    """The plan's runs that other live experiments want too: run id -> those experiments.

    An experiment is live while one of its runs that is not in this plan is queued or running.
    """
    ours = set(plan.wanted)
    ids = {run.id for run in plan.runs}
    strangers = [run_dir for run_dir in run_dirs(root) if run_dir.id not in ids]
    live = {name for run_dir in _live(strangers) for name in run_dir.experiments()} - ours
    wanted = {run_id: sorted(live & set(RunDir(root, run_id).experiments())) for run_id in ids}
    return {run_id: names for run_id, names in wanted.items() if names}


def cancel(run_ids: Iterable[str], root: Path) -> dict[str, str]:
    """Mark runs that are queued or running, and wait until none of their processes is left.

    Returns the state of each run that was live.

    Raises:
        WaitTimeout: one of them still runs after `GRACE_S`.
    """
    live = _live([RunDir(root, run_id) for run_id in run_ids])
    for run_dir in live:
        run_dir.mark_cancelled()
    pending_first = sorted(live.values(), key=lambda status: status.state != State.QUEUED)
    if wanted := [status.job_id for status in pending_first if status.job_id]:
        known = {job.id: job for job in scheduler.queue()}
        scheduler.cancel(known[job_id] for job_id in wanted if job_id in known)
    deadline = time.monotonic() + GRACE_S
    while still := _live(live):
        if time.monotonic() > deadline:
            names = ", ".join(run_dir.id for run_dir in still)
            raise WaitTimeout(
                f"still going {GRACE_S:.0f} s after they were told to stop: {names}; "
                f"what they saved is safe; look with kdcluster status, and cancel again"
            )
        time.sleep(1.0 if any(status.job_id for status in still.values()) else 0.1)
    return {run_dir.id: status.state for run_dir, status in statuses_of(live).items()}


def _live(run_dirs: Iterable[RunDir]) -> dict[RunDir, Status]:
    return {run_dir: status for run_dir, status in statuses_of(run_dirs).items() if status.state in LIVE}
