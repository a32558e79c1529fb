"""`kdcluster sweep`, and `kdcluster results --sweep`: from the options to the words that a person reads."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kdcluster import inputs
from kdcluster.commands import dry_run, teachers_first
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.plan import say_inputs
from kdcluster.errors import ConfigError, SchedulerError
from kdcluster.experiment import configfile
from kdcluster.launch.preflight import preflight
from kdcluster.launch.slurm.ask import is_here, is_inside_job
from kdcluster.launch.slurm.backend import Slurm, waited_for
from kdcluster.launch.status import run_status
from kdcluster.plan import Plan, Run
from kdcluster.results import render
from kdcluster.run import FIRST
from kdcluster.runs import RunDir
from kdcluster.states import LIVE, State
from kdcluster.sweep import job, report, scored, winner
from kdcluster.sweep.cluster import Session
from kdcluster.sweep.confirmation import Confirmed, confirmed
from kdcluster.sweep.flow import Sweeping, trial_room
from kdcluster.sweep.points import Point, Space
from kdcluster.terminal import can_show, leave, say, show_text, width
from kdcluster.wording import count

CONFIRM = 3
"""Seeds of the confirmation, unless told otherwise."""


@dataclass(frozen=True)
class Wanted:
    """The options that only a sweep has."""

    trials: int | None
    gpus_per_trial: float | None
    ray_address: str | None
    dashboard: bool
    allow_teacher: bool
    confirm: int
    write_best: bool
    dry_run: bool
    both: bool = False

    @property
    def words(self) -> list[str]:
        """What holds wherever the sweep runs, as it is typed."""
        given = {"--trials": self.trials, "--confirm": self.confirm if self.confirm != CONFIRM else None}
        flags = {"--both": self.both, "--allow-teacher": self.allow_teacher, "--write-best": self.write_best}
        words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
        return words + [word for word, on in flags.items() if on]


@contextmanager
def _interruptible(again: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command with what goes on with it; while trials run, the search notices them first."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        leave(f"\ninterrupted\nnext: {again}", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def sweep(chosen: Chosen, experiment: str, wanted: Wanted) -> bool:
    """Teacher, search, table, confirmation; on a cluster all but the teacher in one job. Whether it has ended here."""
    chosen = replace(chosen, experiments=(experiment,))
    for_teacher = chosen  # --gpus is of the whole sweep: its teacher takes them all, a trial what --gpus-per-trial says
    chosen = replace(chosen, gpus=None)
    loaded = chosen.load(experiment)
    searched = Space(loaded, tuple(chosen.settings), wanted.allow_teacher)
    if wanted.allow_teacher and searched.is_adaptive:
        raise ConfigError("--allow-teacher needs sweep.search random: teachers are trained before the search begins")
    searched.check()
    of_baseline = _of_baseline(searched, wanted)
    trial_room(loaded.config.resources, wanted.gpus_per_trial, 1)  # what is wrong with it is said before all else
    target = Path("configs") / f"{loaded.name}-best.yaml"
    if wanted.write_best:
        winner.refuse_target(searched, target)
    wishes = searched.size(wanted.trials)
    points = searched.corners() if searched.is_adaptive else searched.drawn(wishes)
    teachers = searched.teachers(points)
    if not searched.is_adaptive and len(points) < wishes:
        say(f"the space has {count(len(points), 'point')}, fewer than the {wishes} trials asked for: all are tried")
    there = for_teacher.place()
    others = of_baseline.drawn(wishes) if of_baseline else []
    if of_baseline and len(others) < (most := wishes if searched.is_adaptive else len(points)):
        what = f"the keys that concern the baseline have {count(len(others), 'point')}"
        say(f"{what}, fewer than the {most} of the distilled students: all are tried")
    of_trials = [run for point in (*points, *others) for run in point.runs]
    where = (for_teacher.gpus, wanted.gpus_per_trial, wanted.ray_address, wanted.dashboard)
    if wanted.dry_run:
        inputs.told([*for_teacher.plan(experiment).runs, *of_trials], chosen.data)  # what the images allow
        swept = Sweeping(searched, chosen.root, chosen.data, *where)
        if here := there.name == "local" and wanted.ray_address is None:
            swept.check()
        spaces = [(searched, points), *([(of_baseline, others)] if of_baseline else [])]
        at_once = swept.at_once if here else swept.at_once_elsewhere(chosen.nodes)
        dry_run.show(swept, wishes, spaces, teachers, wanted.confirm, at_once)
        return False
    all_runs = [*teachers.runs, *for_teacher.plan(experiment).runs, *of_trials]
    preflight(all_runs, chosen.data, fetch=True)
    say_inputs(all_runs, chosen.data)
    if for_teacher.gpus is not None:
        teachers = teachers_first.with_gpus(teachers, for_teacher.gpus)
    again = _again(for_teacher, wanted)
    if there.name != "local" and wanted.ray_address is None:
        if not isinstance(there, Slurm):
            raise ConfigError(f"a sweep runs on this machine, in SLURM or in a Ray that is there, not {there.title}")
        _queue(for_teacher, searched, wanted, teachers, of_trials, there, again)
        return False
    if going := _job_of(chosen.root, loaded.name):
        leave(f"job {going} in SLURM is at the sweep of {loaded.name}; wait for it, or scancel {going} first", 1)
    with _interruptible(again), Sweeping(searched, chosen.root, chosen.data, *where) as swept:
        for pid in swept.session.begin():
            say(f"process {pid} was left by an earlier sweep of {loaded.name} and is removed")
        swept.check()
        swept.searched = searched = replace(searched, loaded=configfile.kept(loaded, swept.session.folder))
        teachers_first.train(teachers, of_trials, chosen, there, again)
        points = teachers_first.with_a_good_one(points, chosen.root, every=searched.is_adaptive)
        best = _search(swept, searched, wishes, points, again)
        of_baseline = _of_baseline(searched, wanted)
        tuned = _search(swept, of_baseline, wishes, others, again) if of_baseline else None
        unwritten = _write_best(searched, best, target) if wanted.write_best else ""
        if wanted.confirm:
            made = searched.confirmation(best, wanted.confirm, tuned)
            needed = replace(teachers, runs=made.only(FIRST).joined(teachers.runs).runs)  # on the GPUs of these
            teachers_first.train(needed, made.runs, chosen, there, again)
            _confirm(swept, made, chosen, best, again)
        else:
            say(f"not confirmed, so nothing is recommended; next: {_confirming(again, CONFIRM)}")
        if unwritten:
            leave(f"{unwritten}\nnext: {again}", 1)
    return True


def _of_baseline(searched: Space, wanted: Wanted) -> Space | None:
    """What `--both` searches beside; None without it.

    Raises:
        ConfigError: no key that is searched concerns the baseline.
    """
    if not wanted.both:
        return None
    if (found := searched.of_baseline()) is None:
        what = f"none of {', '.join(searched.domains)} concerns the baseline; add train.lr or the like to sweep.space"
        raise ConfigError(f"--both: {what}")
    return found


def _search(swept: Sweeping, searched: Space, wishes: int, points: list[Point], again: str) -> Point:
    """Try the points of a space and print what came of them; returns the best of those that came to an end."""
    swept.searched, swept.cut_short = searched, ""
    tried = swept.search(wishes if searched.is_adaptive else points, sys.stderr)
    if searched.is_adaptive and len(tried) < wishes and not swept.cut_short:
        say(f"no further point was found after {count(len(tried), 'trial')}: the space is small")
    best = _report(searched, tried, swept.root, swept.stop.why)
    if swept.cut_short and not swept.stop.why:
        say(f"{swept.cut_short}: what was not tried to its end, the same command goes on with")
    if swept.stop.why:
        leave(f"interrupted: {swept.stop.why}\nnext: {again}", 130)
    if best is None:
        leave(f"no trial came to an end\nnext: {again}", 1)
    return best


def _again(chosen: Chosen, wanted: Wanted) -> str:
    """The command that goes on; in a job, the one that queued it."""
    if queued := os.environ.get("KDCLUSTER_SWEEP_AGAIN"):
        return queued
    there = None if is_inside_job() else wanted.ray_address  # the Ray of a job ends with it
    given = {"--gpus-per-trial": wanted.gpus_per_trial, "--ray-address": there}
    words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    return " ".join(["kdcluster sweep", chosen.submit_again(), *map(shlex.quote, wanted.words + words)]) + chosen.where


def _confirming(again: str, seeds: int) -> str:
    """The command that goes on, with another number of seeds."""
    return f"{re.sub(r' --confirm [0-9]+', '', again)} --confirm {seeds}"


def _report(searched: Space, points: list[Point], root: Path, interrupted: str) -> Point | None:
    """Print the trials; returns the best of those that came to an end."""
    if not points:
        return None
    found = scored.tried(points, searched.sweep.metric, root)
    show_text(report.render(searched, found, "table", ascii=not can_show("±"), width=width()))
    best = scored.best(found)
    if best is not None and not interrupted:
        how = f"best of {count(sum(one.value is not None for one in found), 'trial')}, selected on held-out images"
        say(f"{how}: {' '.join(best.point.settings)}  {searched.sweep.metric} {best.shown}")
    return best.point if best else None


def _job_of(root: Path, name: str) -> str | None:
    """The SLURM job that is at the sweep of an experiment, seen from outside; None: there is none, or no SLURM."""
    if is_inside_job() or not is_here():
        return None
    try:
        going = job.under_way(root / ".sweeps" / name)
    except SchedulerError:  # a machine with SLURM's commands and no SLURM behind them
        return None
    return going.id if going else None


def _write_best(searched: Space, best: Point, target: Path) -> str:
    """Write the winner's file; returns why that was not possible, and the confirmation goes on."""
    try:
        winner.write_best(searched, best.values, target)
    except ConfigError as error:  # as of an earlier sweep, with another winner
        return str(error)
    say(f"written: {target}")
    return ""


