"""Points that follow from the results of those before: Optuna's tree-structured Parzen estimator.

Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; Optuna's TPESampler.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment import space
from kdcluster.sweep.points import AGAIN, Point, Source, Space, best_of

ITS_OWN = 5
"""So many of Optuna's own points in a row may have been tried before (it likes to repeat the best of a small space)."""


class Adaptive(Source):
    """A source of points from Optuna, which hears what came of them.

    Args:
        searched: the space.
        count: points that are wanted.
        known: points of an earlier sweep of this space: they are tried first, and those that are done cost nothing.

    Raises:
        KdclusterError: Optuna is not installed.
    """

    def __init__(self, searched: Space, count: int, known: Sequence[Point] = ()) -> None:
        try:
            import optuna
        except ImportError:
            raise KdclusterError("sweep.search: optuna needs Optuna: pip install 'kdcluster[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, searched
        self._domains = {key: _distribution(domain) for key, domain in searched.domains.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A third is drawn at random; a trial that runs counts as a bad one, so that others keep away from it.
            sampler = optuna.samplers.TPESampler(
                seed=searched.sweep.seed, n_startup_trials=min(10, -(-count // 3)), constant_liar=True
            )
        low = best_of(searched.sweep.metric) is min
        self._study = optuna.create_study(direction="minimize" if low else "maximize", sampler=sampler)
        self._open = count
        self._at_random = space.points(searched.domains, searched.sweep.seed)
        self._trials: dict[tuple[str, ...], Any] = {}
        for point in known:
            if point.values.keys() == searched.domains.keys() and all(
                _contains(domain, point.values[key]) for key, domain in searched.domains.items()
            ):
                self._enqueue(point.values)

    def next(self) -> Point | None:  # None: also where only such are left that were tried
        for attempt in range(5 * AGAIN if self._open else 0):
            if attempt >= ITS_OWN:
                self._enqueue(next(self._at_random))
            trial = self._study.ask(self._domains)
            drawn = {key: _decoded(domain, trial.params[key]) for key, domain in self._space.domains.items()}
            try:
                point = self._space.point(drawn)
            except ConfigError:  # its corners were sound, but not every combination is
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                continue
            if point.ids not in self._trials:
                self._trials[point.ids] = trial
                self._open -= 1
                return point
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return None

    def _enqueue(self, values: Mapping[str, Any]) -> None:
        """Have Optuna ask for this point next."""
        domains = self._space.domains
        self._study.enqueue_trial({key: _encoded(domain, values[key]) for key, domain in domains.items()})

    def heard(self, point: Point, epoch: int, value: float) -> None:
        self._trials[point.ids].report(value, epoch)

    def ended(self, point: Point, value: float | None, *, whole: bool) -> None:
        states = self._optuna.trial.TrialState
        if value is None:
            self._study.tell(self._trials[point.ids], state=states.FAIL)
        elif whole:
            self._study.tell(self._trials[point.ids], value)
        else:
            self._study.tell(self._trials[point.ids], state=states.PRUNED)


def _distribution(domain: Mapping[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    ((kind, values),) = domain.items()
    if kind == "choice":
        return CategoricalDistribution(range(len(values)))  # a value may be a list, or equal another one
    if kind == "randint":
        return IntDistribution(values[0], values[1])
    low, high = map(float, values[:2])
    if kind == "quniform":
        return IntDistribution(0, space.steps(values))
    return FloatDistribution(low, high, log=kind == "loguniform")


def _decoded(domain: Mapping[str, Any], drawn: Any) -> Any:
    ((kind, values),) = domain.items()
    if kind == "choice":
        return values[drawn]
    if kind == "randint":
        return drawn
    return space.rounded(values[0] + values[2] * drawn if kind == "quniform" else drawn, values)


def _encoded(domain: Mapping[str, Any], value: Any) -> Any:
    ((kind, values),) = domain.items()
    if kind == "choice":
        return list(values).index(value)
    return round((value - values[0]) / values[2]) if kind == "quniform" else value


def _contains(domain: Mapping[str, Any], value: Any) -> bool:
    ((kind, values),) = domain.items()
    if kind == "choice":
        return value in values
    return isinstance(value, int | float) and values[0] <= value <= values[1]
