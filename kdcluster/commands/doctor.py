"""What a submission here, or on a cluster, would need: each line is ok, or says what to do."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kdcluster import __version__
from kdcluster.errors import KdclusterError
from kdcluster.inputs import told
from kdcluster.launch.backend import Finding
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.preflight import preflight
from kdcluster.plan import Plan
from kdcluster.processes import threads_available

ENOUGH_GIB = 5.0
"""Room for a ViT-Base: three checkpoints of 1 GiB, two files of weights, the decoded images."""


def examine(plan: Plan | None, root: Path, data_dir: Path) -> Iterator[Finding]:
    """Every check, the cheap ones first; with a plan also its models, weights and data."""
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")
    yield Finding("kdcluster", True, __version__)
    yield Finding("cpu", True, f"{threads_available()} cores that this process may use")
    yield _gpus()
    for name, folder in (("runs directory", root), ("data directory", data_dir)):
        yield _writable(name, folder)
        yield _space(name, folder)
    yield _locks(root)
    yield from _torch_side(plan, data_dir)


def _gpus() -> Finding:
    try:
        gpus = visible_gpus()
    except KdclusterError as error:
        return Finding("gpus", False, str(error), "mend the driver, or hide the GPUs with CUDA_VISIBLE_DEVICES=")
    return Finding("gpus", True, f"{len(gpus)} visible to the driver" if gpus else "none: runs use the CPU")


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
    visible = visible_gpus()
    if visible and not torch["devices"]:
        yield Finding("cuda", False, "the driver shows GPUs, torch sees none", "install a CUDA build of torch")
    if plan:
        yield from _inputs(plan, data_dir)
        yield Finding("models", True, ", ".join(sorted({run.model.model for run in plan.runs})))
    for note in found["notes"]:
        yield Finding("to fetch", True, note)
