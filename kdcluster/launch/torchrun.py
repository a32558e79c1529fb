"""A run to the torchrun command that trains it, and the environment it runs in. Pure."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcluster.experiment.config import Resources
from kdcluster.files import shipped
from kdcluster.runs import RunDir

LOOPBACK = "127.0.0.1"

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
"""What an enclosing torchrun leaves behind; every TORCHELASTIC_*, MASTER_* and PET_* (torchrun's options as
variables, as Kubernetes' PyTorchJob sets them) goes with them."""


def is_torchrun_variable(name: str) -> bool:
    """Whether an environment variable comes from an enclosing torchrun."""
    return name in TORCHRUN_VARIABLES or name.startswith(("TORCHELASTIC_", "MASTER_", "PET_"))


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
        what = f"{self.procs} GPU{'s' * (self.procs > 1)}"
        if self.device == "cpu":
            what = (
                f"{self.procs} CPU process{'es' * (self.procs > 1)} of {self.threads} thread{'s' * (self.threads != 1)}"
            )
            what += f" (for {self.gpus} requested GPU{'s' * (self.gpus > 1)})" if self.gpus else ""
        return f"{what} on {self.nodes} nodes" if self.nodes > 1 else what


def layout(resources: Resources, *, gpus_here: int, cores_here: int) -> Layout:
    """What `resources` mean on a machine with so many GPUs and cores; asking for more GPUs is an error later."""
    on_gpu = resources.device == "cuda" or resources.gpus is not None
    if resources.device == "auto" and resources.procs is None:
        on_gpu = on_gpu or gpus_here > 0
    if on_gpu:
        return Layout("cuda", resources.gpus or 1, None)
    procs = resources.procs or 1
    return Layout("cpu", procs, resources.threads or max(1, cores_here // procs))


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
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return env
