"""Which images an epoch shows, in which order, and how each is cropped and mirrored. Pure tensor functions.

What is drawn here are whole pixels of the stored images; draw.py and render.py have the views that are resampled.

A view of an image depends on (view seed, epoch, image index) and on nothing else, so that all students see
the same views and a teacher's logits can be stored by view. Random numbers therefore come from a generator
without state: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), whose
i-th output is a function of i, used as a counter-based generator (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"). It is integer arithmetic that wraps, the same on CPU and GPU and in every torch
version.

Letters: B batch, C channels, H W pixels, N images of the whole training set (also those held out), p padding.
Nothing here waits for the GPU: no .item(), no nonzero, no boolean mask.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcluster import parts
from kdcluster.errors import ConfigError
from kdcluster.experiment.images import Augment
from kdcluster.run import Run

CROP_ROW, CROP_COLUMN, FLIP, ORDER, HELD_OUT = range(5)
BOX_AREA, BOX_RATIO, BOX_ROW, BOX_COLUMN = range(5, 9)
BRIGHTNESS, CONTRAST, SATURATION, HUE, COLOR_ORDER = range(9, 14)
POLICY, MAGNITUDE, SIGN = range(14, 17)
ERASED, ERASED_AREA, ERASED_RATIO, ERASED_ROW, ERASED_COLUMN = range(17, 22)
"""Streams: what a random number is for. Each has numbers of its own, so that one never moves another."""


def _signed(value: int) -> int:
    """The int64 with the same 64 bits; torch has no arithmetic for uint64."""
    return (value + 2**63) % 2**64 - 2**63


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def splitmix64(key: int, index: Tensor) -> Tensor:
    """Output number `index` (from 0) of SplitMix64 started at `key`.

    Args:
        key: the start, a signed 64-bit integer.
        index: int64, any shape and device.

    Returns:
        int64 of index's shape: 64 random bits each.
    """
    z = (index + 1) * _GAMMA + key
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own is arithmetic on int64 and would drag the sign along."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def counter_bits(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
    """64 random bits for each index, a function of the four arguments alone.

    The key is a hash, so that neighbouring seeds, epochs and streams start at unrelated places; SHA-256 is to
    be had everywhere, also on FIPS machines, and takes a microsecond.

    Args:
        seed: view seed or run seed.
        epoch: from 0.
        index: int64, any shape and device.
        stream: what the number is for.

    Returns:
        int64 of index's shape, on its device.
    """
    digest = hashlib.sha256(f"{seed} {epoch} {stream}".encode()).digest()
    return splitmix64(int.from_bytes(digest[:8], "little", signed=True), index)


def below(bits: Tensor, limit: int | Tensor) -> Tensor:
    """Uniform in range(limit), from the upper 31 bits by multiplication (bias below limit / 2³¹)."""
    return _shift_right(bits, 33) * limit >> 31


def uniform(bits: Tensor) -> Tensor:
    """Uniform in [0, 1), float64, from the upper 53 bits."""
    return _shift_right(bits, 11).double() * 2.0**-53


def mirrored(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Which of the images a view mirrors: 0 or 1, int64 of index's shape."""
    return _shift_right(counter_bits(seed, epoch, index, FLIP), 63)


def view_of(run: Run, epoch: int) -> int:
    """The view that an epoch shows: its own, or one of `data.views` in turns."""
    return epoch % run.data.views if run.data.views else epoch


def augment(images: Tensor, index: Tensor, *, epoch: int, augment: Augment, view_seed: int) -> Tensor:
    """Each image's view of this epoch: a random crop after padding with p zeros, then perhaps mirrored.

    Args:
        images: uint8 (B, C, H, W).
        index: int64 (B,), the images' indices in the whole training set, on the device of `images`.
        epoch: from 0.
        augment: padding in pixels, and whether to mirror.
        view_seed: seed of the views, not of the run.

    Returns:
        uint8 (B, C, H, W) on the device of `images`.
    """
    if augment.pad and len(index):
        places = 2 * augment.pad + 1
        top = below(counter_bits(view_seed, epoch, index, CROP_ROW), places)
        left = below(counter_bits(view_seed, epoch, index, CROP_COLUMN), places)
        images = _crop(images, augment.pad, top, left)
    if augment.flip:
        # All are mirrored, and an index picks: a fifth of the time of a torch.where over the pixels.
        turned = mirrored(view_seed, epoch, index)
        pick = torch.arange(len(index), device=index.device) + len(index) * turned
        images = torch.cat([images, images.flip(-1)]).index_select(0, pick)
    return images


def _crop(images: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """The H × W window at (top, left), both (B,) in range(2p + 1), of each image padded with zeros.

    The rows of all padded images lie in one flat array; a row of a window is the W pixels from some place on.
    So one index for each row is enough: 0.26 to 0.33 ms instead of 4.7 to 4.9 with one for each pixel
    (512 × 3 × 32 × 32 on 2 threads, medians of 300 in 3 runs).
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    row = plane * padded.shape[2] + top[:, None, None] + torch.arange(height, device=images.device)  # (B, C, H)
    start = row * padded.shape[3] + left[:, None, None]
    return padded.view(-1).unfold(0, width, 1).index_select(0, start.view(-1)).view(images.shape)


def epoch_order(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch takes n images: a permutation that depends on the run's seed.

    Returns:
        int64 (n,) on the CPU, a permutation of range(n).
    """
    return torch.argsort(counter_bits(seed, epoch, torch.arange(n), ORDER), stable=True)


def held_out(n: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Which training images train and which validate; the same split in every run, whatever its seed.

    Args:
        n: images of the whole training set.
        fraction: share held out for validation; 0 holds out none.

    Returns:
        Indices to train on and to validate on: two int64 vectors, ascending, the second of
        round(n · fraction).

    Raises:
        ConfigError: a fraction above 0 leaves one of the two without an image.
    """
    size = round(n * fraction)
    if fraction > 0 and not 0 < size < n:
        what = f"{fraction:g} of {n} training images is {size} for validation and {n - size} for training"
        raise ConfigError(f"data.val_fraction: {what}; at least 1 each, or set it to 0")
    order = fixed_order(n)
    return order[size:].sort().values, order[:size].sort().values


def labelled(n: int, count: int, fraction: float) -> Tensor:
    """Which training images keep their labels; the same ones in every run, whatever its seed and what is held out.

    They are the last of the order whose first ones `held_out` takes.

    Args:
        n: images of the whole training set.
        count: how many keep them.
        fraction: share held out for validation.

    Returns:
        int64 (count,), ascending.

    Raises:
        ConfigError: so many are not left.
    """
    parts.check_labelled(n, round(n * fraction), count)
    return fixed_order(n)[n - count :].sort().values


def fixed_order(n: int) -> Tensor:
    """Of the n images of a training set, int64 (n,); no setting moves it."""
    return torch.argsort(counter_bits(0, 0, torch.arange(n), HELD_OUT), stable=True)
