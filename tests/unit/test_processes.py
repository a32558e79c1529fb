"""Processes that this test starts: found again, seen to be stopped, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdcluster import processes
from kdcluster.errors import KdclusterError
from kdcluster.processes import descendants, is_alive, is_stopped, kill_tree, process_record, threads_available
from tests.desk import processes_of
from tests.fabricated import DEAD, LIVE

WITHIN_S = 60.0

Started = subprocess.Popen[str]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """In the environment of all that a test starts; none of these may be left."""
    yield str(tmp_path)
    try:
        until(lambda: not processes_of(str(tmp_path)))
    finally:
        for pid in processes_of(str(tmp_path)):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def started(mark: str, code: str) -> Iterator[Started]:
    """A Python that runs `code` and then waits; it has printed a line."""
    text = f"import os, signal, subprocess, sys, time\n{code}\nprint(os.getpid(), flush=True)\nsignal.pause()"
    env = {**os.environ, "SLOW": mark}
    with subprocess.Popen([sys.executable, "-c", text], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def below(depth: int) -> str:
    """Code that starts a chain of processes, each below the one before."""
    chain = "signal.pause()"
    for _ in range(depth):
        chain = f"subprocess.Popen([sys.executable, '-c', {'import os, signal, subprocess, sys' + chr(10) + chain!r}])"
        chain += "\nsignal.pause()"
    return chain.removesuffix("\nsignal.pause()")


def test_a_name_that_is_no_text_hides_no_process(mark: str) -> None:
    with started(mark, r"import ctypes; ctypes.CDLL(None).prctl(15, b'\xff\xfe', 0, 0, 0)") as process:
        assert is_alive(process_record(process.pid))


@pytest.mark.parametrize(
    "record", [None, {}, DEAD, {"host": LIVE["host"]}, {**LIVE, "pid": None}, {**LIVE, "host": "x"}]
)
def test_what_is_not_there_is_neither_alive_nor_stopped_and_is_not_killed(record: dict[str, object] | None) -> None:
    assert not is_alive(record)
    assert not is_stopped(record)
    assert kill_tree(record) == []


def test_descendants_are_all_generations(mark: str) -> None:
    assert descendants(2**22 + 1) == []
    with started(mark, below(2)) as process:
        until(lambda: len(descendants(process.pid)) == 2)
        assert set(descendants(process.pid)) < set(descendants(os.getpid()))
        kill_tree(process_record(process.pid))


def test_a_stopped_process_is_alive_and_stopped(mark: str) -> None:
    with started(mark, "") as process:
        record = process_record(process.pid)
        assert not is_stopped(record)
        process.send_signal(signal.SIGSTOP)
        until(lambda: is_stopped(record))
        assert is_alive(record)
        assert not is_stopped({**record, "start_time": "1"})
        process.send_signal(signal.SIGCONT)
        until(lambda: not is_stopped(record))


@pytest.mark.parametrize("tree", ["", "unified"])
def test_a_frozen_cgroup_stops_what_is_in_it(tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    if not own:
        pytest.skip("this machine has no cgroup v2")
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    assert not is_stopped(LIVE)
    events = tmp_path / tree / own[0] / "cgroup.events"
    events.parent.mkdir(parents=True, exist_ok=True)
    for frozen in (False, True):
        events.write_text(f"populated 1\nfrozen {frozen:d}\n")
        assert is_stopped(LIVE) is frozen


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000", "above/cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"v1/cpu.cfs_quota_us": "-1", "v1/cpu.cfs_period_us": "100000"}, 8),
        ({"v1/cpu.cfs_quota_us": "400000", "v1/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_the_cores_are_those_whose_time_the_cgroups_leave(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container of two of a machine's cores' time sees them all."""
    monkeypatch.setattr(processes, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "self").write_text("7:memory:/other\n4:cpu,cpuacct:/job\n0::/above/job\n")
    monkeypatch.setattr(processes, "OWN_CGROUPS", tmp_path / "self")
    for name, content in files.items():
        where = "cpu/job" if name.startswith("v1/") else "above" if name.startswith("above/") else "above/job"
        path = tmp_path / "cgroup" / where / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert threads_available() == cores


@pytest.mark.parametrize("stopped", [False, True])
def test_kill_tree_ends_a_process_and_all_below_it_also_where_they_are_stopped(mark: str, stopped: bool) -> None:
    with started(mark, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + below(3)) as process:
        until(lambda: len(descendants(process.pid)) == 3)
        tree = [process_record(pid) for pid in (process.pid, *descendants(process.pid))]
        if stopped:
            process.send_signal(signal.SIGSTOP)
        assert kill_tree(tree[0]) == sorted(one["pid"] for one in tree)
        assert not any(map(is_alive, tree))
        assert process.wait(WITHIN_S) == -signal.SIGKILL  # the status is still its parent's to take
        assert kill_tree(tree[0]) == []


def test_kill_tree_catches_those_that_are_started_meanwhile(mark: str) -> None:
    """It starts a process as often as it can: between a look and a kill there is always a new one."""
    busy = "print(0, flush=True)\nwhile True: subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL)"
    for _ in range(5):
        with started(mark, busy) as process:
            until(lambda: len(descendants(process.pid)) > 2)
            assert len(kill_tree(process_record(process.pid))) > 2
        assert processes_of(mark) == []


def test_kill_tree_leaves_alone_what_has_got_the_number_of_the_recorded_process(mark: str) -> None:
    with started(mark, below(1)) as process:
        assert kill_tree({**process_record(process.pid), "start_time": "1"}) == []
        assert process.poll() is None
        until(lambda: len(descendants(process.pid)) == 1)
        kill_tree(process_record(process.pid))


def test_kill_tree_spares_a_branch_and_never_ends_itself(mark: str) -> None:
    with started(mark, below(2)) as process:
        until(lambda: len(descendants(process.pid)) == 2)
        (child,) = (pid for pid in descendants(process.pid) if descendants(pid))
        record, kept = process_record(child), [process_record(pid) for pid in (child, *descendants(child))]
        assert kill_tree(record, spare=[child]) == []
        assert kill_tree(process_record(process.pid), spare=[child]) == [process.pid]
        assert all(map(is_alive, kept))
        assert not any(map(is_stopped, kept))
        assert kill_tree(record) == sorted(one["pid"] for one in kept)
    inside = "from kdcluster.processes import *; print(kill_tree(process_record(os.getppid())), flush=True)"
    outer = f"print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {'import os; ' + inside!r}])"
    with started(mark, outer) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"[{process.pid}]\n"  # said by a process below the one that it has killed
        assert process.wait(WITHIN_S) == -signal.SIGKILL


def test_what_does_not_end_is_said(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GONE_S", 0.0)
    monkeypatch.setattr(processes, "_signal", lambda *_: True)  # as a process that waits for a disk takes it
    with (
        started(mark, "") as process,
        pytest.raises(KdclusterError, match=f"still there after 0 s: process {process.pid};"),
    ):
        kill_tree(process_record(process.pid))
