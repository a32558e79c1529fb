"""A run to the torchrun command that trains it, and the environment it runs in. Pure."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcluster.errors import ConfigError
from kdcluster.experiment.config import Resources
from kdcluster.files import shipped
from kdcluster.runs import RunDir
from kdcluster.wording import count

LOOPBACK = "127.0.0.1"


def is_torchrun_variable(name: str) -> bool:
    """Whether an environment variable comes from an enclosing torchrun (PET_*: its options, as in a PyTorchJob)."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
    return name in ranks or name.startswith(("TORCHELASTIC_", "MASTER_", "PET_"))


@dataclass(frozen=True)
class Layout:
    """On what one run runs: `procs` processes, one GPU each (cuda) or `threads` threads each (cpu)."""

    device: str
    procs: int
    threads: int | None
    nodes: int = 1
    gpus: int = 0
    """GPUs that the scheduler is asked for, over all nodes; with device cpu they are pretended."""

    @property
    def cores(self) -> int:
        """CPU cores that the run keeps busy; a GPU run is not counted."""
        return self.procs * self.threads if self.threads else 0

    def __str__(self) -> str:
        what = count(self.procs, "GPU")
        if self.device == "cpu":
            what = f"{count(self.procs, 'CPU process')} of {count(self.threads or 1, 'thread')}"
            what += f" (for {count(self.gpus, 'requested GPU')})" if self.gpus else ""
        return f"{what} on {self.nodes} nodes" if self.nodes > 1 else what


@dataclass(frozen=True)
class Room:
    """What a place has for one run."""

    gpus: int | None
    """Of one node; None: some, and how many does not matter here."""
    cores: int | None = None
    """That all processes of a CPU run share out; None: `cores_each`."""
    cores_each: int = 1
    """Of each process of a CPU run."""
    nodes: int | None = 1
    """As many; None: as few as hold the GPUs."""
    scheduled: bool = False
    """Whether GPUs have to be asked for."""
    pretended: bool = False
    """Whether GPUs are asked for and CPU processes run on them."""


def layout(resources: Resources, room: Room) -> Layout:
    """What `resources` mean in a place: the one rule. One process for each GPU, or `procs` on the CPU.

    Raises:
        ConfigError: they cannot be spread evenly over the nodes.
    """
    on_gpu = resources.device == "cuda" or resources.gpus is not None
    on_gpu |= resources.device == "auto" and resources.procs is None and room.gpus != 0
    procs = (resources.gpus if on_gpu else resources.procs) or 1
    most = room.gpus if on_gpu and room.scheduled else None
    nodes = room.nodes or (-(-procs // most) if most else 1)
    if procs % nodes or (most and procs // nodes > most):
        what = count(procs, "GPU" if on_gpu else "process")
        has = f" of {most} GPUs" if most else ""
        raise ConfigError(f"{what} cannot be spread evenly over {count(nodes, 'node')}{has}")
    asked = procs if on_gpu and room.scheduled else 0
    if on_gpu and not room.pretended:
        return Layout("cuda", procs, None, nodes, asked)
    threads = max(1, room.cores // procs) if room.cores else room.cores_each
    return Layout("cpu", procs, resources.threads or threads, nodes, asked)


@dataclass(frozen=True)
class Meeting:
    """A node, and where its torchrun meets the others: at the first one, which gives the port (0: not yet)."""

    node: int
    address: str
    port: int = 0


def command(
    run_dir: Path, data_dir: Path, layout: Layout, meeting: Meeting | None = None, attempt: int | None = None
) -> list[str]:
    """argv of one run on one node: torchrun, then `jobs/train.py` on the run directory.

    The rendezvous is static: that of `--standalone` and c10d keeps pickles in a store that anybody can write to who
    reaches the machine. -P keeps a `kdcluster` folder in the working directory from taking the place of the installed
    package. torchrun's own log folder would stay in the temporary directory, and holds nothing.
    """
    meet = meeting or Meeting(0, LOOPBACK)
    return [
        *(sys.executable, "-P", "-m", "kdcluster.launch.torchrun_agent"),
        *((f"--report={RunDir(run_dir.parent, run_dir.name).attempt(attempt).path}",) if attempt is not None else ()),
        *("--rdzv-backend=static", f"--nnodes={layout.nodes}", f"--node-rank={meet.node}"),
        *(f"--master-addr={meet.address}", f"--master-port={meet.port}"),
        *(f"--nproc-per-node={layout.procs // layout.nodes}", "--max-restarts=0", f"--log-dir={os.devnull}"),
        *trainer(run_dir, data_dir, layout, attempt),
    ]


def trainer(run_dir: Path, data_dir: Path, layout: Layout, attempt: int | None = None) -> list[str]:
    """The part of the command that torchrun starts in every process; without an attempt it is a debug run's."""
    return [
        str(shipped("jobs/train.py")),
        str(run_dir),
        *("--data-dir", str(data_dir)),
        *("--device", layout.device),
        *(("--threads", str(layout.threads)) if layout.threads is not None else ()),
        *(("--attempt", str(attempt)) if attempt is not None else ()),
    ]


def environment(base: Mapping[str, str], layout: Layout, gpus: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a run: nothing of an enclosing torchrun, no downloads, the GPUs it was given."""
    env = {name: value for name, value in base.items() if not is_torchrun_variable(name)}
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if layout.nodes == 1 and sys.platform == "linux":
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it listens where the host's name leads
    if layout.threads is not None:
        env["OMP_NUM_THREADS"] = str(layout.threads)
    elif layout.procs > layout.nodes:
        env.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default, which comes after the agent's import of torch
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return env
