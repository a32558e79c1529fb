"""Processes of this machine, so that they can be found again, and the cores that this one may use."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

AGENT_VARIABLE = "KDCLUSTER_AGENT"
"""Environment variable in which torchrun's agent tells its processes its own pid."""


def process_record(pid: int) -> dict[str, Any]:
    """A process so that it can be found again: host, pid and start time (a pid alone may be used again)."""
    return {"host": socket.gethostname(), "pid": pid, "start_time": process_start_time(pid)}


def process_start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, or None where it is gone (proc(5), field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def is_alive(record: dict[str, Any] | None) -> bool:
    """Whether a recorded process still runs on this machine."""
    if not record or record["host"] != socket.gethostname():
        return False
    return record["start_time"] is not None and process_start_time(record["pid"]) == record["start_time"]


def descendants(pid: int) -> list[int]:
    """The processes below one, all generations, by today's parents."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = path.read_text()
        except OSError:
            continue
        below.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return sorted(found)


def threads_available() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
