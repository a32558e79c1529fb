"""Processes of this machine, so that they can be found again and ended, and the cores that this one may use.

psutil and ctypes are imported in the functions that need them: psutil takes as long as all of `kdcluster --help` may.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError

GONE_S = 30.0
"""How long a killed process may take to be gone."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
AGENT_VARIABLE = "KDCLUSTER_AGENT"
"""Environment variable in which torchrun's agent tells its processes its own pid."""


def processor() -> str:
    """The name of this machine's processor, as its kernel has it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def process_record(pid: int) -> dict[str, Any]:
    """A process so that it can be found again: host, pid and start time (a pid alone may be used again)."""
    return {"host": socket.gethostname(), "pid": pid, "start_time": process_start_time(pid)}


def process_start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, or None where it is gone."""
    found = _stat(pid)
    return found[1] if found else None


def _stat(pid: int) -> tuple[str, str] | None:
    """(state letter, start time) of a process; None where it is gone, or only waits to be reaped.

    From proc(5), fields 3 and 22: psutil's create_time is in seconds since 1970 and so moves when the clock is set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].decode().split()
    return None if fields[0] in "ZX" else (fields[0], fields[19])


def _state(record: Mapping[str, Any] | None) -> str | None:
    """The state letter of a recorded process; None where it does not run on this machine (any more)."""
    if not record or record.get("host") != socket.gethostname():
        return None
    found = _stat(record["pid"]) if record.get("pid") else None
    return found[0] if found and found[1] == record.get("start_time") else None


def is_alive(record: Mapping[str, Any] | None) -> bool:
    """Whether a recorded process still runs on this machine."""
    return _state(record) is not None


def is_stopped(record: Mapping[str, Any] | None) -> bool:
    """Whether a recorded process is there and can do nothing: stopped (SIGSTOP, a debugger), or its cgroup frozen."""
    if record is None or (state := _state(record)) is None:
        return False
    return state in "Tt" or _is_frozen(record["pid"])


def _is_frozen(pid: int) -> bool:
    """Whether the freezer of cgroup v2 holds a process, which then looks asleep."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:  # it has ended
        return False
    for path in (line.removeprefix("0::/") for line in groups if line.startswith("0::/")):
        for tree in (CGROUPS, CGROUPS / "unified"):  # alone, or beside v1
            events = tree / path / "cgroup.events"
            if events.is_file() and "frozen 1" in events.read_text().splitlines():
                return True
    return False


def descendants(pid: int) -> list[int]:
    """The processes below one, all generations, by today's parents."""
    import psutil

    try:
        return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def kill_tree(record: Mapping[str, Any] | None, *, spare: Collection[int] = ()) -> list[int]:
    """SIGKILL a recorded process and all below it, and wait until they are gone; returns the pids of those it killed.

    They are stopped first, from the top, so that none starts another one unseen: whom a kill orphans nobody finds.

    Args:
        record: the process at the top; nothing is done where it is gone.
        spare: pids that are left alone, with what is below them, as this process always is.

    Raises:
        KdclusterError: some are still there after GONE_S.
    """
    spared = {os.getpid(), *spare}
    if record is None or not is_alive(record) or record["pid"] in spared:
        return []
    tree = {record["pid"]: record}
    try:
        _signal(record, signal.SIGSTOP)
        while (new := _below(record["pid"], spared) - tree.keys()) and is_alive(record):
            for pid in new:
                tree[pid] = process_record(pid)
                _signal(tree[pid], signal.SIGSTOP)
    finally:  # whatever interrupts: nobody would wake those that are stopped
        killed = [pid for pid, one in tree.items() if _signal(one, signal.SIGKILL)]
    deadline = time.monotonic() + GONE_S
    while left := [pid for pid, one in tree.items() if is_alive(one)]:
        if time.monotonic() > deadline:
            raise KdclusterError(
                f"killed, and still there after {GONE_S:g} s: process {', '.join(map(str, sorted(left)))}; it is "
                f"another user's, waits for a disk, or its cgroup is frozen (`ps -o user,stat,wchan -p PID` says)"
            )
        time.sleep(0.02)
    return sorted(killed)


def _below(pid: int, spared: Collection[int]) -> set[int]:
    """The processes below one, without those that are spared and what is below them."""
    below = set(descendants(pid))
    for kept in below & set(spared):
        below -= {kept, *descendants(kept)}
    return below


def _signal(record: Mapping[str, Any], number: int) -> bool:
    """Whether a recorded process was there and could be sent a signal."""
    if is_alive(record):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(record["pid"], number)
            return True
    return False


def die_with(parent: int, named: str) -> None:
    """Have this process end with its parent, however that ends (Linux, prctl(2) PR_SET_PDEATHSIG).

    The signal comes when the thread ends that started this process.

    Args:
        parent: its pid, from itself: whoever dies before this call leaves its child to be adopted by another.
        named: what it is, for the one who reads why this process ended.
    """
    import ctypes

    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(1, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.stderr.write(f"ending: {named} is gone\n")
        sys.stderr.flush()
        os._exit(1)


def threads_available() -> int:
    """CPU cores that this process may use, by its affinity and by the time that its cgroups leave (docker --cpus)."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(int(share) for share in _shares_of_time())]))


def _shares_of_time() -> Iterator[float]:
    """How many cores' time each cgroup that this process is in may use, where that is limited."""
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        tree = CGROUPS / ("cpu" if controllers else "")
        own = tree / name.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(tree) and (limit := _limit(group)):
                yield limit


def _limit(group: Path) -> float | None:
    """Of one cgroup: microseconds that it may use, by those in which; in one file in v2, in two in v1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
            return quota / period if quota > 0 else None
    return None  # "max", or none is set
