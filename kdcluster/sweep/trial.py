"""One run of a trial: started where the trial is unless somebody has, and followed from evaluation to evaluation."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdcluster.course import evaluation_count
from kdcluster.errors import KdclusterError
from kdcluster.files import read_json
from kdcluster.launch.attempt import Child
from kdcluster.launch.local.slots import Slots, own_cores
from kdcluster.launch.status import KNOWN_S, run_status
from kdcluster.launch.torchrun import Layout
from kdcluster.ownership import keep_to_oneself, refuse_foreign
from kdcluster.plan import Run
from kdcluster.results.events import Follower
from kdcluster.results.single import decimal
from kdcluster.runs import RunDir
from kdcluster.states import INTERRUPTED, LIVE, State
from kdcluster.sweep.points import Point, of_others

POLL_S = 0.3
STOP_S = 8.0
"""How long a torchrun that is stopped has to save, before it is killed."""
STOPPED = State.STOPPED
"""Name of the record that an attempt gets when the scheduler stops it early."""
OTHERS_WERE_BETTER = "others were better after as many evaluations"


@dataclass(frozen=True)
class Order:
    """What every trial of one search has to know; pickled, so that it reaches other machines.

    `ending` is a file that is there once the whole search is being ended: what it stops then goes on another time.
    """

    experiment: str
    root: Path
    data_dir: Path
    layout: Layout
    gpus: float
    """Of each trial; a fraction is a share of one."""
    metric: str
    token: str
    """Of this search: an attempt that has it was begun by a trial of this search."""
    ending: Path
    early: bool = False
    """Whether trials are stopped early; else a run that another search has stopped goes on."""
    own_cores: bool = False
    """Whether a run takes cores of this machine, as a submit beside the sweep does: nobody else gives them out."""
    noted: bool = True
    """Whether the runs are to be remembered as trials; those of the confirmation are not."""


class Ending(Exception):
    """The whole search is being ended, and this run with it."""


class Trainee:
    """A run that a trial waits for."""

    def __init__(self, run: Run, values: dict[str, Any], order: Order) -> None:
        self.run_dir, self.run, self.values, self.order = RunDir(order.root, run.id), run, values, order
        self.events = Follower(self.run_dir.events, (order.metric,))
        self.reported = 0
        self.child: Child | None = None

    def begin(self) -> None:
        """Start the run, from the main thread; one that is done, stopped early or under way is left as it is.

        Raises:
            KdclusterError: somebody has cancelled it.
            Ending: nothing is started any more.
        """
        while not self._begin():  # others have the cores, and may begin the run meanwhile
            time.sleep(POLL_S)

    def _begin(self) -> bool:
        """Whether nothing is in the way."""
        self._why_it_ends()
        status = run_status(self.run_dir, KNOWN_S)
        newest = self.run_dir.newest()
        known = newest.read("start") if newest else {}
        if status.unknown and known.get("sweep_of") != self.order.experiment:
            raise KdclusterError(f"{self.run.id} is {status.state}: {status.reason}")
        if status.state == State.CANCELLED and known.get("sweep") == self.order.token:
            raise KdclusterError(f"{self.run.id} is cancelled")
        # This experiment's sweep has one driver at a time, and Tune restarts a trial only when its process is gone: an
        # attempt of it that still seems to run was on a node that nobody can look at.
        gone = known.get("sweep_of") == self.order.experiment and known.get("host") != socket.gethostname()
        # A run that waits for this machine's GPUs would wait for the end of the sweep, which has them.
        waits = status.state == State.QUEUED and status.job_id is None and self.order.layout.device == "cuda"
        left = (State.DONE, *LIVE, *([State.STOPPED] if self.order.early else []))
        if status.state not in left or (status.state == State.RUNNING and gone) or waits:
            if (locks := self._cores()) is None:
                return False
            keep_to_oneself()
            refuse_foreign(self.run_dir.path)
            self.run_dir.prepare(self.run)
            self.run_dir.note_submit(self.run.id)
            shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if self.order.layout.device == "cuda" else ()
            known = {"sweep": self.order.token, "sweep_of": self.order.experiment, "gpus_held": self.order.gpus}
            known["nodes"] = os.environ.get("SLURMD_NODENAME", "")
            gpus = [gpu for gpu in shown if gpu]
            self.child = Child.start(self.run_dir, self.order.data_dir, self.order.layout, gpus, locks, known=known)
        ours = os.access(self.run_dir.path, os.W_OK)  # a finished one may be another user's
        if ours:
            self.run_dir.add_experiments([self.order.experiment])
        if self.order.noted:
            noted = self.run_dir if ours else RunDir(of_others(self.order.root, self.order.experiment), self.run.id)
            noted.path.mkdir(parents=True, exist_ok=True)
            noted.note_trial(self.order.experiment, self.values)
        return True

    def _cores(self) -> list[FileLock] | None:
        """Locks of the cores that it takes; None while they are not free."""
        if not self.order.own_cores:
            return []
        slots = Slots("core", own_cores(), self.order.root)
        taken = slots.take(min(self.order.layout.cores, len(slots.names)), self.run.id)
        return None if taken is None else [lock for _, lock in taken]

    def next(self) -> tuple[float, bool]:
        """The metric of the next evaluation, and whether it was the last, after which the run has ended; waits for it.

        Raises:
            KdclusterError: the run ended without it.
            Ending: it was ended with the whole search; it has saved, if it could.
        """
        while True:
            ended = self._ended()  # before the look at what it wrote
            measured = values_of(self.events, self.order.metric)
            whole = self.run.train is not None and len(measured) >= evaluation_count(self.run.train)
            last = self.reported + 1 == len(measured)
            if len(measured) > self.reported and not (last and (ended or whole)):
                self.reported += 1
                return measured[self.reported - 1], False
            if ended:  # after the last one it still had to save, and may have failed
                status = run_status(self.run_dir, KNOWN_S)
                if measured and status.state in (State.DONE, *([State.STOPPED] if self.order.early else [])):
                    return measured[-1], True
                self._why_it_ends()
                if self.child is not None or status.state not in (*INTERRUPTED, State.STOPPED):
                    raise KdclusterError(f"{self.run.id} is {status.state}: {status.reason}")
                self.begin()  # it was somebody else's, and was interrupted
                continue
            if self.child is None:
                self._why_it_ends()  # it is somebody else's, and goes on
            elif self.order.ending.exists() or self.run_dir.is_cancelled():
                self.child.tell_to_stop()
            time.sleep(POLL_S)

    def _why_it_ends(self) -> None:
        if ending := read_json(self.order.ending):
            raise Ending(ending["why"])

    @property
    def is_done(self) -> bool:
        """Whether it came to its end."""
        return run_status(self.run_dir, KNOWN_S).state == State.DONE

    def stop(self) -> None:
        """End it early: it saves, and counts as preempted, to go on later; as stopped, if the scheduler has said so."""
        if self.child is None or self.child.attempt.read("outcome"):
            return
        self.child.tell_to_stop()
        try:
            self.child.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.child.process.kill()
            self.child.process.wait()
        self._write_outcome()

    def _write_outcome(self) -> None:
        assert self.child is not None
        outcome = self.child.outcome(told_to_stop=self.child.told)
        if self.child.told and outcome["state"] in INTERRUPTED:
            ending = read_json(self.order.ending) or {"why": "the sweep has ended"}
            stopped = self.child.attempt.read(STOPPED)
            outcome["reason"] += f": {stopped['why'] if stopped else ending['why']}"
            outcome["state"] = State.STOPPED if stopped else outcome["state"]
        self.child.attempt.write_last("outcome", outcome)

    def _ended(self) -> bool:
        if self.child is not None and self.child.process.poll() is not None:
            if not self.child.attempt.read("outcome"):
                self._write_outcome()
            return True
        if self.child is not None:
            return False
        status = run_status(self.run_dir, KNOWN_S)
        return status.state not in LIVE or bool(status.unknown)


def values_of(events: Follower, metric: str) -> list[float]:
    """A metric of each evaluation so far."""
    return [decimal(point.value) for point in events.look().points.get(metric, [])]


def note_stopped(point: Point, order: Order) -> None:
    """Write down that the scheduler stops a point early, before it does; what others have begun goes on.

    What is stopped while the search is being ended is no less good than others.
    """
    if order.ending.exists():
        return
    for run_id in point.ids:
        newest = RunDir(order.root, run_id).newest()
        if newest and newest.read("start").get("sweep") == order.token and not newest.read("outcome"):
            newest.write(STOPPED, {"why": OTHERS_WERE_BETTER})
