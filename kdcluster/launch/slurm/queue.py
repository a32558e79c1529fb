"""What SLURM knows of the jobs of runs, asked once for all of them, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.launch.slurm import ask as scheduler
from kdcluster.launch.slurm.answers import Job

WAITING = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "SUSPENDED",
    "STOPPED",
)
ACTIVE = ("RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING")
ENDED = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"),
    *("DEADLINE", "REVOKED"),
)


@dataclass(frozen=True)
class Jobs:
    """The jobs that were asked for; `problem`: why SLURM could not be asked."""

    by_id: Mapping[str, Job] = field(default_factory=dict)
    by_name: Mapping[str, Job] = field(default_factory=dict)
    problem: str = ""

    def of(self, ref: Mapping[str, Any]) -> Job | None:
        """The job that a run's ticket means, by its id or, where that was never written down, by its name."""
        return self.by_id.get(ref["id"]) if ref["id"] else self.by_name.get(ref["name"])


def look(refs: Iterable[Mapping[str, Any]]) -> Jobs:
    """Ask the queue once, and accounting once for what the queue has forgotten; nothing where no job is asked for.

    Args:
        refs: {"id", "name"} of each job; an id that was never written down is None.
    """
    refs = list(refs)
    if not refs:
        return Jobs()
    try:
        known = {job.id: job for job in scheduler.queue()}
    except KdclusterError as error:
        return Jobs(problem=str(error))
    names = {job.name for job in known.values()}
    ids = {ref["id"] for ref in refs if ref["id"]} - known.keys()
    try:
        known = {job.id: job for job in scheduler.accounting(ids)} | known
        if unknown := {ref["name"] for ref in refs if not ref["id"]} - names:
            known = {job.id: job for job in scheduler.accounting((), unknown)} | known
    except KdclusterError as error:
        return Jobs(problem=str(error))
    return Jobs(known, {job.name: job for job in sorted(known.values(), key=lambda job: job.number)})


def why_waiting(job: Job) -> str:
    """SLURM's pending reason in plain words, with the expected start where SLURM knows one."""
    words = _REASONS.get(job.reason)
    if words is None:
        words = next((text for start, text in _FAMILIES.items() if job.reason.startswith(start)), "")
        words = f"{words} ({job.reason})" if words else f"waits: {job.reason}" if job.reason != "None" else "waits"
    held = "Held" in job.reason or "held" in job.reason
    start = "" if held else f"; expected to start at {job.start.replace('T', ' ')}" if job.start else ""
    return f"job {job.id} {words.format(job=job.id)}{start}"


_REASONS = {
    "Resources": "waits for free GPUs",
    "Priority": "waits: other jobs go first",
    "Dependency": "waits for the run that it needs",
    "DependencyNeverSatisfied": "waits for a run that has failed",
    "BeginTime": "waits for its begin time",
    "JobHeldUser": "is held; scontrol release {job}",
    "JobHeldAdmin": "is held by an administrator",
    "JobArrayTaskLimit": "waits for other tasks of its array",
    "PartitionDown": "waits: the partition is down",
    "PartitionInactive": "waits: the partition is inactive",
    "PartitionNodeLimit": "asks for more nodes than the partition gives; cancel it and ask for fewer",
    "PartitionTimeLimit": "asks for more time than the partition gives; cancel it and lower time_limit",
    "NodeDown": "waits: a node that it needs is down",
    "ReqNodeNotAvail": "waits: nodes that it needs are down, drained or reserved",
    "Reservation": "waits for its reservation",
    "InvalidAccount": "has no valid account; cancel it and set `account` in the profile",
    "InvalidQOS": "has no valid QoS; cancel it and set `qos` in the profile",
    "Licenses": "waits for licences",
    "Cleaning": "was requeued and is being cleaned up",
    "JobLaunchFailure": "could not be started on its node",
    "NonZeroExitCode": "ended with an error",
}
_FAMILIES = {
    "QOS": "waits: a limit of its QoS is reached",
    "Assoc": "waits: a limit of the account is reached",
    "MaxCpuPerAccount": "waits: a limit of the account is reached",
    "MaxMemPerLimit": "asks for more memory than is allowed",
    "ReqNodeNotAvail": "waits: nodes that it needs are down, drained or reserved",
    "Nodes required": "waits: nodes that it needs are down, drained or reserved",
    "launch failed requeued held": "could not be started on its node and is held",
    "job requeued in held state": "was requeued and is held",
}
