"""A run to the torchrun command that trains it, and the environment it runs in. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcluster.config import Resources
from kdcluster.files import shipped
from kdcluster.runs import ATTEMPT_VARIABLE

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
"""What an enclosing torchrun leaves behind; every TORCHELASTIC_*, MASTER_* and PET_* (torchrun's options as
variables, as Kubernetes' PyTorchJob sets them) goes with them."""


@dataclass(frozen=True)
class Layout:
    """On what one run runs: `procs` processes, one GPU each (cuda) or `threads` threads each (cpu)."""

    device: str
    procs: int
    threads: int | None

    @property
    def cores(self) -> int:
        """CPU cores that the run keeps busy; a GPU run is not counted."""
        return self.procs * self.threads if self.threads else 0

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"{self.procs} GPU{'s' * (self.procs > 1)}"
        return f"{self.procs} CPU process{'es' * (self.procs > 1)} of {self.threads} thread{'s' * (self.threads != 1)}"


def layout(resources: Resources, *, gpus_here: int, cores_here: int) -> Layout:
    """What `resources` mean on a machine with so many GPUs and cores; asking for more GPUs is an error later."""
    on_gpu = resources.device == "cuda" or resources.gpus is not None
    if resources.device == "auto" and resources.procs is None:
        on_gpu = on_gpu or gpus_here > 0
    if on_gpu:
        return Layout("cuda", resources.gpus or 1, None)
    procs = resources.procs or 1
    return Layout("cpu", procs, resources.threads or max(1, cores_here // procs))


def command(run_dir: Path, data_dir: Path, layout: Layout) -> list[str]:
    """argv of one run on this machine: torchrun with its own rendezvous, then `jobs/train.py` on the run directory."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--standalone", "--nnodes=1", f"--nproc-per-node={layout.procs}", "--max-restarts=0"),
        *trainer(run_dir, data_dir, layout),
    ]


def trainer(run_dir: Path, data_dir: Path, layout: Layout) -> list[str]:
    """The part of the command that torchrun starts in every process."""
    argv = [
        str(shipped("jobs/train.py")),
        str(run_dir),
        "--data-dir",
        str(data_dir),
        "--device",
        layout.device,
    ]
    return argv if layout.threads is None else [*argv, "--threads", str(layout.threads)]


def environment(
    base: Mapping[str, str], layout: Layout, *, attempt: int | None, gpus: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a run: nothing of an enclosing torchrun, no downloads, the GPUs it was given."""
    env = {
        name: value
        for name, value in base.items()
        if name not in TORCHRUN_VARIABLES and not name.startswith(("TORCHELASTIC_", "MASTER_", "PET_"))
    }
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    env.pop(ATTEMPT_VARIABLE, None)
    if attempt is not None:
        env[ATTEMPT_VARIABLE] = str(attempt)
    if layout.threads is not None:
        env["OMP_NUM_THREADS"] = str(layout.threads)
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return env
