"""Where an experiment's numbers come from: attempts and what they cost, code, versions, commands, settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    of: tuple[tuple[str, str, bool], ...]
    """(folder, commit, whether there were uncommitted changes) of each."""
    diff: str
    """What was not committed, the beginning of it; empty where all was."""
    diff_file: Path
    """Where that stands, if it does."""


@dataclass(frozen=True)
class Origin:
    """Of an experiment."""

    records: Mapping[str, Sequence[Record]]
    """Run -> its attempts, oldest first; only of runs that have begun."""
    made: tuple[Made, ...]
    commits: tuple[Commit, ...]
    submitted: tuple[str, ...]
    """The arguments of each `kdcluster submit` that started one of its runs."""
    commands: Mapping[str, Sequence[str]]
    """Run -> the command of its newest attempt."""
    settings: Mapping[str, Setting]
    file: str
    """The experiment's."""


def read(loaded: LoadedExperiment, runs: Iterable[Run], root: Path) -> Origin:
    """All of it; `runs` with the stores."""
    dirs = {run.id: RunDir(root, run.id) for run in runs}
    newest = {run_id: attempt for run_id, run_dir in dirs.items() if (attempt := run_dir.newest())}
    made, commits = _alike(newest, _versions), _alike(newest, _checkouts)
    return Origin(
        {run_id: found for run_id, run_dir in dirs.items() if (found := history(run_dir))},
        tuple(Made(ids, *how) for how, ids in made.items()),
        tuple(Commit(ids, *how, newest[ids[0]].path / DIFF) for how, ids in commits.items() if how[0]),
        tuple(dict.fromkeys(words for run_dir in dirs.values() if (words := run_dir.submitted()))),
        {run_id: _command(attempt) for run_id, attempt in newest.items()},
        of_experiment(loaded),
        str(loaded.path),
    )


def _alike(newest: Mapping[str, Attempt], told: Callable[[Attempt], Key]) -> dict[Key, tuple[str, ...]]:
    """What is told of attempts -> the runs of which it is."""
    found: dict[Key, tuple[str, ...]] = {}
    for run_id, attempt in newest.items():
        key = told(attempt)
        found[key] = (*found.get(key, ()), run_id)
    return found


def _versions(attempt: Attempt) -> tuple[Pairs, str]:
    trainer, code = attempt.read("trainer"), _block(attempt.start, "code")
    told = [("kdcluster", code.get("kdcluster")), ("trainer", str(code.get("trainer_code") or "")[:12])]
    told += [("python", trainer.get("python")), *sorted(_block(trainer, "versions").items())]
    return tuple((name, str(version)) for name, version in told if version), _where(trainer)


def _checkouts(attempt: Attempt) -> tuple[tuple[tuple[str, str, bool], ...], str]:
    git = _block(_block(attempt.start, "code"), "git")
    states = {folder: _block(git, folder) for folder in git}
    known = ((folder, one) for folder, one in states.items() if one.get("commit"))
    return tuple((folder, str(one["commit"]), bool(one.get("dirty"))) for folder, one in known), _diff(attempt)


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


def _diff(attempt: Attempt) -> str:
    try:
        with (attempt.path / DIFF).open(encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST_DIFF)
    except OSError:
        return ""


def _command(attempt: Attempt) -> list[str]:
    found = attempt.start.get("command")
    return [str(word) for word in found] if isinstance(found, list) else []
