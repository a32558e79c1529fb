"""A run directory: the one place where launching, training and results meet.

runs/<id>/config.yaml            the resolved run (plan.Run)
          attempts/<n>/          one for each start: start.json agent.json stop.json outcome.json trainer.json
                                 heartbeat.json
                                 torchrun.log rank<r>.log failure-rank<r>.json code.diff (further nodes of a SLURM
                                 job: torchrun-node<k>.log node<k>.json)
          submit.json experiments.json ticket.json cancel.json     who wants it, and what will start or stop it
          trials.json begun.json     the points of sweeps that it tries; the shorter run at whose end it began
          slurm/<n>/             one for each SLURM job: job.sh task.json <job id>.log
          checkpoints/           step-<n>.ckpt (saved.py)
          events/                TensorBoard files of all attempts, written by rank 0
          last.safetensors  best.safetensors  predictions/       and what they say of each test image (predictions.py)
          config.json  result.json  benchmark.json     at the end: for timm; what came of it; what it costs, if measured
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdcluster import records, saved, wording
from kdcluster.attempts import Attempt as Attempt
from kdcluster.errors import ConfigError, KdclusterError, NotFound
from kdcluster.files import next_numbered, write_aside, write_json
from kdcluster.ownership import foreign
from kdcluster.run import STORE, Run
from kdcluster.shapes import OF_A_RUN
from kdcluster.tickets import Ticket

RESERVE = 1 << 16
"""Bytes kept in each attempt, to say why it ended when the disk is full."""
TRIES = 1000
"""How many numbers in a row may be taken when an attempt is begun."""


@dataclass(frozen=True)
class RunDir:
    """Paths and records of one run; reading never creates anything."""

    root: Path
    id: str

    @cached_property
    def path(self) -> Path:
        return self.root / self.id

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def lock(self) -> FileLock:
        """Held by rank 0 for the whole training."""
        return FileLock(self.path / "trainer.lock", fallback_to_soft=False)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def saved_step(self) -> int:
        """Optimizer steps in the newest checkpoint that is not cut, 0 without one."""
        return saved.newest_step(self.checkpoints)

    def weights(self, which: str) -> Path:
        """`last` or `best` weights."""
        return self.path / f"{which}.safetensors"

    def weights_problem(self, which: str) -> str:
        """Why they cannot be used: "gone", "damaged (why)"; empty where they can. Cheap, but for the first time."""
        return saved.weights_problem(self.path, which)

    def load(self) -> Run:
        """The run, to be started; ConfigError where its config.yaml is damaged or of another version, run or user."""
        run = Run.from_yaml(self.config)
        if run.id != self.id:
            raise ConfigError(f"{self.path} holds the run {run.id}; rename it back")
        run.check_identity()
        if not self.result():
            run.check_recipe()
        return run

    def known(self) -> tuple[Run, str]:
        """The run as far as its directory tells, to be shown or deleted, and what is wrong with its config.yaml."""
        return records.config(self.config)

    def holds(self) -> str:
        """The id in its config.yaml; its own where that says none."""
        return records.held(f"{self.path}/config.yaml") or self.id

    def damage(self, newest: Attempt | None) -> list[str]:
        """What is wrong with the records of the run and of its newest attempt, in words."""
        wrong = [records.problem(f"{self.path}/{name}.json", self.path) for name in OF_A_RUN]
        told = ["its attempts cannot be read"] if newest is None and self.is_shut() else []
        if (held := self.holds()) != self.id:
            told.append(f"{self.path} holds the run {held}: it was copied or renamed; rename it back")
        return [*told, *filter(None, wrong), *(newest.damage() if newest else ())]

    def is_shut(self) -> bool:
        """Whether there are attempts and nobody can see which: no folder, or one that may not be looked into."""
        folder = self.path / "attempts"
        return folder.is_file() or (os.path.lexists(folder) and not os.access(folder, os.R_OK | os.X_OK))

    def with_needs(self) -> list[Run]:
        """The runs that it needs, or waits for, and itself, as their directories say, without another user's `imports`.

        Raises NotFound where the directory of one that it needs is gone.
        """
        run = self.load()
        if gone := [need for need in run.needs if not RunDir(self.root, need).config.exists()]:
            raise NotFound(
                f"{self.id} needs {gone[0]}, whose directory is gone from {self.root}; submit makes it again"
            )
        found = [RunDir(self.root, need)._as_needed() for need in run.needs]
        for one in run.after:
            with suppress(ConfigError):  # it is gone, or damaged
                found.append(RunDir(self.root, one)._as_needed())
        return [*found, run]

    def _as_needed(self) -> Run:
        run, problem = self.known()
        if problem or not foreign(self.path):
            return self.load()
        return run.model_copy(update={"imports": ()})

    def prepare(self, run: Run) -> None:
        """Write the resolved configuration of a run that is about to be started.

        What is not in the hash (micro-batch, resources) may have changed; a cancel marker is lifted.
        Raises ConfigError where another run with the same id lies here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.known()[0] if self.config.exists() else run
        if known.hash not in (run.hash, ""):  # "": damaged, and made again
            raise ConfigError(f"{self.path} holds another run with the same id; set `variant` in the experiment")
        if run.views and known.views:  # another experiment may count on what it asked for
            run = run.model_copy(update={"views": max(run.views, known.views)})
        write_aside(self.config, run.to_yaml())
        (self.path / "cancel.json").unlink(missing_ok=True)

    def widen(self, run: Run) -> None:
        """Have a store that is being made go on to as many views as `run` wants."""
        known, wrong = self.known()
        if not wrong and (run.views or 0) > (known.views or 0):
            write_aside(self.config, known.model_copy(update={"views": run.views}).to_yaml())

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first; a file or a folder without a record is none, whatever its name."""
        numbers = records.numbered(records.entries(f"{self.path}/attempts"), "", "")
        return [one for number, _ in numbers if records.is_attempt((one := self.attempt(number)).path)]

    def newest(self) -> Attempt | None:
        """The newest attempt; the others have been overtaken."""
        return next(reversed(self.attempts()), None)

    def attempt(self, number: int) -> Attempt:
        return Attempt(Path(f"{self.path}/attempts/{number}"))

    def start_attempt(self, values: dict[str, Any], command: Callable[[int], list[str]] | None = None) -> Attempt:
        """A new numbered attempt, never the same for two callers, with its start.json.

        `command` gives the argv of an attempt with a number. Raises KdclusterError where every number is taken.
        """
        folder = self.path / "attempts"
        folder.mkdir(parents=True, exist_ok=True)
        aside = Attempt(Path(tempfile.mkdtemp(dir=folder, prefix=".start-")))
        aside.path.chmod(0o755)
        (aside.path / "reserve").write_bytes(bytes(RESERVE))
        first = next_numbered(folder)
        for number in range(first, first + TRIES):  # never back: a file server may go on hiding a folder that is there
            argv = {"command": command(number)} if command else {}
            aside.write("start", {"started": time.time(), "host": socket.gethostname(), **argv, **values})
            try:
                aside.path.rename(self.attempt(number).path)  # fails where another start was first: it is not empty
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return self.attempt(number)
        shutil.rmtree(aside.path)
        raise KdclusterError(
            f"no attempt can be begun in {folder}: numbers {first} to {number} are taken, says the file system, which "
            f"does not show them; look at that folder, here and on another machine, then submit again"
        )

    def ticket(self) -> Ticket | None:
        """Who was given this run last, to start it.

        Raises:
            Damaged: it cannot be read, so that somebody may have it of whom nobody knows.
        """
        values = records.read(f"{self.path}/ticket.json")
        return Ticket.read(values) if values else None

    def write_ticket(self, backend: str, ref: Mapping[str, Any]) -> None:
        """Queue the run: it was given to a place, which calls it `ref`."""
        newest = self.newest()
        self._put_ticket(Ticket(backend, ref, newest.number if newest else 0))

    def note_ref(self, ref: Mapping[str, Any]) -> None:
        """Complete what the ticket says of the run, as a job's id, once the place has told it."""
        if ticket := self.ticket():
            self._put_ticket(replace(ticket, ref=ref))

    def _put_ticket(self, ticket: Ticket) -> None:
        write_json(self.path / "ticket.json", asdict(ticket))

    def drop_ticket(self) -> None:
        """Take the run out of the queue."""
        (self.path / "ticket.json").unlink(missing_ok=True)

    def mark_cancelled(self) -> None:
        """Have the run stopped, or not started, until `prepare` lifts the marker; a start that is under way, too."""
        write_json(self.path / "cancel.json", {"time": time.time()})

    def is_cancelled(self) -> bool:
        """Whether it is marked; what the marker says does not matter, so no damage can lift it."""
        return os.path.exists(f"{self.path}/cancel.json")  # noqa: PTH110

    def experiments(self) -> list[str]:
        """Names of the experiments that were submitted with this run in their plan."""
        return list(records.found(f"{self.path}/experiments.json") or [])

    def add_experiments(self, names: Iterable[str]) -> None:
        """Remember who wants this run."""
        known = self.experiments()
        if more := [name for name in names if name not in known]:
            write_json(self.path / "experiments.json", sorted([*known, *more]))

    def note_submit(self, words: str) -> None:
        """Remember the arguments of the `kdcluster submit` that started this run, each word quoted."""
        write_json(self.path / "submit.json", {"words": shlex.split(words)})

    def submitted(self) -> list[str]:
        """Those arguments; none for a run that was never started, or has others than a submit's."""
        return wording.submit_words((records.found(self.path / "submit.json") or {}).get("words"))

    def trials_of(self, experiment: str) -> list[dict[str, Any]]:
        """The points of an experiment's sweep that this run tries, each as {"experiment", "values"}."""
        return [one for one in records.found(self.path / "trials.json") or [] if one["experiment"] == experiment]

    def note_trial(self, experiment: str, values: dict[str, Any]) -> None:
        """Remember that this run tries a point of an experiment's sweep."""
        noted = {"experiment": experiment, "values": values}
        known = list(records.found(self.path / "trials.json") or [])
        if noted not in known:
            write_json(self.path / "trials.json", [*known, noted])

    def result(self) -> dict[str, Any] | None:
        """result.json, or None where there is none that can be believed: whole, unchanged, this run's."""
        result: dict[str, Any] | None = records.found(f"{self.path}/result.json")
        return result


