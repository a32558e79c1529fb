"""Test images that distillation fixed and broke, with their pixels where the data folder has them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.errors import Damaged
from kdcluster.files import read_json
from kdcluster.inputs import arrays_folder, fingerprint
from kdcluster.plan import Role, Run
from kdcluster.report.guesses import Guesses, pairs
from kdcluster.runs import RunDir

MOST = 10
"""Of each kind."""
SIDE = 96
"""Pixels of the longer side of an image in the page, at most."""


@dataclass(frozen=True)
class Example:
    """One test image."""

    index: int
    """In the order of the test set."""
    label: str
    baseline: str
    """What most of the seeds' runs that count here say: `cat`, or `cat or dog`."""
    distilled: str
    seeds: int
    """In how many it was fixed, or broken."""
    of: int
    png: str | None
    """As a data URI; None where its pixels are not at hand."""


@dataclass(frozen=True)
class Examples:
    """The most telling of them: fixed, or broken, in most seeds, then where the class gained or lost most chance."""

    fixed: tuple[Example, ...] = ()
    broken: tuple[Example, ...] = ()
    no_pixels: str = ""
    """Why there are none."""


class NoPixels(Exception):
    """Why the images cannot be shown."""


def class_names(runs: Sequence[Run], root: Path, data_dir: Path) -> list[str]:
    """Of the classes, by label: as the data folder has them, else a run's config.json, else by number."""
    n = runs[0].num_classes
    told: list[Any] = [_document(arrays_folder(run, data_dir) / "meta.json").get("classes") for run in runs[:1]]
    told += [_document(RunDir(root, run.id).path / "config.json").get("label_names") for run in runs]
    for names in told:
        if isinstance(names, list) and len(names) == n and all(isinstance(name, str) for name in names):
            return names
    return [f"class {label}" for label in range(n)]


def _document(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except Damaged:
        return {}
    return found if isinstance(found, dict) else {}


def choose(
    runs: Mapping[Role, Sequence[Run]],
    found: Mapping[str, Guesses],
    labels: Any,
    names: Sequence[str],
    data_dir: Path,
) -> Examples:
    """The images to show; nothing where no seed has both students."""
    both = list(pairs(runs, found))
    if not both:
        return Examples()
    try:
        pixels, why = _pixels(both[0][0].run, labels, data_dir), ""
    except NoPixels as error:
        pixels, why = None, str(error)

    def told(sign: int) -> tuple[Example, ...]:
        return tuple(_example(at, sign, both, labels, names, pixels) for at in _most(sign, both, labels))

    return Examples(told(1), told(-1), why)


def _most(sign: int, both: Sequence[tuple[Guesses, Guesses]], labels: Any) -> list[int]:
    """Indices of the images that were fixed (1) or broken (-1) more often than the other way; first those that were in
    most seeds."""
    import numpy as np

    right = [(taught.guess == labels).astype(int) - (alone.guess == labels) for alone, taught in both]
    times, seeds = sign * np.sum(right, axis=0), np.sum(np.equal(right, sign), axis=0)
    gained = sign * np.sum([taught.sure - alone.sure for alone, taught in both], axis=0)
    order = np.lexsort((-gained, -seeds))
    return [int(at) for at in order if times[at] > 0][:MOST]


def _example(
    at: int, sign: int, both: Sequence[tuple[Guesses, Guesses]], labels: Any, names: Sequence[str], pixels: Any
) -> Example:
    label = labels[at]
    changed = [
        (alone.guess[at], taught.guess[at])
        for alone, taught in both
        if (taught.guess[at] == label, alone.guess[at] == label) == (sign > 0, sign < 0)
    ]
    alone, taught = (_most_said(guesses, names) for guesses in zip(*changed, strict=True))
    png = None if pixels is None else png_of(pixels[at])
    return Example(at, names[label], alone, taught, len(changed), len(both), png)


def _most_said(guesses: Sequence[int], names: Sequence[str]) -> str:
    """The class that most runs say; where several are said as often, all of these: `cat or dog`."""
    times = Counter(guesses)
    return " or ".join(names[guess] for guess in sorted(times) if times[guess] == max(times.values()))


def _pixels(run: Run, labels: Any, data_dir: Path) -> Any:
    """uint8 (N, C, H, W) of the test images, mapped.

    Raises:
        NoPixels: they are not there, or are not those that were tested on.
    """
    import numpy as np

    folder = arrays_folder(run, data_dir)
    if _document(folder / "meta.json").get("fingerprint") != fingerprint(run):
        raise NoPixels(f"the images are not in {folder} (--data-dir names another data folder)")
    try:
        images, theirs = (np.load(folder / f"test_{what}.npy", mmap_mode="r") for what in ("images", "labels"))
    except (OSError, ValueError) as error:
        raise NoPixels(f"the images in {folder} cannot be read: {error}") from None
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(labels) or (theirs != labels).any():
        raise NoPixels(f"the images in {folder} are not those that the runs were tested on")
    return images


def png_of(image: Any) -> str:
    """An image of uint8 (C, H, W) as a data URI, at most SIDE pixels wide and high."""
    import numpy as np
    from PIL import Image

    made = Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
    made.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    made.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
