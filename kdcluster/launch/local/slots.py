"""What this machine has only so much of, GPUs and cores: a lock for each one, so that no two runs share it by accident.

The locks are of this user on this machine, whatever the runs directory, and end with the process that holds them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdcluster import records
from kdcluster.files import write_json
from kdcluster.ownership import locks_folder
from kdcluster.processes import is_alive, process_record, threads_available
from kdcluster.wording import count

NAMED = 1
"""Of how many holders the names are told."""


def own_cores() -> list[str]:
    """The cores that this process may use, by the system's numbers: processes with other ones never meet."""
    return [f"core-{number}" for number in sorted(os.sched_getaffinity(0))[: threads_available()]]


class Slots:
    """GPUs or cores, each behind its lock.

    Args:
        what: "GPU" or "core".
        names: of those that this process may use.
        root: the runs directory for which they are taken.

    Raises:
        KdclusterError: there is no folder of this user for the locks.
    """

    def __init__(self, what: str, names: Sequence[str], root: Path) -> None:
        self.what, self.names, self.root = what, list(names), root
        self._busy: list[str] = []
        if names:
            locks_folder()  # what cannot lock is refused at once, and not when the first run could start

    def take(self, wanted: int, who: str) -> list[tuple[str, FileLock]] | None:
        """So many free ones, locked for a run (or for a sweep), or None while there are not so many: `waits_for`."""
        taken: list[tuple[str, FileLock]] = []
        self._busy = []
        for name in self.names:
            if len(taken) == wanted:
                break
            lock = FileLock(self._path(name, "lock"), is_singleton=False, fallback_to_soft=False)
            try:
                lock.acquire(blocking=False)
                taken.append((name, lock))
            except Timeout:
                self._busy.append(name)
        if len(taken) < wanted:
            for _, lock in taken:
                lock.release()
            return None
        for name, _ in taken:
            holder = {**process_record(os.getpid()), "who": who, "root": str(self.root)}
            write_json(self._path(name, "json"), holder, sync=False)
        return taken

    def waits_for(self, wanted: int) -> str:
        """For what one waits that `take` gave nothing, and who has it, in words."""
        known = filter(None, map(self._holder, self._busy))
        holders = list(dict.fromkeys(known)) or ["another run"]
        more = len(holders) - NAMED
        held = ", ".join(holders[:NAMED]) + (f" and {count(more, 'other')}" if more > 0 else "")
        return f"waits for {count(wanted, self.what)}, held by {held}"

    def _holder(self, name: str) -> str:
        """Who has taken it, as far as that is written down: the process of the last one who had it may be gone."""
        holder: dict[str, Any] | None = records.found(self._path(name, "json"))
        if holder is None or not is_alive(holder):
            return ""
        if holder["root"] == str(self.root):
            return str(holder["who"])
        return f"{holder['who']} in {holder['root']} (pid {holder['pid']})"

    def _path(self, name: str, kind: str) -> Path:
        return locks_folder() / f"{name.replace('/', '-')}.{kind}"
