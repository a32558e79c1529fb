"""A world in which runs live: hosts, processes, a clock, a place with jobs, and commands that are typed at once.

Nothing in it is real but the files and the code of kdcluster that writes and reads them. Whatever has a `while` in it
(a command, a supervisor, a job's task) is an `Actor`: a thread that runs alone until it sleeps, asks or begins
something (`World.pause`), so that every order of steps can be had, and the same order again.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import Timeout

from kdcluster import processes, runs
from kdcluster.errors import SchedulerError
from kdcluster.experiment import yamlfile
from kdcluster.files import read_json, write_json
from kdcluster.launch import backend, cancel, submission
from kdcluster.launch.backend import Backend, End, Phase, Seen
from kdcluster.launch.local import backend as local
from kdcluster.launch.local import supervisor
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan, Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import State
from tests import fabricated

HOSTS = ("anna", "berta")
"""Two machines that share the runs directory; jobs run on a third."""
NODE = "node"
KILLED_S = 30.0
"""After which torchrun kills ranks that do not stop, and the place a task that does not end."""
SPANS_S = (1.0, 10.0, 35.0, 70.0, 700.0)
TURN_S, LONG_S = 5.0, 35.0
"""How often everybody has a turn while time passes: while somebody waits in front of a command, and else."""


class Gone(BaseException):
    """The process was killed: the thread that stands for it unwinds."""


class Untrue(AssertionError):
    """What must hold did not."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        World.now_running().is_broken = True


@dataclass(eq=False)
class Process:
    """An entry of the table of processes."""

    pid: int
    host: str
    what: str
    parent: Process | None = None
    alive: bool = True
    stopped: bool = False
    locked: int = 0
    """When it had the submit lock last (World.count)."""
    actor: Actor | None = None
    children: list[Process] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {"host": self.host, "pid": self.pid, "start_time": str(self.pid) if self.alive else None}

    def is_going(self) -> bool:
        return self.alive and not self.stopped

    def kill(self) -> None:
        """SIGKILL; what it has started dies with it (PR_SET_PDEATHSIG)."""
        self.alive = False
        for child in self.children:
            child.kill()
        if self.actor is not None:
            self.actor.end()


class Actor:
    """A process that runs our own code."""

    def __init__(self, world: World, process: Process, body: Callable[[], None]) -> None:
        self.world, self.process, self.body = world, process, body
        process.actor = self
        self.wakes = 0.0
        self.at = "start"
        self.over = self.killed = False
        self.error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.begun: Attempt | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self.body()
        except Gone:
            pass
        except BaseException as error:
            self.error = error
        self.over = True
        self._back.release()

    def resume(self) -> None:
        """Let it run to its next pause."""
        if self.over:
            return
        before, self.world.actor = self.world.actor, self
        self._go.release()
        self._back.acquire()
        self.world.actor = before
        if self.over:
            self.process.alive = False
            self._thread.join()
            if not self.killed:  # what it has started dies with it
                for child in self.process.children:
                    child.kill()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def pause(self, at: str, seconds: float) -> None:
        self.at, self.wakes = at, self.world.now + seconds
        self._back.release()
        self._go.acquire()
        if self.killed:
            raise Gone

    def end(self) -> None:
        """It was killed."""
        if not self.over and self.world.actor is not self:
            self.killed = True
            self.resume()


