"""One process of a run: what it leaves when it fails, and that it never outlives its torchrun."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock

from kdcluster.errors import KdclusterError
from kdcluster.plan import Run
from kdcluster.processes import AGENT_VARIABLE
from kdcluster.runs import RunDir
from kdcluster.train import distributed, worker
from kdcluster.train.trainer import Progress
from kdcluster.train.worker import attempt_failed, explain, in_collective, out_of_memory
from tests.fabricated import put
from tests.tiny import make_run

CPU_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 1 bytes")
RESET = RuntimeError("[../third_party/gloo/…/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return put(tmp_path / "runs", make_run(tmp_path, "teacher"), "planned")


@pytest.fixture
def started(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """The first attempt of a run, and this process as its rank 0 of 2, with its log and its death left out."""
    run_dir.start_attempt({})
    given = ["train.py", str(run_dir.path), "--data-dir", "/nowhere", "--device", "cpu", "--attempt", "1"]
    monkeypatch.setattr(sys, "argv", given)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("die_with_parent", "own_log"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    return run_dir


def fake_training(monkeypatch: pytest.MonkeyPatch, seen: list[str], error: BaseException | None = None) -> None:
    """`join` and `train` that only say when they are called; training fails with `error` at step 7."""

    @contextmanager
    def join(*_: object) -> Iterator[None]:
        seen.append("joined")
        yield
        seen.append("left")

    def train(run_dir: RunDir, attempt: Any, world: Any, data_dir: Path, progress: Progress, *_: object) -> None:
        seen.append("trained")
        progress.step = 7
        if error is not None:
            raise error

    monkeypatch.setattr(worker, "join", join)
    monkeypatch.setattr(worker, "train", train)


def test_a_rank_that_fails_leaves_a_failure_file(started: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fake_training(monkeypatch, seen, ValueError("no good\nsecond line"))
    with pytest.raises(SystemExit) as left:
        worker.main()
    assert left.value.code == 1
    assert seen == ["joined", "trained"]
    [failure] = started.attempt(1).failures()
    assert failure["traceback"].startswith("Traceback (most recent call last):\n")
    assert {key: failure[key] for key in ("rank", "step", "error", "message", "collective", "out_of_memory")} == {
        "rank": 0,
        "step": 7,
        "error": "ValueError",
        "message": "ValueError: no good",
        "collective": False,
        "out_of_memory": False,
    }


def test_a_rank_that_ends_well_leaves_none(started: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fake_training(monkeypatch, seen)
    worker.main()
    assert seen == ["joined", "trained", "left"]
    assert started.attempt(1).failures() == []


def test_the_failure_is_written_before_the_group_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the siblings fail first, and torchrun may end this process before it has said why (NCCL may even hang)."""
    left: list[bool] = []
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: left.append(True))
    with pytest.raises(ValueError, match="no"), distributed.join("cpu", None):
        raise ValueError("no")
    assert left == []
    with distributed.join("cpu", None):
        pass
    assert left == [True]


def test_every_group_of_ranks_gives_up_after_the_time_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, store = dist.init_process_group, dist.HashStore()
    alone = {"store": store, "rank": 0, "world_size": 1}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: begin(backend, timeout=timeout, **alone))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with distributed.join("cpu", None, 7.0) as world:
        assert world.agreement is not None
        for group in (dist.group.WORLD, world.agreement.group):
            options = group._get_backend(world.device).options  # type: ignore[union-attr]
            assert options._timeout == timedelta(minutes=7)


def test_a_debug_run_raises_as_it_is(started: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv[: sys.argv.index("--attempt")])
    fake_training(monkeypatch, [], ValueError("for the debugger"))
    with pytest.raises(ValueError, match="for the debugger"):
        worker.main()
    assert started.attempt(1).failures() == []


