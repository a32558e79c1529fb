"""One start of a run: what is written when it begins, the torchrun that it starts, and how that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

import kdcluster
from kdcluster.files import trainer_code
from kdcluster.launch.outcome import outcome
from kdcluster.launch.torchrun import Layout, command, environment
from kdcluster.processes import process_record
from kdcluster.runs import Attempt, RunDir

AWAITED = {signal.SIGCHLD, signal.SIGTERM}
"""What a supervisor waits for, and so blocks in itself and not in its children."""


def begin(
    run_dir: RunDir,
    argv: Callable[[int], list[str]],
    layout: Layout,
    known: Mapping[str, Any],
    submitted: str | None = None,
) -> Attempt:
    """A new attempt, with its start.json, and code.diff where the code has uncommitted changes.

    Args:
        argv: of torchrun, for the attempt with a number.
        known: what else start.json says.
        submitted: digest of the trainer's code when the run was submitted, where it is known.

    Raises:
        OSError: it cannot be written.
        KdclusterError: every number is taken.
    """
    code, diff = code_state()
    last = run_dir.newest()
    before = last.read("start").get("code", {}).get("trainer_code") if last else None
    attempt = run_dir.start_attempt(
        {
            "supervisor": process_record(os.getpid()),
            "device": layout.device,
            "procs": layout.procs,
            "threads": layout.threads,
            "code": code,
            "code_changed": any(other not in (None, code["trainer_code"]) for other in (submitted, before)),
            "from_step": run_dir.saved_step(),
            **known,
        },
        argv,
    )
    if diff:
        (attempt.path / "code.diff").write_text(diff)
    return attempt


def start_torchrun(
    argv: list[str], env: Mapping[str, str], log: Path, shielded: Iterable[signal.Signals] = ()
) -> subprocess.Popen[bytes]:
    """torchrun as a child of this process, with which it dies; from the main thread only.

    `shielded` signals are kept from it, which would die of them; its workers unblock what they can handle.

    Raises:
        OSError: it cannot be started.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            preexec_fn=dies_with(os.getpid(), shielded),
        )


def dies_with(parent: int, shielded: Iterable[signal.Signals] = ()) -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGKILL when the thread that starts it ends, so start it from the main one."""
    libc = ctypes.CDLL(None)

    def set_death_signal() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        signal.pthread_sigmask(signal.SIG_BLOCK, shielded)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


@dataclass
class Child:
    """A run's attempt that this process started; it dies with this process (PR_SET_PDEATHSIG)."""

    run_dir: RunDir
    attempt: Attempt
    process: subprocess.Popen[bytes]
    layout: Layout
    locks: Sequence[FileLock]
    """Of the GPUs or cores that it was given."""
    told: bool = False

    @classmethod
    def start(
        cls,
        run_dir: RunDir,
        data_dir: Path,
        layout: Layout,
        gpus: Sequence[str] = (),
        locks: Sequence[FileLock] = (),
        known: Mapping[str, Any] | None = None,
    ) -> Child:
        """Begin an attempt on this machine; from the main thread only, with which the child ends.

        `locks` are those of its `gpus` or cores, let go at its end; `known` is what else start.json says.

        Raises:
            OSError: it cannot be written or started.
        """

        def argv(number: int) -> list[str]:
            return command(run_dir.path, data_dir, layout, attempt=number)

        attempt = begin(run_dir, argv, layout, {"gpus": list(gpus), "gpus_held": len(gpus), **(known or {})})
        process = start_torchrun(argv(attempt.number), environment(os.environ, layout, gpus), attempt.log())
        attempt.write("agent", process_record(process.pid))
        return cls(run_dir, attempt, process, layout, locks)

    def tell_to_stop(self) -> None:
        """Once: a second SIGTERM would have torchrun give up waiting."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def outcome(self, *, told_to_stop: bool = False) -> dict[str, Any]:
        """How it ended, once it has, for the attempt's record (`outcome.outcome`); its GPUs and cores are let go."""
        ended = outcome(self.run_dir, self.attempt, self.process.returncode, told_to_stop=told_to_stop)
        for lock in self.locks:
            lock.release()
        return {**ended, "time": time.time()}


def code_state() -> tuple[dict[str, Any], str]:
    """Which code runs: commit and uncommitted changes of kdcluster's checkout and of the working directory.

    Returns ({"kdcluster", "trainer_code", "git": {folder: {"commit", "dirty"}}}, the diff of what is uncommitted).
    """
    git: dict[str, Any] = {}
    diffs = ""
    for folder in (Path(kdcluster.__file__).resolve().parent, Path.cwd()):
        root = (_git(folder, "rev-parse", "--show-toplevel") or "").strip()
        if not root or root in git:
            continue
        commit = _git(root, "rev-parse", "HEAD")
        git[root] = {"commit": commit and commit.strip(), "dirty": bool(_git(root, "status", "--porcelain"))}
        # Not by the user's own diff program, nor of files made readable: git apply has to understand it.
        diffs += _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD") or ""
    return {"kdcluster": kdcluster.__version__, "trainer_code": trainer_code(), "git": git}, diffs


def _git(folder: Path | str, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
