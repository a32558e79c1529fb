"""Accuracy, loss and logits over the splits of a data set, each image once on any number of ranks.

Letters: N images of a split, n of a rank, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcluster.plan import Run
from kdcluster.predictions import LARGEST
from kdcluster.train import feed
from kdcluster.train.distributed import World
from kdcluster.train.metrics import Lagged, accuracies, evaluation_sums

BATCH = 256
"""Images of one process in an evaluation step; without gradients they need little memory."""

Splits = dict[str, tuple[feed.Split, Tensor]]
"""Name -> (images, indices into them) of every split that is evaluated."""


@dataclass(frozen=True)
class Evaluation:
    """Of all splits."""

    metrics: dict[str, float]
    """`test/top1`, `test/top5` in percent, `test/loss`; `val/…`"""
    predictions: dict[str, Tensor]
    """On rank 0, CPU tensors with the names of predictions.py; elsewhere nothing."""


class Stopped(Exception):
    """All ranks agreed to stop in the middle of an evaluation."""


def _go_on() -> None:
    """Nobody asks to stop."""


def evaluate(
    net: nn.Module,
    run: Run,
    split: feed.Split,
    index: Tensor,
    world: World,
    heed: Callable[[], None] = _go_on,
    dtype: torch.dtype = torch.float16,
) -> tuple[dict[str, float], Tensor | None]:
    """Images `index` of a split, each once on any number of ranks.

    `heed` is called between two batches, equally often on every rank, so that the ranks can agree in it.

    Returns:
        top1 and top5 in percent and the loss; on rank 0 also the logits, (N, C) of `dtype` on the CPU.
    """
    sums, rows = sums_over(net, run, split, index, world, heed, dtype)
    metrics = accuracies(world.sum(sums).tolist())
    parts = world.gather(rows.cpu())
    lengths = [len(feed.share(len(index), rank, world.size)) for rank in range(world.size)]
    logits = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]) if parts else None
    return metrics, logits


@torch.inference_mode()
def sums_over(
    net: nn.Module,
    run: Run,
    split: feed.Split,
    index: Tensor,
    world: World,
    heed: Callable[[], None],
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor]:
    """(4,) `evaluation_sums` over this rank's share of images `index`, and its logits, (n, C) of `dtype`, where n is
    the largest share and what lies behind this one's is zero; both on its device."""
    net.eval()
    mine = feed.share(len(index), world.rank, world.size)
    most = len(feed.share(len(index), 0, world.size))
    placed = feed.Index.placed(index[mine.start : mine.stop], split.device)
    lagged = Lagged()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    rows = torch.zeros(most, run.num_classes, dtype=dtype, device=world.device)
    for first in range(0, most, BATCH):
        if first:
            heed()
        batch = placed[first : first + BATCH]
        if len(batch) == 0:  # this rank has one batch less than others, or none
            continue
        images, labels = feed.gather(split, batch)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=run.amp == "bf16"):
            logits = net(images)
        found = evaluation_sums(logits, labels)
        sums += found
        rows[first : first + len(batch)] = logits.float().clamp(-LARGEST, LARGEST)
        lagged.push(first, found)  # one batch ahead of the device, no more: each may hold pinned memory
    return sums, rows


def evaluate_all(
    net: nn.Module, run: Run, splits: Splits, world: World, heed: Callable[[], None] = _go_on
) -> Evaluation:
    """`evaluate` over every split."""
    world.same_buffers(net)
    found = Evaluation({}, {})
    for name, (split, index) in splits.items():
        metrics, logits = evaluate(net, run, split, index, world, heed)
        found.metrics.update({f"{name}/{metric}": value for metric, value in metrics.items()})
        if logits is not None:
            found.predictions[name] = logits
            found.predictions[f"{name}_labels"] = split.labels.cpu()[index].int()
            if name != "test":
                found.predictions[f"{name}_index"] = index.int()
    return found
