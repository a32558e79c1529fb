"""The runs behind the means of the results table: accuracy, gain, GPU-hours and time of each seed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kdcluster.history import Cost, cost, span, spent
from kdcluster.results.measured import Measured
from kdcluster.run import TRAINED, Role
from kdcluster.wording import count

MISSING = "–"


@dataclass(frozen=True)
class SeedRow:
    """One run of an experiment. The field names are those of `results --format json`."""

    role: Role
    seed: int
    run: str
    top1: float | None
    """Percent; None where the run is not done."""
    gain: float | None
    """Distilled - baseline of the same seed, in percentage points; None for other roles, and where one is missing."""
    gpu_hours: float
    wall_s: float
    """Of all its attempts; what they waited does not count."""


def by_seed(runs: Mapping[Role, Sequence[Measured]], costs: Mapping[str, Cost]) -> tuple[SeedRow, ...]:
    """Every run, by role and in the order of the seeds."""
    baseline = {m.run.seed: m.top1 for m in runs["baseline"]}
    rows = []
    for role in TRAINED:
        for m in runs[role]:
            other = baseline.get(m.run.seed) if role == "distilled" else None
            gain = m.top1 - other if m.top1 is not None and other is not None else None
            each = costs.get(m.run.id, Cost())
            rows.append(SeedRow(role, m.run.seed, m.run.id, m.top1, gain, each.gpu_hours, each.wall_s))
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
    shown = [["run", f"{protocol} test", "gain", *["GPU-hours"] * with_gpus, "time"]]
    for row in rows:
        top1 = MISSING if row.top1 is None else f"{row.top1:.2f}"
        gain = MISSING if row.gain is None else f"{row.gain:+z.2f}"
        hours = [f"{row.gpu_hours:.3g}"] * with_gpus
        shown.append([row.run, top1, gain, *hours, span(row.wall_s) if row.wall_s else MISSING])
    return shown


def table(experiments: Iterable[tuple[str, Iterable[SeedRow]]], **about: str) -> list[list[Any]]:
    """Headings and a row a run of several experiments, in full precision; `about`: columns that are the same in all."""
    names = [field.name for field in fields(SeedRow)]
    found: list[list[Any]] = [["experiment", *about, *names]]
    for experiment, rows in experiments:
        found += [[experiment, *about.values(), *(getattr(row, name) for name in names)] for row in rows]
    return found
