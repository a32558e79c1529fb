"""What squeue and sacct answer, as jobs: from their text, and from the JSON of SLURM 23.11 and later. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

SQUEUE = "--format=%A|%T|%r|%S|%V|%u|%N|%j"
SACCT = "--format=JobIDRaw,State,Start,Submit,User,Cluster,NodeList,JobName"
"""Times in seconds since the epoch (SLURM_TIME_FORMAT=%s); the name comes last, since it may hold a |."""
FLAGS = (
    *("COMPLETING", "STAGE_OUT", "CONFIGURING", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"),
    *("STOPPED", "REVOKED", "RESV_DEL_HOLD", "SIGNALING"),
)
"""What squeue's text says of a job rather than its base state. JSON lists them behind that, among others."""
NOT_ENDED = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED")


@dataclass(frozen=True)
class Job:
    """One job as SLURM has it.

    `state` is SLURM's word in its long form, also one that is new to us; `start` (local time, ISO) of a pending job
    where SLURM knows one; `submitted` in seconds since the epoch, of the last requeue where there was one; `cluster` ""
    where it is not known. The id is SLURM's raw number, of an array's task, too.
    """

    id: str
    name: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""
    user: str = ""
    submitted: float | None = None
    cluster: str = ""

    @property
    def number(self) -> int:
        """Of the id; the higher, the newer."""
        return int(self.id)


def of_queue(text: str, cluster: str) -> list[Job]:
    """The jobs in an answer of `squeue --noheader SQUEUE` of a cluster; a site's banner is not a job."""
    rows = [line.split("|", 7) for line in text.splitlines()]
    return [
        Job(row[0], row[7], row[1], row[2], _start(row[3]), row[6], row[5], _seconds(row[4]), cluster)
        for row in rows
        if len(row) == 8 and row[0].isdecimal()
    ]


def of_accounting(text: str) -> list[Job]:
    """The jobs in an answer of `sacct --noheader --parsable2 SACCT`, the last of each id."""
    rows = [line.split("|", 7) for line in text.splitlines()]
    jobs = [
        Job(row[0], row[7], row[1].split(" ")[0], row[1], _start(row[2]), row[6], row[4], _seconds(row[3]), row[5])
        for row in rows
        if len(row) == 8 and row[0].isdecimal()
    ]
    return list({job.id: job for job in jobs}.values())


def of_json(text: str) -> list[Job]:
    """The jobs in an answer of `squeue --json` or `sacct --json`.

    Raises:
        ValueError: it is none.
    """
    begin = re.search(r"^\{", text, re.MULTILINE)  # behind a banner, or CLUSTER: with SLURM_CLUSTERS
    try:
        document, _ = json.JSONDecoder().raw_decode(text, begin.start() if begin else 0)
        jobs = [_job_of_accounting(job) if "time" in job else _job_of_queue(job) for job in document["jobs"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of jobs: {error!r}") from None
    return list({job.id: job for job in jobs}.values())


def _job_of_queue(job: Mapping[str, Any]) -> Job:
    return Job(
        str(int(job["job_id"])),
        job["name"],
        _state(job["job_state"]),
        job.get("state_reason", ""),
        _start(job.get("start_time")),
        job.get("nodes", ""),
        job["user_name"],
        _seconds(job.get("submit_time")),
        job.get("cluster", ""),
    )


def _job_of_accounting(job: Mapping[str, Any]) -> Job:
    state = _state(job["state"]["current"])
    return Job(
        str(int(job["job_id"])),
        job["name"],
        state,
        f"{state} by {who}" if (who := job.get("kill_request_user")) else state,
        _start(job["time"].get("start")),
        job.get("nodes", ""),
        job["user"],
        _seconds(job["time"].get("submission")),
        job.get("cluster", ""),
    )


def _state(told: Any) -> str:
    """One word of JSON's list: a base state and its flags."""
    states = [told] if isinstance(told, str) else list(map(str, told))
    return next((flag for flag in FLAGS if flag in states), states[0])


def _seconds(told: Any) -> float | None:
    """A time: seconds since the epoch as text, as a number, or as {"set", "infinite", "number"}; None: not known."""
    if isinstance(told, Mapping):
        told = told.get("number") if told.get("set") and not told.get("infinite") else None
    if isinstance(told, str):
        told = int(told) if told.isdecimal() else None
    return float(told) if told else None


def _start(told: Any) -> str:
    seconds = _seconds(told)
    return "" if seconds is None else datetime.fromtimestamp(seconds).isoformat(timespec="seconds")
