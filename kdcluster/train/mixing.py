"""Mixup and cutmix: which image is mixed with which, how much of it is left, and the mixed pixels. Pure.

Mixup is Zhang et al. 2018 (arXiv:1710.09412), cutmix Yun et al. 2019 (arXiv:1905.04899), both as timm's `Mixup` with
`mode="elem"` has them: λ anew for each image, and for cutmix corrected to what the border leaves of the box. Unlike
there, the partner is no neighbour in the batch: all is a function of (view seed, epoch, image), as the rest of a view
(views.py), so that a teacher's logits of mixed images can be stored, and baseline and distilled see the same ones.

Shares and the edges of boxes are whole multiples of 1/GRID. Float32 holds these, and one minus them, exactly;
integer arithmetic makes them, the same on every machine; and 1/65,536 is far below the 1/255 of a pixel. A box knows
nothing of pixels: teacher and student may see the image at different sizes, and the labels' shares belong to both. A
pixel that an edge crosses is mixed by how much of it lies inside, so that at each size the mean weight is the share
of the labels; edges that lie between pixels, as in timm, give the whole pixels of one image or the other.

Letters: B batch, C channels, H W pixels, N images of the whole training set (also those held out).
Nothing here waits for the GPU; `partners` and `draw` belong on the host, where a view's numbers are known.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcluster import parts
from kdcluster.experiment.images import Augment
from kdcluster.train.views import counter_bits, fixed_order

PARTNER, WAY, SHARE, BOX = range(32, 36)
"""Streams, as in views.py, whose own count from 0."""
GRID = 2**16
QUANTILES = 4096

Probabilities = NDArray[np.float64]


class Mix(NamedTuple):
    """How B images are mixed. One that is not has itself as partner, the share 1 and no box."""

    partner: Tensor
    """int64 (B,), indices in the whole training set; each in the same view as its image."""
    share: Tensor
    """float32 (B,), what is left of the image itself: of its pixels, and of its label's part in the loss."""
    box: Tensor
    """int64 (B, 4), top, bottom, left, right of what is the partner's, in 1/GRID of height and width; of cutmix, else
    zeros."""


@lru_cache(maxsize=4)
def partners(n: int, *, view_seed: int, epoch: int) -> Tensor:
    """With whom each image is mixed in a view: the next one of its stratum (parts.strata), in a random circle.

    So each image is exactly one image's partner, and none its own, unless n < 2.

    Args:
        n: images of the whole training set.
        view_seed: seed of the views.
        epoch: the view (views.view_of).

    Returns:
        int64 (n,) on the CPU. Kept and given out again: never write to it.
    """
    stratum = _stratum(n)
    # 56 random bits behind the stratum's number: one sort is a permutation inside of each.
    bits = counter_bits(view_seed, epoch, torch.arange(n), PARTNER) & 2**56 - 1
    circle = torch.argsort(stratum << 56 | bits, stable=True)
    following = torch.arange(1, n + 1)
    ends = torch.tensor(parts.strata(n))
    following[ends[1:] - 1] = ends[:-1]
    return torch.empty(n, dtype=torch.int64).scatter_(0, circle, circle[following])


@lru_cache(maxsize=2)
def _stratum(n: int) -> Tensor:
    """The number of each image's stratum, int64 (n,)."""
    ends = torch.tensor(parts.strata(n))
    numbers = torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff())
    return torch.empty(n, dtype=torch.int64).scatter_(0, fixed_order(n), numbers)


def draw(augment: Augment, index: Tensor, n: int, *, view_seed: int, epoch: int) -> Mix:
    """How each image is mixed in a view, a function of these arguments for each image alone.

    Args:
        augment: with mixup, cutmix or both.
        index: int64 (B,) on the CPU, the images' indices in the whole training set.
        n: its images.
        view_seed: seed of the views.
        epoch: the view.

    Returns:
        Its tensors on the CPU.
    """
    way = counter_bits(view_seed, epoch, index, WAY) >> 33 & 2**31 - 1
    place = counter_bits(view_seed, epoch, index, SHARE) >> 52 & QUANTILES - 1
    share = torch.full_like(index, GRID)
    box = torch.zeros(len(index), 4, dtype=torch.int64)
    if augment.mixup:  # the lowest numbers are mixup's and the highest cutmix's: neither moves the other
        is_mixup = way < int(augment.mixup.share * 2**31)
        share = torch.where(is_mixup, shares(augment.mixup.alpha)[place], share)
    if augment.cutmix:
        is_cutmix = way >= 2**31 - int(augment.cutmix.share * 2**31)
        centre = counter_bits(view_seed, epoch, index, BOX)
        boxes = _boxes(shares(augment.cutmix.alpha)[place], centre & GRID - 1, centre >> 16 & GRID - 1)
        box = torch.where(is_cutmix[:, None], boxes, box)
    own = share * GRID - _area(box)
    partner = torch.where(own < GRID**2, partners(n, view_seed=view_seed, epoch=epoch)[index], index)
    return Mix(partner, (own.double() / GRID**2).float(), box)


