"""One process of a run, as torchrun starts it: its log, its failure file, and its death with its parent."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import Timeout

from kdcluster.errors import KdclusterError, explain_disk
from kdcluster.files import acquire
from kdcluster.plan import Run
from kdcluster.processes import AGENT_VARIABLE, die_with
from kdcluster.runs import Attempt, RunDir
from kdcluster.train.distributed import join
from kdcluster.train.trainer import Progress, train

log = logging.getLogger(__name__)

LOCK_S = 180.0
"""How long to wait for an attempt that was overtaken: it notices at its next step or batch of an evaluation, and a file
server may keep the lock of a dead node for a minute and a half."""


def main() -> None:
    """`train.py RUN_DIR --data-dir DIR`: everything else stands in the run directory."""
    parser = argparse.ArgumentParser(description="Train one run from its directory (started by torchrun).")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--attempt", type=int, default=None, help="its number; without one this is a debug run")
    parser.add_argument("--max-steps", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    run_dir = RunDir(given.run_dir.parent, given.run_dir.name)
    progress = Progress()
    attempt = None if given.attempt is None else run_dir.attempt(given.attempt)
    if attempt is not None:
        die_with_parent()
        own_log(attempt)
        listen(attempt, progress)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Stamped())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        timeout_min = run_dir.load().resources.collective_timeout_min
        with _lock(run_dir, attempt), join(given.device, given.threads, timeout_min) as world:
            train(run_dir, attempt, world, given.data_dir, progress, given.max_steps, given.profile)
    except BaseException as error:
        if attempt is None:
            raise
        attempt_failed(attempt, run_dir, error, progress)
        sys.exit(1)


class Stamped(logging.Formatter):
    """The time before each line, the date before the first and where it has changed, a level that is not INFO."""

    day = ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        day, now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created)).split()
        stamp, self.day = (now if day == self.day else f"{day} {now}"), day
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        return f"{stamp} {level}{record.message}"


def listen(attempt: Attempt, progress: Progress) -> None:
    """Have signals end the run at the next step; those, too, that came before this process could listen."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: setattr(progress, "stop", True))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # blocked by slurm/task.py: it may have waited
    if attempt.read("stop"):  # or it came before this process was there
        progress.stop = True


def die_with_parent() -> None:
    """End with torchrun's agent, however it ends: an orphan would keep its GPU."""
    die_with(int(os.environ.get(AGENT_VARIABLE, "0")), "the torchrun that started this process")


def own_log(attempt: Attempt) -> None:
    """Send everything this process prints, from C++ too, to its rank's own log."""
    path = attempt.log(int(os.environ["RANK"]))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


@contextmanager
def _lock(run_dir: RunDir, attempt: Attempt | None) -> Iterator[None]:
    """Rank 0 holds the run's lock; where the file system has none, the attempt number alone protects."""
    if attempt is None or os.environ["RANK"] != "0":
        yield
        return
    lock = run_dir.lock
    try:
        acquire(lock, "going on with attempt numbers alone", LOCK_S)
    except Timeout:
        raise KdclusterError(
            f"another process still trains {run_dir.id} (it holds {lock.lock_file}); it was left alone: "
            f"wait for it, or cancel the run, then submit again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def attempt_failed(attempt: Attempt, run_dir: RunDir, error: BaseException, progress: Progress) -> None:
    """Leave this rank's failure file: torchrun keeps neither the exception nor which rank was first."""
    rank = int(os.environ["RANK"])
    text = "".join(traceback.format_exception(error))
    log.error("failed at step %d\n%s", progress.step, text)
    failure = {
        "rank": rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "step": progress.step,
        "error": type(error).__name__,
        "message": explain(error, run_dir.load()),
        "collective": in_collective(error),
        "out_of_memory": out_of_memory(error),
        "traceback": text,
    }
    attempt.write_last(f"failure-rank{rank}", failure)


def explain(error: BaseException, run: Run) -> str:
    """The last line of a failure, and for a full memory the micro-batch to try."""
    if out_of_memory(error) and run.train is not None:
        size = int(os.environ.get("WORLD_SIZE", 1))
        now = min(run.train.micro_batch or run.train.batch_size, -(-run.train.batch_size // size))
        whole = run.distill and run.distill.loss == "dist"
        hint = "twice as many processes" if whole else f"--set train.micro_batch={max(1, now // 2)}"
        return f"out of memory with {now} images at once in a process; try {hint}"
    if in_collective(error) and "timed out" in str(error).lower():
        minutes = run.resources.collective_timeout_min
        return f"waited {minutes:g} minutes for another rank, which hangs (resources.collective_timeout_min)"
    if isinstance(error, OSError) and (message := explain_disk(error, "submit with --retry")):
        return message
    if isinstance(error, KdclusterError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or (torch's CPU allocator raises a plain RuntimeError) on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def in_collective(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    words = ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
