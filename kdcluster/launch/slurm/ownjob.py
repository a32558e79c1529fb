"""What a task asks SLURM of the job that it runs in, and does to it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.history import began_at
from kdcluster.launch.slurm import ask, command, nodes
from kdcluster.runs import Attempt

log = logging.getLogger(__name__)

SOON_S = 5.0
"""How long SLURM may take to say what only words an outcome: the lead time of its signal is for the checkpoint."""


def number() -> str:
    """The job's id."""
    return os.environ["SLURM_JOB_ID"]


def is_ours(job: Mapping[str, Any]) -> bool:
    """Whether the job of a run's ticket ({"id", "name"}; the id may not be written down yet) is this one."""
    return str(job["id"]) == number() if job["id"] else bool(job["name"] == os.environ.get("SLURM_JOB_NAME"))


def restarts() -> int:
    """How often SLURM has requeued the job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def is_being_preempted() -> bool:
    """Whether SLURM is about to take the job's nodes away, rather than somebody has ended it."""
    try:
        job = ask.describe(number(), SOON_S)
    except KdclusterError as error:
        log.warning("SLURM does not say whether the job is being preempted: %s", error)
        return True  # nobody types scancel while the controller is away
    return job["JobState"] == "RUNNING" and job.get("PreemptTime", "None") != "None"


def is_elsewhere() -> bool:
    """Whether SLURM took this node for dead and has requeued the job, so that it is no longer this task's."""
    try:
        return _is_elsewhere(ask.describe(number(), SOON_S))
    except KdclusterError:
        return False


def _is_elsewhere(job: Mapping[str, str]) -> bool:
    return int(job.get("Restarts", restarts())) != restarts()


def why_interrupted(lead_s: float) -> str:
    """Why SLURM has told the job to stop, as far as it says; empty where it does not.

    It signals the job `lead_s` before its time limit, or up to a minute earlier.
    """
    try:
        job = ask.describe(number(), SOON_S)
        if job.get("PreemptTime", "None") != "None":
            return "preempted for another job"
        left_s = datetime.fromisoformat(job["EndTime"]).timestamp() - time.time()
    except (KdclusterError, KeyError, ValueError):
        return ""
    if job["JobState"] != "RUNNING":
        return "its job was ended or requeued"
    return "its time limit" if left_s < lead_s + 90 else "its job was signalled"


def waited_s() -> float | None:
    """How long the job was ready to start before it did; None where SLURM does not say."""
    try:
        job = ask.describe(number(), SOON_S)
        eligible, start = (datetime.fromisoformat(job[key]).timestamp() for key in ("EligibleTime", "StartTime"))
    except (KdclusterError, KeyError, ValueError):
        return None
    return max(0.0, start - eligible)


def why_it_ended() -> str:
    """What accounting calls the end of the job's last start (NODE_FAIL, PREEMPTED, …); empty without accounting."""
    form = ("--allocations", "--duplicates", "--noheader", "--parsable2", "--format=State")
    try:
        states = command.ask("sacct", f"--jobs={number()}", *form, within_s=SOON_S).splitlines()
    except KdclusterError as error:
        log.debug("no accounting: %s", error)
        return ""
    ended = [state.split(" ")[0] for state in states if state and not state.startswith(("RUNNING", "PENDING"))]
    return ended[-1] if ended else ""


def restart(attempt: Attempt, rank: int | None, ranks: int) -> None:
    """Requeue the job after a crash that began in one of its ranks (None: it is not known in which).

    It starts again elsewhere where it crashed before its first step, and there are other nodes.

    Raises:
        KdclusterError: SLURM does not do it.
    """
    steps = [failure["step"] for failure in attempt.failures()]
    steps.append(attempt.read("heartbeat").get("step", 0))
    at_once = max(steps) <= began_at(attempt)
    job = ask.describe(number())
    if _is_elsewhere(job):
        return log.warning("SLURM took this node for dead and has requeued the job already")
    without = _without_bad_node(job, rank, ranks) if at_once else []
    log.info("starting again%s", f", not on {', '.join(without)}" if without else "")
    ask.requeue(number(), without=without)


def _without_bad_node(job: Mapping[str, str], rank: int | None, ranks: int) -> list[str]:
    """Nodes to exclude: the one of a rank, beside those that are already; none where too few would be left."""
    here = nodes.names(os.environ.get("SLURM_JOB_NODELIST", ""))
    if rank is None and len(here) > 1:
        return []
    excluded = {here[(rank or 0) * len(here) // ranks], *nodes.names(job["ExcNodeList"].replace("(null)", ""))}
    return sorted(excluded) if len(nodes.usable(job["Partition"]) - excluded) >= len(here) else []
