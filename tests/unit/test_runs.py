"""A run directory: attempts are numbered once and whole, records find a process again, nothing is half there."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from kdcluster import runs
from kdcluster.errors import ConfigError, KdclusterError, NotFound
from kdcluster.processes import is_alive, process_record, process_start_time
from kdcluster.runs import RunDir, find_run
from kdcluster.tickets import Ticket
from tests import fabricated
from tests.fabricated import DEAD, LIVE, ended, publish
from tests.tiny import make_run

FORK = multiprocessing.get_context("fork")
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path, "distilled")
    made = RunDir(tmp_path / "runs", run.id)
    made.prepare(run)
    return made


def _start_one(run_dir: RunDir, barrier: object, numbers: object) -> None:
    barrier.wait(30)  # type: ignore[attr-defined]
    numbers.put(run_dir.start_attempt({"by": os.getpid()}).number)  # type: ignore[attr-defined]


@forks
def test_eight_processes_start_eight_attempts(run_dir: RunDir) -> None:
    barrier, numbers = FORK.Barrier(8), FORK.SimpleQueue()
    starters = [FORK.Process(target=_start_one, args=(run_dir, barrier, numbers)) for _ in range(8)]
    for process in starters:
        process.start()
    got = sorted(numbers.get() for _ in starters)
    for process in starters:
        process.join(30)
    assert got == list(range(1, 9))
    assert [a.number for a in run_dir.attempts()] == got
    assert {a.read("start")["by"] for a in run_dir.attempts()} == {process.pid for process in starters}
    assert not list((run_dir.path / "attempts").glob(".start-*"))


def test_a_half_written_attempt_is_none(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed before the rename leaves a folder that is not an attempt, and does not disturb the next."""
    seen = []

    def killed(path: Path, target: Path) -> None:
        seen.append((path / "start.json").is_file())  # whole before it is an attempt
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_dir.start_attempt({})
    assert seen == [True]
    assert len(list((run_dir.path / "attempts").iterdir())) == 1
    assert run_dir.attempts() == []
    assert run_dir.newest() is None
    assert run_dir.start_attempt({}).number == 1


def test_a_file_server_that_shows_attempts_late_does_not_keep_a_start_waiting(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        run_dir.start_attempt({})
    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "attempts", lambda self: [])  # made by another host a moment ago
        started = run_dir.start_attempt({}, lambda number: ["train", str(number)])
    assert started.number == 4
    assert started.read("start")["command"] == ["train", "4"]  # as it was started, whatever was tried before


def test_a_file_system_that_takes_no_attempt_is_an_error(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, target: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(runs, "TRIES", 3)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(KdclusterError, match="1 to 3 are taken, says the file system"):
        run_dir.start_attempt({})
    assert list((run_dir.path / "attempts").iterdir()) == []


def test_the_newest_attempt_is_the_highest_number(run_dir: RunDir) -> None:
    numbers = [run_dir.start_attempt({}).number for _ in range(11)]
    newest = run_dir.newest()
    assert numbers == list(range(1, 12))
    assert newest is not None
    assert newest.number == 11  # not 9, as names sort


def test_reading_creates_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "runs", "teacher-x-s0-00000000")
    assert run_dir.attempts() == []
    assert run_dir.newest() is None
    assert run_dir.ticket() is None
    assert run_dir.result() is None
    assert run_dir.attempt(1).read("outcome") == {}
    assert run_dir.attempt(1).logs() == [("torchrun", run_dir.attempt(1).log())]
    assert run_dir.attempt(1).failures() == []
    run_dir.drop_ticket()
    assert list(tmp_path.iterdir()) == []


def test_what_an_attempt_records(run_dir: RunDir) -> None:
    attempt = run_dir.start_attempt({"supervisor": LIVE})
    start = attempt.read("start")
    assert start["supervisor"] == LIVE
    assert start["host"] == LIVE["host"]
    assert start["started"] > 0
    for rank in (10, 2, 0):
        attempt.log(rank).touch()
        fabricated.rank_failed(attempt, rank)
    assert [label for label, _ in attempt.logs()] == ["torchrun", "rank 0", "rank 2", "rank 10"]
    assert [failure["rank"] for failure in attempt.failures()] == [0, 2, 10]
    assert attempt.path.stat().st_mode & 0o777 == 0o755  # not mkdtemp's 700: others of a project may look


def test_prepare_refuses_another_run_with_the_same_id(run_dir: RunDir) -> None:
    run, before = run_dir.load(), run_dir.config.read_bytes()
    with pytest.raises(ConfigError, match=r"another run with the same id; set `variant`"):
        run_dir.prepare(run.model_copy(update={"hash": "0" * 64}))
    assert run_dir.config.read_bytes() == before


