"""Trials of Ray Tune: the only file that talks to Tune. What came out stands in the run directories, not in Tune."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from kdcluster.sweep.points import Point, Source, best_of
from kdcluster.sweep.trial import Ending, Order, Trainee, note_stopped


def search(
    source: Source,
    order: Order,
    begun: list[Point],
    *,
    asha_evaluations: int | None,
    at_once: int | None,
    max_failures: int,
    watch: Callable[[], bool],
) -> list[tuple[Point, str]]:
    """Try the points of a source in the Ray that this process is connected to, until every trial has ended.

    Args:
        source: the points.
        order: what each trial has to know; once its `ending` is there, no further point is begun.
        begun: gets the points that were begun.
        asha_evaluations: of the longest trial, for ASHA; None: no trial is stopped early.
        at_once: most trials at the same time; None: as many as there is room for.
        max_failures: how often a trial that fails is started again.
        watch: called again and again meanwhile; True ends the search.

    Returns:
        The points whose trial failed for good, each with its last error.
    """
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    trainable = tune.with_resources(
        tune.with_parameters(_trainable(), order=order), {"cpu": order.layout.cores or 1, "gpu": order.gpus}
    )
    with tempfile.TemporaryDirectory(prefix="kdcluster-sweep-") as scratch:
        grid = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=order.metric,
                mode=best_of(order.metric).__name__,
                search_alg=_searcher(source, order, begun, asha_evaluations),
                scheduler=_asha(order, asha_evaluations) if asha_evaluations else FIFOScheduler(),
                num_samples=-1,  # the source says when there are no more
                max_concurrent_trials=at_once,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                stop=_stopper(watch),
                failure_config=tune.FailureConfig(max_failures=max_failures),
            ),
        ).fit()
    ended = (grid[number] for number in range(len(grid)))
    return [(one.config["point"], _words(one.error)) for one in ended if one.config and one.error]


def _words(error: BaseException) -> str:
    """Of an error that Ray has wrapped: the last line of the one inside."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[-1]


def quiet() -> None:
    """Before Ray is imported: nothing goes out to its makers, Tune does not draw on the terminal, signals are ours."""
    import logging

    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
    }
    for name in ("ray", "ray.tune", "ray.air", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _OfThisProcess:
    """Tune pickles and copies all that it gets, for a state on disk that we never read."""

    def __reduce__(self) -> Any:
        return object, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def _stopper(watch: Callable[[], bool]) -> Any:
    from ray import tune

    class Watching(_OfThisProcess, tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return watch()

    return Watching()


def _asha(order: Order, evaluations: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    class Noting(ASHAScheduler):
        """Whatever else ends a trial, also an error of ours or of Tune's: it goes on another time."""

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = super().on_trial_result(controller, trial, result)
            if decision == self.STOP:
                note_stopped(trial.config["point"], order)
            return decision

    return Noting(max_t=evaluations, grace_period=1, reduction_factor=3)


def _searcher(source: Source, order: Order, begun: list[Point], asha_evaluations: int | None) -> Any:
    from ray.tune.search import Searcher

    class Points(_OfThisProcess, Searcher):
        """Asks the source, and tells it what it hears."""

        def __init__(self) -> None:
            super().__init__(metric=order.metric, mode=best_of(order.metric).__name__)
            self.given: dict[str, Point] = {}
            self.best: dict[str, float] = {}

        def suggest(self, trial_id: str) -> Any:
            point = None if order.ending.exists() else source.next()
            if point is None:
                return Searcher.FINISHED
            begun.append(point)
            self.given[trial_id] = point
            return {"point": point}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            self._better(trial_id, result)
            source.heard(self.given[trial_id], result["training_iteration"], result[order.metric])

        def _better(self, trial_id: str, result: dict[str, Any]) -> None:
            if math.isnan(value := result[order.metric]):
                return
            self.best[trial_id] = best_of(order.metric)(value, self.best.get(trial_id, value))

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False, **_: Any
        ) -> None:
            if result:
                self._better(trial_id, result)
            value = None if error else self.best.get(trial_id)
            whole = bool(result) and (asha_evaluations is None or bool(result.get("whole")))  # type: ignore[union-attr]
            source.ended(self.given[trial_id], value, whole=whole)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a sweep is rebuilt from the run directories."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Points()


def _trainable() -> type:
    from ray import tune

    class Trial(tune.Trainable):
        """A point: its runs, one after another; of one run each evaluation is a result, of several their mean."""

        def setup(self, config: dict[str, Any], order: Order) -> None:  # type: ignore[override]
            self.order = order
            self.trainees = [Trainee(run, config["point"].values, order) for run in config["point"].runs]
            self.begun = False

        def step(self) -> dict[str, Any]:
            metric = self.order.metric
            try:
                if len(self.trainees) > 1:
                    return {metric: self.mean(), "done": True, "whole": True}
                (trainee,) = self.trainees
                if not self.begun:
                    self.begun = True
                    trainee.begin()
                value, last = trainee.next()
                return {metric: value, "done": last, "whole": last and trainee.is_done}
            except Ending:  # no failure, which Tune would try again; nobody reads the value
                return {metric: math.nan, "done": True, "whole": False}

        def mean(self) -> float:
            values = []
            for trainee in self.trainees:
                trainee.begin()
                measured, last = [], False
                while not last:
                    value, last = trainee.next()
                    measured.append(value)
                values.append(best_of(self.order.metric)(measured))
            return statistics.fmean(values)

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # a run's own checkpoints are enough

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

        def cleanup(self) -> None:
            for trainee in self.trainees:
                trainee.stop()

    return Trial
