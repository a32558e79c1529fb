"""Which points of an experiment's space are tried, by which runs, and which were tried before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.course import evaluation_count
from kdcluster.errors import ConfigError
from kdcluster.experiment import configfile, distilling, space
from kdcluster.experiment.config import Sweep
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.plan import Plan, Role, Run, plan, trial, trial_stores
from kdcluster.run import FIRST
from kdcluster.runs import RunDir, run_dirs

FRESH = 1000
"""First seed of the confirmation: no trial has used it."""
AGAIN = 20
"""Small spaces repeat themselves: so many draws for each point that is wanted."""


def best_of(metric: str) -> Any:
    """`min` or `max`: which of a metric's values is the best."""
    return min if metric.endswith("loss") else max


@dataclass(frozen=True)
class Point:
    """One point of the space, and the runs that try it."""

    values: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def settings(self) -> list[str]:
        """As --set takes it."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its runs: what makes it another point than others."""
        return tuple(run.id for run in self.runs)

    @property
    def unit(self) -> str:
        """After what its runs are evaluated."""
        return "tenth" if any(run.train and run.train.steps for run in self.runs) else "epoch"


def counted(points: Iterable[Point]) -> str:
    """In what the length of their runs is said: epochs, where one of them counts those."""
    return "tenths" if {point.unit for point in points} == {"tenth"} else "epochs"