def test_prepare_writes_anew_what_is_not_hashed(run_dir: RunDir) -> None:
    run = run_dir.load()
    assert run.train is not None
    assert run.teacher is not None
    changes = {
        "resources": run.resources.model_copy(update={"procs": 2}),
        "train": run.train.model_copy(update={"micro_batch": 3}),
        "teacher": run.teacher.model_copy(update={"min_top1": 75.0}),
    }
    run_dir.prepare(run.model_copy(update=changes))
    again = run_dir.load()
    assert again.hash == run.hash
    assert again.resources.procs == 2
    assert again.train is not None
    assert again.train.micro_batch == 3
    assert again.teacher is not None
    assert again.teacher.min_top1 == 75.0


def test_a_config_of_another_version_says_so(run_dir: RunDir) -> None:
    run_dir.config.write_text("id: x\nfuture: 1\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: not a run's configuration of this version"):
        run_dir.load()


def test_what_an_earlier_recipe_began_is_not_gone_on_with_and_what_it_finished_is_used(tmp_path: Path) -> None:
    run = make_run(tmp_path, "distilled").model_copy(update={"recipe": 1})
    hash = run.digest()
    run = run.model_copy(update={"hash": hash, "id": f"{run.id[:-8]}{hash[:8]}"})
    run_dir = RunDir(tmp_path / "runs", run.id)
    run_dir.prepare(run)
    with pytest.raises(ConfigError, match=r"was begun with recipe 1 of an earlier version \(today's is 2\): submit"):
        run_dir.load()
    publish(run_dir, 61.5)
    assert run_dir.load() == run


def test_a_ticket_names_the_attempt_that_it_follows(run_dir: RunDir) -> None:
    run_dir.write_ticket("local", LIVE)
    assert run_dir.ticket() == Ticket("local", LIVE, 0)
    ended(run_dir.start_attempt({}), "failed", "no")
    run_dir.write_ticket("local", LIVE)
    assert run_dir.ticket() == Ticket("local", LIVE, 1)
    run_dir.drop_ticket()
    assert run_dir.ticket() is None


def test_a_result_is_read_as_written(run_dir: RunDir) -> None:
    publish(run_dir, 61.5, attempt=3)
    result = run_dir.result()
    assert result is not None
    assert (result["id"], result["attempt"], result["best"]["test/top1"]) == (run_dir.id, 3, 61.5)


def test_the_lock_is_held_against_others_and_freed(run_dir: RunDir) -> None:
    held = run_dir.lock.acquire(timeout=0)
    refused: list[bool] = []

    def other() -> None:
        try:
            run_dir.lock.acquire(timeout=0)
        except Timeout:
            refused.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(30)
    assert refused == [True]
    held.lock.release()
    run_dir.lock.acquire(timeout=0).lock.release()


def test_find_run_takes_a_unique_beginning(tmp_path: Path) -> None:
    for name in ("teacher-a-s0-11111111", "teacher-a-s0-1111111122", "baseline-a-s0-33333333"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "distilled-a-s0-44444444").mkdir()  # no config: not a run
    assert find_run(tmp_path, "base").id == "baseline-a-s0-33333333"
    assert find_run(tmp_path, "teacher-a-s0-11111111").id == "teacher-a-s0-11111111"  # whole, though it begins another
    with pytest.raises(
        ConfigError, match="'teacher' begins the ids of 2 runs, give more: teacher-a-s0-11111111, teacher-a"
    ):
        find_run(tmp_path, "teacher")
    (tmp_path / "teacher-logits-a-s0-55555555").mkdir()
    (tmp_path / "teacher-logits-a-s0-55555555" / "config.yaml").touch()
    assert find_run(tmp_path, "teacher-l").id == find_run(tmp_path, "55555555").id == "teacher-logits-a-s0-55555555"
    (tmp_path / "teacher-a-s0-1111111122" / "config.yaml").unlink()
    assert find_run(tmp_path, "teacher").id == "teacher-a-s0-11111111"
    for name, root in (("distilled", tmp_path), ("x", tmp_path), ("x", tmp_path / "nowhere")):
        with pytest.raises(NotFound, match=f"no run '{name}' in "):
            find_run(root, name)


def test_a_process_is_known_by_pid_and_start_time() -> None:
    assert is_alive(LIVE)
    assert not is_alive(DEAD)  # the same pid, another start
    assert not is_alive({**LIVE, "host": "elsewhere"})
    assert not is_alive({**LIVE, "start_time": None})
    assert not is_alive(None)
    assert not is_alive({})


def test_a_process_that_ended_is_not_alive_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    record = process_record(child.pid)
    assert is_alive(record)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert Path(f"/proc/{child.pid}").exists()
    assert not is_alive(record)
    child.wait()
    assert process_start_time(child.pid) is None
    assert process_record(child.pid)["start_time"] is None


def test_a_name_with_blanks_and_brackets_does_not_shift_the_start_time() -> None:
    named = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 9 (', 0, 0, 0); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        before = process_start_time(child.pid)
        child.stdout.readline()
        assert Path(f"/proc/{child.pid}/stat").read_text().startswith(f"{child.pid} () R 9 ()")
        assert process_start_time(child.pid) == before
        assert before is not None
