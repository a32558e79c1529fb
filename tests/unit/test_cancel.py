"""Stopping and deleting: what they wait for, what they do where nothing obeys, and what is left after a kill."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcluster.errors import ConfigError
from kdcluster.launch import cancel as cancelling
from kdcluster.launch.cancel import cancel, check, remove
from kdcluster.launch.status import run_status
from kdcluster.launch.submission import one_at_a_time
from kdcluster.plan import Plan
from kdcluster.processes import descendants, is_alive, process_record
from kdcluster.runs import RunDir, run_dirs
from tests import fabricated
from tests.fabricated import DEAD, put, started
from tests.tiny import make_plan


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return make_plan(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A supervisor and its torchrun, which has a rank."""
    rank = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print('up', flush=True); sys.stdin.read()"
    agent = subprocess.Popen([sys.executable, "-c", rank], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdout is not None
    agent.stdout.readline()
    pair = [subprocess.Popen(["sleep", "600"]), agent]
    yield pair
    for process in pair:
        process.kill()
        process.wait()
    for pipe in (agent.stdin, agent.stdout):
        assert pipe is not None
        pipe.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def reap(process: subprocess.Popen[bytes]) -> threading.Thread:
    """As init does for what has lost its parent."""
    thread = threading.Thread(target=process.wait)
    thread.start()
    return thread


def test_a_run_whose_supervisor_and_torchrun_are_stopped_is_killed_with_all_that_it_started(
    made: Plan, root: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "STOPPED_S", 0.0)
    supervisor, agent = processes
    run_dir = put(root, made.runs[0], "planned")
    started(run_dir, supervisor=process_record(supervisor.pid), agent=process_record(agent.pid))
    children = [process_record(pid) for pid in descendants(agent.pid)]
    assert children
    for process in processes:
        stop(process)
    thread = reap(agent)
    assert cancel([run_dir.id], root) == {run_dir.id: "cancelled"}
    thread.join()
    assert agent.returncode == -signal.SIGKILL
    assert not any(map(is_alive, children))
    assert supervisor.poll() is None  # it may have other runs
    assert run_status(run_dir).reason.startswith("killed: it did not stop by itself")


def test_a_run_that_waits_for_a_stopped_supervisor_is_taken_from_it(
    made: Plan, root: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "STOPPED_S", 0.0)
    run_dir = put(root, made.runs[0], "planned")
    run_dir.write_ticket("local", process_record(processes[0].pid))
    stop(processes[0])
    assert run_status(run_dir).reason == "waits for its turn; its supervisor is stopped"
    assert cancel([run_dir.id], root) == {run_dir.id: "cancelled"}
    assert run_dir.ticket() is None


def test_a_cancel_during_a_submit_waits_for_it_and_says_so(
    made: Plan, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit checks for seconds to minutes: a cancel meanwhile found nothing, and the runs were started after it."""
    monkeypatch.setattr("kdcluster.launch.submission.SOON_S", 0.05)
    run_dir = put(root, made.runs[0], "planned")
    found: list[dict[str, str]] = []
    with one_at_a_time(root, "submit"):
        thread = threading.Thread(target=lambda: found.append(dict(cancel([run_dir.id], root))))
        with caplog.at_level(logging.WARNING):
            thread.start()
            while not caplog.text:
                thread.join(0.01)
        assert f"waiting for kdcluster submit (process {os.getpid()} on" in caplog.text
        run_dir.write_ticket("local", process_record(os.getpid()))  # it starts
    while not run_dir.is_cancelled():
        thread.join(0.01)
    run_dir.drop_ticket()  # its supervisor obeys
    thread.join()
    assert found == [{run_dir.id: "cancelled"}]


def test_a_cancel_while_a_run_is_just_being_started_is_not_lost(made: Plan, root: Path) -> None:
    run_dir = put(root, made.runs[0], "planned")
    run_dir.mark_cancelled()  # the supervisor has just looked, and goes on to start it
    started(run_dir, agent=DEAD)
    assert run_dir.is_cancelled()
    run_dir.prepare(made.runs[0])  # the next submit --retry
    assert not run_dir.is_cancelled()


def test_nothing_is_deleted_under_a_submit(made: Plan, root: Path) -> None:
    teacher = put(root, made.runs[0], "done")
    with one_at_a_time(root, "submit"):
        thread = threading.Thread(target=remove, args=([teacher], root))
        thread.start()
        thread.join(0.3)
        assert teacher.config.exists()
    thread.join()
    assert not teacher.path.exists()


def test_what_another_host_has_is_not_written_off(made: Plan, root: Path) -> None:
    run_dir = put(root, made.runs[0], "planned")
    attempt = started(run_dir, supervisor={**DEAD, "host": "another"})
    run_dir.mark_cancelled()
    cancelling.kill(run_dir)
    assert not attempt.read("outcome")


def test_what_may_be_alive_is_not_deleted(made: Plan, root: Path) -> None:
    run_dir = put(root, made.runs[0], "planned")
    attempt = started(run_dir, supervisor={**DEAD, "host": "another"})
    attempt.write("start", {**attempt.read("start"), "started": time.time() - 7200})
    with pytest.raises(ConfigError, match=r"is running, as far as is known \(on another, which cannot be asked"):
        check([run_dir], root)


def test_of_a_run_that_is_a_link_only_the_link_goes(made: Plan, root: Path, tmp_path: Path) -> None:
    run_dir = put(root, made.runs[0], "done")
    there = tmp_path / "archive"
    run_dir.path.rename(there)
    run_dir.path.symlink_to(there)
    remove([run_dir], root)
    assert (run_dirs(root), (there / "config.yaml").exists()) == ([], True)


def test_what_an_interrupted_rm_has_left_is_no_run_and_goes_with_the_next(made: Plan, root: Path) -> None:
    first, second = (put(root, run, "done") for run in made.only(["teacher", "baseline"]).runs)
    old = root / f".deleted-{first.id}"  # as an earlier version named it
    first.path.rename(old)
    assert [one.id for one in run_dirs(root)] == [second.id]
    put(root, made.runs[0], "done")
    remove([first], root)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [second.id]


def test_what_another_rm_has_deleted_meanwhile_is_no_error(made: Plan, root: Path) -> None:
    run_dir = put(root, made.runs[0], "failed")
    remove([run_dir], root)
    remove([run_dir], root)
    assert list(root.iterdir()) == [root / ".submit.lock"]


def test_a_supervisor_that_was_stopped_starts_nothing_that_is_not_its_own_any_more(made: Plan, root: Path) -> None:
    from kdcluster.launch.local.supervisor import Supervisor
    from kdcluster.launch.torchrun import Layout

    run = made.runs[0]
    run_dir = put(root, run, "planned")
    slept = Supervisor(root, root, [run], {run.id: Layout("cpu", 1, 1)})
    run_dir.write_ticket("local", slept.ref(run.id))
    run_dir.write_ticket("local", {**DEAD, "folder": "of another submit"})
    slept.tick()
    assert (slept.pending, slept.children, run_dir.attempts()) == ({}, {}, [])


def test_who_killed_a_run_has_the_last_word(made: Plan, root: Path) -> None:
    """Its supervisor wakes up later, and finds torchrun gone."""
    run_dir = put(root, made.runs[0], "planned")
    fabricated.cancelled(run_dir)
    assert run_status(run_dir).state == "cancelled"


def test_what_a_later_submit_has_taken_back_is_neither_waited_for_nor_killed(
    made: Plan, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "GRACE_S", 0.0)
    monkeypatch.setattr(cancelling, "STOPPED_S", 0.0)
    monkeypatch.setattr(cancelling, "kill", lambda run_dir: pytest.fail("killed"))
    run_dir = put(root, made.runs[0], "running")
    mark = RunDir.mark_cancelled

    def mark_and_take_back(one: RunDir) -> None:
        mark(one)
        one.prepare(made.runs[0])

    monkeypatch.setattr(RunDir, "mark_cancelled", mark_and_take_back)
    assert cancel([run_dir.id], root) == {run_dir.id: "running"}
