"""What came of an experiment's sweep, for pictures: its points, how each rose, and when some were stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.results.events import PREFIXES, Follower
from kdcluster.results.index import Index
from kdcluster.results.table import Table
from kdcluster.runs import RunDir
from kdcluster.sweep import report, scored
from kdcluster.sweep.confirmation import begun, confirmed
from kdcluster.sweep.points import Space, best_of, counted
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


def read(loaded: LoadedExperiment, overrides: tuple[str, ...], root: Path, index: Index) -> Trials | None:
    """The trials of today's file, as `results --sweep` has them; None where there are none."""
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
    )


def _course(run_dir: RunDir, metric: str, index: Index) -> list[float]:
    tags = PREFIXES if metric.startswith(PREFIXES) else (metric,)
    return values_of(Follower(run_dir.events, tags, index), metric)
