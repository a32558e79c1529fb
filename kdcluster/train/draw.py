"""What a view does to each image: plain numbers on the host, a function of (view seed, epoch, image) alone.

On the host, so that which images get which operation is known without a wait for the device. The distributions are
torchvision's, the numbers come from the counter (views.py).

Letters: B batch, H W pixels of the stored images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kdcluster.experiment.images import Augment, Color, Crop, Erase
from kdcluster.train import operations as ops
from kdcluster.train import views

TRIES = 10
"""Boxes that are drawn for an image; where none fits, a fixed one is taken, as torchvision does."""
SEVERAL = 16
"""Numbers that an image may have of one stream."""
BINS = 31
"""Strengths of an operation of a policy."""


@dataclass(frozen=True)
class View:
    """What is done to B images, in the order of the fields; None: nothing."""

    box: Tensor | None = None
    """int64 (B, 4): top, left, height and width of what is seen, in pixels of the stored image."""
    mirror: Tensor | None = None
    """bool (B,), where there is a box; without one views.augment has mirrored the image."""
    operations: Tensor | None = None
    """int64 (B, slots), one after the other: places in operations.OPERATIONS."""
    strengths: Tensor | None = None
    """float64 (B, slots), of each."""
    erased: Tensor | None = None
    """float64 (B, 4): top, left, height and width, as shares of the view's sides; a height of 0: nothing."""


def draw(augment: Augment, view_seed: int, epoch: int, index: Tensor, shape: tuple[int, int]) -> View:
    """The views of some images.

    Args:
        augment: what may be done.
        view_seed: seed of the views, not of the run.
        epoch: the view (views.view_of).
        index: int64 (B,) on the host, the images' indices in the whole training set.
        shape: H and W.
    """
    at = _Counter(view_seed, epoch, index)
    box = mirror = None
    if augment.crop:
        box = _boxes(augment.crop, at, shape)
        mirror = views.mirrored(view_seed, epoch, index).bool() if augment.flip else torch.zeros_like(index).bool()
    slots = [*(_color(augment.color, at) if augment.color != Color() else ()), *_policy(augment, at)]
    operations, strengths = (torch.stack(one, 1) for one in zip(*slots, strict=True)) if slots else (None, None)
    return View(box, mirror, operations, strengths, _erased(augment.erase, at) if augment.erase else None)


@dataclass(frozen=True)
class _Counter:
    """Random numbers of some images in one view, each a function of stream and image alone."""

    view_seed: int
    epoch: int
    index: Tensor

    def bits(self, stream: int, several: int = 0) -> Tensor:
        """int64 (B,), or (B, several)."""
        at = self.index[:, None] * SEVERAL + torch.arange(several) if several else self.index
        return views.counter_bits(self.view_seed, self.epoch, at, stream)

    def between(self, limits: Iterable[float], stream: int, several: int = 0) -> Tensor:
        """float64, even between two limits."""
        low, high = limits
        return low + (high - low) * views.uniform(self.bits(stream, several))

    def below(self, limit: int, stream: int, several: int = 0) -> Tensor:
        return views.below(self.bits(stream, several), limit)


def _first(fits: Tensor) -> Tensor:
    """The first candidate of each image that fits, int64 (B, 1); TRIES where none does."""
    return torch.cat([fits, torch.ones_like(fits[:, :1])], 1).int().argmax(1, keepdim=True)


