"""A split of a data set as training takes batches from it.

Letters: N images of a split, B batch, C channels, H W pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdcluster.run import Run
from kdcluster.train import views
from kdcluster.train.data import Arrays, SplitName
from kdcluster.train.losses import UNLABELLED

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Split:
    """One split as training takes batches from it."""

    images: Tensor
    """uint8 (N, C, H, W), on `device`, or mapped on the host where the device has no room. Never write to it:
    on the CPU it is the file, read-only."""
    labels: Tensor
    """int64 (N,) on `device`; UNLABELLED where there is none"""
    device: torch.device
    resident: bool = True
    """Whether the images are on `device`."""


@dataclass(frozen=True)
class Index:
    """Which images, on the host and on the device. A batch's is a slice of an epoch's, which went there in one copy:
    one copy a batch, from memory that is not pinned, made the host wait for the device in every step (5,416 of 7,225
    images/s, ViT-Tiny on an H100)."""

    host: Tensor
    """int64 (N,)"""
    device: Tensor
    """The same."""

    @classmethod
    def placed(cls, index: Tensor, device: torch.device) -> Index:
        """An index on the host, there and on `device`."""
        if device == HOST:
            return cls(index, index)
        return cls(index, index.pin_memory().to(device, non_blocking=True))

    def __getitem__(self, part: slice) -> Index:
        return Index(self.host[part], self.device[part])

    def __len__(self) -> int:
        return len(self.host)


def to_device(arrays: Arrays, split: SplitName, device: torch.device, *, budget_bytes: int | None = None) -> Split:
    """A split for training on `device`: there as a whole if it fits, else batch by batch from the host.

    Args:
        arrays: what `open_arrays` found.
        split: train or test.
        device: where batches are wanted. On the CPU nothing is copied in either case.
        budget_bytes: most bytes of images to hold on the device; None: half of what a GPU has free.
    """
    images, labels = _tensor(arrays.images[split]), _tensor(arrays.labels[split])
    if budget_bytes is None:
        gpu = device.type == "cuda"
        budget_bytes = torch.cuda.mem_get_info(device)[0] // 2 if gpu else images.nbytes  # gpu: first branch
    resident = device == HOST or images.nbytes <= budget_bytes
    return Split(images.to(device) if resident else images, labels.to(device), device, resident)


def only_labels_of(split: Split, known: Tensor) -> Split:
    """The same images with the labels of some; all others are UNLABELLED, so that nothing can learn from them.

    Args:
        split: from `to_device`.
        known: int64 (K,) on the CPU, the images that keep their labels.
    """
    known = known.to(split.device)
    labels = torch.full_like(split.labels, UNLABELLED)
    labels[known] = split.labels[known]
    return replace(split, labels=labels)


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # True, and meant: a write would end the process, and nothing writes (see Split).
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def gather(split: Split, index: Index) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch, on the split's device, without waiting for it.

    Args:
        split: from `to_device`.
        index: of B images, which may be 0; placed on the split's device.

    Returns:
        uint8 (B, C, H, W) and int64 (B,), copies of what the split holds.
    """
    labels = split.labels.index_select(0, index.device)
    if split.resident:
        return split.images.index_select(0, index.device), labels
    # From pinned memory, which the copy needs to run beside the computation; torch keeps and reuses it.
    batch = torch.empty((len(index), *split.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
    torch.index_select(split.images, 0, index.host, out=batch)
    return batch.to(split.device, non_blocking=True), labels


def share(n: int, rank: int, world: int) -> range:
    """Which of n items are a rank's: neighbours, as evenly as can be, the first ranks take what is left over.

    Each item is exactly one rank's. Rank 0 has some unless n is 0; later ranks may have none.
    """
    each, over = divmod(n, world)
    start = rank * each + min(rank, over)
    return range(start, start + each + (rank < over))


def taught(run: Run, images: Split, train_index: Tensor, sizes: dict[str, int]) -> tuple[Split, Tensor, dict[str, int]]:
    """What a run trains on: where some images have no label (it is gone then), they are for distilled students alone.

    Args:
        images: the whole training set.
        train_index: those that are not held out.
        sizes: how many are evaluated; comes back with how many have a label, and how many have none.
    """
    if run.data.labelled is None:
        return images, train_index, sizes
    known = views.labelled(len(images.labels), run.data.labelled, run.data.val_fraction)
    index = train_index if run.role == "distilled" else known
    counts = {"labelled": len(known), "unlabelled": len(index) - len(known)}
    return only_labels_of(images, known), index, {**sizes, **counts}
