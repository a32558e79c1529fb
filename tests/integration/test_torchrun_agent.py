"""A real torchrun on two processes: what it reports when it ends, where it listens, what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from kdcluster.launch import torchrun
from kdcluster.launch.torchrun import Layout, Meeting, command, environment
from kdcluster.runs import Attempt, RunDir
from tests.intruder import listening

pytestmark = pytest.mark.integration

RANKS = textwrap.dedent(
    """
    import os, pathlib, signal, sys, time
    if os.environ["HOW"] == "imports in vain":
        import no_such_module
    if __name__ == "__main__":
        how, rank, folder = os.environ["HOW"], os.environ["RANK"], pathlib.Path(sys.argv[1])
        if how == "deaf" and rank == "0":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"here{rank}").touch()
        while len(list(folder.glob("here*"))) < 2:
            time.sleep(0.01)
        if how == "waits" or (rank == "0" and how != "well"):
            signal.pause()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how in ("raises", "deaf"):
            sys.exit("ValueError: as asked")
    """
)


class Torchrun:
    """One that runs RANKS, which end as `how` says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, **variables: str) -> None:
        script = folder / "train.py"
        script.write_text(RANKS)
        (folder / "tmp").mkdir()
        monkeypatch.setattr(torchrun, "shipped", lambda name: script)
        self.run_dir = RunDir(folder, "run")
        self.attempt: Attempt = self.run_dir.start_attempt({})
        layout = Layout("cpu", 2, 1)
        argv = command(self.run_dir.path, folder, layout, attempt=1)
        env = environment({**os.environ, **variables, "HOW": how, "TMPDIR": str(folder / "tmp")}, layout)
        with self.attempt.log().open("wb") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        self.left = folder / "tmp"

    def wait(self) -> dict[str, Any]:
        """What it reports once it has ended."""
        self.returncode = self.process.wait(120)
        return self.attempt.read("torchrun-node0")


def short(report: dict[str, Any]) -> list[tuple[int, int, bool]]:
    return [(rank["rank"], rank["exitcode"], rank["by_torchrun"]) for rank in report["failures"]]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raises", [(1, 1, False), (0, -signal.SIGTERM, True)]),
        ("killed", [(1, -signal.SIGKILL, False), (0, -signal.SIGTERM, True)]),
        ("deaf", [(1, 1, False), (0, -signal.SIGKILL, True)]),
        ("well", []),
    ],
)
def test_the_ranks_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, expected: list[tuple[int, int, bool]]
) -> None:
    """Whatever level of torch's own log the user has asked for."""
    run = Torchrun(tmp_path, monkeypatch, how, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1", LOGLEVEL="CRITICAL")
    report = run.wait()
    assert short(report) == expected
    assert (report["signal"], report["error"]) == (None, None)
    assert run.returncode == (1 if expected else 0)
    assert list(run.left.iterdir()) == []  # torchrun's own log folder stayed in TMPDIR


def test_the_signal_that_stopped_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Torchrun(tmp_path, monkeypatch, "waits")
    while len(list(run.run_dir.path.glob("here*"))) < 2:
        assert run.process.poll() is None
        time.sleep(0.05)
    assert {address for address, _ in listening([run.process.pid])} == {"127.0.0.1"}
    ranks = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    assert len(ranks) == 2
    lines = {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (*ranks, str(run.process.pid))}
    assert len(lines) == 1  # forks of the agent: nothing is imported twice
    run.process.terminate()
    report = run.wait()
    assert (report["signal"], report["failures"]) == (signal.SIGTERM, [])
    assert run.returncode == 1
    assert run.attempt.log().read_text() == "torchrun was stopped on request (SIGTERM)\n"
    assert list(run.left.iterdir()) == []


def test_a_signal_that_asks_for_no_stop_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Torchrun(tmp_path, monkeypatch, "waits")
    while len(list(run.run_dir.path.glob("here*"))) < 2:
        assert run.process.poll() is None
        time.sleep(0.05)
    run.process.send_signal(signal.SIGINT)
    assert run.wait()["signal"] == signal.SIGINT
    assert run.returncode == 1
    log = run.attempt.log().read_text()
    assert all(words in log for words in ("death signal", "closing signal", "Traceback", "SignalException"))


def test_what_the_ranks_could_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Torchrun(tmp_path, monkeypatch, "imports in vain")
    assert run.wait()["error"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert run.returncode == 1


def test_the_error_that_the_agent_died_of(tmp_path: Path) -> None:
    """Here: the first node's torchrun is not where it was said to be."""
    attempt = RunDir(tmp_path, "run").start_attempt({})
    nowhere = Meeting(1, "address.invalid", 9)
    argv = command(tmp_path / "run", tmp_path, Layout("cpu", 2, 1, 2), nowhere, attempt=1)
    argv.insert(argv.index("--nnodes=2"), "--rdzv-conf=timeout=1")
    done = subprocess.run(argv, env=environment(os.environ, Layout("cpu", 2, 1, 2)), capture_output=True, timeout=240)
    assert done.returncode == 1
    assert "address.invalid" in attempt.read("torchrun-node1")["error"]


def test_two_at_once_take_two_ports() -> None:
    """And a port is open before anybody is told of it."""
    asks = (
        "from kdcluster.launch.torchrun_agent import open_store; store = open_store({!r}); print(store.port); input()"
    )
    for address in ("127.0.0.1", "localhost"):
        argv = [sys.executable, "-c", asks.format(address)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(argv, **pipes) as one, subprocess.Popen(argv, **pipes) as other:
            ports = {int(process.stdout.readline()) for process in (one, other)}
            assert len(ports) == 2
            assert {port for _, port in listening([one.pid, other.pid])} == ports
            one.communicate("\n")
            other.communicate("\n")
