"""Stop runs and keep what they have; delete runs that nothing needs, or their checkpoints. All take the submit lock.

Stopping goes from asking to killing by itself: a marker in the run directory and the place's own way
(`Backend.cancel`), then, for what is still there on this machine, SIGKILL for the whole tree.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from kdcluster import saved
from kdcluster.errors import ConfigError, WaitTimeout
from kdcluster.files import write_json
from kdcluster.launch import backend
from kdcluster.launch.damaged import who
from kdcluster.launch.status import Status, statuses_of
from kdcluster.launch.submission import one_at_a_time
from kdcluster.ownership import foreign
from kdcluster.plan import Plan
from kdcluster.processes import is_alive, is_stopped, kill_tree
from kdcluster.run import STORE, Run
from kdcluster.runs import RunDir, run_dirs
from kdcluster.states import LIVE, State
from kdcluster.wording import command, count, one_line

GRACE_S = 45.0
"""How long runs have to save: torchrun gives its processes 30 s before it kills them itself."""
STOPPED_S = 5.0
"""How long, where a process of the run is stopped and will do nothing."""
GONE_S = 45.0
"""How long what was killed may take to be gone."""
POLL_S = 0.2
ASK_S = 2.0
"""Between two questions to a place."""
DELETED = ".deleted-"


def shared(plan: Plan, root: Path) -> dict[str, list[str]]:
    """The plan's runs that other live experiments want too: run id -> those experiments.

    An experiment is live while one of its runs that is not in this plan is queued or running.
    """
    ids = {run.id for run in plan.runs}
    strangers = _live(run_dir for run_dir in run_dirs(root) if run_dir.id not in ids)
    live = {name for run_dir in strangers for name in run_dir.experiments()} - plan.wanted.keys()
    wanted = {run_id: sorted(live.intersection(RunDir(root, run_id).experiments())) for run_id in ids}
    return {run_id: names for run_id, names in wanted.items() if names}


def going_on(plan: Plan, root: Path) -> list[str]:
    """Live runs that were started for the plan's experiments and are not in it: of other settings, or of a sweep."""
    ids = {run.id for run in plan.runs}
    theirs = [one for one in run_dirs(root) if one.id not in ids and plan.wanted.keys() & set(one.experiments())]
    return [run_dir.id for run_dir in _live(theirs)]


def cancel(run_ids: Iterable[str], root: Path) -> dict[str, State]:
    """Mark runs that are queued or running, or may be, and wait until none of their processes is left.

    Returns the state of each run that was live.

    Raises:
        WaitTimeout: one of them is still there, and not on this machine.
        KdclusterError: its place does not answer; the run is marked, and a task or supervisor of it obeys that.
    """
    if not root.is_dir():
        return {}
    with one_at_a_time(root, "cancel"):  # a submit that is under way has then started what it starts
        live = _live(RunDir(root, run_id) for run_id in run_ids)
        _refuse_closed(live)
        for run_dir in live:
            run_dir.mark_cancelled()
        ends_s = backend.cancel(live)
    started = time.monotonic()
    while still := _live((one for one in live if one.is_cancelled()), ASK_S):  # not what a later submit has taken back
        waited_s = time.monotonic() - started
        for run_dir in still:
            if waited_s > (STOPPED_S if _is_stopped(run_dir) else GRACE_S):
                kill(run_dir)
        if waited_s > max(GRACE_S, ends_s) + GONE_S:
            lines = [one_line(f"{run_dir.id}: {status.state}: {status.reason}") for run_dir, status in still.items()]
            told = f"still there {waited_s:.0f} s after they were told to stop; marked, to stop once they hear of it:"
            raise WaitTimeout("\n".join([told, *lines]))
        time.sleep(POLL_S)
    return {run_dir.id: status.state for run_dir, status in statuses_of(live).items()}


def _live(run_dirs: Iterable[RunDir], within_s: float = 0.0) -> dict[RunDir, Status]:
    found = statuses_of(run_dirs, within_s)
    return {run_dir: status for run_dir, status in found.items() if status.state in LIVE or status.unknown}


def _refuse_closed(run_dirs: Iterable[RunDir]) -> None:
    """Refuse, of several runs together, where one is another user's, who lets nobody else write there.

    Raises:
        ConfigError: with each of them.
    """
    closed = [one for one in run_dirs if one.path.exists() and not os.access(one.path, os.W_OK)]
    if closed:
        raise ConfigError(*(f"{one.path} may not be changed by you; ask its owner" for one in closed))


def _is_stopped(run_dir: RunDir) -> bool:
    """Whether a process that would have to obey is stopped, on this machine."""
    newest, (ticket, _) = run_dir.newest(), who(run_dir.ticket)
    agent = newest.read("agent") if newest else {}
    return is_stopped(agent) or bool(ticket and ticket.backend == "local" and is_stopped(ticket.ref))


def kill(run_dir: RunDir) -> None:
    """End what is left of a marked run on this machine, and write down what its supervisor cannot."""
    if run_dir.holds() != run_dir.id or foreign(run_dir.path):
        return  # a copy, whose processes may be another run's; or somebody else says which processes they are
    newest, (ticket, _) = run_dir.newest(), who(run_dir.ticket)
    if newest is not None:
        kill_tree(newest.read("agent"))
    if newest is not None and not newest.read("outcome") and (ticket is None or newest.number > ticket.after_attempt):
        starter = newest.read("start").get("supervisor") or {}
        here = starter.get("host") == socket.gethostname()  # of another host nobody knows whether it is gone
        if here and (not is_alive(starter) or is_stopped(starter)):
            words = "killed: it did not stop by itself"
            newest.write_last("outcome", {"state": State.CANCELLED, "reason": words, "time": time.time()})
    elif ticket is not None and ticket.backend == "local" and is_stopped(ticket.ref):
        run_dir.drop_ticket()  # its supervisor looks at it before it starts the run