@dataclass(frozen=True)
class Space:
    """The points of one experiment's `sweep` block.

    Args:
        loaded: the experiment.
        overrides: `KEY=VALUE` that hold for every point.
        allow_teacher: keys that change the teacher may be searched.
        role: of the students that are tried: distilled, or baseline, which only some of the keys concern.
    """

    loaded: LoadedExperiment
    overrides: tuple[str, ...] = ()
    allow_teacher: bool = False
    role: Role = "distilled"

    @property
    def sweep(self) -> Sweep:
        """The experiment's block."""
        return self.loaded.config.sweep

    @cached_property
    def domains(self) -> dict[str, Any]:
        """What is searched, by key."""
        default = {"alpha": {"uniform": [0.05, 0.95]}, "temperature": {"loguniform": [1, 16]}}
        has = ("alpha", *self.loaded.config.distill.used)
        return self.sweep.space or {f"distill.{key}": domain for key, domain in default.items() if key in has}

    def of_baseline(self) -> Space | None:
        """The same search of the baseline over the keys that concern it, so that it had the same chance; None: none
        does."""
        baseline = replace(self, role="baseline")
        block = {key: domain for key, domain in self.domains.items() if baseline._moves(key, domain)}
        if not block:
            return None
        sweep = self.sweep.model_copy(update={"space": block})
        config = self.loaded.config.model_copy(update={"sweep": sweep})
        return replace(baseline, loaded=replace(self.loaded, config=config))

    def _moves(self, key: str, domain: Any) -> bool:
        """Whether a key makes other runs."""
        return len({self.point(values).ids for values in self._alone(key, domain)}) > 1

    @property
    def is_adaptive(self) -> bool:
        """Whether points follow from the results of others, and so are not known beforehand."""
        return self.sweep.search == "optuna"

    def corners(self) -> list[Point]:
        """The points with one key at an end of its domain, or at each of its values, and the others as in the file."""
        return [self.point(values) for key, domain in self.domains.items() for values in self._alone(key, domain)]

    def _alone(self, key: str, domain: Any) -> list[dict[str, Any]]:
        """One key at the ends of its domain; one that the file's loss has not, with a searched loss that has it."""
        name, losses = key.removeprefix("distill."), space.corners(self.domains.get("distill.loss", {"choice": []}))
        loss = self.loaded.config.distill.loss
        if name in distilling.NOT_FOR_ALL and name not in distilling.USED[loss]:
            loss = next((one for one in losses if name in distilling.USED.get(one, ())), loss)
        with_it = {} if loss == self.loaded.config.distill.loss else {"distill.loss": loss}
        return [{**with_it, key: value} for value in space.corners(domain)]

    def size(self, trials: int | None = None) -> int:
        """How many points are tried: as many as asked for, of grids alone all."""
        drawn = any("grid" not in domain for domain in self.domains.values())
        return trials or (self.sweep.trials if drawn else space.grid_size(self.domains))

    def drawn(self, count: int) -> list[Point]:
        """The points in the order in which they are tried, the same ones each time; fewer where there are no more."""
        found: dict[tuple[str, ...], Point] = {}
        for values in islice(space.points(self.domains, self.sweep.seed), AGAIN * count):
            made = self.point(values)
            found.setdefault(made.ids, made)
            if len(found) == count:
                break
        return list(found.values())

    def point(self, values: dict[str, Any]) -> Point:
        """One point with its runs; where the loss is searched, too, without the keys that this one does not use.

        Raises:
            ConfigError: it is no experiment.
        """
        loss = values.get("distill.loss")
        used = distilling.USED.get(loss, ()) if loss else distilling.NOT_FOR_ALL
        idle = {f"distill.{key}" for key in distilling.NOT_FOR_ALL if key not in used}
        values = {key: value for key, value in values.items() if key not in idle}
        settings = Point(values, ()).settings
        there = configfile.load(str(self.loaded.path), [*self.overrides, *settings])
        seeds = range(self.sweep.seeds)
        there = replace(there, name=self.loaded.name)
        return Point(values, tuple(trial(there, seeds, self.sweep.val_fraction, self.role)))

    def recorded(self, root: Path) -> list[Point]:
        """The points that were tried before with today's file, in the order of their first start."""
        found: dict[tuple[str, ...], Point] = {}
        others = of_others(root, self.loaded.name)
        noting = [*run_dirs(root), *(RunDir(others, run_id) for run_id in records.entries(others))]
        tried = ((one, noted["values"]) for one in noting for noted in one.trials_of(self.loaded.name))
        for run_dir, values in sorted(tried, key=lambda pair: _first_noted(pair[0])):
            order = {key: values[key] for key in self.domains if key in values}
            try:
                made = self.point({**order, **values})
            except ConfigError:  # of an earlier file, which allowed it
                continue
            if run_dir.id in made.ids:
                found.setdefault(made.ids, made)
        return list(found.values())

    def most_evaluations(self) -> int:
        """Of the longest trial."""
        searched = self.domains.get("train.epochs")
        return max(space.corners(searched)) if searched else evaluation_count(self.loaded.config.train)

    def check(self) -> None:
        """Every corner of the space must be an experiment, with the same teacher unless that is allowed.

        Raises:
            ConfigError: one is not.
        """
        wrong = ((key, what) for key, domain in self.domains.items() for what in self._wrong(key, domain))
        problems = [(("sweep", "space", key), what.removeprefix(f"{key}: ")) for key, what in wrong]
        if problems:
            raise ConfigError(*dict.fromkeys(configfile.located(self.loaded, self.overrides, problems)))

    def _wrong(self, key: str, domain: Any) -> list[str]:
        problems: list[str] = []
        made = []
        for values in self._alone(key, domain):
            *loss, setting = Point(values, ()).settings
            try:
                there = configfile.load(str(self.loaded.path), [*self.overrides, *loss, setting])
                made.append((setting, plan([there])))
            except ConfigError as error:
                problems += [problem.removeprefix(f"--set {setting}: ") for problem in error.problems]
        teacher = plan([self.loaded]).runs[0].id
        if others := [setting for setting, there in made if there.runs[0].id != teacher and not self.allow_teacher]:
            hint = "--allow-teacher trains each, and --dry-run says how many"
            problems.append(f"{others[0]} makes another teacher; {self._one_teacher(key)}{hint}")
        students = [{run.hash for run in there.runs} for _, there in made]
        if (
            not problems
            and len(made) > 1
            and self.loaded.config.distill.alpha
            and all(s == students[0] for s in students)
        ):
            problems.append("makes no other student, so there is nothing to search")
        if not problems and key == "seeds":
            problems.append("makes no other student: sweep.seeds says how many each point has")
        return problems

    def _one_teacher(self, key: str) -> str:
        """What leaves the teacher as it is while a key is searched, if anything does."""
        block, _, name = key.partition(".")
        if block == "train":
            own = {f"teacher.train.{name}": getattr(self.loaded.config.train, name)}
        elif key.startswith("data.augment"):
            own = {"teacher.augment": self.loaded.config.data.augment.model_dump(exclude_defaults=True)}
        else:
            return ""
        (setting,) = Point(own, ()).settings
        return f"--set '{setting}' keeps one, "

    def teachers(self, points: Sequence[Point]) -> Plan:
        """The teachers of the experiment and of these points, and the stores of their logits, as a plan.

        Of points that follow from others only what the experiment has, too: who knows whether another is ever tried.
        """
        there = [configfile.load(str(self.loaded.path), [*self.overrides, *point.settings]) for point in points]
        own = plan([self.loaded]).only(FIRST)
        known = {run.id for run in own.runs}
        others = [run for one in there for run in plan([one]).only(FIRST).runs]
        others += [run for one in (self.loaded, *there) for run in trial_stores(one, self.sweep.val_fraction)]
        return own.joined(run for run in others if run.id in known or not self.is_adaptive)

    def confirmation(self, best: Point, count: int, tuned: Point | None = None) -> Plan:
        """The winner, the file's own settings, and the baseline on all images, with seeds that no trial had.

        `tuned`: the baseline's own winner, which is another arm then.
        """
        fresh = f"seeds=[{', '.join(str(FRESH + number) for number in range(count))}]"
        own = configfile.load(str(self.loaded.path), [*self.overrides, fresh])
        winner = configfile.load(str(self.loaded.path), [*self.overrides, *best.settings, fresh])
        made = plan([own, replace(winner, name=f"{self.loaded.name}-best")])
        if tuned is None:
            return made
        there = configfile.load(str(self.loaded.path), [*self.overrides, *tuned.settings, fresh])
        other = plan([there])
        ids = other.wanted[there.name]["baseline"]
        *_, name = made.wanted
        wanted = {**made.wanted, name: {**made.wanted[name], "tuned": ids}}
        return replace(made.joined(map(other.__getitem__, ids)), wanted=wanted)


def of_others(root: Path, experiment: str) -> Path:
    """Where it is noted what runs try for an experiment's sweep whose directories are another user's."""
    return root / ".sweeps" / experiment / "trials"


def _first_noted(run_dir: RunDir) -> float:
    return (run_dir.path / "trials.json").stat().st_mtime


class Source:
    """Where points come from: here, from a list that is known beforehand."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._left = iter(points)

    def next(self) -> Point | None:
        """The next point to try; None: there are no more."""
        return next(self._left, None)

    def heard(self, point: Point, epoch: int, value: float) -> None:
        """A point has reached so much after an epoch."""

    def ended(self, point: Point, value: float | None, *, whole: bool) -> None:
        """A point has ended, with its best value, or without one; `whole`: it was not stopped early."""
