"""What a submission here, or on a cluster, would need: each line is ok, or says what to do."""

from __future__ import annotations

import pickle
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdcluster import __version__
from kdcluster.errors import KdclusterError
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.preflight import preflight
from kdcluster.launch.slurm import ask as scheduler
from kdcluster.launch.slurm import nodes
from kdcluster.launch.slurm.backend import Slurm
from kdcluster.launch.slurm.script import script
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan
from kdcluster.processes import threads_available

ENOUGH_GIB = 5.0
"""Room for a ViT-Base: three checkpoints of 1 GiB, two files of weights, the decoded images."""


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, and where it is not, what to do."""

    what: str
    ok: bool
    found: str
    todo: str = ""


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


def _torch_side(plan: Plan | None, data_dir: Path) -> Iterator[Finding]:
    """What only a process with torch can say."""
    try:
        found = preflight(plan.runs if plan else (), data_dir, fetch=False)
    except KdclusterError as error:
        for line in str(error).splitlines():
            yield Finding("models and data", False, line, "see the message")
        return
    torch = found["torch"]
    yield Finding("torch", True, f"{torch['version']}, {torch['devices'] or 'CPU only'}")
    visible = visible_gpus()
    if visible and not torch["devices"]:
        yield Finding("cuda", False, "the driver shows GPUs, torch sees none", "install a CUDA build of torch")
    if plan:
        yield Finding("models", True, ", ".join(sorted({run.model.model for run in plan.runs})))
    for note in found["notes"]:
        yield Finding("to fetch", True, note)


def examine_cluster(backend: Slurm, plan: Plan | None, root: Path, *, with_job: bool) -> Iterator[Finding]:
    """The profile against what SLURM says; `with_job` also looks from a compute node, by a job of a few seconds."""
    try:
        yield Finding("slurm", True, nodes.version())
        yield from _partition(backend)
        yield _account(backend)
        yield _acceptance(backend, plan, root)
        if with_job:
            yield from _from_a_node(backend, root)
        else:
            yield Finding("compute node", True, "not looked at from there; --with-job does, by a job of a few seconds")
    except KdclusterError as error:
        yield Finding("slurm", False, str(error), "see the message")


def _partition(backend: Slurm) -> Iterator[Finding]:
    given = backend.given
    name = given.partition or "the default partition"
    node = nodes.node_type(given.partition)
    if node is None:
        yield Finding("partition", False, f"SLURM has no {name}", "see `sinfo`, and set `partition` in the profile")
        return
    has = f"{name}: nodes of {node.gpus} GPUs and {node.cpus} cores"
    fits = given.gpus_per_node is None or given.gpus_per_node <= node.gpus
    yield Finding("partition", fits, has, f"the profile says {given.gpus_per_node} GPUs a node: lower gpus_per_node")
    limit = node.max_time_min
    fits = given.time_limit is None or limit is None or given.time_limit <= limit
    most = "no limit" if limit is None else f"at most {limit} minutes"
    yield Finding(
        "time limit", fits, f"{given.time_limit or 'its default'} of {most}", "lower time_limit in the profile"
    )


def _account(backend: Slurm) -> Finding:
    accounts = nodes.accounts()
    if accounts is None:
        return Finding("account", True, "not checked: SLURM keeps no accounts here")
    account = backend.given.account
    todo = f"set `account` in the profile to one of {', '.join(accounts)}" if accounts else "ask for an account"
    return Finding("account", account in accounts if account else True, account or "your default", todo)


def _acceptance(backend: Slurm, plan: Plan | None, root: Path) -> Finding:
    """Whether SLURM would ever run the runs of the plan, or one on a single GPU."""
    try:
        if plan:
            backend.check(plan, [run.id for run in plan.runs], root)
        else:
            backend.check_layouts([Layout(backend.profile.device, 1, 1, 1, 1)])
    except KdclusterError as error:
        return Finding("sbatch --test-only", False, str(error), "mend the profile, or ask for less")
    return Finding("sbatch --test-only", True, "SLURM would run it")


def _from_a_node(backend: Slurm, root: Path) -> Iterator[Finding]:
    """What a job sees: the runs directory, locks that this process holds, Python and torch."""
    from submitit.core.utils import DelayedSubmission

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".doctor-") as name:
        folder = Path(name)
        task = DelayedSubmission(look_around, str(folder))
        task.set_timeout(5, 0)
        task.dump(folder / "task.pkl")
        layout = Layout(backend.profile.device, 1, 1, 1, 1)
        (folder / "job.sh").write_text(script("kdcluster-doctor", layout, backend.profile, folder))
        with FileLock(folder / "lock", fallback_to_soft=False):
            job_id = scheduler.run(folder / "job.sh")
        result = folder / f"{job_id}_0_result.pkl"
        if not result.is_file():
            log = folder / f"{job_id}.log"
            said = log.read_text(errors="replace").strip()[-500:] if log.is_file() else "it wrote nothing here"
            todo = "put runs and kdcluster's Python on a file system that the nodes share; see `setup` in the profile"
            yield Finding("compute node", False, f"job {job_id} did not answer: {said}", todo)
            return
        outcome, seen = pickle.loads(result.read_bytes())
        if outcome != "success":
            yield Finding("compute node", False, str(seen).strip().splitlines()[-1], "see the message")
            return
    yield Finding("compute node", True, f"job {job_id} ran on {seen['host']}, and sees the runs directory")
    yield Finding("python there", True, seen["python"])
    cuda = backend.profile.device == "cpu" or bool(seen["gpus"])
    found, todo = f"{seen['torch']}, {seen['gpus'] or 'CPU only'}", "install a CUDA build of torch, or set device: cpu"
    yield Finding("torch there", cuda, found, todo)
    todo = "put the runs on a file system with locks; without them attempts alone protect"
    yield Finding(
        "file locks there", seen["locked"], "hold between here and there" if seen["locked"] else "do not", todo
    )


def look_around(folder: str) -> dict[str, Any]:
    """What the job of `_from_a_node` does on its node."""
    import torch

    try:
        FileLock(Path(folder) / "lock", fallback_to_soft=False).acquire(timeout=0)
        locked = False
    except Timeout:
        locked = True
    except (OSError, NotImplementedError):
        locked = False
    gpus = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    seen = {"host": platform.node(), "python": platform.python_version(), "torch": torch.__version__}
    return {**seen, "gpus": gpus, "locked": locked}