def _confirm(swept: Sweeping, made: Plan, chosen: Chosen, best: Point, again: str) -> None:
    """Train the confirmation, print its table and what it says."""
    teachers_first.with_a_good_one([Point({}, made.runs)], swept.root, every=True)
    swept.confirm(made, sys.stderr)
    after = confirmed(made, swept.root)
    show_text(render.render(after.table, ascii=not can_show("±×αΔ–"), width=width()))
    if swept.stop.why:
        leave(f"interrupted: {swept.stop.why}\nnext: {again}", 130)
    if after.verdict is None:
        leave(f"not every run of the confirmation is done\nnext: {again}", 1)
    for line in (*after.verdict.words, recommended(chosen, best, after, again)):
        say(line)


def recommended(chosen: Chosen, best: Point, after: Confirmed, again: str) -> str:
    """What to type after a confirmation; the winner's settings only where it holds up.

    Args:
        chosen: the experiment.
        best: the winner.
        after: its confirmation.
        again: the command that sweeps, or goes on with it.
    """
    if after.verdict is None:
        return f"next: {again}"
    if not after.verdict.holds:
        return f"nothing is recommended; more seeds may tell: {_confirming(again, 2 * after.seeds)}"
    # The nodes were the whole sweep's; inside a job everything is local, and results has no such option.
    default = os.environ.get("KDCLUSTER_BACKEND", "auto")
    here = replace(chosen, nodes=None, backend=default if is_inside_job() or not chosen.backend else chosen.backend)
    settings = " ".join(shlex.quote(word) for one in best.settings for word in ("--set", one))
    return f"recommended: kdcluster submit {here.submit_again()} {settings}{here.where}"


