"""Test accuracy over the seeds of a configuration, for TensorBoard: their mean between the lowest and the highest.

    <folder>/<experiment>/<configuration>, mean/events.out.tfevents.…     a run of its own in TensorBoard
    tags  over seeds/<experiment> mean, … lowest, … highest                in percent, by optimizer step

with a layout for the CUSTOM SCALARS tab: a chart for each experiment that has all its configurations, teacher, baseline
and distilled, each in a colour of its own. Nothing is written beside the runs themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kdcluster.commands.curves import Curve, CurveOf

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

WHAT = ("mean", "lowest", "highest")
CHART = "test/top1 over the seeds: mean, lowest, highest"


class Row(NamedTuple):
    """Over the seeds that have come so far."""

    step: int
    """Optimizer step."""
    mean: float
    lowest: float
    highest: float


def over_seeds(curves: Sequence[Curve]) -> list[Row]:
    """Of each step at which a seed was evaluated; those that go on are missing from where they stand."""
    at: dict[int, list[float]] = {}
    for curve in curves:
        for point in curve:
            at.setdefault(point.step, []).append(point.value)
    return [Row(step, sum(at[step]) / len(at[step]), min(at[step]), max(at[step])) for step in sorted(at)]


@dataclass
class Band:
    """The event file of one configuration.

    Args:
        folder: a run to TensorBoard; made with the first point.
        experiment: as it stands in the tags.
    """

    folder: Path
    experiment: str
    runs: list[str] = field(default_factory=list)
    """Ids; one for each seed."""
    written: list[Row] = field(default_factory=list)

    def look(self, curve_of: CurveOf) -> None:
        """Write what is new; all of it where what was written holds no more, as when a seed begins."""
        rows = over_seeds([curve_of(run_id) for run_id in self.runs])
        if rows == self.written:
            return
        known = len(self.written) if rows[: len(self.written)] == self.written else 0
        events = [] if self.folder.exists() else list(self._begun())
        if known < len(self.written):
            events.append(_purge(rows[0].step if rows else 0))
        events += [self._event(row) for row in rows[known:]]
        _append(self.folder, events)
        self.written = rows

    def _begun(self) -> Iterator[Event]:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        mean, lowest, highest = map(self._tag, WHAT)
        series = layout_pb2.MarginChartContent.Series(value=mean, lower=lowest, upper=highest)
        chart = layout_pb2.Chart(title=CHART, margin=layout_pb2.MarginChartContent(series=[series]))
        layout = layout_pb2.Layout(category=[layout_pb2.Category(title=self.experiment, chart=[chart])])
        value = Summary.Value(
            tag=metadata.CONFIG_SUMMARY_TAG,
            metadata=metadata.create_summary_metadata(),
            tensor=TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()]),
        )
        yield Event(wall_time=time.time(), file_version="brain.Event:2")
        yield Event(wall_time=time.time(), summary=Summary(value=[value]))

    def _event(self, row: Row) -> Event:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=self._tag(what), simple_value=getattr(row, what)) for what in WHAT]
        return Event(wall_time=time.time(), step=row.step, summary=Summary(value=values))

    def _tag(self, what: str) -> str:
        return f"over seeds/{self.experiment} {what}"


def _purge(step: int) -> Event:
    """What makes void whatever stands before it from a step on."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    return Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))


def _append(folder: Path, events: Sequence[Event]) -> None:
    """Records at the end of the event file of a folder."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    with (folder / "events.out.tfevents.0").open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
