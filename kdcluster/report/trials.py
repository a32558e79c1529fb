"""What came of an experiment's sweep, for pictures: its points, how each rose, and when some were stopped."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.history import Cost, cost, history
from kdcluster.plan import Plan
from kdcluster.results.events import PREFIXES, Follower
from kdcluster.results.index import Index
from kdcluster.results.table import Table
from kdcluster.runs import RunDir
from kdcluster.sweep import report, scored
from kdcluster.sweep.confirmation import begun, confirmed
from kdcluster.sweep.points import Point, Space, best_of, counted
from kdcluster.sweep.scored import Tried
from kdcluster.sweep.trial import values_of


@dataclass(frozen=True)
class Trials:
    """A sweep as its run directories have it."""

    metric: str
    unit: str
    """In what the length of a trial is counted: `epochs` or `tenths`."""
    tried: tuple[Tried, ...]
    """The best first."""
    courses: Mapping[tuple[str, ...], tuple[float, ...]]
    """Ids of a point's runs -> the metric after each evaluation of the first of them."""
    notes: tuple[str, ...]
    confirmation: Table | None = None
    words: tuple[str, ...] = ()
    """What the confirmation says of the winner."""
    spent: Mapping[str, tuple[int, int, Cost]] = field(default_factory=dict)
    """Of the trials and of the confirmation: runs that have begun and are none of the experiment's own, their attempts,
    and what they cost."""

    @property
    def keys(self) -> list[str]:
        """What was searched."""
        return list(dict.fromkeys(key for one in self.tried for key in one.point.values))

    @property
    def known(self) -> list[Tried]:
        """Those that have a value, the best first."""
        return [one for one in self.tried if one.value is not None]

    @property
    def lower_is_better(self) -> bool:
        return best_of(self.metric) is min

    def numbers(self, key: str) -> list[Any]:
        """The values of a key among those that have a value."""
        return [one.point.values.get(key) for one in self.known]


def read(
    loaded: LoadedExperiment, overrides: tuple[str, ...], own: Container[str], root: Path, index: Index
) -> Trials | None:
    """The trials of today's file, as `results --sweep` has them; None where there are none.

    Args:
        loaded: the experiment.
        overrides: what the command line sets on top of its file.
        own: ids of the experiment's own runs.
        root: the runs directory.
        index: of its event files.
    """
    searched, metric = Space(loaded, overrides, allow_teacher=True), loaded.config.sweep.metric
    try:
        points = searched.recorded(root)
    except ConfigError:  # the file's own space is none
        return None
    if not points:
        return None
    found = scored.tried(points, metric, root, index)
    index.save()  # before the confirmation's table reads it
    best = scored.best(found)
    _, tuned = scored.of_baseline(searched, root, index)
    made = begun(searched, best.point, root, tuned) if best else None
    after = confirmed(made, root) if made else None
    return Trials(
        metric,
        counted(points),
        tuple(found),
        {point.ids: tuple(_course(RunDir(root, point.ids[0]), metric, index)) for point in points},
        tuple(report.notes(searched, found)),
        after.table if after else None,
        after.verdict.words if after and after.verdict else (),
        _spent(points, made, own, root),
    )


def _spent(
    points: Iterable[Point], made: Plan | None, own: Container[str], root: Path
) -> dict[str, tuple[int, int, Cost]]:
    """As `Trials.spent`."""
    tried = dict.fromkeys(run_id for point in points for run_id in point.ids)
    confirming = [run.id for run in made.runs if run.id not in tried] if made else []
    found = {}
    for what, ids in (("trials", list(tried)), ("confirmation", confirming)):
        if begun_ones := [ours for i in ids if i not in own and (ours := history(RunDir(root, i)))]:
            attempts = [one for ours in begun_ones for one in ours]
            found[what] = (len(begun_ones), len(attempts), cost(attempts))
    return found


def _course(run_dir: RunDir, metric: str, index: Index) -> list[float]:
    tags = PREFIXES if metric.startswith(PREFIXES) else (metric,)
    return values_of(Follower(run_dir.events, tags, index), metric)
