"""The pixels of a view: stored images resampled once, to the size of each model that sees them.

A row of an image has the same bits in any batch, on any number of threads (CPU): a teacher's stored logits are of the
same pixels as those that a student's run computes.

Letters: B batch, C channels, H W pixels of the stored images, S pixels of the side that is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcluster.train.draw import View
from kdcluster.train.operations import OPERATIONS, Operation

A = -0.5
"""Of the cubic (Keys 1981), as in PIL and in torch's antialiased resize."""
MULTIPLIED = 90
"""Most multiplications for a pixel that is made, H · W / S + H, for which a CPU takes two matrices an image; above,
torch's own resize of each box, whose work grows with what the cubic covers alone. Images a second of CPU, by matrices
and by boxes: 32 -> 64 px (48) 7,990 and 6,370, 64 -> 224 (82) 810 and 600, 48 -> 48 (96) 7,610 and 9,440, 256 -> 224
(549) 180 and 550 (benchmarks/README.md). They agree to 3e-5; which one it is depends on sizes and device alone, so that
it is the same for a store and a student."""
AT_ONCE = 2**25
"""Pixels that are made together: 128 MiB for each of the three arrays in between."""
IN_CACHE = 2**18
"""Numbers of the images that an operation changes together on a CPU: its intermediate results stay in the cache."""
HOST = torch.device("cpu")


GREY = 0.5
"""Of what is erased: not the mean that a model subtracts, which teacher and student have of their own, nor black, which
is the ground of digits."""


@dataclass(frozen=True)
class Placed:
    """A view, on the host and on the device of its images."""

    view: View
    device: torch.device
    box: Tensor | None
    mirror: Tensor | None
    groups: tuple[tuple[Operation, Tensor, Tensor], ...]
    """In their order: an operation, the rows that get it, and how strong in each."""
    erased: Tensor | None


def place(view: View, device: torch.device) -> Placed:
    """A view for `render`: its numbers go to the device in one copy that nobody waits for."""
    groups = []
    if view.operations is not None and view.strengths is not None:
        for slot, strengths in zip(view.operations.unbind(1), view.strengths.unbind(1), strict=True):
            for number in sorted({*slot.tolist()}):
                if operation := OPERATIONS[number]:
                    rows = (slot == number).nonzero()[:, 0]
                    groups.append((operation, rows, strengths[rows]))
    given = [one for one in (view.box, view.mirror, view.erased) if one is not None]
    given += [one for _, *pair in groups for one in pair]
    left = iter(sent(given, device))
    box, mirror, erased = (None if one is None else next(left) for one in (view.box, view.mirror, view.erased))
    return Placed(view, device, box, mirror, tuple((one, next(left), next(left)) for one, *_ in groups), erased)


def render(images: Tensor, placed: Placed, size: int | None) -> Tensor:
    """What a model of one size sees.

    Args:
        images: uint8 (B, C, H, W).
        placed: the view of these images.
        size: S; None where the view has no box: the images are as large as they were.

    Returns:
        float32 (B, C, S, S) in [0, 1], on the device of `images`.
    """
    made = images.float() / 255 if size is None else _cut(images, placed, size)
    pieces = max(1, IN_CACHE // made[0].numel()) if placed.device == HOST and len(made) else max(1, len(made))
    for operation, rows, strengths in placed.groups:
        for some, how in zip(rows.split(pieces), strengths.split(pieces), strict=True):
            made.index_copy_(0, some, operation(made.index_select(0, some), how))
    if placed.erased is not None:
        made = torch.where(_inside(placed.erased, *made.shape[-2:]), GREY, made)
    return made


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in boxes of shares, float64 (B, 4); bool (B, 1, H, W)."""
    top, left, high, wide = box[:, :, None].unbind(1)
    row, column = (torch.arange(side, device=box.device) for side in (height, width))
    rows = (row >= (top * height).round()) & (row < ((top + high) * height).round())
    columns = (column >= (left * width).round()) & (column < ((left + wide) * width).round())
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _cut(images: Tensor, placed: Placed, size: int) -> Tensor:
    box, mirror = placed.box, placed.mirror
    assert box is not None
    assert mirror is not None
    height, width = images.shape[-2:]
    if placed.device == HOST and height * width / size + height > MULTIPLIED:
        return _one_by_one(images, box, mirror, size)
    side = max(height, width, size)
    pieces = max(1, AT_ONCE // (images.shape[1] * side * side))
    parts = zip(images.split(pieces), box.split(pieces), mirror.split(pieces), strict=True)
    return torch.cat([_by_matrices(*part, size) for part in parts])


def sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on the device, in one copy that nobody waits for (whole numbers up to 2⁵³)."""
    if device == HOST:
        return list(tensors)
    if not tensors:
        return []
    packed = torch.cat([one.double().flatten() for one in tensors]).pin_memory().to(device, non_blocking=True)
    parts = packed.split([one.numel() for one in tensors])
    return [part.view(one.shape).to(one.dtype) for part, one in zip(parts, tensors, strict=True)]


def _by_matrices(images: Tensor, box: Tensor, mirror: Tensor, size: int) -> Tensor:
    """rows @ image @ columns, two small matrices an image; a mirror is a column matrix whose columns are reversed."""
    batch, channels, height, width = images.shape
    rows = weights(box[:, 0], box[:, 2], size, height)
    columns = weights(box[:, 1], box[:, 3], size, width, mirror)
    narrow = torch.bmm(images.float().view(batch, channels * height, width), columns.transpose(1, 2))
    rows = rows[:, None].expand(-1, channels, -1, -1).reshape(batch * channels, size, height)
    made = torch.bmm(rows, narrow.view(batch * channels, height, size))
    return made.view(batch, channels, size, size).div_(255).clamp_(0, 1)


def weights(start: Tensor, length: Tensor, size: int, whole: int, mirror: Tensor | None = None) -> Tensor:
    """How much of each stored pixel is in each pixel that is made, along one side: antialiased bicubic within the box.

    Args:
        start: int64 (B,), first pixel of the box.
        length: int64 (B,), its pixels.
        size: S.
        whole: H or W.
        mirror: bool (B,), which ones are reversed.

    Returns:
        float32 (B, S, whole), each row of sum 1.
    """
    scale = length.double()[:, None] / size
    centre = scale * (torch.arange(size, device=start.device) + 0.5)  # (B, S), in pixels from the box's edge
    if mirror is not None:
        centre = torch.where(mirror[:, None], length[:, None] - centre, centre)
    centre = centre + start[:, None]
    pixel = torch.arange(whole, device=start.device)
    # The distance in float32 from the nearest whole pixel: from the image's edge it would be off by 1e-5 at 256 px.
    near = centre.floor()
    apart = (pixel - near.long()[..., None]) + (0.5 - (centre - near)).float()[..., None]
    weight = _cubic(apart * (1 / scale.clamp(min=1)).float()[..., None])
    is_inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weight = weight * is_inside[:, None]
    return weight / weight.sum(-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _one_by_one(images: Tensor, box: Tensor, mirror: Tensor, size: int) -> Tensor:
    """The same by torch's resize of each box."""
    made = torch.empty(len(images), images.shape[1], size, size)
    for at, (top, left, height, width) in enumerate(box.tolist()):
        seen = images[at : at + 1, :, top : top + height, left : left + width].float()
        made[at : at + 1] = F.interpolate(seen, (size, size), mode="bicubic", antialias=True)
    turned = torch.where(mirror[:, None, None, None], made.flip(-1), made)
    return turned.div_(255).clamp_(0, 1)
