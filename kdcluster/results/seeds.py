"""The runs behind the means of the results table: accuracy, gain, GPU-hours and time of each seed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdcluster.history import Cost, cost, span, spent
from kdcluster.results.measured import Measured
from kdcluster.results.paired import Paired
from kdcluster.results.words import MISSING, chance, percent, points
from kdcluster.run import ARMS, Arm
from kdcluster.wording import count


@dataclass(frozen=True)
class SeedRow:
    """One run of an experiment. The field names are those of `results --format json`."""

    role: Arm
    seed: int
    run: str
    top1: float | None
    """Percent; None where the run is not done."""
    gain: float | None
    """This - baseline of the same seed (points); None for teacher and baseline, and where one is missing."""
    gpu_hours: float
    wall_s: float
    """Of all its attempts; what they waited does not count."""
    fixed: int | None = None
    """Of a distilled run: test images that it has right and the baseline of the same seed has not."""
    broken: int | None = None
    """The other way round."""
    p: float | None = None
    """Of McNemar's exact test on these, two-sided; None for other roles, and where predictions are missing."""


def by_seed(
    runs: Mapping[Arm, Sequence[Measured]], costs: Mapping[str, Cost], images: Mapping[int, Paired]
) -> tuple[SeedRow, ...]:
    """Every run, by role and in the order of the seeds."""
    baseline = {m.run.seed: m.top1 for m in runs["baseline"]}
    rows = []
    for arm in ARMS:
        for m in runs.get(arm, ()):
            other = None if arm in ("teacher", "baseline") else baseline.get(m.run.seed)
            gain = m.top1 - other if m.top1 is not None and other is not None else None
            each = costs.get(m.run.id, Cost())
            one = images.get(m.run.seed) if arm == "distilled" else None
            test = (one.fixed, one.broken, one.p) if one else ()
            rows.append(SeedRow(arm, m.run.seed, m.run.id, m.top1, gain, each.gpu_hours, each.wall_s, *test))
    return tuple(rows)


def took(costs: Collection[Cost]) -> Iterator[str]:
    """The time and the GPU-hours of some runs together, as a note; nothing where none has taken a second."""
    together = cost(costs)
    if round(together.wall_s):
        hours = f"; {spent(together)}" if together.gpu_hours else ""
        yield f"{count(len(costs), 'run')} took {span(together.wall_s)}{', summed' * (len(costs) > 1)}{hours}"


def cells(rows: Iterable[SeedRow], protocol: str) -> list[list[str]]:
    """Headings and a row a run, whose id says its role and seed; the GPU-hours only where a GPU was held."""
    rows = list(rows)
    with_gpus = any(row.gpu_hours for row in rows)
    with_images = any(row.p is not None for row in rows)
    counts = ["fixed", "broken", "p"] * with_images
    found = [["run", f"{protocol} test", "gain", *counts, *["GPU-hours"] * with_gpus, "time"]]
    for row in rows:
        test = [str(row.fixed), str(row.broken), chance(row.p)] if row.p is not None else [MISSING] * len(counts)
        hours = [f"{row.gpu_hours:.3g}"] * with_gpus
        found.append(
            [row.run, percent(row.top1), points(row.gain), *test, *hours, span(row.wall_s) if row.wall_s else MISSING]
        )
    return found
