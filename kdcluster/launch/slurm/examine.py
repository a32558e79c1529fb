"""A cluster profile held against what SLURM says, and what a compute node sees: SLURM's part of `kdcluster doctor`."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from kdcluster.errors import KdclusterError
from kdcluster.files import acquire, read_json, write_json
from kdcluster.launch.backend import Backend, Finding
from kdcluster.launch.slurm import ask, nodes
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.slurm.script import script
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan


class Cluster(Backend, Protocol):
    """What is examined: the backend (backend.py), which has `examine` of its own."""

    given: Profile

    @property
    def profile(self) -> Profile:
        """With what it leaves open taken from the cluster."""

    def check_layouts(self, layouts: Iterable[Layout]) -> None:
        """Whether SLURM would ever run jobs on such layouts."""


def examine(backend: Cluster, plan: Plan | None, root: Path, *, with_job: bool) -> Iterator[Finding]:
    """The profile against what SLURM says; `with_job` also looks from a compute node, by a job of a few seconds."""
    try:
        yield Finding("slurm", True, nodes.version())
        yield from _partition(backend)
        yield _account(backend)
        if plan is None:  # of one, `check` asks
            yield _acceptance(backend)
        if with_job:
            yield from _from_a_node(backend, root)
        else:
            yield Finding("compute node", True, "not looked at from there; --with-job does, by a job of a few seconds")
    except KdclusterError as error:
        yield Finding("slurm", False, str(error))


def _partition(backend: Cluster) -> Iterator[Finding]:
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
    has = f"{given.time_limit or 'its default'} of {'no limit' if limit is None else f'at most {limit} minutes'}"
    yield Finding("time limit", fits, has, "lower time_limit in the profile")


def _account(backend: Cluster) -> Finding:
    accounts = nodes.accounts()
    if accounts is None:
        return Finding("account", True, "not checked: SLURM keeps no accounts here")
    account = backend.given.account
    todo = f"set `account` in the profile to one of {', '.join(accounts)}"
    return Finding("account", account in (None, *accounts), account or "your default", todo)


def _acceptance(backend: Cluster) -> Finding:
    """Whether SLURM would ever run a run on a single GPU."""
    try:
        backend.check_layouts([Layout(backend.profile.device, 1, 1, 1, 1)])
    except KdclusterError as error:
        return Finding("sbatch --test-only", False, str(error), "mend the profile, or ask for less")
    return Finding("sbatch --test-only", True, "SLURM would run it")


def _from_a_node(backend: Cluster, root: Path) -> Iterator[Finding]:
    """What a job sees: the runs directory, locks that this process holds, Python and torch."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".doctor-") as name:
        folder = Path(name)
        layout = Layout(backend.profile.device, 1, 1, 1, 1)
        (folder / "job.sh").write_text(script("kdcluster-doctor", layout, backend.profile, folder, (), __name__))
        lock = FileLock(folder / "lock", fallback_to_soft=False)
        acquire(lock, "attempts alone protect")
        try:
            job_id = ask.run(folder / "job.sh")
        finally:
            lock.release()
        seen = read_json(folder / "seen.json")
        if seen is None:
            log = folder / f"{job_id}.log"
            said = log.read_text(errors="replace").strip()[-500:] if log.is_file() else "it wrote nothing here"
            todo = "put runs and kdcluster's Python on a file system that the nodes share; see `setup` in the profile"
            yield Finding("compute node", False, f"job {job_id} did not answer: {said}", todo)
            return
    yield Finding("compute node", True, f"job {job_id} ran on {seen['host']}, and sees the runs directory")
    yield Finding("python there", True, seen["python"])
    cuda = backend.profile.device == "cpu" or bool(seen["gpus"])
    found, todo = f"{seen['torch']}, {seen['gpus'] or 'CPU only'}", "install a CUDA build of torch, or set device: cpu"
    yield Finding("torch there", cuda, found, todo)
    found = "hold between here and there" if seen["locked"] else "do not"
    todo = "put the runs on a file system with locks; without them attempts alone protect"
    yield Finding("file locks there", seen["locked"], found, todo)


def look_around(folder: Path) -> None:
    """What the job of `_from_a_node` does on its node."""
    import torch

    try:
        FileLock(folder / "lock", fallback_to_soft=False).acquire(timeout=0)
        locked = False
    except Timeout:
        locked = True
    except (OSError, NotImplementedError):
        locked = False
    gpus = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    seen = {"host": platform.node(), "python": platform.python_version(), "torch": torch.__version__}
    write_json(folder / "seen.json", {**seen, "gpus": gpus, "locked": locked})


if __name__ == "__main__":
    look_around(Path(sys.argv[1]))
