"""The processes of one run: one a GPU (NCCL) or several on the CPU (gloo); works without torchrun for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdcluster.errors import KdclusterError


@dataclass(frozen=True)
class World:
    """This process among the processes of the run."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def same_buffers(self, net: nn.Module) -> None:
        """Give every rank rank 0's buffers: DDP lets BatchNorm's running statistics drift within a step."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, net: nn.Module) -> nn.Module:
        """Wrapped in DDP where there are several ranks."""
        if self.size == 1:
            return net
        return DistributedDataParallel(
            net,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def sync_batchnorm(self, net: nn.Module) -> nn.Module:
        """BatchNorm over all GPU ranks; gloo has none, there each CPU rank keeps its own statistics."""
        if self.size > 1 and self.device.type == "cuda":  # gpu only
            return convert_sync_batchnorm(net)
        return net


def has_batchnorm(net: nn.Module) -> bool:
    """Whether a model normalises over the batch."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


@contextmanager
def join(device: str, threads: int | None) -> Iterator[World]:
    """Join the process group that torchrun's environment describes, and leave it where all went well.

    Args:
        device: "cuda" or "cpu".
        threads: CPU threads of this process; None leaves torch's choice. Sums depend on it in the last bits.

    Raises:
        KdclusterError: a GPU was asked for and is not there.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device("cpu")
    if device == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_rank >= found:
            raise KdclusterError(
                f"rank {rank} was to run on GPU {local_rank} of this machine, but torch sees {found}; "
                f"ask for fewer with --gpus, or use --procs for the CPU"
            )
        place = torch.device("cuda", local_rank)  # gpu only
        torch.cuda.set_device(place)
        torch.backends.cudnn.benchmark = True  # shapes never change
    elif threads is not None:
        torch.set_num_threads(threads)
    if size > 1:
        if place.type == "cuda":  # gpu only
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=place)
        else:
            dist.init_process_group("gloo")
    yield World(rank, size, place)
    # Not after an error: the others would notice, and torchrun could end this process before it has said what went
    # wrong; NCCL would even wait for them.
    if dist.is_initialized():
        dist.destroy_process_group()
