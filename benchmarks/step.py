"""The step by parts: the bare model, cross-entropy, stored logits, and the teacher run along, cheap and dear.

    PYTHONPATH=. python benchmarks/step.py 9

One thread, batch 128, C = 100, 32 px, all in one process and in turns; CPU and wall milliseconds, median and range.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.setting import CHEAP, DEAR, Bench, in_turns, said, small
from kdcluster.experiment.distilling import Distill
from kdcluster.train import feed, views
from kdcluster.train.losses import Labels, distillation_loss

IMAGES = 1280


def main() -> None:
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cheap, dear = (Bench(root, small(teacher), IMAGES, 32, torch.device("cpu")) for teacher in (CHEAP, DEAR))
        cheap.store()
        steps = {
            "cross-entropy": cheap.stepping(cheap.training(cheap.baseline)),
            "stored logits": cheap.stepping(cheap.training(cheap.distilled, cheap.targets(stored=True))),
            "teacher along, resnet18": cheap.stepping(cheap.training(cheap.distilled, cheap.targets(stored=False))),
            "teacher along, vit_tiny": dear.stepping(dear.training(dear.distilled, dear.targets(stored=False))),
        }
        found = in_turns({"bare model": cheap.bare(cheap.training(cheap.baseline)), **steps}, rounds)
        print(f"n = {rounds}; milliseconds of a step: CPU, wall, ratio of CPU to the bare model's")
        for what, times in found.items():
            cpu, wall = ([one[at] for one in times] for at in (0, 1))
            ratios = [mine / base[0] for mine, base in zip(cpu, found["bare model"], strict=True)]
            print(f"  {what:<24} {said(cpu, 1):<24} {said(wall, 1):<24} {said(ratios)}")
        print("parts, milliseconds of CPU (the last one is of an epoch, not of a step)")
        for what, times in in_turns(parts(cheap), 20 * rounds).items():
            print(f"  {what:<44} {said([cpu for cpu, _ in times], 3)}")


def parts(bench: Bench) -> dict[str, Callable[[], object]]:
    """What a step does beside the model."""
    index, seen = feed.Index.placed(bench.index[:128], bench.world.device), bench.baseline.data
    pixels, labels = feed.gather(bench.images, index)
    targets = bench.targets(stored=True)
    targets.begin(0)
    soft = next(targets.batches([index]))
    logits = torch.randn(128, 100, requires_grad=True)

    def loss(teacher: torch.Tensor | None) -> Callable[[], None]:
        return lambda: distillation_loss(logits, Labels(labels), teacher, Distill()).total.sum().backward()

    def augment() -> torch.Tensor:
        return views.augment(pixels, index.device, epoch=0, augment=seen.augment, view_seed=seen.view_seed)

    return {
        "gather images and labels": lambda: feed.gather(bench.images, index),
        "augment": augment,
        "read the stored logits": lambda: next(targets.batches([index])),
        "loss and its gradient, cross-entropy": loss(None),
        "loss and its gradient, with soft targets": loss(soft),
        "open a view and check its sum": lambda: targets.begin(0),
    }


if __name__ == "__main__":
    main()
