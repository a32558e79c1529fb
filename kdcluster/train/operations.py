"""What a view may do to colours and places of pixels, after it is cut: torchvision's operations, for many images.

Each takes images float32 (B, C, H, W) in [0, 1] and a strength for each, float64 (B,) on their device, and returns
images that are as large. An image's pixels are the same bits in any batch: no sum whose order may change, nothing but
plain arithmetic for each pixel.

Letters: B batch, C channels (1 or 3), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 255
"""Posterize and equalize are of whole levels: pixels are rounded to them there."""


def _each(strength: Tensor) -> Tensor:
    return strength.float()[:, None, None, None]


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (images * _each(factor) + other * (1 - _each(factor))).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W)"""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    grey: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return grey


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * _each(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    # In steps of 2⁻¹⁶, so that float64 holds the sum exactly, whatever its order.
    mean = (_grey(images) * 65536).round().double().mean((1, 2, 3), keepdim=True) / 65536
    return _blend(images, mean.float(), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images), factor)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    by = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red, (green - blue) / by, torch.where(value == green, 2 + (blue - red) / by, 4 + (red - green) / by)
    )
    sector = (sector + 6 * turns.float()[:, None, None]).remainder(6)

    def channel(n: int) -> Tensor:
        k = (sector + n).remainder(6)
        return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1).clamp(0, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) < 3:
        return images
    sums = images[..., 1:-1, 1:-1] * 4
    for row in range(3):
        for column in range(3):
            sums = sums + images[..., row : height - 2 + row, column : width - 2 + column]
    soft = images.clone()
    soft[..., 1:-1, 1:-1] = sums / 13
    return _blend(images, soft, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    step = _each(2 ** (8 - bits))
    return ((images * LEVELS).round() / step).floor() * step / LEVELS


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= _each(threshold), 1 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    least, most = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    is_flat = most == least
    return torch.where(is_flat, images, ((images - least) / torch.where(is_flat, 1.0, most - least)).clamp(0, 1))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    level = (images * LEVELS).round().long().flatten(2)  # (B, C, H·W)
    counts = torch.zeros(*level.shape[:2], LEVELS + 1, dtype=torch.int64, device=level.device)
    counts.scatter_add_(2, level, torch.ones_like(level))
    step = (level.shape[2] - counts.gather(2, level.amax(2, keepdim=True))) // LEVELS
    by = step.clamp(min=1)
    below = counts.cumsum(2) - counts
    table = torch.where(below > 0, (below + step // 2) // by, 0).clamp(0, LEVELS)
    made = table.gather(2, level).float() / LEVELS
    return torch.where(step[..., None] > 0, made.view(images.shape), images)


def shear_x(images: Tensor, by: Tensor) -> Tensor:
    return _mapped(images, (1, by, by * images.shape[-2] / 2), (0, 1, 0))


def shear_y(images: Tensor, by: Tensor) -> Tensor:
    return _mapped(images, (1, 0, 0), (by, 1, by * images.shape[-1] / 2))


def translate_x(images: Tensor, share: Tensor) -> Tensor:
    return _mapped(images, (1, 0, -share * images.shape[-1]), (0, 1, 0))


def translate_y(images: Tensor, share: Tensor) -> Tensor:
    return _mapped(images, (1, 0, 0), (0, 1, -share * images.shape[-2]))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    angle = degrees.deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    return _mapped(images, (cosine, -sine, 0), (sine, cosine, 0))


Row = tuple[Tensor | float, Tensor | float, Tensor | float]


def _mapped(images: Tensor, to_x: Row, to_y: Row) -> Tensor:
    """The pixel at each place from where these put it, bilinear, black from outside.

    Args:
        images: (B, C, H, W).
        to_x: of x, y and 1, in pixels from the middle; each (B,) or a number.
        to_y: likewise.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device)[None, None] + 0.5 - width / 2
    y = torch.arange(height, device=images.device)[None, :, None] + 0.5 - height / 2

    def place(row: Row, side: int) -> Tensor:
        a, b, c = (one.float()[:, None, None] if isinstance(one, Tensor) else one for one in row)
        return (x * a + y * b + c).expand(len(images), height, width) * (2 / side)

    grid = torch.stack([place(to_x, width), place(to_y, height)], -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


Operation = Callable[[Tensor, Tensor], Tensor]
OPERATIONS: tuple[Operation | None, ...] = (
    *(None, brightness, contrast, saturation, hue, sharpness, posterize, solarize, autocontrast, equalize),
    *(shear_x, shear_y, translate_x, translate_y, rotate),
)
"""By number, as a view has them (draw.py); the first is to do nothing."""