def run_dirs(root: Path) -> list[RunDir]:
    """Every run directory, also one without its config.yaml; a hidden folder is none (a run that is deleted)."""
    names = [name for name in records.entries(root) if not name.startswith(".")]
    of_one = ("config.yaml", "attempts")
    return [RunDir(root, name) for name in names if any(os.path.lexists(f"{root}/{name}/{one}") for one in of_one)]


def renamed(root: Path) -> dict[str, str]:
    """Id of a run -> the folder of another name that holds it."""
    return {held: run_dir.id for run_dir in run_dirs(root) if (held := run_dir.holds()) != run_dir.id}


def find_run(root: Path, beginning: str) -> RunDir:
    """The run that a unique beginning of its id names, or the eight digits at its end; `teacher` is no store.

    Raises NotFound where none does, ConfigError where several do.
    """
    known = [run_dir.id for run_dir in run_dirs(root)]
    matches = [beginning] if beginning in known else [name for name in known if name.startswith(beginning)]
    matches = [name for name in matches if not name.startswith(f"{STORE}-")] or matches
    if re.fullmatch("[0-9a-f]{8}", beginning):
        matches = matches or [name for name in known if name.endswith(f"-{beginning}")]
    if not matches:
        raise NotFound(f"no run {beginning!r} in {root}; kdcluster status EXP shows the runs of an experiment")
    if len(matches) > 1:
        raise ConfigError(f"{beginning!r} begins the ids of {len(matches)} runs, give more: {', '.join(matches[:6])}")
    return RunDir(root, matches[0])
