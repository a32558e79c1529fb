"""`kdcluster logs`: what runs have said, all ranks labelled, from the beginning or followed while it grows."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from kdcluster import records
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.named import of_name
from kdcluster.commands.progress import SAFE
from kdcluster.history import headline, history
from kdcluster.launch.status import KNOWN_S, Status, last_sign, statuses_of
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import ENDED, State
from kdcluster.terminal import say, show_json, show_log, width
from kdcluster.wording import count

POLL_S = 0.2
ASK_S = 1.0
"""How often the runs' states are asked for, which costs more than a look at their files."""


def logs(chosen: Chosen, name: str, *, follow: bool, rank: int | None, last: int | None, as_json: bool) -> None:
    """Print the log of a run, or of those of an experiment that one wants to read now."""
    experiment, run_dirs = of_name(chosen.root, name)
    found = statuses_of(run_dirs)
    if experiment:
        words, run_dirs = _wanted(experiment, found, follow=follow)
        say(words)
    labels = _labels(run_dirs) if len(run_dirs) > 1 else dict.fromkeys(run_dirs, "")
    for run_dir in run_dirs:
        if labels[run_dir]:
            say(f"  {labels[run_dir]}  {run_dir.id}")
        elif not run_dir.attempts():
            status = found[run_dir]
            say(f"no attempt yet: {status.state}{f', {status.reason}' if status.reason else ''}")
    if follow and width() is not None:
        say(SAFE)
    try:
        short = width() is not None and not as_json
        text = lines(labels, follow=follow, rank=rank, last=last, short=short)
        if as_json:
            ids = [run_dir.id for run_dir in run_dirs]
            document = {"run": ids[0] if len(ids) == 1 else None, "runs": ids, "lines": list(text)}
            return show_json({"schema": "kdcluster.logs/1", **document})
        for line in text:
            show_log(line)
    except KeyboardInterrupt:
        sys.exit(130)


def _wanted(experiment: str, found: Mapping[RunDir, Status], *, follow: bool) -> tuple[str, list[RunDir]]:
    """What to say, and of an experiment's runs those that run, with those that wait where the log is followed; else
    the one that failed last, else the one that was heard of last."""
    live = (State.RUNNING, State.QUEUED) if follow else (State.RUNNING,)
    if going := [run_dir for run_dir, status in found.items() if status.state in live]:
        return (
            f"{count(len(going), 'run')} of {experiment} {'is' if len(going) == 1 else 'are'} {' or '.join(live)}:",
            going,
        )
    begun = {run_dir: newest for run_dir in found if (newest := run_dir.newest())}
    if failed := {run_dir: one for run_dir, one in begun.items() if found[run_dir].state == State.FAILED}:
        latest = _latest(failed)
        return f"no run of {experiment} is running; the last that failed: {latest.id}", [latest]
    if begun:
        latest = _latest(begun)
        return f"no run of {experiment} is running, and none has failed; the last: {latest.id}", [latest]
    return f"no run of {experiment} has begun", []


def _latest(begun: Mapping[RunDir, Attempt]) -> RunDir:
    return max(begun, key=lambda run_dir: last_sign(begun[run_dir]))


def _labels(run_dirs: Iterable[RunDir]) -> dict[RunDir, str]:
    """Role and seed, short beside each line; and the end of the id where that does not tell them apart."""
    runs = {run_dir: run_dir.known()[0] for run_dir in run_dirs}
    short = {run_dir: f"{run.role} s{run.seed}" for run_dir, run in runs.items()}
    often = Counter(short.values())
    return {one: label if often[label] == 1 else f"{label} {one.id[-8:]}" for one, label in short.items()}


def lines(
    labels: Mapping[RunDir, str],
    *,
    follow: bool = False,
    rank: int | None = None,
    last: int | None = None,
    short: bool = False,
) -> Iterator[str]:
    """`[attempt 1 rank 0] …` for every line of every attempt, oldest first; before them what SLURM jobs said.

    Of several attempts, each begins with where and when it ran, and how it ended.

    Args:
        labels: of each run, what its lines begin with before the attempt; "" for one run alone.
        follow: go on until the runs have ended; a new attempt is picked up.
        rank: this rank alone.
        last: of what is there at the beginning, so many lines.
        short: for a terminal: the attempt is named where there are several, rank 0 where it is not alone, and of times
            the date only where it is not today's.
    """
    readers = {run_dir: _Reader(run_dir, label, rank, short) for run_dir, label in labels.items()}
    ended: set[RunDir] = set()
    asked = -math.inf
    while True:
        if time.monotonic() >= asked + ASK_S:  # before reading, so that nothing is missed
            found, asked = statuses_of(readers, KNOWN_S), time.monotonic()
            ended = {run_dir for run_dir, status in found.items() if status.state in (*ENDED, State.PLANNED)}
        new = (line for one, reader in readers.items() for line in reader.new(whole=one in ended or not follow))
        yield from new if last is None else deque(new, last)
        last = None
        if len(ended) == len(readers) or not follow:
            return
        time.sleep(POLL_S)


class _Reader:
    """One run's logs, and how much of them has been read."""

    def __init__(self, run_dir: RunDir, label: str, rank: int | None, short: bool) -> None:
        self.run_dir, self.label, self.rank, self.short = run_dir, label, rank, short
        self._read: dict[Path, int] = {}
        self._said: set[tuple[int, bool]] = set()
        self._today = f"{datetime.now():%Y-%m-%d} "

    def new(self, *, whole: bool) -> Iterator[str]:
        """Lines that were added since the last call; an unfinished last line only where `whole`."""
        if self.rank is None:
            logs = {path.name: path for path in self.run_dir.path.glob("slurm/*/*.log")}
            for job, name in records.numbered(logs, "", ".log"):
                yield from self._labelled(_new(logs[name], self._read, whole), f"job {job}")
        attempts = history(self.run_dir)
        for record in attempts:
            attempt = self.run_dir.attempt(record.attempt)
            where = "" if self.short and len(attempts) == 1 else f"attempt {attempt.number}"
            stage = (attempt.number, record.state is not None)
            several = len(attempts) > 1 or self.label
            if self.rank is None and several and stage not in self._said:  # once when it starts, once when it has ended
                self._said.add(stage)
                yield from self._labelled([headline(record)], where)
            logs_of = attempt.logs()
            if record.state == State.CANCELLED:  # torchrun says that it was told to stop
                logs_of.append(logs_of.pop(0))
            alone = self.short and not any(label.startswith("rank") and label != "rank 0" for label, _ in logs_of)
            for label, path in logs_of:
                if self.rank is None or label == f"rank {self.rank}":
                    shown = "" if alone and label == "rank 0" else label
                    yield from self._labelled(_new(path, self._read, whole), where, shown)

    def _labelled(self, new: Iterable[str], *words: str) -> Iterator[str]:
        """Lines that begin with whose they are, as far as that is not clear."""
        before = " ".join(filter(None, (self.label, *words)))
        for line in new:
            shown = line.removeprefix(self._today) if self.short else line
            yield f"[{before}] {shown}" if before else shown


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
