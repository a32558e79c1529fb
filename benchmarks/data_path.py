"""Batches from resident pixels, augmented at once, against a torchvision DataLoader over PIL images.

    PYTHONPATH=. python benchmarks/data_path.py 5

32 px, batch 128, pad 4 and mirror, one thread; CPU and wall clock, in turns. The DataLoader works in this process
(0 workers) and in two of its own, whose CPU time it would be unfair to leave out: there the wall clock counts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.setting import CHEAP, Bench, in_turns, said, small

IMAGES = 2560


class Pictures(Dataset):
    """The same pixels as torchvision's CIFAR has them: an array, made a PIL image when it is asked for."""

    def __init__(self, bench: Bench) -> None:
        self.pixels = bench.images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = bench.images.labels.tolist()
        self.change = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self.change(Image.fromarray(self.pixels[at])), self.labels[at]


def main() -> None:
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), small(CHEAP), IMAGES, 32, torch.device("cpu"))
        training = bench.training(bench.baseline)
        pictures = Pictures(bench)

        def loaded(workers: int) -> Callable[[], None]:
            loader = DataLoader(pictures, 128, shuffle=True, drop_last=True, num_workers=workers)
            return lambda: drain(loader)

        ours = {"kdcluster": lambda: drain(bench.batches(training))}
        found = in_turns({**ours, "DataLoader, 0 workers": loaded(0), "DataLoader, 2 workers": loaded(2)}, rounds)
    print(f"n = {rounds}; {IMAGES} images at 32 px; images a second by CPU and by wall clock, wall clock / ours")
    for what, times in found.items():
        speeds = [said([1e3 * IMAGES / one[at] for one in times], 0) for at in (0, 1)]
        ratios = [theirs[1] / ours[1] for theirs, ours in zip(times, found["kdcluster"], strict=True)]
        print(f"  {what:<22} {speeds[0]:<26} {speeds[1]:<26} {said(ratios, 1)}")


def drain(batches: object) -> None:
    """Take every batch."""
    for _ in batches:  # type: ignore[attr-defined]
        pass


if __name__ == "__main__":
    main()
