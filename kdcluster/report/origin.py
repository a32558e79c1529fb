"""Where an experiment's numbers come from: attempts and what they cost, code, versions, commands, settings."""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.history import Record, history
from kdcluster.plan import Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.settings import Setting, of_experiment
from kdcluster.wording import count

DIFF = "code.diff"
LONGEST_DIFF = 20_000
"""Characters of uncommitted changes that a page shows; the run directory has the rest."""

Key = TypeVar("Key", bound=Hashable)
Pairs = tuple[tuple[str, str], ...]
Checkouts = tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Made:
    """With what some runs were made, all of them alike: by the newest attempt of each."""

    runs: tuple[str, ...]
    versions: Pairs
    """(what, version): kdcluster, the digest of its trainer, Python, packages."""
    where: str
    """Device, processes, threads, precision."""


@dataclass(frozen=True)
class Commit:
    """The state of the checkouts from which some runs were started."""

    runs: tuple[str, ...]
    of: Checkouts
    """(folder, commit, whether there were uncommitted changes) of each."""
    changed: tuple[int, int]
    """Lines and files that were not committed, as far as a diff has them."""
    diff: str
    """These, the beginning of it; empty where all was committed, and where it is not to be shown."""
    diff_file: Path | None
    """Where that stands, if it does."""


@dataclass(frozen=True)
class Origin:
    """Of an experiment."""

    records: Mapping[str, Sequence[Record]]
    """Run -> its attempts, oldest first; only of runs that have begun."""
    made: tuple[Made, ...]
    commits: tuple[Commit, ...]
    submitted: tuple[tuple[str, ...], ...]
    """The arguments of each `kdcluster submit` that started one of its runs."""
    commands: Mapping[str, Sequence[str]]
    """Run -> the command of its newest attempt."""
    settings: Mapping[str, Setting]
    file: str
    """The experiment's."""
    hosts: tuple[str, ...] = ()
    """Where it was made, and where it is looked at: names, and SLURM's of several nodes."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Folders and files -> what others may call them (public.py)."""


def read(loaded: LoadedExperiment, runs: Iterable[Run], root: Path, data_dir: Path) -> Origin:
    """All of it; `runs` with the stores."""
    dirs = {run.id: RunDir(root, run.id) for run in runs}
    newest = {run_id: attempt for run_id, run_dir in dirs.items() if (attempt := run_dir.newest())}
    made, commits = _alike(newest, _versions), _alike(newest, _checkouts)
    return Origin(
        {run_id: found for run_id, run_dir in dirs.items() if (found := history(run_dir))},
        tuple(Made(ids, *how) for how, ids in made.items()),
        tuple(
            Commit(ids, of, counted(diff), diff[:LONGEST_DIFF], newest[ids[0]].path / DIFF)
            for (of, diff), ids in commits.items()
            if of
        ),
        tuple(dict.fromkeys(tuple(words) for run_dir in dirs.values() if (words := run_dir.submitted()))),
        {run_id: _command(attempt) for run_id, attempt in newest.items()},
        of_experiment(loaded),
        str(loaded.path),
        tuple({socket.gethostname(), *(host for run_dir in dirs.values() for host in _hosts(run_dir))}),
        _places([root, data_dir], [loaded.path, Path.cwd(), *map(Path, loaded.digests), *_folders(commits)]),
    )


def _hosts(run_dir: RunDir) -> Iterator[str]:
    """Of all its attempts, as SLURM and as they themselves call them."""
    for attempt in run_dir.attempts():
        start = attempt.read("start")
        told = (start.get("host"), start.get("nodes"), _block(start, "supervisor").get("host"))
        yield from (host for host in told if isinstance(host, str))


def _folders(commits: Iterable[tuple[Checkouts, str]]) -> Iterator[Path]:
    return (Path(folder) for of, _ in commits for folder, *_ in of)


def _places(ours: Sequence[Path], others: Iterable[Path]) -> dict[str, str]:
    """What others have elsewhere, and by their last part other folders and files; also without links."""
    found: dict[str, str] = {}
    for path in others:
        found |= dict.fromkeys((str(path), str(path.resolve())), f"/{path.name}")
        found |= dict.fromkeys((str(path.parent), str(path.resolve().parent)), f"/{path.parent.name}")
    for path, name in zip(ours, ("RUNS", "DATA"), strict=True):
        found |= dict.fromkeys((str(path), str(path.resolve())), name)
    return {**found, str(Path.home()): "/HOME"}


def counted(diff: str) -> tuple[int, int]:
    """Lines that a diff of git adds or takes, and files in which it does so."""
    lines, files, within = 0, 0, False
    for line in diff.splitlines():
        if line.startswith("diff --git "):
            files, within = files + 1, False
        elif line.startswith("@@"):
            within = True
        elif within and line.startswith(("+", "-")):
            lines += 1
    return lines, files


def _alike(newest: Mapping[str, Attempt], told: Callable[[Attempt], Key]) -> dict[Key, tuple[str, ...]]:
    """What is told of attempts -> the runs of which it is."""
    found: dict[Key, tuple[str, ...]] = {}
    for run_id, attempt in newest.items():
        key = told(attempt)
        found[key] = (*found.get(key, ()), run_id)
    return found


def _versions(attempt: Attempt) -> tuple[Pairs, str]:
    trainer, code = attempt.read("trainer"), _block(attempt.start, "code")
    told = [("kdcluster", code.get("kdcluster")), ("its trainer (digest)", str(code.get("trainer_code") or "")[:12])]
    told += [("python", trainer.get("python")), *sorted(_block(trainer, "versions").items())]
    return tuple((name, str(version)) for name, version in told if version), _where(trainer)


def _checkouts(attempt: Attempt) -> tuple[Checkouts, str]:
    git = _block(_block(attempt.start, "code"), "git")
    states = {folder: _block(git, folder) for folder in git}
    known = ((folder, one) for folder, one in states.items() if one.get("commit"))
    of = tuple((folder, str(one["commit"]), bool(one.get("dirty"))) for folder, one in known)
    return of, _diff(attempt)


def _diff(attempt: Attempt) -> str:
    try:
        return (attempt.path / DIFF).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _block(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a record that only people read; empty where it is none."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _where(trainer: Mapping[str, Any]) -> str:
    device = trainer.get("device_name") or trainer.get("device")
    if not device:
        return ""
    parts = [str(device), *(count(trainer[key], word) for key, word in _COUNTED if isinstance(trainer.get(key), int))]
    amp = {"none": "float32", "bf16": "bf16"}.get(str(trainer.get("amp")))
    return ", ".join([*parts, *([amp] if amp else []), *["compiled"] * bool(trainer.get("compiled"))])


_COUNTED = (("procs", "process"), ("threads", "thread"))


def _command(attempt: Attempt) -> list[str]:
    found = attempt.start.get("command")
    return [str(word) for word in found] if isinstance(found, list) else []
