"""Accuracy and loss over the splits of a data set, each image once on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdcluster.plan import Run
from kdcluster.train import feed
from kdcluster.train.distributed import World
from kdcluster.train.metrics import Lagged, accuracies, evaluation_sums

BATCH = 256
"""Images of one process in an evaluation step; without gradients they need little memory."""

Splits = dict[str, tuple[feed.Split, Tensor]]
"""Name -> (images, indices into them) of every split that is evaluated."""


class Stopped(Exception):
    """All ranks agreed to stop in the middle of an evaluation."""


def _go_on() -> None:
    """Nobody asks to stop."""


def evaluate(
    net: nn.Module, run: Run, split: feed.Split, index: Tensor, world: World, heed: Callable[[], None] = _go_on
) -> dict[str, float]:
    """top1 and top5 in percent and the loss over images `index` of a split, each image once on any number of ranks.

    `heed` is called between two batches, equally often on every rank, so that the ranks can agree in it.
    """
    return accuracies(world.sum(sums_over(net, run, split, index, world, heed)).tolist())


@torch.inference_mode()
def sums_over(
    net: nn.Module, run: Run, split: feed.Split, index: Tensor, world: World, heed: Callable[[], None]
) -> Tensor:
    """(4,) `evaluation_sums` over this rank's share of images `index`, on its device."""
    net.eval()
    mine = feed.share(len(index), world.rank, world.size)
    most = len(feed.share(len(index), 0, world.size))
    placed = feed.Index.placed(index[mine.start : mine.stop], split.device)
    lagged = Lagged()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
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
        lagged.push(first, found)  # one batch ahead of the device, no more: each may hold pinned memory
    return sums


def evaluate_all(
    net: nn.Module, run: Run, splits: Splits, world: World, heed: Callable[[], None] = _go_on
) -> dict[str, float]:
    """`evaluate` over every split, as `test/top1 …` and `val/top1 …`."""
    world.same_buffers(net)
    found = {name: evaluate(net, run, split, index, world, heed) for name, (split, index) in splits.items()}
    return {f"{name}/{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}
