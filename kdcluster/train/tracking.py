"""What rank 0 tells the world while it trains: TensorBoard events and a heartbeat. Silent on every other rank."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import plugin_data_pb2, summary_v2
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME, SESSION_END_INFO_TAG
from torch.utils.tensorboard import SummaryWriter

from kdcluster.plan import Run, changed
from kdcluster.runs import Attempt, RunDir

HEARTBEAT_S = 1.0
"""Seconds between two heartbeats: often enough for a progress bar, too seldom to be measurable."""


class Tracker:
    """TensorBoard events of one attempt in the run's own folder, and its heartbeat.

    Never `add_hparams` or `add_scalars`: both make sub-runs. The HPARAMS protos go into the run's own file.
    """

    def __init__(self, run_dir: RunDir, attempt: Attempt | None, run: Run, *, active: bool, first_step: int) -> None:
        self._attempt = attempt if active else None
        self._beat_at = 0.0
        self._beat: dict[str, Any] = {}
        self._writer: SummaryWriter | None = None
        if not active:
            return
        self._writer = SummaryWriter(
            run_dir.events,
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
        content = plugin_data_pb2.HParamsPluginData(session_end_info=end, version=0).SerializeToString()
        summary = Summary()
        value = summary.value.add(tag=SESSION_END_INFO_TAG)
        value.metadata.plugin_data.plugin_name = PLUGIN_NAME
        value.metadata.plugin_data.content = content
        self._writer._get_file_writer().add_summary(summary)
        self._writer.close()
        self._writer = None

    def _session_start(self, run: Run) -> None:
        assert self._writer is not None
        # One run's list stands for all in the tab, so it has what trials are selected by, too.
        metrics = [summary_v2.Metric(tag) for tag in ("test/top1", "test/loss", "val/top1", "val/loss")]
        values = hparams(run)
        config = summary_v2.hparams_config_pb([summary_v2.HParam(name) for name in values], metrics)
        for summary in (config, summary_v2.hparams_pb(values, trial_id=run.id)):
            self._writer._get_file_writer().add_summary(summary)


def hparams(run: Run) -> dict[str, bool | float | str]:
    """What the HPARAMS tab lists of a run: role, model, seed, alpha, temperature, and what was not left at default."""
    values: dict[str, bool | float | str] = {"role": run.role, "model": run.model.model, "seed": run.seed}
    if run.distill:
        values |= {"distill.alpha": run.distill.alpha, "distill.temperature": run.distill.temperature}
    if run.train:
        values |= {f"train.{name}": value for name, value in changed(run.train).items() if value is not None}
    return values
