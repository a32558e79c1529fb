"""A run's logs, all ranks labelled, from the file's beginning or followed while they grow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from kdcluster import records
from kdcluster.history import headline, history
from kdcluster.launch.status import KNOWN_S, run_status
from kdcluster.runs import RunDir
from kdcluster.states import ENDED, State

POLL_S = 0.2
ASK_S = 1.0
"""How often the run's state is asked for, which costs more than a look at its files."""


def lines(run_dir: RunDir, *, follow: bool = False, rank: int | None = None) -> Iterator[str]:
    """`[attempt 1 rank 0] …` for every line of every attempt, oldest first; before them what SLURM jobs said.

    Of several attempts, each begins with where and when it ran, and how it ended.

    Args:
        run_dir: the run.
        follow: go on until the run has ended; a new attempt is picked up.
        rank: this rank alone.
    """
    read: dict[Path, int] = {}
    said: set[tuple[int, bool]] = set()
    ended, asked = False, -math.inf
    while True:
        if time.monotonic() >= asked + ASK_S:  # before reading, so that nothing is missed
            ended, asked = run_status(run_dir, KNOWN_S).state in (*ENDED, State.PLANNED), time.monotonic()
        if rank is None:
            logs = {path.name: path for path in run_dir.path.glob("slurm/*/*.log")}
            for job, name in records.numbered(logs, "", ".log"):
                yield from (f"[job {job}] {line}" for line in _new(logs[name], read, ended or not follow))
        attempts = history(run_dir)
        for record in attempts:
            attempt = run_dir.attempt(record.attempt)
            stage = (attempt.number, record.state is not None)
            if rank is None and len(attempts) > 1 and stage not in said:  # once when it starts, once when it has ended
                said.add(stage)
                yield f"[attempt {attempt.number}] {headline(record)}"
            for label, path in attempt.logs():
                if rank is None or label == f"rank {rank}":
                    whole = ended or not follow
                    yield from (f"[attempt {attempt.number} {label}] {line}" for line in _new(path, read, whole))
        if ended or not follow:
            return
        time.sleep(POLL_S)


def _new(path: Path, read: dict[Path, int], whole: bool) -> list[str]:
    """Lines that were added to a file since the last call; an unfinished last line only where `whole`."""
    try:
        with path.open("rb") as file:
            file.seek(read.get(path, 0))
            data = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        said = path in read
        read[path] = read.get(path, 0)
        return [] if said else [f"{path.name} cannot be read: {error.strerror}"]
    end = len(data) if whole else data.rfind(b"\n") + 1
    read[path] = read.get(path, 0) + end
    return data[:end].decode(errors="replace").splitlines()
