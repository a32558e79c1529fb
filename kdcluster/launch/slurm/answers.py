"""What squeue and sacct answer, as jobs: from their text, and from the JSON of SLURM 23.11 and later. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

SQUEUE = ("--noheader", "--format=%A|%T|%r|%S|%V|%u|%N|%j")
SACCT = ("--noheader", "--parsable2", "--format=JobIDRaw,State,Start,Submit,User,Cluster,NodeList,JobName")
"""Options for text; times in seconds since the epoch (SLURM_TIME_FORMAT=%s), and the name last: it may hold a |."""
FLAGS = (
    *("COMPLETING", "STAGE_OUT", "CONFIGURING", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"),
    *("STOPPED", "REVOKED", "RESV_DEL_HOLD", "SIGNALING"),
)
"""What squeue's text says of a job rather than its base state. JSON lists them behind that, among others."""
NOT_ENDED = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED")


@dataclass(frozen=True)
class Job:
    """One job as SLURM has it, under its raw number, of an array's task, too; "" is what is not known.

    `state` is SLURM's word in its long form, also one that is new to us; `start` is in local time (ISO), `submitted` in
    seconds since the epoch, of the last requeue where there was one.
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


def of_queue(text: str, cluster: str) -> list[Job]:
    """The jobs in an answer of `squeue *SQUEUE` of a cluster."""
    return [
        Job(number, name, state, reason, _start(start), nodes, user, _seconds(submitted), cluster)
        for number, state, reason, start, submitted, user, nodes, name in _rows(text)
    ]


def of_accounting(text: str) -> list[Job]:
    """The jobs in an answer of `sacct *SACCT`, the last of each id."""
    jobs = {
        number: Job(number, name, told.split(" ")[0], told, _start(start), nodes, user, _seconds(submitted), cluster)
        for number, told, start, submitted, user, cluster, nodes, name in _rows(text)
    }
    return list(jobs.values())


def _rows(text: str) -> list[list[str]]:
    """The lines that are jobs; a site's banner is none."""
    rows = [line.split("|", 7) for line in text.splitlines()]
    return [row for row in rows if len(row) == 8 and row[0].isdecimal()]


def of_json(text: str) -> list[Job]:
    """The jobs in an answer of `squeue --json` or `sacct --json`, the last of each id.

    Raises:
        ValueError: it is none.
    """
    begin = re.search(r"^\{", text, re.MULTILINE)  # behind a banner, or CLUSTER: with SLURM_CLUSTERS
    try:
        document, _ = json.JSONDecoder().raw_decode(text, begin.start() if begin else 0)
        jobs = [_job(told) for told in document["jobs"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of jobs: {error!r}") from None
    return list({job.id: job for job in jobs}.values())


def _job(told: Mapping[str, Any]) -> Job:
    if "time" in told:  # sacct's
        state, user = _state(told["state"]["current"]), told["user"]
        reason = f"{state} by {who}" if (who := told.get("kill_request_user")) else state
        start, submitted = told["time"].get("start"), told["time"].get("submission")
    else:
        state, user = _state(told["job_state"]), told["user_name"]
        reason = told.get("state_reason", "")
        start, submitted = told.get("start_time"), told.get("submit_time")
    number, nodes, cluster = str(int(told["job_id"])), told.get("nodes", ""), told.get("cluster", "")
    return Job(number, told["name"], state, reason, _start(start), nodes, user, _seconds(submitted), cluster)


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