# Deleting


def check(chosen: Sequence[RunDir], root: Path) -> None:
    """Refuse to delete what is going on, what may be, or what another run needs.

    Raises:
        ConfigError: each such run, with what to do.
    """
    ids = [run_dir.id for run_dir in chosen]
    found = statuses_of(run_dirs(root))
    _refuse_closed(chosen)
    problems = []
    for run_dir in chosen:
        status = found.get(run_dir)
        if status and (status.state in LIVE or status.unknown):
            what = f"{status.state}, as far as is known ({status.unknown})" if status.unknown else status.state
            problems.append(f"{run_dir.id} is {what}; cancel it first")
    too = list(ids)
    for run_id, needed_by in needing(chosen, root).items():
        if users := [user for user in needed_by if user.id not in ids]:
            done = sum(
                user in found and found[user].state == State.DONE and user.known()[0].role != STORE for user in users
            )
            why = f"{done} done, whose retention in the table would be gone" if done else "no student is done"
            problems.append(f"{run_id} is needed by {count(len(users), 'run')} ({why})")
            too += [user.id for user in users if user.id not in too]
    if len(too) > len(ids):
        where = () if root == Path("runs").absolute() else ("--runs-dir", str(root))
        problems.append(f"to delete these, too: kdcluster rm {command([*too, *where])}")
    if problems:
        raise ConfigError(*problems)


def needing(
    chosen: Sequence[RunDir], root: Path, how: Callable[[Run], list[str]] = lambda run: run.needs
) -> dict[str, list[RunDir]]:
    """Id of each run -> the runs of a runs directory that need it, as theirs says; `how` they need it.

    A config.yaml is read as YAML only where the id of another one of them stands in its text.
    """
    found: dict[str, list[RunDir]] = {run_dir.id: [] for run_dir in chosen}
    odd = any(not _ID.fullmatch(os.fsencode(run_id)) for run_id in found)  # a folder that somebody has renamed
    for user in run_dirs(root):
        try:
            named = {name.decode() for name in _ID.findall(user.config.read_bytes())}
        except OSError:
            continue  # it cannot say what it needs
        if odd or found.keys() & named - {user.id}:
            for need in found.keys() & how(user.known()[0]):
                found[need].append(user)
    return found


_ID = re.compile(rb"[\w.-]+-s\d+-[0-9a-f]{8}")


def files(run_dir: RunDir) -> dict[Path, int]:
    """The files of a run by their path in its folder, and their sizes in bytes; nothing behind a link."""
    if run_dir.path.is_symlink():
        return {}
    paths = (path for path in sorted(run_dir.path.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path.relative_to(run_dir.path): path.lstat().st_size for path in paths}


def remove(chosen: Sequence[RunDir], root: Path, experiments: Collection[str] = ()) -> None:
    """Check again and delete, with what an interrupted call has left; of a link only the link.

    Renamed first, so that a half-deleted one is never taken for a run.

    Args:
        chosen: the runs.
        root: their runs directory.
        experiments: that are deleted with them, and want no run that stays any more.

    Raises:
        ConfigError: as `check`.
    """
    with one_at_a_time(root, "rm"):
        check(chosen, root)
        for run_dir in chosen:
            if run_dir.path.is_symlink():
                run_dir.path.unlink()
            elif run_dir.path.exists():  # not already deleted by another rm
                run_dir.path.rename(Path(tempfile.mkdtemp(dir=root, prefix=DELETED)) / run_dir.id)
        for left in root.glob(f"{DELETED}*"):
            shutil.rmtree(left)
        for run_dir in run_dirs(root) if experiments else ():
            wanted = [name for name in run_dir.experiments() if name not in experiments]
            if wanted != run_dir.experiments() and os.access(run_dir.path, os.W_OK):
                write_json(run_dir.path / "experiments.json", wanted)


# Of runs that are done, the checkpoints alone


def checkpoints(run_dir: RunDir) -> dict[Path, int]:
    """The checkpoints of a run, with their sizes in bytes; nothing behind a link."""
    if run_dir.path.is_symlink() or run_dir.checkpoints.is_symlink():
        return {}
    paths = [saved.path_of(run_dir.checkpoints, step) for step in saved.steps(run_dir.checkpoints)]
    return {path: path.stat().st_size for path in paths if not path.is_symlink()}


def needing_checkpoints(chosen: Iterable[RunDir]) -> dict[RunDir, str]:
    """Those of some runs that go on from their checkpoints, or are mended from them, and why."""
    found = {}
    for run_dir, status in statuses_of(chosen).items():
        if status.state != State.DONE or status.damage:
            found[run_dir] = f"it is {status.state}" + f", and {status.damage}" * bool(status.damage)
        elif problem := run_dir.weights_problem("best"):
            found[run_dir] = f"its best weights are {problem}"
    return found


def remove_checkpoints(chosen: Sequence[RunDir], root: Path) -> None:
    """Delete the checkpoints of runs, but of those that need them by now.

    Raises:
        ConfigError: one may not be changed by this user.
    """
    with one_at_a_time(root, "rm"):
        _refuse_closed(chosen)
        needed = needing_checkpoints(chosen)
        for run_dir in chosen:
            for path in checkpoints(run_dir) if run_dir not in needed else ():
                path.unlink(missing_ok=True)
