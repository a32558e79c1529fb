"""The processes of one run: one a GPU (NCCL) or several on the CPU (gloo); works without torchrun for one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdcluster.errors import KdclusterError


class Agreement:
    """What the ranks agree on at step boundaries: whether to stop, whether to save.

    A few CPU numbers over a gloo group of their own, so that the step stays without host sync; each answer is that
    of the step before, so that nobody waits for the slowest rank either.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.group: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._asked: tuple[Any, Tensor] | None = None
        # Used in turns, not freed while in use: gloo's thread would need Python's lock to free a tensor.
        self._next, self._last = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)

    def ask(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether any rank asked to stop and to save one step ago."""
        before = self._asked
        values = self._next
        values[0], values[1] = stop, save
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self._asked, self._next, self._last = (work, values), self._last, values
        if before is None:
            return False, False
        before[0].wait()
        return bool(before[1][0]), bool(before[1][1])

    def finish(self) -> None:
        """Wait for the last answer: a process that leaves before it is there aborts the others."""
        if self._asked is not None:
            self._asked[0].wait()
            self._asked = None


@dataclass(frozen=True)
class World:
    """This process among the processes of the run."""

    rank: int
    size: int
    device: torch.device
    agreement: Agreement | None = field(default=None, repr=False)

    def agree(self, *, stop: bool, save: bool) -> tuple[bool, bool]:
        """(stop, save) as all ranks agree; with several ranks the answer comes one step late."""
        return (stop, save) if self.agreement is None else self.agreement.ask(stop, save)

    def from_first(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        if self.agreement is None:
            return value
        sent = torch.tensor(value)
        dist.broadcast(sent, 0, group=self.agreement.group)
        return int(sent)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> list[Tensor]:
        """On rank 0 every rank's rows, CPU tensors of one shape, in the order of the ranks; elsewhere nothing."""
        if self.size == 1:
            return [rows]
        found = [torch.empty_like(rows) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(rows, found)
        return found or []

    def every(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """On every rank all ranks' first rows, as many of each as `counts` says, in the order of the ranks."""
        if self.size == 1:
            return rows[: counts[0]]
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: counts[self.rank]] = rows[: counts[self.rank]]
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([some[:count] for some, count in zip(found, counts, strict=True)])

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
            synced: nn.Module = convert_sync_batchnorm(net)
            return synced
        return net


def leave() -> NoReturn:
    """End this process, which did its work: at once, without Python's own end.

    DDP and the loop refer to each other, so the process groups and gloo's threads outlive `join`. A rank was once seen
    to die of SIGABRT after its training (std::terminate), and torchrun calls such a run failed; the likely cause is
    one of these threads, which Python ends inside C++ code when it asks for Python's lock while the interpreter ends.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(0)


def has_batchnorm(net: nn.Module) -> bool:
    """Whether a model normalises over the batch."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


@contextmanager
def join(device: str, threads: int | None, timeout_min: float = 30.0) -> Iterator[World]:
    """Join the process group that torchrun's environment describes, and leave it where all went well.

    Args:
        device: "cuda" or "cpu".
        threads: CPU threads of this process; None leaves torch's choice. Sums depend on it in the last bits.
        timeout_min: minutes after which a rank that waits for the others in a collective gives up.

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
                f"ask for fewer with --gpus, or train on the CPU (--procs; in SLURM also `device: cpu` in the profile)"
            )
        place = torch.device("cuda", local_rank)  # gpu only
        torch.cuda.set_device(place)
    elif threads is not None:
        torch.set_num_threads(threads)
    agreement = None
    if size > 1:
        timeout = timedelta(minutes=timeout_min)
        if place.type == "cuda":  # gpu only
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=place, timeout=timeout)
        else:
            dist.init_process_group("gloo", timeout=timeout)
        agreement = Agreement(timeout)  # a group of its own has not the time-out of the others
    yield World(rank, size, place, agreement)
    # Not after an error: the others would notice, and torchrun could end this process before it has said what went
    # wrong; NCCL would even wait for them.
    if agreement is not None:
        agreement.finish()
        dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()