def _queue(
    chosen: Chosen, searched: Space, wanted: Wanted, teachers: Plan, students: Iterable[Run], slurm: Slurm, again: str
) -> None:
    """The teachers as jobs of their own, everything else as one job after them."""
    loaded, root = searched.loaded, chosen.root
    folder = root / ".sweeps" / loaded.name
    if going := job.under_way(folder):
        return say(f"job {going.id} is at the sweep of {loaded.name} already ({going.state.lower()})")
    Session(folder).refuse_another()
    if slurm.profile.container:
        raise ConfigError("a sweep in SLURM cannot use the profile's container: its trials run in a Ray on the host")
    resources, sweep = loaded.config.resources, loaded.config.sweep
    at_once = sweep.at_once or chosen.nodes or 1
    layout, words = job.allocation(resources, slurm.profile, chosen.gpus, chosen.nodes, wanted.gpus_per_trial, at_once)
    slurm.check_layouts([layout])
    if limit := slurm.profile.time_limit:
        say(f"worst case of the sweep: {layout.gpus * limit / 60 * (1 + slurm.profile.max_requeues):.4g} GPU-hours")
    for_teachers = slurm if chosen.gpus else Slurm(slurm.given, slurm.cluster)  # without GPUs --nodes is of the trials
    teachers_first.submit(teachers, students, chosen, for_teachers)
    after, ended = (
        [job_id for run in teachers.runs if run.role == role and (job_id := waited_for(RunDir(root, run.id)))]
        for role in FIRST
    )
    states = {run.id: run_status(RunDir(root, run.id)).state for run in teachers.runs if run.role == "teacher"}
    if undone := [run_id for run_id, state in states.items() if state not in (State.DONE, *LIVE)]:
        leave(f"without its teacher nothing can be searched: {', '.join(undone)}; kdcluster status says why", 1)
    given = [*(word for one in searched.overrides for word in ("--set", one)), *words]
    given += ["--runs-dir", str(root), "--data-dir", str(chosen.data), *wanted.words]
    job_id, log = job.submit(folder, layout, slurm, after, loaded, given, again, ended)
    say(f"job {job_id} sweeps {loaded.name} on {layout}; log: {log}")
    say(f"next: kdcluster results {chosen.again()} --sweep{chosen.where}")
    say(f"scancel {job_id} stops it; then: {again}")
