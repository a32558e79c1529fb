"""Trials of Ray Tune: each point of a sweep is tried by ordinary runs. Ray is imported here alone."""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.configfile import LoadedExperiment
from kdcluster.errors import KdclusterError
from kdcluster.launch.child import Child
from kdcluster.launch.local import layouts
from kdcluster.launch.status import run_status
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan, Run
from kdcluster.processes import threads_available
from kdcluster.results.events import read_scalars
from kdcluster.runs import RunDir

POLL_S = 0.3
STOP_S = 8.0
"""How long a torchrun that is stopped early has to save, before it is killed."""


@dataclass(frozen=True)
class Point:
    """One point of the space, and the runs that try it."""

    values: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def settings(self) -> list[str]:
        """As --set takes it."""
        return [f"{key}={value}" for key, value in self.values.items()]


class Trainee:
    """One run of a trial: started here unless somebody has done that, and followed epoch by epoch."""

    def __init__(self, run: Run, root: Path, data_dir: Path, layout: Layout, metric: str, experiment: str) -> None:
        self.run_dir, self.run = RunDir(root, run.id), run
        self.data_dir, self.layout, self.metric, self.experiment = data_dir, layout, metric, experiment
        self.reported = 0
        self.child: Child | None = None

    def begin(self) -> None:
        """Start the run, from the main thread; one that is done, stopped early or under way is left as it is."""
        if run_status(self.run_dir).state in ("done", "stopped", "running", "queued"):
            return
        self.run_dir.prepare(self.run)
        self.run_dir.add_experiments([self.experiment])
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if self.layout.device == "cuda" else ()
        self.child = Child.start(self.run_dir, self.data_dir, self.layout, [gpu for gpu in gpus if gpu])

    def next(self) -> tuple[float, bool]:
        """The metric of the next epoch, and whether it was the last one; waits for it.

        Raises:
            KdclusterError: the run ended without it.
        """
        while True:
            ended = self._ended()  # before the look at what it wrote
            measured = self.measured()
            if len(measured) > self.reported:
                self.reported += 1
                return measured[self.reported - 1], ended and self.reported == len(measured)
            if ended:
                status = run_status(self.run_dir)
                raise KdclusterError(f"{self.run.id} is {status.state}: {status.reason}")
            time.sleep(POLL_S)

    def measured(self) -> list[float]:
        """The metric of each epoch so far."""
        points = read_scalars(self.run_dir.events, (self.metric,)).points.get(self.metric, [])
        return [point.value for point in points]

    def stop(self) -> None:
        """End it early: it saves, and counts as stopped."""
        if self.child is None or self.child.attempt.read("outcome"):
            return
        self.child.tell_to_stop()
        try:
            self.child.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.child.process.kill()
            self.child.process.wait()
        ended = self.child.outcome(told_to_stop=True)
        if ended["state"] in ("preempted", "lost"):
            ended |= {"state": "stopped", "reason": f"{ended['reason']}: others were better after as many epochs"}
        self.child.attempt.write_last("outcome", ended)

    def _ended(self) -> bool:
        if self.child is not None and self.child.process.poll() is not None:
            if not self.child.attempt.read("outcome"):
                self.child.attempt.write_last("outcome", self.child.outcome())
            return True
        return self.child is None and run_status(self.run_dir).state not in ("running", "queued")


def search(loaded: LoadedExperiment, chosen: Sequence[Point], root: Path, data_dir: Path) -> None:
    """Try all points with Ray Tune on this machine; returns when every trial has ended, however.

    Nothing that Tune keeps is read afterwards: what came out stands in the run directories.
    """
    try:
        import ray
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    except ImportError:
        raise KdclusterError("a sweep needs Ray Tune: pip install 'ray[tune]' (the extra kdcluster[sweep])") from None

    sweep, first = loaded.config.sweep, chosen[0].runs[0]
    layout = layouts(Plan((first,), {}, {}))[first.id]
    given = {"root": str(root), "data_dir": str(data_dir), "metric": sweep.metric, "experiment": loaded.name}
    _quiet()
    ray.init(
        num_cpus=threads_available(),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        trainable = tune.with_resources(
            tune.with_parameters(_trainable(), points=list(chosen), layout=layout, given=given),
            {"cpu": layout.cores or 1, "gpu": layout.procs if layout.device == "cuda" else 0},
        )
        asha = ASHAScheduler(max_t=loaded.config.train.epochs, grace_period=1, reduction_factor=3)
        with tempfile.TemporaryDirectory(prefix="kdcluster-sweep-") as scratch:
            tune.Tuner(
                trainable,
                param_space={"point": tune.grid_search(list(range(len(chosen))))},
                tune_config=tune.TuneConfig(
                    metric=sweep.metric,
                    mode="min" if sweep.metric == "val/loss" else "max",
                    scheduler=asha if sweep.scheduler == "asha" else FIFOScheduler(),
                    max_concurrent_trials=sweep.at_once,
                    time_budget_s=60 * sweep.time_budget_min if sweep.time_budget_min else None,
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch, verbose=0, failure_config=tune.FailureConfig(max_failures=sweep.max_failures)
                ),
            ).fit()
    finally:
        ray.shutdown()


def _quiet() -> None:
    """Nothing goes out to Ray's makers, and Tune neither draws on the terminal nor misses the files it would write."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    for name in ("ray", "ray.tune", "ray.air", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _trainable() -> type:
    from ray import tune

    class Trial(tune.Trainable):
        """A point: its runs, one after another; with one run each epoch is a result, with several their mean is."""

        def setup(  # type: ignore[override]
            self, config: dict[str, Any], points: list[Point], layout: Layout, given: dict[str, str]
        ) -> None:
            where = (Path(given["root"]), Path(given["data_dir"]), layout, given["metric"], given["experiment"])
            self.metric = given["metric"]
            self.trainees = [Trainee(run, *where) for run in points[config["point"]].runs]
            self.begun = False

        def step(self) -> dict[str, Any]:
            if len(self.trainees) == 1:
                (trainee,) = self.trainees
                if not self.begun:
                    self.begun = True
                    trainee.begin()
                value, last = trainee.next()
                return {self.metric: value, "done": last}
            values = []
            for trainee in self.trainees:
                trainee.begin()
                last = False
                while not last:
                    value, last = trainee.next()
                values.append(value)
            return {self.metric: statistics.fmean(values), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # a run's own checkpoints are enough

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

        def cleanup(self) -> None:
            for trainee in self.trainees:
                trainee.stop()

    return Trial
