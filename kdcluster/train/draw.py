"""What a view does to each image: plain numbers on the host, a function of (view seed, epoch, image) alone.

On the host, so that which images get which operation is known without a wait for the device. The distributions are
torchvision's, the numbers come from the counter (views.py).

Letters: B batch, H W pixels of the stored images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcluster.experiment.images import Augment, Crop
from kdcluster.train import views

TRIES = 10
"""Boxes that are drawn for an image; where none fits, a fixed one is taken, as torchvision does."""


@dataclass(frozen=True)
class View:
    """What is done to B images, in the order of the fields; None: nothing."""

    box: Tensor | None = None
    """int64 (B, 4): top, left, height and width of what is seen, in pixels of the stored image."""
    mirror: Tensor | None = None
    """bool (B,), where there is a box; without one views.augment has mirrored the image."""


def draw(augment: Augment, view_seed: int, epoch: int, index: Tensor, shape: tuple[int, int]) -> View:
    """The views of some images.

    Args:
        augment: what may be done.
        view_seed: seed of the views, not of the run.
        epoch: the view (views.view_of).
        index: int64 (B,) on the host, the images' indices in the whole training set.
        shape: H and W.
    """
    if augment.crop is None:
        return View()
    mirror = views.mirrored(view_seed, epoch, index).bool() if augment.flip else torch.zeros_like(index).bool()
    return View(_boxes(augment.crop, view_seed, epoch, index, shape), mirror)


def _boxes(crop: Crop, view_seed: int, epoch: int, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """int64 (B, 4), distributed as by torchvision's RandomResizedCrop.get_params.

    Ten candidates are drawn at once and the first that fits is taken; the last resort stands behind them.
    """
    height, width = shape
    several = index[:, None] * TRIES + torch.arange(TRIES)

    def between(limits: Iterable[float], stream: int) -> Tensor:
        low, high = limits
        return low + (high - low) * views.uniform(views.counter_bits(view_seed, epoch, several, stream))

    area = height * width * between(crop.scale, views.BOX_AREA)
    ratio = between(map(math.log, crop.ratio), views.BOX_RATIO).exp()
    high, wide = (sides.sqrt().round().long() for sides in (area / ratio, area * ratio))  # (B, TRIES)
    fits = (high > 0) & (high <= height) & (wide > 0) & (wide <= width)
    first = torch.cat([fits, torch.ones_like(fits[:, :1])], 1).int().argmax(1, keepdim=True)  # of equal ones the first
    found = []
    for tried, limit, resort, stream in zip(
        (high, wide), shape, _last_resort(crop, height, width), (views.BOX_ROW, views.BOX_COLUMN), strict=True
    ):
        side = torch.cat([tried, torch.full_like(first, resort)], 1).gather(1, first)[:, 0]
        start = views.below(views.counter_bits(view_seed, epoch, index, stream), limit - side + 1)
        found.append((torch.where(first[:, 0] < TRIES, start, (limit - side) // 2), side))
    (top, high), (left, wide) = found
    return torch.stack([top, left, high, wide], 1)


def _last_resort(crop: Crop, height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest box of an allowed ratio; it is cut from the centre."""
    low, high = crop.ratio
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width