def _boxes(share: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Cutmix's boxes, int64 (B, 4), as timm's `rand_bbox` makes them in an image of GRID × GRID pixels.

    Args:
        share: what would be left of the image if the border clipped nothing, int64 (B,) in 1/GRID, as the centre.
    """
    side = (GRID * (1 - share.double() / GRID).sqrt()).long()  # IEEE's root is the same everywhere
    centre = torch.stack([row, row, column, column], 1)
    reach = torch.stack([-(side // 2), (side + 1) // 2], 1)
    return (centre + reach.repeat(1, 2)).clamp(0, GRID)


def _area(box: Tensor) -> Tensor:
    """int64 (B,), in 1/GRID² of an image."""
    return (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])


@lru_cache(maxsize=4)
def shares(alpha: float) -> Tensor:
    """The quantiles of Beta(alpha, alpha) in the middle of QUANTILES equal parts, in 1/GRID, int64, ascending.

    An even draw of one is that distribution up to 1/(2 · QUANTILES) in probability and 1/(2 · GRID) in λ, for any
    alpha; interpolation would be worse in the tails of large ones, where the quantiles are steep. No quantile is
    solved for: each is the number of multiples of 1/GRID whose upper boundary has less of the distribution below it.
    """
    below = _beta_cdf(alpha, (np.arange(GRID // 2) + 0.5) / GRID)
    lower = np.searchsorted(below, (np.arange(QUANTILES // 2) + 0.5) / QUANTILES)
    return torch.from_numpy(np.concatenate([lower, GRID - lower[::-1]]))


def _beta_cdf(alpha: float, x: Probabilities) -> Probabilities:
    """Beta(alpha, alpha)'s probability of less than x < 0.5: the incomplete beta function's continued fraction, by
    Lentz's method (Press et al., Numerical Recipes, 6.4), which below one half converges in some √alpha steps."""
    scale = math.lgamma(2 * alpha) - 2 * math.lgamma(alpha)
    front = np.exp(scale + alpha * (np.log(x) + np.log1p(-x))) / alpha
    c = np.ones_like(x)
    d = 1 / (1 - 2 * alpha * x / (alpha + 1))
    fraction, step, m = d, np.zeros_like(x), 0
    while np.abs(step - 1).max() > 1e-13:
        m += 1
        even = m * (alpha - m) * x / ((alpha + 2 * m - 1) * (alpha + 2 * m))
        odd = -(alpha + m) * (2 * alpha + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1))
        c, d = 1 + even / c, 1 / (1 + even * d)
        fraction = fraction * c * d
        c, d = 1 + odd / c, 1 / (1 + odd * d)
        step = c * d
        fraction = fraction * step
    below: Probabilities = front * fraction
    return below


def blend(images: Tensor, others: Tensor, share: Tensor, box: Tensor) -> Tensor:
    """Each image mixed with its partner: with a box the partner's pixels inside of it, else the weighted mean.

    Three plain operations and no fused one, which would round differently where vectors end: a row has the same bits
    in any batch and on any device, and one that is not mixed has its own.

    Args:
        images: float32 (B, C, H, W) in [0, 1].
        others: the same of the partners.
        share: float32 (B,) of `Mix`, on the device of `images`.
        box: int64 (B, 4) of `Mix`, there too.

    Returns:
        float32 (B, C, H, W).
    """
    height, width = images.shape[-2:]
    inside = _covered(box[:, 0], box[:, 1], height)[:, :, None] * _covered(box[:, 2], box[:, 3], width)[:, None, :]
    outside = torch.where(_area(box) > 0, 1.0, share)
    own = (outside[:, None, None] * (1 - inside))[:, None]  # (B, 1, H, W)
    return images * own + others * (1 - own)


def _covered(low: Tensor, high: Tensor, size: int) -> Tensor:
    """How much of each of `size` pixels in a row lies between two edges (B,) in 1/GRID, float32 (B, size)."""
    pixel = torch.arange(size, device=low.device) * GRID
    up_to_high, up_to_low = ((edge[:, None] * size - pixel).clamp(0, GRID) for edge in (high, low))
    return (up_to_high - up_to_low).float() / GRID
