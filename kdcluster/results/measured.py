"""A run directory to the numbers that the table takes from it.

The numbers come from the event files. result.json is held against them, and stands in, loudly, for what they
have lost; without it nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcluster.course import Course, evaluation_count
from kdcluster.experiment.images import Data
from kdcluster.plan import Run
from kdcluster.results import recount
from kdcluster.results.events import Scalars, read_scalars
from kdcluster.results.index import Counts, Index
from kdcluster.results.single import decimal, float32
from kdcluster.runs import RunDir
from kdcluster.states import State

Protocol = Literal["best", "last"]
PROTOCOLS: tuple[Protocol, ...] = ("best", "last")
TOP1 = "test/top1"
"""The metric of the table, in percent."""

Evaluations = Mapping[int, Mapping[str, float]]
"""Optimizer step -> tag -> value, one for each evaluation; an evaluate-only run has one, at step 0."""


@dataclass(frozen=True)
class Measured:
    """One run as its directory has it."""

    run: Run
    done: bool
    top1: float | None
    """Test accuracy in percent under the protocol; None where the run is not done or nothing can be read."""
    trainer: Mapping[str, Any]
    """The newest trainer.json: params, batchnorm_batch (images), amp, procs, threads, device, trainer_code."""
    problems: tuple[str, ...] = ()
    """Evaluations that are lost, numbers that result.json had to give, where it contradicts the events."""
    damage: tuple[str, ...] = ()
    """What was found wrong in the event files."""
    log: str | None = None
    """The newest attempt's log, where there is one."""
    still_rising: bool = False
    """Whether its best evaluation is its last one, under a learning rate that no end of the schedule has lowered."""
    views: Mapping[str, int] = field(default_factory=dict)
    """Of a distilled run: in how many epochs the teacher's logits were `read`, and in how many `computed`."""
    counts: Counts | None = None
    """Which test images it has right, where it has kept that and it was asked for."""

    @property
    def params(self) -> int | None:
        """Number of parameters, or None before the trainer has built the model."""
        return self.trainer.get("params")


def selected_by(data: Data) -> str:
    """The tag that picks the best evaluation: validation where a split is held out, else test."""
    return "val/top1" if data.val_fraction > 0 else TOP1


def is_done(directory: RunDir) -> bool:
    """Whether a run's newest attempt says so, or there is a result that can be believed."""
    newest = directory.newest()
    return bool(newest and newest.read("outcome").get("state") == State.DONE) or directory.result() is not None


def measure(
    run: Run, directory: RunDir, protocol: Protocol, index: Index | None = None, *, recounted: bool = False
) -> Measured:
    """Read one run; it is done when its newest attempt says so or there is a result that can be believed.

    Numbers of a run that is not done are not read: they enter no mean. `index`: of the runs directory's files.
    `recounted`: also hold the accuracy against the predictions that were kept.
    """
    attempts = directory.attempts()
    trainer = next((facts for a in reversed(attempts) if (facts := a.read("trainer"))), {})
    newest = attempts[-1] if attempts else None
    finished = newest is not None and newest.read("outcome").get("state") == State.DONE
    result = directory.result() or {}
    if not finished and not result:
        return Measured(run, False, None, trainer)
    problems = [what + "; it is left out" * what.startswith("its result.json") for what in directory.damage(newest)]
    if result and result["hash"] != run.hash:  # the first digits are equal
        result = {}
        problems.append("its result.json is of another run (its hash differs); it is left out")
    if result and not trainer:
        problems.append("there is no trainer.json; its facts are taken from result.json")
        trainer = {key: result.get(key) for key in ("params", "batchnorm_batch", "amp", "trainer_code")}
    if result and trainer.get("params") not in (None, result["params"]):
        what = f"{result['params']} parameters, trainer.json {trainer['params']}"
        problems.append(f"result.json contradicts trainer.json: {what}")
    scalars = read_scalars(directory.events, index=index)
    evaluations = _evaluations(run, scalars)
    steps = _steps(run, trainer, result)
    lost = steps - evaluations.keys()
    if lost:
        first = f"the first at step {min(lost)}"
        problems.append(f"{len(lost)} of {len(steps)} evaluations missing from the event files, {first}")
    problems += _contradictions(run, evaluations, lost, result)
    top1, how = _top1(run, evaluations, lost, result, protocol)
    counts = None
    if recounted and result and top1 is not None:
        contradicting, counts = recount.recounted(directory, result, protocol, top1, index)
        how += contradicting
    log = newest.log() if newest else None
    return Measured(
        run=run,
        done=True,
        top1=top1,
        trainer=trainer,
        problems=(*problems, *how),
        damage=scalars.problems + (scalars.incomplete if lost else ()),
        log=str(log) if log and log.exists() else None,
        still_rising=_still_rising(run, evaluations),
        views=views if isinstance(views := result.get("views"), dict) else {},
        counts=counts,
    )


