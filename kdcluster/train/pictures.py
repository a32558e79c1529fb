"""What a model gets wrong on the test images, as pictures. Pure: arrays to images.

Letters: N images, C classes, K channels (1 or 3), H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdcluster.train.pixels import Pixels

WORST, ACROSS = 20, 5
"""Images on a page, and in a row of it: so few that a page, even of noise, and a matrix stay below 1 MB."""
TILE, GAP, LINE = 112, 10, 15
"""Pixels of an image's place, between two of them, and of a line of text."""
NAMED, COUNTED = 100, 20
"""Most classes whose names stand at a confusion matrix, and whose images are written into its cells."""
MOST = 1000
"""Most classes that have a confusion matrix: at one pixel each."""
INK, WRONG, PAPER, FRAME = (32, 33, 36), (176, 0, 32), (255, 255, 255), (218, 220, 224)
RIGHT_HUE, WRONG_HUE = np.array((21, 76, 121)), np.array((190, 40, 10))
"""Of a cell on the diagonal, and of another one, where all images of a class are in it."""
LEVELS = 32
"""Shades of a hue; more would only make the file larger."""


def misclassified(
    images: Pixels, labels: NDArray[np.integer[Any]], log_p: NDArray[np.float64], classes: Sequence[str]
) -> Image.Image | None:
    """A page of the images that are furthest from right, the one with the least probable label first.

    Args:
        images: uint8 (N, K, H, W)
        labels: (N,)
        log_p: (N, C), what the model makes of them.
        classes: their names, by label.

    Returns:
        None: none is wrong.
    """
    guesses = log_p.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    if not len(wrong):
        return None
    worst = wrong[np.argsort(log_p[wrong, labels[wrong]], kind="stable")][:WORST]
    rows = -(-len(worst) // ACROSS)
    page = paper(ACROSS * (TILE + GAP) + GAP, 2 * GAP + LINE + rows * (TILE + 2 * LINE + GAP))
    draw = ImageDraw.Draw(page)
    which = f"the {len(worst)} least right of {len(wrong):,}" if len(worst) < len(wrong) else f"all {len(wrong)}"
    text = f"Wrong on {len(wrong):,} of {len(labels):,} test images; {which}, each with its label and "
    draw.text((GAP, GAP), text, INK, font(12))
    draw.text((GAP + font(12).getlength(text), GAP), "what it was taken for", WRONG, font(12))
    for number, at in enumerate(worst.tolist()):
        x = GAP + number % ACROSS * (TILE + GAP)
        y = 2 * GAP + LINE + number // ACROSS * (TILE + 2 * LINE + GAP)
        tile = tile_of(np.asarray(images[at]))
        page.paste(tile, (x, y + TILE - tile.height - 3))
        sure = f"{100 * np.exp(log_p[at, guesses[at]]):.0f} %"
        label, guess = (name_of(classes, int(one)) for one in (labels[at], guesses[at]))
        draw.text((x, y + TILE), cut(label, TILE), INK, font(12))
        draw.text((x, y + TILE + LINE), cut(guess, TILE - 6 - font(12).getlength(sure)), WRONG, font(12))
        draw.text((x + TILE, y + TILE + LINE), sure, WRONG, font(12), anchor="ra")
    return page


def confusion(counts: NDArray[np.integer[Any]], classes: Sequence[str]) -> Image.Image:
    """A confusion matrix: labels downward, predictions across, each cell as dark as its share of the row.

    Of what is wrong the root of the share counts, so that one image in a hundred can be seen.

    Args:
        counts: (C, C) images by label and prediction.
        classes: their names, by label.
    """
    c = len(counts)
    cell = 40 if c <= COUNTED else 12 if c <= NAMED else max(1, MOST // c)
    small = font(12 if c <= COUNTED else 10)
    names = [cut(name_of(classes, label), 120, small) for label in range(c)] if c <= NAMED else []
    edge = round(max(map(small.getlength, names), default=0)) + 2 * GAP
    left, top = edge, edge + LINE + 2 * GAP
    text = f"Label (row) and prediction (column): {np.trace(counts):,} of {counts.sum():,} test images are right (blue)"
    page = paper(max(left + c * cell, round(GAP + font(12).getlength(text))) + GAP, top + c * cell + GAP)
    page.paste(Image.fromarray(shades(counts).repeat(cell, axis=0).repeat(cell, axis=1)), (left, top))
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), text, INK, font(12))
    for at, name in enumerate(names):
        middle = at * cell + cell // 2
        draw.text((left - 5, top + middle), name, INK, small, anchor="rm")
        upright = Image.new("RGB", (edge, cell), PAPER)
        ImageDraw.Draw(upright).text((0, cell // 2), name, INK, small, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (left + at * cell, top - edge - 5))
    draw.rectangle((left - 1, top - 1, left + c * cell, top + c * cell), outline=FRAME)
    if c <= COUNTED:
        share = counts / counts.sum(axis=1, keepdims=True).clip(1)
        for row, column in np.argwhere(counts).tolist():
            ink = PAPER if share[row, column] > (0.5 if row == column else 0.25) else INK
            place = (left + column * cell + cell // 2, top + row * cell + cell // 2)
            draw.text(place, str(counts[row, column]), ink, small, anchor="mm")
    return page


def shades(counts: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """uint8 (C, C, 3)"""
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    is_right = np.eye(len(counts), dtype=bool)
    depth = np.ceil(np.where(is_right, share, np.sqrt(share)) * LEVELS)[..., None] / LEVELS
    hue = np.where(is_right[..., None], RIGHT_HUE, WRONG_HUE)
    return np.asarray(255 - depth * (255 - hue), np.uint8)


def tile_of(image: NDArray[np.uint8]) -> Image.Image:
    """(K, H, W) as large as its place has room for; what is smaller keeps its pixels, a whole number of times."""
    shown = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("RGB")
    if times := TILE // max(shown.size):
        return shown.resize((shown.width * times, shown.height * times), Image.Resampling.NEAREST)
    shown.thumbnail((TILE, TILE))
    return shown


def paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, which has the letters of Latin-1."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def name_of(classes: Sequence[str], label: int) -> str:
    """A class as the font can write it, else its number."""
    name = classes[label]
    return name if name.isprintable() and all(ord(sign) < 256 for sign in name) else f"class {label}"


def cut(text: str, width: float, face: ImageFont.FreeTypeFont | None = None) -> str:
    """As much of a text as there is room for."""
    face, shown = face or font(12), text
    while face.getlength(shown) > width:
        shown = shown.rstrip("…")[:-1] + "…"
    return shown
