"""The images of a view, as each model takes them.

Letters: B batch, C channels, H W pixels of the stored images, S pixels of a model's side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kdcluster.experiment.images import Data
from kdcluster.train import feed, views
from kdcluster.train.draw import draw
from kdcluster.train.losses import Labels
from kdcluster.train.mixing import blend
from kdcluster.train.mixing import draw as draw_mix
from kdcluster.train.render import place, render, sent


def shown(
    images: feed.Split, index: feed.Index, data: Data, view: int, sizes: Iterable[int]
) -> tuple[dict[int, Tensor], Labels]:
    """What a view shows of some images to models of some sizes, without waiting for the device.

    Args:
        images: the whole training set.
        index: of B of them.
        data: with its augmentation and the seed of the views.
        view: which one (views.view_of).
        sizes: S of each model; equal ones are made once.

    Returns:
        By size: float32 (B, C, S, S) in [0, 1] with a crop. Without one the images are as they are stored, the same for
        all, and the models resize them: uint8 (B, C, H, W) where pixels are only moved, else float32. And labels (B,).
    """
    sizes = tuple(dict.fromkeys(sizes))
    own, first = _alone(images, index, data, view, sizes)
    if not data.augment.mixes:
        return own, Labels(first)
    mix = draw_mix(data.augment, index.host, len(images.labels), view_seed=data.view_seed, epoch=view)
    partner, share, box = sent([mix.partner, mix.share, mix.box], images.device)
    others, second = _alone(images, feed.Index(mix.partner, partner), data, view, sizes)
    mixed: dict[int, Tensor] = {}  # by the image that is mixed: without a crop, one for all sizes
    for size in sizes:
        if id(own[size]) not in mixed:
            mixed[id(own[size])] = blend(_levels(own[size]), _levels(others[size]), share, box)
    return {size: mixed[id(own[size])] for size in sizes}, Labels(first, second, share)


def _alone(
    images: feed.Split, index: feed.Index, data: Data, view: int, sizes: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """The same before it is mixed."""
    pixels, labels = feed.gather(images, index)
    augment, seed = data.augment, data.view_seed
    if augment.crop is None:
        pixels = views.augment(pixels, index.device, epoch=view, augment=augment, view_seed=seed)
    if not augment.is_drawn:
        return dict.fromkeys(sizes, pixels), labels
    height, width = pixels.shape[-2:]
    placed = place(draw(augment, seed, view, index.host, (height, width)), images.device)
    if augment.crop is None:
        return dict.fromkeys(sizes, render(pixels, placed, None)), labels
    return {size: render(pixels, placed, size) for size in sizes}, labels


def _levels(images: Tensor) -> Tensor:
    """float32 in [0, 1], as a model takes uint8."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
