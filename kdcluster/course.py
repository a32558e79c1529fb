"""How long a run is: after which optimizer steps it is evaluated, and when it ends. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from kdcluster.experiment.training import Train

TENTHS = 10
"""A run of so many `steps` is evaluated after each tenth: runs of equal length choose their best from equally many
evaluations at the same steps, however many images each has."""


def evaluation_count(train: Train) -> int:
    """How often a run is evaluated."""
    return train.epochs if train.steps is None else min(TENTHS, train.steps)


def epochs(train: Train, images: int) -> int:
    """How often a run that sees so many images begins to go through them."""
    return Course.of(train, max(1, images // train.batch_size)).epochs


@dataclass(frozen=True)
class Course:
    """The steps of a run."""

    per_epoch: int
    """Optimizer steps in which all its images are seen once."""
    ends: Sequence[int]
    """The steps after which it is evaluated, ascending; after the last one it ends."""

    @classmethod
    def of(cls, train: Train, per_epoch: int) -> Course:
        """Of a run whose epochs have so many steps, at least one."""
        if train.steps is None:
            return cls(per_epoch, range(per_epoch, per_epoch * train.epochs + 1, per_epoch))
        count = evaluation_count(train)
        return cls(per_epoch, tuple(train.steps * number // count for number in range(1, count + 1)))

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.ends[-1]

    @property
    def epochs(self) -> int:
        """Times that it begins to go through its images; the last time perhaps not to the end."""
        return -(-self.steps // self.per_epoch)

    def epoch(self, step: int) -> int:
        """How many of them have ended after so many steps."""
        return self.epochs if step == self.steps else step // self.per_epoch

    def due(self, step: int) -> int:
        """How many evaluations there are after so many steps."""
        return bisect_right(self.ends, step)