def _boxes(crop: Crop, at: _Counter, shape: tuple[int, int]) -> Tensor:
    """int64 (B, 4), distributed as by torchvision's RandomResizedCrop.get_params.

    Ten candidates are drawn at once and the first that fits is taken; the last resort stands behind them.
    """
    height, width = shape
    area = height * width * at.between(crop.scale, views.BOX_AREA, TRIES)
    ratio = at.between(map(math.log, crop.ratio), views.BOX_RATIO, TRIES).exp()
    high, wide = (sides.sqrt().round().long() for sides in (area / ratio, area * ratio))  # (B, TRIES)
    first = _first((high > 0) & (high <= height) & (wide > 0) & (wide <= width))
    found = []
    for tried, limit, resort, stream in zip(
        (high, wide), shape, _last_resort(crop, height, width), (views.BOX_ROW, views.BOX_COLUMN), strict=True
    ):
        side = torch.cat([tried, torch.full_like(first, resort)], 1).gather(1, first)[:, 0]
        start = views.below(at.bits(stream), limit - side + 1)
        found.append((torch.where(first[:, 0] < TRIES, start, (limit - side) // 2), side))
    (top, high), (left, wide) = found
    return torch.stack([top, left, high, wide], 1)


def _last_resort(crop: Crop, height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest box of an allowed ratio, of a pixel at least; it is cut from the centre."""
    low, high = crop.ratio
    if width / height < low:
        return max(1, round(width / low)), width
    if width / height > high:
        return height, max(1, round(height * high))
    return height, width


Slot = tuple[Tensor, Tensor]
"""Of each image an operation, int64 (B,), and its strength, float64 (B,)."""


def _color(color: Color, at: _Counter) -> list[Slot]:
    """Four operations in an order of each image's own."""
    factors = [
        at.between((max(0.0, 1 - color.brightness), 1 + color.brightness), views.BRIGHTNESS),
        at.between((max(0.0, 1 - color.contrast), 1 + color.contrast), views.CONTRAST),
        at.between((max(0.0, 1 - color.saturation), 1 + color.saturation), views.SATURATION),
        at.between((-color.hue, color.hue), views.HUE),
    ]
    which, orders = _orders((color.brightness > 0, color.contrast > 0, color.saturation > 0, color.hue > 0))
    order = at.below(len(orders), views.COLOR_ORDER)
    strengths = torch.stack(factors, 1).gather(1, orders[order])
    return [*zip(which[order].unbind(1), strengths.unbind(1), strict=True)]


@cache
def _orders(is_on: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """The operations in every order, those that are off as nothing, int64 (24, 4); and the orders, likewise."""
    four = (ops.brightness, ops.contrast, ops.saturation, ops.hue)
    numbers = torch.tensor([ops.OPERATIONS.index(one) if on else 0 for one, on in zip(four, is_on, strict=True)])
    orders = torch.tensor([*itertools.permutations(range(len(four)))])
    return numbers[orders], orders


def _policy(augment: Augment, at: _Counter) -> list[Slot]:
    """One operation of any strength, or several of one."""
    if augment.policy == "none":
        return []
    times = augment.rand.ops if augment.policy == "rand" else 1
    numbers, strengths, away = policy(augment.policy)
    chosen = at.below(len(numbers), views.POLICY, times)
    fixed = torch.full_like(chosen, augment.rand.magnitude)
    size = fixed if augment.policy == "rand" else at.below(BINS, views.MAGNITUDE, times)
    sign = 1 - 2 * at.below(2, views.SIGN, times)
    zero = away[chosen, 0]
    strength = strengths[chosen, size]
    strength = torch.where(away[chosen, 1] > 0, zero + sign * strength, strength)
    return [*zip(numbers[chosen].unbind(1), strength.unbind(1), strict=True)]


@cache
def policy(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A list of operations, each as likely: torchvision's TrivialAugmentWide or RandAugment.

    A move is a share of the side, so that models of different sizes see the same: of RandAugment's 150 of 331 pixels,
    and of TrivialAugment's 32 of 224, which torchvision takes at any size.

    Returns:
        int64 (14,), places in operations.OPERATIONS; float64 (14, BINS), strengths; float64 (14, 2), from where they
        count, and 1 where they count to both sides.
    """
    is_rand = name == "rand"
    shear, move, turn, enhance, bits = (0.3, 150 / 331, 30, 0.9, 4) if is_rand else (0.99, 32 / 224, 135, 0.99, 6)
    up = [size / (BINS - 1) for size in range(BINS)]
    both: dict[ops.Operation, tuple[float, float]] = {
        **dict.fromkeys((ops.shear_x, ops.shear_y), (0, shear)),
        **dict.fromkeys((ops.translate_x, ops.translate_y), (0, move)),
        ops.rotate: (0, turn),
        **dict.fromkeys((ops.brightness, ops.saturation, ops.contrast, ops.sharpness), (1, enhance)),
    }
    rows: list[tuple[ops.Operation | None, list[float], float, float]] = [(None, up, 0, 0)]
    rows += [(one, [most * x for x in up], zero, 1) for one, (zero, most) in both.items()]
    rows += [(ops.posterize, [8 - round(bits * x) for x in up], 0, 0), (ops.solarize, [1 - x for x in up], 0, 0)]
    rows += [(ops.autocontrast, up, 0, 0), (ops.equalize, up, 0, 0)]
    numbers = torch.tensor([ops.OPERATIONS.index(one) for one, *_ in rows])
    strengths = torch.tensor([strength for _, strength, *_ in rows], dtype=torch.float64)
    return numbers, strengths, torch.tensor([away for _, _, *away in rows], dtype=torch.float64)


def _erased(erase: Erase, at: _Counter) -> Tensor:
    """float64 (B, 4), distributed as by torchvision's RandomErasing.get_params; nothing where no candidate fits."""
    area = at.between(erase.scale, views.ERASED_AREA, TRIES)
    ratio = at.between(map(math.log, erase.ratio), views.ERASED_RATIO, TRIES).exp()
    high, wide = (area * ratio).sqrt(), (area / ratio).sqrt()
    first = _first((high < 1) & (wide < 1))
    high, wide = (torch.cat([side, torch.zeros_like(side[:, :1])], 1).gather(1, first)[:, 0] for side in (high, wide))
    high = torch.where(at.between((0, 1), views.ERASED) < erase.probability, high, 0.0)
    top, left = (
        (1 - side) * at.between((0, 1), stream)
        for side, stream in ((high, views.ERASED_ROW), (wide, views.ERASED_COLUMN))
    )
    return torch.stack([top, left, high, wide], 1)
