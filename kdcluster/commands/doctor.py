"""What a submission here, or on a cluster, would need: each line is ok, or says what to do."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from kdcluster import __version__
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import left_out
from kdcluster.errors import KdclusterError
from kdcluster.inputs import arrays_folder, told
from kdcluster.launch import submission
from kdcluster.launch.backend import Finding, Options, choose
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.preflight import preflight
from kdcluster.launch.status import statuses
from kdcluster.plan import Plan
from kdcluster.processes import threads_available
from kdcluster.states import GIVEN_UP, State
from kdcluster.terminal import say, show_json, show_wrapped, width
from kdcluster.wording import count, one_line

ENOUGH_GIB = 5.0
"""Room for a ViT-Base: three checkpoints of 1 GiB, two files of weights, the decoded images."""


def doctor(chosen: Chosen, *, with_job: bool, as_json: bool) -> None:
    """Print each finding as soon as it is there; leave with 1 where one is not good."""
    made = chosen.plan() if chosen.experiments else None
    if not as_json and width() is not None:
        say("looking at this machine; that takes some seconds")
    findings = []
    for finding in examine(made, chosen, with_job=with_job):
        findings.append(finding)
        if not as_json:
            show_wrapped("ok    " if finding.ok else "FAIL  ", f"{finding.what}: {finding.found}")
            if not finding.ok and finding.todo:
                show_wrapped("      ", f"do: {finding.todo}")
    if as_json:
        show_json({"schema": "kdcluster.doctor/1", "findings": [asdict(finding) for finding in findings]})
    if not all(finding.ok for finding in findings):
        sys.exit(1)


def examine(plan: Plan | None, chosen: Chosen, *, with_job: bool) -> Iterator[Finding]:
    """Every check, the cheap ones first; with a plan also what its submit would do, its models, weights and data."""
    root, data_dir = chosen.root, chosen.data
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")
    yield Finding("kdcluster", True, __version__)
    yield Finding("cpu", True, f"{threads_available()} cores that this process may use")
    yield _gpus()
    for name, folder in (("runs directory", root), ("data directory", data_dir)):
        yield _writable(name, folder)
        yield _space(name, folder)
    yield _locks(root)
    yield from _place(plan, chosen, with_job=with_job)
    yield from _torch_side(plan, data_dir)


def _place(plan: Plan | None, chosen: Chosen, *, with_job: bool) -> Iterator[Finding]:
    """Where `kdcluster submit` would start the runs, and whether it would."""
    try:
        there, words = choose(chosen.backend, Options(chosen.cluster, chosen.nodes))
    except KdclusterError as error:
        yield Finding("backend", False, str(error))
        return
    where = words.replace("\n", ": ") or f"running {there.described()}"
    yield Finding("backend", True, f"{there.name}, {where}")
    yield from there.examine(plan, chosen.root, with_job=with_job)
    if plan is None:
        return
    found = statuses(plan, chosen.root)
    wanted = submission.to_start(plan, found, chosen.root)
    try:
        notes = submission.check(plan, found, wanted, chosen.root, there)
    except KdclusterError as error:
        yield Finding("submit", False, one_line(str(error)))
        return
    if any(made.data.path and not arrays_folder(made, chosen.data).exists() for made in map(plan.__getitem__, wanted)):
        notes = [*notes, "its images are not read yet: submit reads all of them first, and refuses what it cannot read"]
    starts = f"{len(wanted) or 'none'} of {count(len(plan.runs), 'run')} would be {there.word}"
    others = [one for run_id, one in found.items() if run_id not in wanted]
    states = Counter(one.state for one in others if one.state not in GIVEN_UP)
    rest = ", ".join(f"{number} {state}" for state, number in states.items())
    rest = "all are done" if states[State.DONE] == len(plan.runs) else rest
    yield Finding("submit", True, "; ".join(filter(None, (starts, rest, left_out(others), *notes))))


def _gpus() -> Finding:
    try:
        gpus = visible_gpus()
    except KdclusterError as error:
        return Finding("gpus", False, str(error), "mend the driver, or hide the GPUs with CUDA_VISIBLE_DEVICES=")
    return Finding("gpus", True, f"{len(gpus)} visible to the driver" if gpus else "none: runs use the CPU")


def _gpus_are_here() -> bool:
    try:
        return bool(visible_gpus())
    except KdclusterError:  # `_gpus` says so
        return False


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _writable(name: str, folder: Path) -> Finding:
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding(name, True, str(folder))
    except OSError as error:
        return Finding(name, False, f"{place}: {error.strerror}", "choose another with --runs-dir or --data-dir")


def _space(name: str, folder: Path) -> Finding:
    free = shutil.disk_usage(_existing(folder)).free / 2**30
    todo = f"free some: a ViT-Base with its checkpoints takes about {ENOUGH_GIB:.0f} GiB"
    return Finding(f"space in the {name}", free >= ENOUGH_GIB, f"{free:.1f} GiB free", todo)


def _locks(root: Path) -> Finding:
    """Whether a lock that one file descriptor holds keeps another out, in the file system of the runs."""
    what = "file locks"
    try:
        with tempfile.TemporaryDirectory(dir=_existing(root), prefix=".kdcluster-doctor-") as folder:
            first, second = (
                FileLock(Path(folder) / "lock", is_singleton=False, fallback_to_soft=False) for _ in range(2)
            )
            with first:
                try:
                    second.acquire(timeout=0)
                except Timeout:
                    return Finding(what, True, "work in the runs directory")
                second.release()
        return Finding(what, False, "two processes get the same lock", "put the runs on a file system with locks")
    except (OSError, NotImplementedError) as error:
        return Finding(what, False, f"do not work: {error}", "put the runs on a file system with locks")


def _inputs(plan: Plan | None, data_dir: Path) -> Iterator[Finding]:
    """What the models will see."""
    for one in told(plan.runs if plan else (), data_dir):
        yield Finding("images", True, one.line)
        yield from (Finding("images", True, note) for note in (*one.notes, *one.warnings))


def _torch_side(plan: Plan | None, data_dir: Path) -> Iterator[Finding]:
    """What only a process with torch can say."""
    try:
        found = preflight(plan.runs if plan else (), data_dir, fetch=False)
    except KdclusterError as error:
        for line in str(error).splitlines():
            yield Finding("models and data", False, line)
        yield from _inputs(plan, data_dir)
        return
    torch = found["torch"]
    yield Finding("torch", True, f"{torch['version']}, {torch['devices'] or 'CPU only'}")
    if not torch["devices"] and _gpus_are_here():
        yield Finding("cuda", False, "the driver shows GPUs, torch sees none", "install a CUDA build of torch")
    if plan:
        yield from _inputs(plan, data_dir)
        yield Finding("models", True, ", ".join(sorted({run.model.model for run in plan.runs})))
    for note in found["notes"]:
        yield Finding("first", True, note)
