"""Distilled against baseline, image by image, in each seed: what one pair of models shows on these test images.

The interval of the gain is over seeds, and says what to expect of another one; this says nothing of another seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kdcluster.results.measured import Measured
from kdcluster.results.recount import fixed_and_broken
from kdcluster.results.scores import mcnemar
from kdcluster.run import Arm
from kdcluster.wording import count

LEVEL = 0.05
"""Below it, a difference is called one."""


@dataclass(frozen=True)
class Paired:
    """One seed."""

    fixed: int
    """Test images that only the distilled student has right."""
    broken: int
    """Test images that only the baseline has right."""
    images: int
    """All of them."""

    @cached_property
    def p(self) -> float:
        """Two-sided, of McNemar's exact test."""
        return mcnemar(self.fixed, self.broken)


def by_image(runs: Mapping[Arm, Sequence[Measured]]) -> dict[int, Paired]:
    """By seed, where both runs have kept their predictions of the same images."""
    baseline = {m.run.seed: m for m in runs["baseline"] if m.counts}
    found: dict[int, Paired] = {}
    for m in runs["distilled"]:
        other = baseline.get(m.run.seed)
        if not (m.counts and other and other.counts) or other.run.id == m.run.id:
            continue
        if both := fixed_and_broken(m.counts, other.counts):
            found[m.run.seed] = Paired(*both, m.counts.images)
    return found


def in_words(found: Mapping[int, Paired], seeds: int) -> Iterator[str]:
    """One sentence; `seeds`: how many have a gain."""
    if not found:
        return
    each = list(found.values())
    test = f"over the {each[0].images:,} test images (McNemar's exact test)"
    if len(each) == seeds == 1:
        (one,) = each
        said = "< 0.001" if one.p < 0.001 else f"= {one.p:.3f}"
        yield f"{test} distilled alone is right on {one.fixed}, baseline alone on {one.broken}: p {said}"
        return
    better = sum(one.p < LEVEL and one.fixed > one.broken for one in each)
    worse = sum(one.p < LEVEL and one.fixed < one.broken for one in each)
    without = f" ({seeds - len(each)} without predictions)" if len(each) < seeds else ""
    yield (
        f"{test}, each seed by itself, distilled is better in {better} and worse in {worse} of "
        f"{count(len(each), 'seed')}{without} at p < {LEVEL}"
    )