def _evaluations(run: Run, scalars: Scalars) -> Evaluations:
    """The evaluations that have all that the table needs."""
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for tag, points in scalars.points.items():
        for point in points:
            found[point.step][tag] = point.value
    needed = {TOP1, selected_by(run.data)}
    return {step: values for step, values in found.items() if needed <= values.keys()}


def _steps(run: Run, trainer: Mapping[str, Any], result: Mapping[str, Any]) -> set[int]:
    """The steps after which this run was evaluated, as far as they are known."""
    if run.train is None:
        return {0}
    if per_epoch := trainer.get("steps_per_epoch"):
        return set(Course.of(run.train, per_epoch).ends)
    return {result[protocol]["step"] for protocol in PROTOCOLS if result}


def _chosen(run: Run, evaluations: Evaluations, protocol: Protocol) -> int:
    """The step whose evaluation the protocol takes: the last, or the first of the best."""
    if protocol == "last":
        return max(evaluations)
    return max(sorted(evaluations), key=lambda step: evaluations[step][selected_by(run.data)])


def _still_rising(run: Run, evaluations: Evaluations) -> bool:
    constant = run.train is not None and evaluation_count(run.train) > 1 and run.train.schedule == "constant"
    return constant and bool(evaluations) and _chosen(run, evaluations, "best") == max(evaluations)


def _contradictions(run: Run, evaluations: Evaluations, lost: set[int], result: Mapping[str, Any]) -> list[str]:
    """Where result.json says something else than the event files; what they have lost cannot be compared."""
    found = []
    for protocol in PROTOCOLS if result and evaluations else ():
        theirs, step = result[protocol], _chosen(run, evaluations, protocol)
        ours = evaluations[step][TOP1]
        if theirs["step"] in lost or (theirs["step"], float32(theirs[TOP1])) == (step, ours):
            continue
        said = f"{theirs[TOP1]:.7g} at step {theirs['step']}"
        read = f"{ours:.7g} at step {step}"
        found.append(f"result.json contradicts the event files: {protocol} {TOP1} {said}, event files {read}")
    return found


def _top1(
    run: Run, evaluations: Evaluations, lost: set[int], result: Mapping[str, Any], protocol: Protocol
) -> tuple[float | None, list[str]]:
    """Test accuracy in percent, the same from both sources, and what has to be said about where it comes from."""
    if result and (not evaluations or result[protocol]["step"] in lost):
        return decimal(result[protocol][TOP1]), [f"{protocol} {TOP1} is taken from result.json"]
    if not evaluations or (protocol == "last" and max(lost, default=0) > max(evaluations)):
        return None, [f"there is no {protocol} {TOP1}: its evaluation is lost"]
    said = [f"best {TOP1} is that of the other evaluations"] if lost and not result else []
    return decimal(evaluations[_chosen(run, evaluations, protocol)][TOP1]), said if protocol == "best" else []
