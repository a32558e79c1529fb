"""Into what parts the training images fall, in numbers: held out, with labels, without. train/views.py says which."""

from __future__ import annotations

from collections.abc import Mapping

from kdcluster.errors import ConfigError
from kdcluster.experiment.images import Data


def split(counts: Mapping[str, int], data: Data) -> dict[str, int]:
    """Images of each split, the training images without those that are held out."""
    held = round(counts["train"] * data.val_fraction)
    check_labelled(counts["train"], held, data.labelled)
    return {"train": counts["train"] - held, **({"val": held} if held else {}), "test": counts["test"]}


def check_labelled(n: int, held: int, labelled: int | None) -> None:
    """Of n training images some are held out; the labelled ones must be among the others.

    Raises:
        ConfigError: there are not so many.
    """
    if labelled is not None and labelled > n - held:
        there = f"there are {n - held:,} training images" + (f" beside {held:,} that are held out" if held else "")
        raise ConfigError(f"data.labelled: {there}, not {labelled:,}; take fewer, or null for all")


def with_labels(counts: Mapping[str, int], labelled: int | None) -> str:
    """`4,000 train (500 with labels, 3,500 without), 1,000 test`."""
    known = "" if labelled is None else f" ({labelled:,} with labels, {counts['train'] - labelled:,} without)"
    return ", ".join(f"{n:,} {name}{known if name == 'train' else ''}" for name, n in counts.items())
