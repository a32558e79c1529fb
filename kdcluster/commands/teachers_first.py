"""The teachers of a sweep, and the stores of their logits: ordinary runs that are made before it, once."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import next_steps
from kdcluster.commands.progress import follow
from kdcluster.launch import submission
from kdcluster.launch.backend import Backend
from kdcluster.launch.status import blocked_by, run_status, statuses
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.sweep.points import Point
from kdcluster.terminal import leave, say


def with_gpus(teachers: Plan, gpus: int) -> Plan:
    """The teachers on all GPUs of the sweep."""
    many = {"device": "cuda", "procs": None, "gpus": gpus}
    runs = (run.model_copy(update={"resources": run.resources.model_copy(update=many)}) for run in teachers.runs)
    return replace(teachers, runs=tuple(runs))


def train(made: Plan, students: Iterable[Run], chosen: Chosen, there: Backend, again: str) -> None:
    """Make the teachers that these students need and the stores that they read, and wait for them.

    A store that is not to be had costs time alone.
    """
    made = _without_unknown(made, chosen.root)
    done = submit(made, students, chosen, there)
    if not done.started and all(done.left[run.id].state == State.DONE for run in made.runs):
        return
    try:
        found = follow(made, chosen.root, sys.stderr)
    except KeyboardInterrupt:
        leave(f"\ndetached; the teacher goes on\nnext: {again}", 130)
    if any(found[run.id].state != State.DONE for run in made.only(["teacher"]).runs):
        for run_id, status in found.items():
            say(f"{run_id}: {status.state}: {status.reason}" if status.reason else f"{run_id}: {status.state}")
        for step in next_steps(found, {run_id: chosen.submit_again(run_id) for run_id in found}, chosen.where):
            say(f"next: {step}")
        leave(f"without its teacher nothing can be searched; then: {again}", 1)


def submit(made: Plan, students: Iterable[Run], chosen: Chosen, there: Backend) -> submission.Submission:
    """Start the teachers that are not done, or whose weights are gone while one of these students needs them."""
    made = _without_unknown(made, chosen.root)
    return submission.submit(made, chosen.root, chosen.data, there, lambda runs: None, waiting=students)


def _without_unknown(made: Plan, root: Path) -> Plan:
    """Without stores of which it is not known whether they are still being made: no trial waits for them."""
    found = statuses(made, root)
    return made.cut({run.id for run in made.runs if run.role != STORE or not found[run.id].unknown})


def with_a_good_one(points: list[Point], root: Path, *, every: bool) -> list[Point]:
    """The points whose teacher reaches teacher.min_top1; why others are left out is said. `every`: all or none."""
    why = {point.ids: _blocked(point, root) for point in points}
    for reason in dict.fromkeys(filter(None, why.values())):
        say(f"not tried: {reason}")
    good = [point for point in points if not why[point.ids]]
    if not good or (every and len(good) < len(points)):
        leave("there is nothing to do", 1)
    return good


def _blocked(point: Point, root: Path) -> str:
    needs = {need: run_status(RunDir(root, need)) for run in point.runs for need in run.needs}
    return next(filter(None, (blocked_by(run, needs) for run in point.runs)), "")
