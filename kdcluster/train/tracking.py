"""What rank 0 tells the world while it trains: TensorBoard events and a heartbeat. Silent on every other rank."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
from PIL.Image import Image
from pydantic import BaseModel
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2, summary_v2
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, PLUGIN_NAME, SESSION_END_INFO_TAG
from tensorboard.plugins.text.summary_v2 import text_pb
from torch.utils.tensorboard import SummaryWriter

from kdcluster.experiment.config import Model
from kdcluster.experiment.distilling import Distill
from kdcluster.experiment.identity import hashed
from kdcluster.experiment.images import Data
from kdcluster.experiment.training import Train
from kdcluster.plan import Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.wording import block_of

HEARTBEAT_S = 1.0
"""Seconds between two heartbeats: often enough for a progress bar, too seldom to be measurable."""
BEST = "best/top1"
"""Scalar: test/top1 of the best epoch so far, in percent; the tab takes the last value of a tag."""
FIRST = ("distill.alpha", "distill.temperature", "model", "role", "train.lr")
"""Columns of the HPARAMS tab that are shown without a click."""
METRICS = {"test/top1": "last test/top1", BEST: "best test/top1", "test/loss": "test/loss", "val/top1": "val/top1"}
METRICS |= {"val/loss": "val/loss"}
"""Of the HPARAMS tab: the table's accuracies, and what trials are selected by."""

Value = bool | float | str | None


class Tracker:
    """TensorBoard events of one attempt in the run's own folder, and its heartbeat.

    Never `add_hparams` or `add_scalars`: both make sub-runs. The HPARAMS protos go into the run's own file.
    """

    def __init__(self, run_dir: RunDir, attempt: Attempt | None, run: Run, *, active: bool, first_step: int) -> None:
        self._attempt = attempt if active else None
        self._beat_at = 0.0
        self._beat: dict[str, Any] = {}
        self._writer: SummaryWriter | None = None
        self._events, self._first_step = run_dir.events, first_step
        if not active:
            return
        self._writer = SummaryWriter(
            self._events,
            purge_step=first_step,  # what an attempt that was overtaken wrote from here on is void
            filename_suffix=f".a{attempt.number if attempt else 0}",
        )
        self._session_start(run)

    def scalars(self, values: dict[str, float], step: int) -> dict[str, float]:
        """Write scalars at an optimizer step; returns them as the file has them, in float32."""
        stored = {tag: float(np.float32(value)) for tag, value in values.items()}
        if self._writer is not None:
            for tag, value in stored.items():
                self._writer.add_scalar(tag, value, step)
        return stored

    def knows(self, tag: str, step: int) -> bool:
        """Whether an earlier attempt wrote what this one, which goes on behind that step, has not made void."""
        return step < self._first_step and any(tag.encode() in file.read_bytes() for file in self._events.iterdir())

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text."""
        if self._writer is not None:
            self._writer._get_file_writer().add_summary(text_pb(tag, markdown), step)

    def image(self, tag: str, picture: Image, step: int) -> None:
        """Write an RGB image, as PNG."""
        if self._writer is not None:
            png = io.BytesIO()
            picture.save(png, "PNG", optimize=True)
            content = Summary.Image(
                height=picture.height, width=picture.width, colorspace=3, encoded_image_string=png.getvalue()
            )
            value = Summary.Value(tag=tag, image=content)
            self._writer._get_file_writer().add_summary(Summary(value=[value]), step)

    def flush(self) -> None:
        """On disk now: a kill would else lose what TensorBoard holds back for two minutes."""
        if self._writer is not None:
            self._writer.flush()

    def heartbeat(self, *, force: bool = False, **values: Any) -> bool:
        """Say how far the run is, at most once a second; what is not given stays as it was. Whether it was written."""
        self._beat |= values
        if self._attempt is None or (not force and time.monotonic() - self._beat_at < HEARTBEAT_S):
            return False
        self._beat_at = time.monotonic()
        self._attempt.write("heartbeat", {"time": time.time(), **self._beat}, sync=False)
        return True

    def close(self, *, success: bool) -> None:
        """End the session for the HPARAMS tab and close the file."""
        if self._writer is None:
            return
        status = "STATUS_SUCCESS" if success else "STATUS_FAILURE"
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        self._tell(SESSION_END_INFO_TAG, session_end_info=end)
        self._writer.close()
        self._writer = None

    def _session_start(self, run: Run) -> None:
        values = hparams(run)
        # One run's list stands for all in the tab, so every run has the same one.
        experiment = api_pb2.Experiment(
            hparam_infos=[api_pb2.HParamInfo(name=name, differs=name in FIRST) for name in values],
            metric_infos=[summary_v2.Metric(tag, display_name=name).as_proto() for tag, name in METRICS.items()],
        )
        self._tell(EXPERIMENT_TAG, experiment=experiment)
        known = {name: value for name, value in values.items() if value is not None}  # the plugin fails on null
        assert self._writer is not None
        self._writer._get_file_writer().add_summary(summary_v2.hparams_pb(known, trial_id=run.hash[:8]))

    def _tell(self, tag: str, **what: Any) -> None:
        """A record for the HPARAMS tab."""
        assert self._writer is not None
        summary = Summary()
        plugin_data = summary.value.add(tag=tag).metadata.plugin_data
        plugin_data.plugin_name = PLUGIN_NAME
        plugin_data.content = plugin_data_pb2.HParamsPluginData(**what, version=0).SerializeToString()
        self._writer._get_file_writer().add_summary(summary)


def hparams(run: Run) -> dict[str, Value]:
    """The columns of the HPARAMS tab: every hashed setting, the same list for every run; None where one has none."""
    model = {name.removeprefix("model."): value for name, value in _flat("model", Model, run.model).items()}
    teacher = run.teacher.model.model if run.teacher else None
    values = {"role": run.role, "teacher": teacher, "seed": run.seed, "variant": run.variant, **model}
    for name, kind, block in (("distill", Distill, run.distill), ("train", Train, run.train), ("data", Data, run.data)):
        values |= _flat(name, kind, block)
    return values


def _flat(above: str, kind: type[BaseModel], block: Any) -> dict[str, Value]:
    """The fields of a block by dotted key, those of blocks inside, too; what is no number and no word as JSON."""
    found: dict[str, Value] = {}
    for name, info in hashed(kind).items():
        value = getattr(block, name, None)
        if inner := block_of(info.annotation):
            found |= _flat(f"{above}.{name}", inner, value)
        else:
            plain = value is None or isinstance(value, int | float | str)
            found[f"{above}.{name}"] = value if plain else json.dumps(value)
    return found
