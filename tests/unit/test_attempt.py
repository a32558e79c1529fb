"""One start of a run: what it writes down of the code, and that its torchrun never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kdcluster.launch import attempt as launched
from kdcluster.launch.attempt import begin, code_state, start_torchrun
from kdcluster.launch.torchrun import Layout
from kdcluster.processes import is_alive, process_record
from kdcluster.runs import RunDir

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a repository with one uncommitted change."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "mine.py").write_text("a = 1\n")
    (work / ".gitattributes").write_text("*.py diff=mine\n")
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], check=True)
    (work / "mine.py").write_text("a = 2\n")
    return work


def test_uncommitted_changes_are_kept_beside_the_attempt(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, diff = code_state()
    here = code["git"][str(work.resolve())]
    assert here["dirty"] is True
    assert len(here["commit"]) == 40
    assert "+a = 2" in diff
    assert len(code["trainer_code"]) == 64
    monkeypatch.chdir(tmp_path)  # no repository
    assert str(work.resolve()) not in code_state()[0]["git"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("diff.external", "echo somebody else wrote this #"),
        ("diff.mine.command", "echo somebody else wrote this #"),
        ("diff.mine.textconv", "echo somebody else wrote this #"),
        ("color.ui", "always"),
    ],
)
def test_the_diff_is_gits_own_whatever_the_user_has_set(work: Path, key: str, value: str) -> None:
    _, plain = code_state()
    subprocess.run(["git", "config", key, value], check=True)
    assert code_state()[1] == plain
    assert "\n-a = 1\n+a = 2\n" in plain


def test_an_attempt_by_other_trainer_code_than_the_one_before_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade between two attempts of a run: its numbers come from both."""
    run_dir = RunDir(tmp_path, "run")
    (tmp_path / "run").mkdir()
    changed = []
    for code, submitted in (("a", None), ("a", "a"), ("b", None), ("b", None), ("b", "a")):
        monkeypatch.setattr(launched, "code_state", lambda code=code: ({"trainer_code": code}, ""))
        attempt = begin(run_dir, lambda number: ["train", str(number)], Layout("cpu", 1, 1), {}, submitted)
        changed.append(attempt.read("start")["code_changed"])
    assert changed == [False, False, True, False, True]
    run_dir.start_attempt({})  # as an older version left it
    assert begin(run_dir, lambda _: [], Layout("cpu", 1, 1), {}).read("start")["code_changed"] is False


def test_the_signal_that_workers_handle_is_kept_from_torchrun(tmp_path: Path) -> None:
    asks = "import signal; print(*(s.name for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    for shielded, blocked in (((), ""), ([signal.SIGUSR2], "SIGUSR2")):
        log = tmp_path / f"log{blocked}"
        assert start_torchrun([sys.executable, "-S", "-c", asks], os.environ, log, shielded).wait(60) == 0
        assert log.read_text().strip() == blocked


@forks
def test_a_child_dies_with_its_supervisor() -> None:
    """kill -9 of the process whose main thread started it."""
    script = textwrap.dedent(
        """
        import os, subprocess, sys
        from kdcluster.launch.attempt import dies_with
        waits = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
        child = subprocess.Popen(waits, preexec_fn=dies_with(os.getpid()))
        print(child.pid, flush=True)
        input()
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as parent:  # type: ignore[call-overload]
        pid = int(parent.stdout.readline())
        record = process_record(pid)
        assert is_alive(record)
        parent.kill()
        try:
            deadline = time.monotonic() + 10
            while is_alive(record):
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            if is_alive(record):
                os.kill(pid, signal.SIGKILL)
