"""What whoever looks at runs again and again keeps between two looks: that of 1,000 runs all but a few have ended.

A run that waits, runs, or of which something is unknown is looked at in full each time. What was found out of another
one stands while its folders are as they were, in which every record that is written shows (aside, then renamed), and
while its place says the same of it. A record that is damaged in place shows with the next change, and in a command that
looks once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from kdcluster.errors import Damaged
from kdcluster.launch.backend import Seen, given_to
from kdcluster.rereading import Stamp, is_settled, stamp_of
from kdcluster.runs import RunDir, renamed
from kdcluster.states import LIVE, State
from kdcluster.tickets import Ticket


class _Status(Protocol):
    """What counts of a status (status.py)."""

    @property
    def state(self) -> State: ...

    @property
    def unknown(self) -> str: ...


Status = TypeVar("Status", bound=_Status)
Folders = tuple[tuple[Path, Stamp | None], ...]


@dataclass
class _Look(Generic[Status]):
    """One run as it was found."""

    folders: Folders
    given: Ticket | Damaged | None
    seen: Seen | None = None
    status: Status | None = None


@dataclass
class Watching(Generic[Status]):
    """Kept from look to look by one who watches."""

    _last: dict[RunDir, _Look[Status]] = field(default_factory=dict)
    _renamed: tuple[Stamp | None, dict[str, str]] | None = None

    def given_to(self, run_dir: RunDir) -> Ticket | None:
        """As backend.given_to; a look at a run begins with it.

        Raises:
            Damaged: what would say it cannot be read.
        """
        last = self._last.get(run_dir)
        if last is None or last.status is None or _stamps(folder for folder, _ in last.folders) != last.folders:
            last = self._last[run_dir] = _Look(_folders(run_dir), _given(run_dir))
        if isinstance(last.given, Damaged):
            raise last.given
        return last.given

    def derived(self, run_dir: RunDir, seen: Seen | None, derive: Callable[[RunDir, Seen | None], Status]) -> Status:
        """As `derive` finds it."""
        last = self._last[run_dir]
        if last.status is not None and last.seen == seen:
            return last.status
        status = derive(run_dir, seen)
        stands = status.state not in LIVE and not status.unknown and _are_settled(last.folders)
        last.seen, last.status = seen, status if stands else None
        return status

    def renamed(self, root: Path) -> dict[str, str]:
        """As runs.renamed."""
        stamp = _stamp(root)
        if self._renamed is None or self._renamed[0] != stamp or stamp is None or not is_settled(stamp):
            self._renamed = stamp, renamed(root)
        return self._renamed[1]


def _given(run_dir: RunDir) -> Ticket | Damaged | None:
    try:
        return given_to(run_dir)
    except Damaged as error:
        return error


def _folders(run_dir: RunDir) -> Folders:
    """Those that hold the records of a run and of its newest attempt, and what it has saved."""
    newest = run_dir.newest()
    folders = (run_dir.path, run_dir.path / "attempts", run_dir.checkpoints, *([newest.path] if newest else []))
    return _stamps(folders)


def _stamps(folders: Iterable[Path]) -> Folders:
    return tuple((folder, _stamp(folder)) for folder in folders)


def _stamp(folder: Path) -> Stamp | None:
    """None where there is nothing."""
    try:
        return stamp_of(folder.stat())
    except OSError:
        return None


def _are_settled(folders: Folders) -> bool:
    return all(stamp is None or is_settled(stamp) for _, stamp in folders)