@dataclass(eq=False)
class Start:
    """A start of a run that really is there: torchrun's agent and its one rank."""

    world: World
    run_dir: RunDir
    attempt: Attempt
    agent: Process
    rank: Process
    told: bool = False
    told_at: float | None = None
    published: bool = False
    step: int = 0
    returncode: int | None = None

    # As subprocess.Popen

    @property
    def pid(self) -> int:
        return self.agent.pid

    def poll(self) -> int | None:
        if self.returncode is None and not self.agent.alive:
            self.returncode = -9
        return self.returncode

    def terminate(self) -> None:
        self.told = True

    kill = property(lambda self: self.agent.kill)

    # Its life

    def turn(self) -> None:
        """What it does in a moment: the rank a step, the agent its duty."""
        if self.agent.is_going():
            if self.told and self.told_at is None:
                self.told_at = self.world.now
            if self.told_at is not None and self.world.now - self.told_at >= KILLED_S:
                self.rank.alive = False
        if self.rank.is_going():
            self._step()
        if self.agent.is_going() and not self.rank.alive:
            self.returncode = 0 if self.published else 1
            self.agent.alive = False

    def _step(self) -> None:
        if self.published or not self.attempt.path.exists():  # it was deleted, where its place had said that it is gone
            self.rank.alive = False
        elif self.run_dir.newest() != self.attempt:
            self.fail("overtaken")
        elif self.told_at is not None:
            self.save()
            self.attempt.write("preempted", {"step": self.step})
            self.rank.alive = False
        else:
            self.step += 1
            beat = {"step": self.step, "steps": 100, "epoch": 1, "epochs": 10}
            self.attempt.write("heartbeat", {"time": self.world.now, **beat}, sync=False)

    def save(self) -> None:
        fabricated.save(self.run_dir, self.step)

    def fail(self, why: str) -> None:
        fabricated.rank_failed(self.attempt, 0, message=why)
        self.rank.alive = False

    def finish(self) -> None:
        """Publish, unless a newer attempt is there."""
        if self.run_dir.newest() == self.attempt:
            fabricated.publish(self.run_dir, 50.0, self.attempt.number)
            self.published = True


@dataclass(eq=False)
class Job:
    """A job as the grid has it."""

    id: str
    name: str
    run_dir: RunDir | None
    """None: of somebody else."""
    phase: Phase = Phase.WAITING
    end: End = End.WITHDRAWN
    task: Process | None = None
    told_at: float | None = None
    again: bool = False
    """It is being preempted: it goes back into the queue."""


class Grid(Backend):
    """A place as SLURM is one: jobs that wait, run, are preempted and go on, behind a controller that may be away."""

    name, title, word = "grid", "in the grid", "queued"
    guarded = True
    """Whether a job leaves that finds another one's number in the run's ticket."""

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        return {run.id: Layout("cpu", 1, 1) for run in plan.runs}

    def start(self, plan: Plan, chosen: Sequence[str], root: Path, data_dir: Path) -> str:
        for run_id in chosen:
            run_dir, world = RunDir(root, run_id), World.now_running()
            ref = {"id": None, "name": f"{run_id}-{world.count()}", "submitter": world.process().record()}
            run_dir.write_ticket(self.name, ref)
            world.pause("asks")
            run_dir.note_ref({**ref, "id": self.ask(ref["name"], run_dir)})
        return self.title

    def ask(self, name: str, run_dir: RunDir) -> str:
        """The job's number; after a lost answer it is looked for, and nothing is asked twice."""
        world = World.now_running()
        try:
            return world.queue(name, run_dir)
        except SchedulerError:
            world.pause("looks", 2.0)
            if not world.reachable:
                raise  # unknown: the ticket stays
            if known := [job for job in world.jobs.values() if job.name == name and job.phase is not Phase.ENDED]:
                return known[-1].id
            run_dir.drop_ticket()
            raise

    @classmethod
    def look(cls, refs: Sequence[Mapping[str, Any]], within_s: float = 0.0) -> list[Seen]:
        return [World.now_running().seen(ref) for ref in refs]

    @classmethod
    def cancel(cls, refs: Sequence[Mapping[str, Any]]) -> None:
        world = World.now_running()
        if not world.reachable:
            raise SchedulerError("the grid cannot be reached")
        for ref in refs:
            if (job := world.job_of(ref)) is not None and job.phase is not Phase.ENDED:
                world.end_job(job)


