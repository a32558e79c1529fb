"""What SLURM knows of the jobs of runs, asked once for all of them, and in words."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError, KdclusterError, SchedulerError
from kdcluster.launch.backend import End, Phase, Seen
from kdcluster.launch.slurm import ask
from kdcluster.launch.slurm.answers import Job
from kdcluster.processes import is_alive

WAITING = (
    *("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    *("SUSPENDED", "STOPPED"),
)
ACTIVE = ("RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING")
ENDS = {
    **dict.fromkeys(("COMPLETED", "CANCELLED", "PREEMPTED", "REVOKED"), End.WITHDRAWN),
    **dict.fromkeys(("TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"), End.TAKEN),
    "FAILED": End.BROKEN,
    "OUT_OF_MEMORY": End.OUT_OF_MEMORY,
}
SUBMITTED_S = 600.0
"""How long a submit on another machine may have been at it before its job is looked for in vain."""


@dataclass(frozen=True)
class Jobs:
    """The jobs that were asked for; `problem`: why SLURM could not be asked."""

    queued: Mapping[str, Job] = field(default_factory=dict)
    """By id: those that the controller has."""
    ended: Mapping[str, Job] = field(default_factory=dict)
    """By id: what accounting remembers of others."""
    problem: str = ""
    cluster: str = ""
    """Which SLURM has answered."""
    silent: str = ""
    """Why accounting did not answer, where the queue did."""

    def of(self, ref: Mapping[str, Any]) -> Job | None:
        """The job that a ticket means: by its id and its name, since numbers are used again, or by its name alone."""
        jobs = [job for job in self._by_word[ref["id"] or ref["name"] or ""] if ref["id"] in (job.id, None)]
        meant = [job for job in jobs if ask.is_meant(job, ref["name"], ref.get("time", 0.0))]
        return max(meant, key=lambda job: int(job.id), default=None)

    @cached_property
    def _by_word(self) -> Mapping[str, Sequence[Job]]:
        """The jobs of each id and of each name; of "" all: a thousand tickets are looked up among a thousand jobs."""
        found = defaultdict[str, list[Job]](list)
        for job in {**self.ended, **self.queued}.values():
            for word in (job.id, job.name, ""):
                found[word].append(job)
        return found


class Watch:
    """One question to SLURM in a while, for any number of watchers in this process."""

    def __init__(self) -> None:
        self._refs: list[Mapping[str, Any]] = []
        self._jobs, self._at = Jobs(), 0.0

    def jobs(self, refs: Sequence[Mapping[str, Any]], within_s: float) -> Jobs:
        """What SLURM says, or has said in the last seconds of these and perhaps others."""
        asked_for = refs == self._refs or all(ref in self._refs for ref in refs)
        is_known = asked_for and time.monotonic() - self._at < within_s
        if not is_known:
            self._refs, self._jobs, self._at = list(refs), asked(refs), time.monotonic()
        return self._jobs


_watch = Watch()


def look(refs: Sequence[Mapping[str, Any]], within_s: float = 0.0) -> list[Seen]:
    """What became of jobs, in our own words; an answer may be `within_s` seconds old."""
    jobs = _watch.jobs(refs, within_s)
    return [seen(ref, jobs) for ref in refs]


def alive(refs: Sequence[Mapping[str, Any]]) -> list[Job]:
    """Those that wait or run, the waiting ones first.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    jobs = asked(refs)
    if jobs.problem:
        raise SchedulerError(jobs.problem)
    found = [job for ref in refs if (job := jobs.of(ref)) and job.id in jobs.queued and job.state not in ENDS]
    return sorted(found, key=lambda job: job.state in ACTIVE)


def asked(refs: Iterable[Mapping[str, Any]]) -> Jobs:
    """Ask the queue, and accounting for what it has forgotten, each once; an id that was never written down is None."""
    refs = list(refs)
    if not refs:
        return Jobs()
    try:
        queued = {job.id: job for job in ask.queue()}
    except KdclusterError as error:
        return Jobs(problem=str(error))
    ids = {ref["id"] for ref in refs if ref["id"]} - queued.keys()
    names = {ref["name"] for ref in refs if not ref["id"]} - {job.name for job in queued.values()}
    try:
        forgotten = [*ask.accounting(ids), *ask.accounting((), names)]
    except KdclusterError as error:
        return Jobs(queued, silent=str(error), cluster=cluster())
    return Jobs(queued, {job.id: job for job in forgotten}, cluster=cluster())


def cluster() -> str:
    """The name of the SLURM that is asked; empty where it does not say, or several are."""
    try:
        return ask.cluster_name()
    except ConfigError:
        return ""


def seen(ref: Mapping[str, Any], jobs: Jobs) -> Seen:
    """What SLURM's answer says of one ticket's job."""
    if jobs.problem:
        return Seen(Phase.UNKNOWN, jobs.problem, ref["id"])
    if ref.get("slurm") and jobs.cluster and ref["slurm"] != jobs.cluster:
        why = f"job {ref['id']} is of the cluster {ref['slurm']}, and this is {jobs.cluster}"
        return Seen(Phase.UNKNOWN, why, ref["id"])
    job = jobs.of(ref)
    if job is None:
        return _absent(ref, jobs.silent)
    whole = {**ref, "id": job.id}
    if job.state in ENDS:
        detail = job.reason if job.reason.startswith(job.state) else job.state
        log = Path(ref["folder"]) / f"{job.id}.log" if "folder" in ref else None
        return Seen(Phase.ENDED, f"SLURM ended job {job.id}: {detail}", job.id, whole, end=ENDS[job.state], log=log)
    if job.id not in jobs.queued and not job.state:
        why = f"accounting has job {job.id} as {job.reason}, and the queue does not know it"
        return Seen(Phase.UNKNOWN, why, job.id, whole)
    if job.state in WAITING:
        return Seen(Phase.WAITING, why_waiting(job), job.id, whole)
    if job.state in ACTIVE:
        return Seen(Phase.ACTIVE, f"job {job.id} starts on {job.nodes}", job.id, whole, after="its job is ending")
    why = f"SLURM says that job {job.id} is {job.state or 'in no state'}, which is unknown here"
    return Seen(Phase.UNKNOWN, why, job.id, whole)


def _absent(ref: Mapping[str, Any], silent: str) -> Seen:
    """A job that neither the queue nor accounting knows: forgotten, or not submitted, or only just being it."""
    if ref["id"] is not None:
        return Seen(Phase.ABSENT, f"SLURM does not know job {ref['id']} any more", ref["id"])
    if silent:  # it may have been accepted, and have ended
        return Seen(Phase.UNKNOWN, silent)
    here = ref["submitter"]["host"] == socket.gethostname()
    going = is_alive(ref["submitter"]) if here else time.time() - ref["time"] < SUBMITTED_S
    return Seen(Phase.WAITING, "is being submitted") if going else Seen(Phase.ENDED)


def why_waiting(job: Job) -> str:
    """SLURM's pending reason in plain words, with the expected start where SLURM knows one."""
    words = _REASONS.get(job.reason, "").format(job=job.id)  # never what SLURM says itself: it may hold braces
    if not words:
        words = next((text for start, text in _FAMILIES.items() if job.reason.startswith(start)), "")
        words = f"{words} ({job.reason})" if words else f"waits: {job.reason}"
    has_start = job.start and "held" not in job.reason.lower()
    start = f"; expected to start at {job.start.replace('T', ' ')}" if has_start else ""
    return f"job {job.id} {words}{start}"


_REASONS = {
    "None": "waits",
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
