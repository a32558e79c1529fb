"""The seam: what a place that runs things must be able to do, and which places there are.

A place is one folder below `launch/` and one line in `BACKENDS`, or an entry point of the group `kdcluster.backends` in
a package of one's own. Everything else (status, submission, cancel, sweep, doctor) knows runs and `Seen`, no scheduler.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from kdcluster.errors import ConfigError, Damaged
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan
from kdcluster.runs import RunDir
from kdcluster.tickets import Ticket

BACKENDS = {
    "local": "kdcluster.launch.local.backend:Local",
    "slurm": "kdcluster.launch.slurm.backend:Slurm",
}
"""Where the class of each built-in backend stands; imported when it is needed."""
GROUP = "kdcluster.backends"


class Phase(Enum):
    """What a place knows of something that it was given."""

    WAITING = auto()
    """It has not begun, or waits to begin again."""
    ACTIVE = auto()
    """It is at it."""
    ENDED = auto()
    """It is over, and will not begin again by itself."""
    ABSENT = auto()
    """The place answers, and has no such thing (any more)."""
    UNKNOWN = auto()
    """The place cannot be asked, or says what we do not understand: it may be alive."""


class End(Enum):
    """How something ended that wrote no record of its own."""

    WITHDRAWN = auto()
    """Taken back, or over without anything wrong."""
    BROKEN = auto()
    """By itself: it failed."""
    OUT_OF_MEMORY = auto()
    TAKEN = auto()
    """By the place: a lost node, a time limit, killed processes."""


@dataclass(frozen=True)
class Seen:
    """The answer of a place to "what became of this?", in our own words."""

    phase: Phase
    why: str = ""
    """Why it waits, where it begins, how it ended, why it cannot be asked."""
    id: str | None = None
    """What the place's own commands call it, as a job's number."""
    ref: Mapping[str, Any] | None = None
    """The reference, where the place now knows more of it than was written down."""
    end: End = End.WITHDRAWN
    after: str = ""
    """While it is active: what it still does once the run itself has ended."""
    trouble: str = ""
    """While it is active: what keeps it from going on."""
    log: Path | None = None
    """Where its own output lies."""


@dataclass(frozen=True)
class Options:
    """What the command line says of the place; each backend takes what it knows."""

    cluster: str | None = None
    nodes: int | None = None
    max_gpu_hours: float | None = None


@dataclass(frozen=True)
class Finding:
    """One line of `kdcluster doctor`: `ok`, and where it is not, what to do, if what was found does not say it."""

    what: str
    ok: bool
    found: str
    todo: str = ""


class Backend(Protocol):
    """Where runs run; what has a body here is what a place has that needs no more."""

    name: str
    title: str
    """In a sentence: "on this machine", "in SLURM"."""
    word: str
    """What is done to a run that is handed over: "started", "queued"."""

    @classmethod
    def of(cls, options: Options) -> Backend:
        """As the command line wants it.

        Raises:
            ConfigError: it cannot be had so.
        """
        return cls()

    @classmethod
    def is_wanted(cls, options: Options) -> tuple[bool, str]:
        """Whether runs go there where no backend was named, and what to say where that may surprise.

        What stands below its first line says `doctor` alone.
        """
        return False, ""

    def described(self) -> str:
        """Which one it is, for a person who has named none."""
        return self.title

    # What is to be started

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        """On what each run would run."""

    def scripts(self, plan: Plan, root: Path) -> dict[str, str]:
        """The batch script of each run, where runs have one."""
        return {}

    def notes(self, plan: Plan, chosen: Sequence[str]) -> list[str]:
        """What a person should know before these runs are handed over, as what they may cost."""
        return []

    def check(self, plan: Plan, chosen: Sequence[str], root: Path) -> list[str]:
        """Refuse what could never run, before anything is written; returns what is good to know.

        Raises:
            KdclusterError: with what to do.
        """
        return []

    def tell(self, after: Mapping[str, Any]) -> bool:
        """Have `argv` run once what is handed over has ended, or one run has failed; False: nobody stays who could.

        On its standard input it gets the object `given` as JSON, with the `event`: failed (others go on) or ended.
        """
        return False

    def start(self, plan: Plan, chosen: Sequence[str], root: Path, data_dir: Path) -> str:
        """Hand over runs whose directories are ready, all or none, each with its ticket; returns where they are.

        A place that begins one (`attempt.Child`, or a job of its own) holds the ticket against itself first: what is in
        it by then may be another's.

        Raises:
            KdclusterError: nothing is started.
        """

    # What was handed over

    @classmethod
    def look(cls, refs: Sequence[Mapping[str, Any]], within_s: float = 0.0) -> list[Seen]:
        """What became of what these references mean, as `start` put them into tickets, in this order; raises nothing.

        An answer may be `within_s` old, where asking costs others something.
        """

    @classmethod
    def cancel(cls, refs: Sequence[Mapping[str, Any]]) -> None:
        """End these, beyond the marker in their run directories, which may do; what has ended already is no error.

        Raises:
            KdclusterError: the place does not answer.
        """

    @classmethod
    def ends_within_s(cls) -> float:
        """How long the place lets go on what it was told to end, before it kills that."""
        return 0.0

    def examine(self, plan: Plan | None, root: Path, *, with_job: bool) -> Iterator[Finding]:
        """For `kdcluster doctor`: what this place would need beyond what every submission does, and `check` finds.

        Raises:
            ConfigError: `with_job`, it was to be looked at from a job, and here are none.
        """
        if with_job:
            raise ConfigError(f"--with-job: {self.title} there are no jobs; --cluster NAME names a cluster")
        return iter(())


def names() -> list[str]:
    """The backends that can be named."""
    return [*BACKENDS, *(one.name for one in entry_points(group=GROUP) if one.name not in BACKENDS)]


def choose(name: str, options: Options) -> tuple[Backend, str]:
    """The backend of that name, and of `auto` the first that is wanted here, else this machine; and what to say of it.

    Raises:
        ConfigError: there is none, or it cannot be had so.
    """
    if name != "auto":
        return find(name).of(options), ""
    said = ""
    for place in map(find, names()):
        is_wanted, words = place.is_wanted(options)
        if is_wanted:
            made = place.of(options)
            return made, f"running {made.described()}"
        said = said or words
    return find("local").of(options), said


def find(name: str) -> type[Backend]:
    """The class of a backend.

    Raises:
        ConfigError: there is none of that name.
    """
    built_in = [EntryPoint(name, BACKENDS[name], GROUP)] if name in BACKENDS else []
    for one in built_in or entry_points(group=GROUP, name=name):
        found: type[Backend] = one.load()
        return found
    raise ConfigError(f"no backend {name!r} is installed here; there are {', '.join(names())}")


def look(
    run_dirs: Iterable[RunDir], within_s: float = 0.0, given: Callable[[RunDir], Ticket | None] | None = None
) -> dict[RunDir, Seen]:
    """What the places know of the runs that they were given; each is asked once. Nothing for a run that none has.

    `given`: what finds out who has a run, where that is not `given_to`.
    """
    places, lost = _by_place(run_dirs, given or given_to)
    seen = {run_dir: Seen(Phase.UNKNOWN, why) for run_dir, why in lost.items()}
    for name, refs in places.items():
        try:
            answers = find(name).look(list(refs.values()), within_s)
        except ConfigError as error:  # of a package that is not installed here
            answers = [Seen(Phase.UNKNOWN, str(error))] * len(refs)
        seen |= dict(zip(refs, answers, strict=True))
    return seen


def cancel(run_dirs: Iterable[RunDir]) -> float:
    """Have the places end runs that they were given; returns how many seconds that may take.

    Raises:
        KdclusterError: one does not answer.
    """
    places, _ = _by_place(run_dirs, given_to)
    for name, refs in places.items():
        find(name).cancel(list(refs.values()))
    return max((find(name).ends_within_s() for name in places), default=0.0)


def _by_place(
    run_dirs: Iterable[RunDir], given_to: Callable[[RunDir], Ticket | None]
) -> tuple[dict[str, dict[RunDir, Mapping[str, Any]]], dict[RunDir, str]]:
    """The references by place, and the runs of which nobody knows who has them, with why."""
    places: dict[str, dict[RunDir, Mapping[str, Any]]] = defaultdict(dict)
    lost = {}
    for run_dir in run_dirs:
        try:
            given = given_to(run_dir)
        except Damaged as error:
            path = error.path.relative_to(run_dir.path)
            lost[run_dir] = f"who has it is not known, since its {path} is damaged: {error.why}"
            continue
        if given:
            places[given.backend][run_dir] = given.ref
    return places, lost


def given_to(run_dir: RunDir) -> Ticket | None:
    """Who has the run: by its ticket, else by the start of its newest attempt; None: it is over, or nobody has it.

    Raises:
        Damaged: what would say it cannot be read.
    """
    newest, result = run_dir.newest(), run_dir.result()
    if newest and result and result["attempt"] == newest.number:
        return None
    ticket = run_dir.ticket()
    if newest and (ticket is None or newest.number > ticket.after_attempt):
        try:
            return newest.given_to() or ticket
        except Damaged:
            if ticket is None:
                raise
    return ticket
