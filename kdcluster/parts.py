"""Into what parts the training images fall, in numbers: held out, with labels, without. train/views.py says which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kdcluster.course import Course
from kdcluster.errors import ConfigError
from kdcluster.experiment.images import Data
from kdcluster.run import Run
from kdcluster.wording import count


def split(counts: Mapping[str, int], data: Data) -> dict[str, int]:
    """Images of each split, the training images without those that are held out."""
    held = round(counts["train"] * data.val_fraction)
    check_labelled(counts["train"], held, data.labelled)
    if data.augment.mixes:
        check_strata(counts["train"], data.val_fraction, data.labelled)
    return {"train": counts["train"] - held, **({"val": held} if held else {}), "test": counts["test"]}


def check_labelled(n: int, held: int, labelled: int | None) -> None:
    """Of n training images some are held out; the labelled ones must be among the others.

    Raises:
        ConfigError: there are not so many.
    """
    if labelled is not None and labelled > n - held:
        there = f"there are {n - held:,} training images" + (f" beside {held:,} that are held out" if held else "")
        raise ConfigError(f"data.labelled: {there}, not {labelled:,}; take fewer, or null for all")


def check_runs(runs: Iterable[Run], images: int) -> None:
    """What runs ask for goes with their images.

    Args:
        images: training images that are not held out.

    Raises:
        ConfigError: those that a run trains on make no batch, or its warm-up takes all of its steps; or there are too
            few classes.
    """
    for run in runs:
        if (train := run.train) is not None:
            n = (run.data.labelled if run.role != "distilled" else None) or images
            if train.batch_size > n:
                what = f"{train.batch_size:,} is more than the {n:,} images that {run.role} trains on; take fewer"
                raise ConfigError(f"train.batch_size: {what}")
            per_epoch = n // train.batch_size
            if train.warmup_steps >= (steps := Course.of(train, per_epoch).steps):
                what = f"{train.warmup_steps:,} leave none of the {steps:,} steps of {run.role}"
                length = f"{count(train.epochs, 'epoch')} of {per_epoch:,}"
                raise ConfigError(f"train.warmup_steps: {what} ({length}); take fewer")
        if run.distill is not None and run.distill.standardise and run.num_classes == 2:
            what = "the standardised logits of two classes say which is the first and nothing else"
            raise ConfigError(f"distill.standardise: {what}; leave it out")


def strata(n: int) -> list[int]:
    """Where in the fixed order of n training images one stratum ends and the next begins: 0 first, n last.

    Images are mixed with partners of their own stratum alone. A split along these places (`check_strata`) therefore
    never mixes an image that is held out into one that trains, and whatever the split, the partners are the same, so
    that one store of the teacher's logits serves all. 1 % of the images each, 5 % below 10,000, and so many that each
    has two.
    """
    count = 100 if n >= 10_000 else next((count for count in (20, 10, 5, 2) if n >= 2 * count), 1)
    return [round(n * (part / count)) for part in range(count + 1)]  # as `held_out` rounds a fraction


def check_strata(n: int, val_fraction: float, labelled: int | None) -> None:
    """While images are mixed, those that are held out, and those with labels, must be whole strata.

    Raises:
        ConfigError: they are not; it names the nearest that are.
    """
    ends = strata(n)
    why = f"images are mixed with others of the same {100 / (len(ends) - 1):g} %, which it would cut"
    if (held := round(n * val_fraction)) not in ends:
        near = [f"{ends.index(end) / (len(ends) - 1):g}" for end in _around(held, ends) if end < n]
        raise ConfigError(f"data.val_fraction: {val_fraction:g} of {n:,}: {why}; take {' or '.join(near)}")
    if labelled is not None and n - labelled not in ends:
        near = [f"{n - end:,}" for end in _around(n - labelled, ends) if held <= end < n]
        what = f"{labelled:,} of {n:,}"
        raise ConfigError(f"data.labelled: {what}: {why}; take {' or '.join([*near, 'null for all'])}")


def _around(place: int, ends: list[int]) -> tuple[int, int]:
    """The last end before a place, and the first one behind it."""
    return max(end for end in ends if end < place), min(end for end in ends if end > place)


def with_labels(counts: Mapping[str, int], labelled: int | None) -> str:
    """`4,000 train (500 with labels, 3,500 without), 1,000 test`."""
    known = "" if labelled is None else f" ({labelled:,} with labels, {counts['train'] - labelled:,} without)"
    return ", ".join(f"{n:,} {name}{known if name == 'train' else ''}" for name, n in counts.items())
