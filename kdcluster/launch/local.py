"""Submit to this machine: decide what to start, and leave it to one detached supervisor."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock

from kdcluster.errors import KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.launch.gpus import visible_gpus
from kdcluster.launch.status import Status, blocked_by, statuses
from kdcluster.launch.torchrun import Layout, environment, layout, trainer
from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir, threads_available

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """What a submit started, and what it left alone with the state it is in."""

    started: list[str]
    left: dict[str, Status]
    log: Path | None = None


def layouts(plan: Plan) -> dict[str, Layout]:
    """On what each run would run here."""
    undecided = any(run.resources.device == "auto" and run.resources.procs is None for run in plan.runs)
    gpus = len(visible_gpus()) if undecided else 0  # a broken driver does not stop what runs on the CPU
    return {run.id: layout(run.resources, gpus_here=gpus, cores_here=threads_available()) for run in plan.runs}


def check_room(wanted: Mapping[str, Layout]) -> None:
    """Refuse what this machine can never run.

    Raises:
        KdclusterError: more GPUs were asked for than there are.
    """
    most = max((item.procs for item in wanted.values() if item.device == "cuda"), default=0)
    here = len(visible_gpus()) if most else 0
    if most > here:
        raise KdclusterError(
            f"{most} GPU{'s' * (most > 1)} asked for, this machine shows {here or 'none'}; "
            f"ask for fewer with --gpus, or run on the CPU with --procs"
        )


def to_start(plan: Plan, found: Mapping[str, Status], *, retry: bool = False) -> list[str]:
    """The runs that a submit starts, in order: planned and interrupted ones, with `retry` failed ones too."""
    states = {"planned", "blocked", "preempted", "stopped", "lost"} | ({"failed", "cancelled"} if retry else set())
    chosen: list[str] = []
    for run in plan.runs:
        going = {need: Status("queued") if need in chosen else found[need] for need in run.needs}
        unmet = [n for n, s in going.items() if s.state not in ("done", "running", "queued")]
        if found[run.id].state in states and not unmet and not blocked_by(run, going):
            chosen.append(run.id)
    return chosen


def submit(
    plan: Plan, root: Path, data_dir: Path, prepare: Callable[[list[Run]], object], *, retry: bool = False
) -> Submission:
    """Start what is missing under one detached supervisor; a second call starts nothing twice.

    One submit at a time in a runs directory: those that come at the same moment wait, and then find everything
    started.

    Args:
        plan: the runs.
        root: the runs directory.
        data_dir: decoded arrays.
        prepare: called with the runs that are about to be started; fetches what they need, or raises.
        retry: start failed and cancelled runs too.

    Raises:
        KdclusterError: more GPUs than there are, or the supervisor did not come up (with its log).
    """
    root.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(root):
        found = statuses(plan, root)
        chosen = to_start(plan, found, retry=retry)
        left = {run_id: status for run_id, status in found.items() if run_id not in chosen}
        if not chosen:
            return Submission([], left)
        wanted = {run_id: item for run_id, item in layouts(plan).items() if run_id in chosen}
        check_room(wanted)
        prepare([run for run in plan.runs if run.id in chosen])
        for run in plan.runs:
            if run.id in chosen:
                RunDir(root, run.id).prepare(run)
            if RunDir(root, run.id).path.is_dir():
                RunDir(root, run.id).add_experiments(plan.experiments_of(run.id))
        folder = root / ".submissions" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder.mkdir(parents=True)
        values = {"root": str(root), "data_dir": str(data_dir), "runs": chosen}
        write_json(folder / "submission.json", {**values, "layouts": {i: asdict(w) for i, w in wanted.items()}})
        _start_supervisor(folder)
    return Submission(chosen, left, folder / "supervisor.log")


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """The submit lock; where the file system has no locks, attempts and tickets alone protect."""
    lock = FileLock(root / ".submit.lock", fallback_to_soft=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        log.warning("no file locks in %s (%s): do not submit twice at the same moment", root, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _start_supervisor(folder: Path) -> None:
    """Start it in its own session, and return once it has taken the runs over."""
    with (folder / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kdcluster.launch.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while read_json(folder / "supervisor.json") is None:
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        if read_json(folder / "supervisor.json") is None:
            text = (folder / "supervisor.log").read_text(errors="replace").strip()
            raise KdclusterError(f"the supervisor did not come up, so nothing was started; submit again:\n{text}")


def debug(run: Run, root: Path, data_dir: Path, steps: int) -> int:
    """A few steps of one run in one foreground process, in `<root>/debug`, where `breakpoint()` works.

    Returns the process's exit code. A trained teacher is used where there is one, else its start weights.
    """
    run_dir = RunDir(root / "debug", run.id)
    run_dir.prepare(run)
    for need in run.needs:
        link = root / "debug" / need
        if RunDir(root, need).weights("best").is_file() and not link.exists():
            link.symlink_to(root / need)
    where = layout(run.resources, gpus_here=len(visible_gpus()), cores_here=threads_available())
    where = Layout(where.device, 1, where.threads and threads_available())
    argv = [sys.executable, *trainer(run_dir.path, data_dir, where), "--max-steps", str(steps)]
    return subprocess.run(argv, env=environment(os.environ, where, attempt=None)).returncode
