"""A whole sweep: the search, and the confirmation of its best, in one Ray, from whatever the run directories hold."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TextIO

from filelock import FileLock

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.config import Resources
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.local.slots import Slots
from kdcluster.launch.status import run_status
from kdcluster.launch.torchrun import Layout, Room, layout
from kdcluster.plan import Plan
from kdcluster.processes import threads_available
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, State
from kdcluster.sweep.adaptive import Adaptive
from kdcluster.sweep.cluster import Session
from kdcluster.sweep.confirmation import arms
from kdcluster.sweep.points import Point, Source, Space
from kdcluster.sweep.room import check_fit, nodes_of_ray
from kdcluster.sweep.screen import Screen
from kdcluster.sweep.trial import Order
from kdcluster.sweep.tuning import search

SAVED_S = 60.0
"""How long the runs of a search that is being ended have to save; torchrun gives them 30 s itself."""


@dataclass
class Stop:
    """Why the search has to end; empty while it need not."""

    why: str = ""

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the search in an orderly way; a second Ctrl-C at once."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._note) for number in numbers]
        try:
            yield
        finally:
            for number, old in zip(numbers, before, strict=True):
                signal.signal(number, old)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.why and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.why = self.why or f"the sweep was told to stop by {signal.Signals(number).name}"


@dataclass
class Sweeping:
    """One sweep of an experiment.

    Args:
        searched: the space.
        root: the runs directory.
        data_dir: decoded arrays.
        gpus: of the whole sweep on this machine; None: all that are free.
        gpus_per_trial: None: as many as the experiment's `resources` say.
        address: of a Ray that is there already; None: one of our own on this machine.
        dashboard: whether our own shows Ray's dashboard.
    """

    searched: Space
    root: Path
    data_dir: Path
    gpus: int | None = None
    gpus_per_trial: float | None = None
    address: str | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        self.session = Session(self.root / ".sweeps" / self.searched.loaded.name)
        self.stop = Stop()
        self.cut_short = ""
        self._stack = ExitStack()
        self._in_ray = False

    @cached_property
    def room(self) -> tuple[Layout, float]:
        """On what one trial runs, and the GPUs that Ray keeps for it.

        Raises:
            ConfigError: GPUs that cannot be given.
        """
        cores = threads_available() if self.address is None else 1
        block = self.searched.loaded.config
        asked = self.gpus is not None or self.gpus_per_trial is not None
        on_gpu = asked and not (self.address is not None and block.resources.device == "cpu")
        return trial_room(block.resources, self.gpus_per_trial, cores // (block.sweep.at_once or 1), on_gpu=on_gpu)

    @property
    def at_once(self) -> int:
        """How many trials this machine has room for."""
        layout, gpus = self.room
        room = (self.gpus or len(visible_gpus())) / gpus if gpus else threads_available() / (layout.cores or 1)
        return max(1, min(int(room), self.searched.sweep.at_once or int(room)))

    def at_once_elsewhere(self, nodes: int | None) -> int:
        """How many trials an allocation of these GPUs, or nodes, has room for."""
        block = self.searched.loaded.config
        if not self.gpus:
            return block.sweep.at_once or nodes or 1
        return max(1, int(self.gpus / (self.gpus_per_trial or block.resources.gpus or 1)))

    def check(self) -> None:
        """Before anything is trained: refuse a trial that could never run, and join a Ray that has to be there.

        Raises:
            ConfigError: what it needs, and what there is.
            KdclusterError: there is no such Ray, or a node cannot do a trial's work.
        """
        layout, gpus = self.room
        if self.address is not None:
            self._enter_ray()
        else:
            here = len(visible_gpus()) if gpus else 0
            check_fit(layout, gpus, [(threads_available(), min(here, self.gpus or here))])

    def search(self, wanted: list[Point] | int, stream: TextIO) -> list[Point]:
        """Try these points, or so many that Optuna finds; returns them, with those that an earlier call has tried."""
        sweep = self.searched.sweep
        if isinstance(wanted, int):
            source: Source = Adaptive(self.searched, wanted, self.searched.recorded(self.root))
        elif self._all_known(wanted):
            return wanted
        else:
            source = Source(wanted)
        count = wanted if isinstance(wanted, int) else len(wanted)
        deadline = None if sweep.time_budget_min is None else time.monotonic() + 60 * sweep.time_budget_min

        def out_of_time() -> str:
            over = deadline is not None and time.monotonic() > deadline
            return f"sweep.time_budget_min {sweep.time_budget_min:g} is over" if over else ""

        asha = self.searched.most_evaluations() if sweep.scheduler == "asha" else None
        return self._search(source, self.order(sweep.metric), count, asha, stream, out_of_time)

    def confirm(self, made: Plan, stream: TextIO) -> None:
        """Train the runs of a confirmation that are not done, in the same Ray."""
        missing = [one for one in arms(made) if run_status(RunDir(self.root, one.ids[0])).state != State.DONE]
        if missing:
            order = replace(self.order("test/top1"), noted=False, early=False)
            self._search(Source(missing), order, len(missing), None, stream, lambda: "", "confirmation")

    def order(self, metric: str) -> Order:
        """What each trial has to know."""
        layout, gpus = self.room
        name, where = self.searched.loaded.name, (self.root, self.data_dir)
        early = self.searched.sweep.scheduler != "none"
        own_cores = self.address is None and layout.device == "cpu"
        return Order(name, *where, layout, gpus, metric, self.session.token, self.session.ending, early, own_cores)

    def _search(
        self,
        source: Source,
        order: Order,
        count: int,
        asha: int | None,
        stream: TextIO,
        why: Callable[[], str],
        what: str = "trial",
    ) -> list[Point]:
        sweep = self.searched.sweep
        given: list[Point] = []
        over_at: float | None = None
        self.session.go_on()
        self._enter_ray()
        hint = "other runs may have the cores; " * order.own_cores + self.session.where_ray_says_why()
        with Screen(given, count, order.metric, self.root, stream, hint, what) as screen, self.stop.on_signals():

            def watch() -> bool:
                nonlocal over_at
                self.session.leave_if_ray_is_gone()
                self.session.note()
                screen.show()
                if over_at is None and (reason := self.stop.why or why()):
                    over_at = time.monotonic() + SAVED_S
                    self.cut_short = reason
                    self.session.end(reason)  # the trials see it, and have their runs save
                return over_at is not None and (time.monotonic() > over_at or not self._running(given))

            failed = search(
                source,
                order,
                given,
                asha_evaluations=asha,
                at_once=sweep.at_once,
                max_failures=sweep.max_failures,
                watch=watch,
            )
        for point, error in failed:  # one that a run directory knows of is in the table
            if not {run_status(RunDir(self.root, run_id)).state for run_id in point.ids} & set(GIVEN_UP):
                stream.write(f"{' '.join(point.settings)}: {error}\n")
        return given

    def _enter_ray(self) -> None:
        if self._in_ray:
            return
        if self.address is not None:
            self._stack.enter_context(self.session.ray_at(self.address, self.data_dir))
            layout, gpus = self.room
            check_fit(layout, gpus, nodes_of_ray())
        else:
            self._stack.enter_context(self._own_gpus())
        self._in_ray = True

    @contextmanager
    def _own_gpus(self) -> Iterator[None]:
        """A Ray with this machine's free GPUs, which nobody else is given as long as it is up."""
        layout, _ = self.room
        taken: list[tuple[str, FileLock]] = []
        try:
            if layout.device == "cuda":
                shown = visible_gpus()
                slots, wanted = Slots("GPU", shown, self.root), self.gpus or len(shown)
                while len(taken) < wanted and (one := slots.take(1, f"the sweep of {self.searched.loaded.name}")):
                    taken += one
                if len(taken) < (self.gpus or layout.procs):
                    rest = "other runs have the rest; wait, or ask for less"
                    raise KdclusterError(f"{len(taken)} of {len(shown)} GPUs are free, {rest}")
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu for gpu, _ in taken)
            with self.session.ray_here(len(taken), dashboard=self.dashboard):
                yield
        finally:
            for _, lock in taken:
                lock.release()

    def _running(self, points: Sequence[Point]) -> bool:
        """Whether a run that this search has begun is still at it."""
        newest = (RunDir(self.root, run_id).newest() for point in points for run_id in point.ids)
        ours = (one for one in newest if one and one.read("start").get("sweep") == self.session.token)
        return any(not one.read("outcome") for one in ours)

    def _all_known(self, points: Sequence[Point]) -> bool:
        known = (State.DONE, State.STOPPED) if self.searched.sweep.scheduler != "none" else (State.DONE,)
        return all(run_status(RunDir(self.root, run_id)).state in known for point in points for run_id in point.ids)

    def __enter__(self) -> Sweeping:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.session.close()


