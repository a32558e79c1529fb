"""Evaluation as sums that add across batches and ranks, and numbers read one step late.

B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def evaluation_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """(4,) float64: images, right within 1, right within min(5, C), sum of cross-entropies.

    Counts are exact in float64, so the sums of any split of the images over batches and ranks are equal.
    """
    logits = logits.float()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
    sums = (
        torch.ones_like(labels).sum(),
        (best[:, 0] == labels).sum(),
        (best == labels[:, None]).sum(),
        F.cross_entropy(logits, labels, reduction="sum"),
    )
    return torch.stack([value.double() for value in sums])


def accuracies(sums: list[float]) -> dict[str, float]:
    """top1 and top5 in percent, loss in nats, from `evaluation_sums` added up."""
    images, top1, top5, loss = sums
    return {"top1": 100.0 * top1 / images, "top5": 100.0 * top5 / images, "loss": loss / images}


class Lagged:
    """A few numbers of step N-1, read while step N runs, so that the host never waits for the device.

    On a GPU each push copies into its own pinned buffer and records an event; the read waits for that event
    alone, where `.item()` would wait for everything that was queued since.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def push(self, step: int, values: Tensor) -> tuple[int, list[float]] | None:
        """Hand in step N's numbers, get step N-1's; None at first."""
        before = self.flush()
        self._step = step
        if values.is_cuda:  # gpu only
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._host = values
        return before

    def flush(self) -> tuple[int, list[float]] | None:
        """The numbers that were handed in last, waited for."""
        if self._step is None or self._host is None:
            return None
        if self._copied is not None:  # gpu only
            self._copied.synchronize()
        step, host = self._step, self._host
        self._step = self._host = self._copied = None
        return step, host.tolist()
