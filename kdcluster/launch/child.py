"""One torchrun as a child of this process: how it is started, told to stop, and what is written when it ends."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from kdcluster.launch.agent import dies_with
from kdcluster.launch.code import code_state
from kdcluster.launch.outcome import outcome
from kdcluster.launch.torchrun import Layout, command, environment
from kdcluster.processes import process_record
from kdcluster.runs import Attempt, RunDir


@dataclass
class Child:
    """A run's attempt that this process started; it dies with this process (PR_SET_PDEATHSIG)."""

    run_dir: RunDir
    attempt: Attempt
    process: subprocess.Popen[bytes]
    layout: Layout
    output: IO[bytes]
    locks: list[FileLock] = field(default_factory=list)
    """Of the GPUs that it was given."""
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
        """Begin an attempt; from the main thread only, with which the child ends.

        Args:
            run_dir: the run.
            data_dir: decoded arrays.
            layout: on what it runs.
            gpus: that it gets.
            locks: of these.
            known: what else is to be known of the attempt, for its start.json.

        Raises:
            OSError: it cannot be written or started.
        """
        argv = command(run_dir.path, data_dir, layout)
        code, diff = code_state()
        attempt = run_dir.start_attempt(
            {
                "supervisor": process_record(os.getpid()),
                "command": argv,
                "device": layout.device,
                "procs": layout.procs,
                "threads": layout.threads,
                "gpus": list(gpus),
                "gpus_held": len(gpus),
                "code": code,
                "from_step": run_dir.saved_step(),
                **(known or {}),
            }
        )
        if diff:
            (attempt.path / "code.diff").write_text(diff)
        output = attempt.log().open("ab")
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(os.environ, layout, attempt=attempt.number, gpus=gpus),
            preexec_fn=dies_with(os.getpid()),
        )
        attempt.write("agent", process_record(process.pid))
        return cls(run_dir, attempt, process, layout, output, list(locks))

    def tell_to_stop(self) -> None:
        """Once: a second SIGTERM would have torchrun give up waiting."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def outcome(self, *, told_to_stop: bool = False) -> dict[str, Any]:
        """How it ended, once it has, for the attempt's record; its log and its GPUs are let go.

        Args:
            told_to_stop: this process stopped it, though nobody cancelled the run.
        """
        self.output.close()
        ended = outcome(self.run_dir, self.attempt, self.process.returncode, told_to_stop=told_to_stop)
        for lock in self.locks:
            lock.release()
        return {**ended, "time": time.time()}
