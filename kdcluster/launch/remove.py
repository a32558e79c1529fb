"""Delete runs: only what nothing needs, and only what is not going on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdcluster.errors import ConfigError
from kdcluster.launch.status import statuses_of
from kdcluster.runs import RunDir, run_dirs
from kdcluster.states import LIVE, State


def check(chosen: Sequence[RunDir], root: Path) -> None:
    """Refuse to delete what is going on or what another run needs.

    Raises:
        ConfigError: each such run, with what to do.
    """
    ids = {run_dir.id for run_dir in chosen}
    found = statuses_of(run_dirs(root))
    problems = [
        f"{run_dir.id} is {found[run_dir].state}; cancel it first" for run_dir in chosen if found[run_dir].state in LIVE
    ]
    for run_dir, status in found.items():
        needed = ids.intersection(run_dir.load().needs)
        if run_dir.id not in ids and needed:
            what = "and its retention in the table" if status.state == State.DONE else "which is not done"
            problems.append(f"{needed.pop()} is needed by {run_dir.id}, {what}; delete that too, or not this")
    if problems:
        raise ConfigError(*problems)


def size(run_dir: RunDir) -> int:
    """Bytes below a run directory."""
    return sum(path.stat().st_size for path in run_dir.path.rglob("*") if path.is_file() and not path.is_symlink())


def remove(chosen: Iterable[RunDir]) -> None:
    """Delete the directories; renamed first, so that a half-deleted one is never taken for a run."""
    for run_dir in chosen:
        aside = run_dir.path.with_name(f".deleted-{run_dir.id}")
        run_dir.path.rename(aside)
        shutil.rmtree(aside)