def test_rank_0_holds_the_lock_while_it_trains(started: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def train(run_dir: RunDir, *_: object) -> None:
        held.append(not can_lock(run_dir))

    fake_training(monkeypatch, [])
    monkeypatch.setattr(worker, "train", train)
    worker.main()
    monkeypatch.setenv("RANK", "1")
    worker.main()
    assert held == [True, False]
    assert can_lock(started)


def can_lock(run_dir: RunDir) -> bool:
    lock = FileLock(run_dir.lock.lock_file, is_singleton=False, timeout=0)
    try:
        lock.acquire()
    except TimeoutError:
        return False
    lock.release()
    return True


def test_a_file_system_without_locks_goes_on_with_attempts_alone(
    started: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    seen: list[str] = []
    fake_training(monkeypatch, seen)
    monkeypatch.setattr(FileLock, "acquire", no_locks)
    worker.main()
    assert seen == ["joined", "trained", "left"]
    assert "no file locks in" in caplog.text
    assert "(FileSystem does not appear to support flock): going on with attempt numbers alone" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_lock_that_cannot_be_taken_though_there_are_locks_stops_the_rank(
    started: RunDir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    seen: list[str] = []
    fake_training(monkeypatch, seen)
    monkeypatch.setattr(FileLock, "acquire", broken)
    with pytest.raises(SystemExit):
        worker.main()
    assert seen == []
    (failure,) = started.attempt(1).failures()
    assert os.strerror(number) in failure["message"]


@pytest.mark.parametrize(
    ("error", "message", "collective", "memory"),
    [
        (KdclusterError("the loss is not finite"), "the loss is not finite", False, False),
        (ValueError(""), "ValueError: ", False, False),
        (RuntimeError("shape '[2]' is invalid"), "RuntimeError: shape '[2]' is invalid", False, False),
        (RESET, f"RuntimeError: {RESET}", True, False),
        (torch.distributed.DistBackendError("NCCL error"), "DistBackendError: NCCL error", True, False),
        (ConnectionResetError("by a download"), "ConnectionResetError: by a download", False, False),
        (CPU_MEMORY, "out of memory with 8 images at once in a process; try --set train.micro_batch=4", False, True),
        (MemoryError(), "out of memory with 8 images at once in a process; try --set train.micro_batch=4", False, True),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "out of memory with 8 images at once in a process; try --set train.micro_batch=4",
            False,
            True,
        ),
    ],
)
def test_what_a_failure_says(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, collective: bool, memory: bool
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    attempt = run_dir.start_attempt({})
    attempt_failed(attempt, run_dir, error, Progress(3))
    [failure] = attempt.failures()
    assert (failure["message"], failure["collective"], failure["out_of_memory"]) == (message, collective, memory)
    assert (in_collective(error), out_of_memory(error)) == (collective, memory)


def test_the_micro_batch_to_try_is_half_of_what_was_too_much(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_dir.load()
    for size, micro_batch, now, then in ((1, None, 16, 8), (3, None, 6, 3), (1, 5, 5, 2), (16, None, 1, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        assert explain(MemoryError(), with_micro_batch(run, micro_batch)) == (
            f"out of memory with {now} images at once in a process; try --set train.micro_batch={then}"
        )


def test_a_loss_of_the_whole_batch_has_no_micro_batch_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = make_run(tmp_path, "distilled", {"distill.loss": "dist"})
    assert (
        explain(MemoryError(), run) == "out of memory with 8 images at once in a process; try twice as many processes"
    )


def with_micro_batch(run: Run, micro_batch: int | None) -> Run:
    assert run.train is not None
    return run.model_copy(update={"train": run.train.model_copy(update={"micro_batch": micro_batch})})


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on
def test_a_signal_that_came_too_early_is_not_lost(started: RunDir) -> None:
    attempt = started.attempt(1)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        waiting, in_a_file, none = Progress(), Progress(), Progress()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)  # before it can be handled
        worker.listen(attempt, waiting)
        worker.listen(attempt, none)
        attempt.write("stop", {"time": 1.0})  # or before they were there
        worker.listen(attempt, in_a_file)
        assert (waiting.stop, none.stop, in_a_file.stop) == (True, False, True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_a_rank_whose_torchrun_died_before_it_was_ready_ends() -> None:
    """While torch was imported: prctl then hears of the death of whoever adopted the rank, which is too late."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def agent() -> None:
        me = os.getpid()
        os.environ[AGENT_VARIABLE] = str(me)
        if os.fork():
            os._exit(0)
        while os.getppid() == me:
            time.sleep(0.005)
        theirs.send("adopted")
        worker.die_with_parent()
        theirs.send("trains on")
        os._exit(0)

    process = fork.Process(target=agent)
    process.start()
    process.join(30)
    theirs.close()
    assert ours.recv() == "adopted"
    with pytest.raises(EOFError):
        ours.recv()