class World:
    """All of it."""

    running: World | None = None

    @classmethod
    def now_running(cls) -> World:
        assert cls.running is not None
        return cls.running

    def __init__(self, plan: Plan) -> None:
        shm = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="kdcluster-life-", dir=shm if shm.is_dir() else None))
        self.root, self.plan = self.folder / "runs", plan
        self.now, self.serial, self.view = 1_000_000.0, 0, HOSTS[0]
        self.actor: Actor | None = None
        self.table: dict[int, Process] = {}
        self.starts: list[Start] = []
        self.jobs: dict[str, Job] = {}
        self.late: list[tuple[str, RunDir]] = []
        self.reachable, self.answer, self.lies = True, "true", False
        self.supervisors: dict[Process, Any] = {}
        self.lock: Actor | None = None
        self.is_broken = False
        self.excused: set[str] = set()
        """Runs of which two starts may live: their place said something untrue, or what was unknown was given up."""
        self.on_begin: Callable[[RunDir], None] = lambda run_dir: None
        self.on_turn: Callable[[], None] = lambda: None
        World.running = self

    def close(self) -> None:
        for process in list(self.table.values()):
            if process.actor is not None:
                process.actor.end()
        World.running = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def count(self) -> int:
        """The next number: what happened earlier has a smaller one."""
        self.serial += 1
        return self.serial

    # Processes

    def start(self, host: str, what: str, body: Callable[[], None] | None = None, parent: Any = None) -> Process:
        pid = 1000 + len(self.table)
        process = self.table[pid] = Process(pid, host, what, parent)
        if parent is not None:
            parent.children.append(process)
        if body is not None:
            Actor(self, process, body)
        return process

    def process(self) -> Process:
        assert self.actor is not None
        return self.actor.process

    @property
    def here(self) -> str:
        return self.actor.process.host if self.actor is not None else self.view

    def pause(self, at: str, seconds: float = 0.0) -> None:
        if self.actor is not None:
            self.actor.pause(at, seconds)

    def of(self, record: Mapping[str, Any] | None) -> Process | None:
        """The living process that a record means, from where one looks."""
        if not record or record["host"] != self.here or record.get("start_time") is None:
            return None
        process = self.table.get(record["pid"])
        return process if process and process.alive and str(process.pid) == record["start_time"] else None

    def actors(self) -> list[Actor]:
        found = (process.actor for process in list(self.table.values()) if process.alive)
        return [actor for actor in found if actor is not None and not actor.over]

    def commands(self) -> list[Actor]:
        return [actor for actor in self.actors() if actor.process.what == "command"]

    def torchrun(self, *_: Any, **__: Any) -> Start:
        assert self.actor is not None
        attempt = self.actor.begun
        assert attempt is not None
        agent = self.start(self.here, "agent", parent=self.actor.process)
        rank = self.start(self.here, "rank", parent=agent)
        run_dir = RunDir(self.root, attempt.path.parent.parent.name)
        self.starts.append(Start(self, run_dir, attempt, agent, rank))
        return self.starts[-1]

    def start_supervisor(self, folder: Path, run_dirs: Sequence[RunDir], after: object) -> None:
        """As `local.backend._start_supervisor`, and what the supervisor's `main` does."""
        given, submit, told = read_json(folder / "submission.json"), self.process(), []

        def body() -> None:
            runs = [RunDir(self.root, run_id).load() for run_id in given["runs"]]
            layouts = {run_id: Layout(**values) for run_id, values in given["layouts"].items()}
            there = supervisor.Supervisor(self.root, self.folder, runs, layouts, folder)
            while not told:
                if not submit.alive:
                    return
                self.pause("waits for its tickets", 0.1)
            self.supervisors[self.process()] = there
            there.tick()
            write_json(folder / "supervisor.json", there.known)
            while there.pending or there.children:
                self.pause("waits", 1.0)
                there.tick()

        process = self.start(self.here, "supervisor", body)
        self.pause("starts the supervisor")
        for run_dir in run_dirs:
            run_dir.write_ticket("local", {**local.reference(process.pid, folder), "run": run_dir.id})
        told.append(True)
        while read_json(folder / "supervisor.json") is None:
            self.pause("waits for the supervisor", 0.02)
            if not process.alive and read_json(folder / "supervisor.json") is None:
                raise submission.KdclusterError("the supervisor did not come up")

    # The grid

    def queue(self, name: str, run_dir: RunDir) -> str:
        """sbatch; `answer` says what becomes of it: lost (accepted), refused by a time-out, late, twice."""
        answer, self.answer = self.answer, "true"
        if not self.reachable or answer == "none":
            raise SchedulerError("the grid cannot be reached")
        if answer == "late":
            self.late.append((name, run_dir))
            raise SchedulerError("no answer in time")
        job = self.accept(name, run_dir)
        if answer == "twice":
            self.accept(name, run_dir)
        if answer == "lost":
            raise SchedulerError("no answer in time")
        return job.id

    def accept(self, name: str, run_dir: RunDir | None) -> Job:
        number = str(len(self.jobs) + 1)
        self.jobs[number] = Job(number, name, run_dir)
        return self.jobs[number]

    def job_of(self, ref: Mapping[str, Any]) -> Job | None:
        if ref["id"] is not None:
            job = self.jobs.get(ref["id"])
            return job if job is not None and job.name == ref["name"] else None
        named = [job for job in self.jobs.values() if job.name == ref["name"]]
        return max(named, key=lambda job: (job.phase is not Phase.ENDED, int(job.id)), default=None)

    def seen(self, ref: Mapping[str, Any]) -> Seen:
        if not self.reachable:
            return Seen(Phase.UNKNOWN, "the grid cannot be reached", ref["id"])
        job = self.job_of(ref)
        if job is not None and self.lies:
            if job.phase is not Phase.ENDED and job.run_dir is not None:
                self.excused.add(job.run_dir.id)
            job = None
        if job is None and ref["id"] is None:
            going = self.table[ref["submitter"]["pid"]].alive
            return Seen(Phase.WAITING, "is being submitted") if going else Seen(Phase.ENDED)
        if job is None:
            return Seen(Phase.ABSENT, f"the grid does not know job {ref['id']}", ref["id"])
        whole = {**ref, "id": job.id}
        after = "its job is ending" if job.phase is Phase.ACTIVE else ""
        return Seen(job.phase, f"job {job.id} is {job.phase.name}", job.id, whole, end=job.end, after=after)

    def end_job(self, job: Job) -> None:
        if job.phase is Phase.WAITING:
            job.phase = Phase.ENDED
        elif job.told_at is None:
            job.told_at = self.now

    def begin_job(self, job: Job) -> None:
        """It is its turn."""
        assert job.run_dir is not None
        needs = [RunDir(self.root, need) for need in job.run_dir.load().needs] if job.run_dir.config.exists() else []
        if any(need.result() is None for need in needs):
            return  # its dependency
        job.phase, job.told_at, job.again = Phase.ACTIVE, None, False
        job.task = self.start(NODE, "task", lambda: self.task(job, job.run_dir))  # type: ignore[arg-type]

    def lose_job(self, job: Job, *, again: bool) -> None:
        """Its node is lost: nobody writes anything."""
        assert job.task is not None
        job.phase, job.end = (Phase.WAITING, End.WITHDRAWN) if again else (Phase.ENDED, End.TAKEN)
        job.task.kill()

    def is_needed(self, job: Job, run_dir: RunDir) -> bool:
        """What a task looks at before it begins anything."""
        ticket, newest = run_dir.ticket(), run_dir.newest()
        if run_dir.is_cancelled() or run_dir.result() is not None or not run_dir.config.exists():
            return False
        if not Grid.guarded:
            return True
        if ticket is None or ticket.backend != "grid" or ticket.ref["name"] != job.name:
            return False
        if ticket.ref["id"] not in (None, job.id):
            return False
        if newest is None or newest.number <= ticket.after_attempt:
            return True
        given = newest.given_to()
        return given is not None and given.backend == "grid" and given.ref["id"] == job.id

    def task(self, job: Job, run_dir: RunDir) -> None:
        """What runs on the node."""
        if not self.is_needed(job, run_dir):
            job.phase = Phase.ENDED
            return
        known = {"backend": "grid", "ref": {"id": job.id, "name": job.name, "submitter": None}, "job_id": job.id}
        child = supervisor.Child.start(run_dir, self.folder, Layout("cpu", 1, 1), known=known)
        while child.process.poll() is None:
            if job.told_at is not None or run_dir.is_cancelled():
                child.tell_to_stop()
            self.pause("trains", 0.2)
        ended = child.outcome(told_to_stop=job.told_at is not None)
        again = job.again and not run_dir.is_cancelled() and ended["state"] in (State.PREEMPTED, State.LOST)
        child.attempt.write_last("outcome", {**ended, "next": "requeue" if again else None})
        self.pause("is ending")
        job.phase = Phase.WAITING if again else Phase.ENDED
        job.end = End.WITHDRAWN if ended["state"] != State.FAILED else End.BROKEN

    # Time

    def advance(self, seconds: float) -> None:
        """Let time pass; everybody has turns in it, in a fixed order."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + (TURN_S if self.commands() else LONG_S))
            self.turn()

    def turn(self) -> None:
        """A turn for all that can move."""
        for job in self.jobs.values():
            if job.told_at is not None and job.phase is Phase.ACTIVE and self.now - job.told_at > KILLED_S + 5:
                self.lose_job(job, again=job.again)
        for start in self.starts:
            start.turn()
        for actor in self.actors():
            if actor.process.is_going() and actor.wakes <= self.now and not actor.over:
                actor.resume()
        self.on_turn()

    # What is true

    def alive(self, run_id: str) -> list[Start]:
        """Its starts that train, or could go on to; what has published its result only leaves."""
        return [one for one in self.starts if one.run_dir.id == run_id and one.rank.alive and not one.published]

    def coming(self, run_id: str) -> str:
        """Who will begin it (again) by himself; empty: nobody."""
        run_dir = RunDir(self.root, run_id)
        for job in self.jobs.values():
            if job.run_dir != run_dir or job.phase is Phase.ENDED:
                continue
            if self.is_needed(job, run_dir) or (job.task and job.task.alive and job.task.actor.begun):
                return f"job {job.id}"
        ticket = run_dir.ticket()
        process = self.table.get(ticket.ref["pid"]) if ticket and ticket.backend == "local" else None
        there = self.supervisors.get(process) if process else None
        is_waiting = process is not None and process.alive and (there is None or run_id in there.pending)
        return f"supervisor {process.pid}" if process and is_waiting else ""

    def ended_by(self, run_id: str) -> bool:
        """Whether somebody who is there and moves has still to write how its newest attempt ended."""
        run_dir = RunDir(self.root, run_id)
        newest = run_dir.newest()
        if any(actor.begun == newest for actor in self.actors()):  # it is just starting torchrun
            return True
        for process, there in self.supervisors.items():
            if process.alive and any(child.attempt == newest for child in there.children.values()):
                return True
        return any(job.run_dir == run_dir and job.task and job.task.alive for job in self.jobs.values())


class Slots:
    """Two of each kind for each supervisor; nothing of the real machine is locked."""

    def __init__(self, what: str, *_: Any) -> None:
        self.what, self.names = what, ["0", "1"]
        self.free = list(self.names)

    def take(self, wanted: int, who: str) -> list[tuple[str, Any]] | None:
        if len(self.free) < wanted:
            return None
        taken = [self.free.pop() for _ in range(wanted)]
        return [(name, SimpleNamespace(release=partial(self.free.append, name))) for name in taken]

    def waits_for(self, wanted: int) -> str:
        return "waits for its turn"


class Lock:
    """FileLock, of which a waiting actor knows."""

    def __init__(self, path: Path, **_: Any) -> None:
        self.lock_file = str(path)
        self.mine: Actor | None = None

    def acquire(self, timeout: float = -1) -> None:
        world = World.now_running()
        if world.lock is not None and timeout >= 0:
            world.pause("waits for the lock", timeout)
            if world.lock is not None:
                raise Timeout(self.lock_file)
        while world.lock is not None:
            world.pause("waits for the lock", 0.1)
        self.mine = world.lock = world.actor
        world.process().locked = world.count()

    def release(self) -> None:
        world = World.now_running()
        if self.mine is not None and world.lock is self.mine:
            world.lock = None


def fake_clock() -> Any:
    """The module `time`, as far as kdcluster uses it."""

    def now() -> float:
        return World.now_running().now

    def sleep(seconds: float) -> None:
        World.now_running().pause("sleeps", seconds)

    return SimpleNamespace(time=now, monotonic=now, sleep=sleep, strftime=time.strftime, localtime=time.localtime)


def fake_processes(patch: pytest.MonkeyPatch) -> None:
    """Put the world in the place of this machine, in every module that looks at it."""

    def process_record(pid: int) -> dict[str, Any]:
        world = World.now_running()
        return world.process().record() if pid == os.getpid() else world.table[pid].record()

    def kill_tree(record: Mapping[str, Any]) -> None:
        if process := World.now_running().of(record):
            process.kill()

    faked = {
        "process_record": process_record,
        "is_alive": lambda record: World.now_running().of(record) is not None,
        "is_stopped": lambda record: bool((found := World.now_running().of(record)) and found.stopped),
        "kill_tree": kill_tree,
        "threads_available": lambda: 2,
    }
    fakes = {id(time): fake_clock(), **{id(getattr(processes, name)): fake for name, fake in faked.items()}}
    fakes[id(yamlfile.parse)] = cache(yamlfile.parse)
    child = sys.modules[supervisor.Child.__module__]
    for name, module in list(sys.modules.items()):
        if name.startswith(("kdcluster.", "tests.fabricated")) and module is not processes:
            for attribute, value in list(vars(module).items()):
                if id(value) in fakes:
                    patch.setattr(module, attribute, fakes[id(value)])
    popen = SimpleNamespace(**{**vars(subprocess), "Popen": lambda *a, **k: World.now_running().torchrun(*a, **k)})
    patch.setattr(child, "subprocess", popen)
    patch.setattr(child, "code_state", lambda: ({"trainer_code": "x"}, ""))
    patch.setattr(supervisor, "Slots", Slots)
    patch.setattr(local, "_start_supervisor", lambda *given: World.now_running().start_supervisor(*given))
    patch.setattr(submission, "FileLock", Lock)
    patch.setattr(socket, "gethostname", lambda: World.now_running().here)
    patch.setattr(os, "fsync", lambda handle: None)
    patch.setattr(runs, "RESERVE", 1)
    patch.setattr(cancel, "POLL_S", 5.0)
    patch.setitem(backend.BACKENDS, "grid", "tests.world:Grid")
    begin, known, texts = RunDir.start_attempt, dict[bytes, Run](), dict[int, str]()

    def start_attempt(self: RunDir, *given: Any, **more: Any) -> Attempt:
        world = World.now_running()
        world.pause("begins")
        attempt = begin(self, *given, **more)
        assert world.actor is not None
        world.actor.begun = attempt
        world.on_begin(self)
        world.pause("has begun")
        return attempt

    read = Run.from_yaml.__func__  # type: ignore[attr-defined]

    def from_yaml(cls: type[Run], path: Path) -> Run:
        content = path.read_bytes()
        if content not in known:
            known[content] = read(cls, path)
        return known[content]

    write = Run.to_yaml
    patch.setattr(Run, "to_yaml", lambda run: texts.get(id(run)) or texts.setdefault(id(run), write(run)))
    patch.setattr(RunDir, "start_attempt", start_attempt)
    patch.setattr(Run, "from_yaml", classmethod(from_yaml))