def trial_room(
    resources: Resources, gpus_per_trial: float | None, cores: int, *, on_gpu: bool = False
) -> tuple[Layout, float]:
    """On what one trial runs, and the GPUs that Ray keeps for it: a fraction is a share of one.

    Args:
        resources: of the experiment.
        gpus_per_trial: instead of its `gpus`; with device cpu they are pretended, a process for each.
        cores: that a trial may take, where `resources` leave it open.
        on_gpu: GPUs were asked for, whatever `resources` say.

    Raises:
        ConfigError: more than one GPU, and not whole.
    """
    if gpus_per_trial is not None and gpus_per_trial > 1 and gpus_per_trial % 1:
        raise ConfigError(f"--gpus-per-trial {gpus_per_trial:g}: a share of one GPU, or whole GPUs")
    asked = None if gpus_per_trial is None else math.ceil(gpus_per_trial)
    undecided = resources.device == "auto" and resources.procs is None
    if on_gpu or (undecided and asked):
        resources = resources.model_copy(update={"device": "cuda", "procs": None})
    if resources.device == "cuda" or resources.gpus is not None or (undecided and visible_gpus()):
        there = layout(resources.model_copy(update={"gpus": asked or resources.gpus}), Room(None))
        return there, gpus_per_trial or there.procs
    there = layout(resources.model_copy(update={"procs": resources.procs or asked}), Room(0, cores))
    return there, gpus_per_trial or 0
