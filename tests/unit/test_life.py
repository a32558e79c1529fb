"""A model of a run's life: the real status, submission, cancel, rm and supervisor, in a world (tests/world.py) where
anything may happen at any moment, beside what really is alive.

Steps are rules: commands that are typed on two hosts at once and take their steps one by one, what happens to
processes (crash, kill -9, SIGSTOP), to jobs (preempted, requeued, lost), to the place's answers (late, lost, none,
twice, untrue) and to the clock. After each step `Life.what_is_shown` and the others hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kdcluster.errors import Damaged, KdclusterError, SchedulerError, WaitTimeout
from kdcluster.launch import backend, cancel, derived, submission, watching
from kdcluster.launch.backend import End, Seen
from kdcluster.launch.derived import LATE_S, STALE_S
from kdcluster.launch.local.backend import Local
from kdcluster.launch.status import Status, run_status, statuses
from kdcluster.launch.watching import Watching
from kdcluster.plan import Plan, Run
from kdcluster.rereading import stamp_of
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import LIVE, State
from tests import world as worlds
from tests.tiny import make_plan
from tests.world import HOSTS, SPANS_S, Grid, Job, Process, Start, Untrue, World

BUDGET = {"max_examples": 60, "stateful_step_count": 60}
PLAN: list[Plan] = []
PLACES = {"local": Local, "grid": Grid}
PICK = st.integers(0, 5)
HOST = st.sampled_from(HOSTS)
BUSY = ("start", "begins", "has begun", "waits for its tickets", "is ending")
"""Where a process of ours has something to do at once."""


class Life(RuleBasedStateMachine):
    """Two runs, a teacher and its student."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(PLAN[0])
        self.runs = [run.id for run in PLAN[0].runs]
        self.world.on_begin, self.world.on_turn = self.begun, self.never_two_at_once
        self.submitted, self.cancelled = dict.fromkeys(self.runs, 0), dict.fromkeys(self.runs, 0)
        """When a submit had chosen them at last, and when a cancel had the lock (World.count)."""
        self.finished: dict[str, dict[str, bytes]] = {}

    def teardown(self) -> None:
        try:
            if not self.world.is_broken:
                self.heals()
        finally:
            self.world.close()

    # Commands

    def type(self, host: str, body: Callable[[], None], *, at_once: bool = False) -> None:
        """A command; it takes its steps one by one, or is left alone with those that are there until it is over."""
        self.world.start(host, "command", body)
        self.world.commands()[-1].resume()
        if at_once:
            self.hurry()

    def hurry(self) -> None:
        for _ in range(15):
            self.world.now += 1.0
            self.world.turn()
            if not self.world.commands() and not any(actor.at in BUSY for actor in self.world.actors()):
                break

    def submit(self, place: str, *, retry: bool) -> None:
        root = self.world.root

        def prepare(runs: list[Run]) -> None:
            self.submitted |= {run.id: self.world.count() for run in runs}
            self.world.pause("prepares", 3.0)

        if retry:  # what is given up without having been asked may live
            self.give_up()
        try:
            done = submission.submit(PLAN[0], root, self.world.folder, PLACES[place](), prepare, retry=retry)
        except KdclusterError as error:
            self.refused = str(error)
            return
        self.refused = ""
        for run_id in done.started:
            gone = [need for need in PLAN[0][run_id].needs if not RunDir(root, need).config.exists()]
            if gone and gone[0] not in self.world.excused:
                raise Untrue(f"{run_id} is said to have started, and {gone[0]}, which it needs, is gone")

    def give_up(self) -> None:
        for run_id, found in statuses(PLAN[0], self.world.root).items():
            if found.state == State.CANCELLED and self.world.alive(run_id):
                self.world.excused.add(run_id)

    def cancel(self, run_ids: list[str]) -> None:
        begun, here = self.world.count(), self.world.here
        try:
            ended = cancel.cancel(run_ids, self.world.root)
        except WaitTimeout as error:
            self.may_time_out(run_ids, here, str(error))
            return
        except KdclusterError:
            return
        begun = max(begun, self.world.process().locked)
        for run_id, state in ended.items():
            if state not in (State.CANCELLED, State.DONE) and self.submitted[run_id] < begun:
                raise Untrue(f"{run_id} was cancelled, and is {state}")
        for run_id in run_ids:
            if self.submitted[run_id] > begun:
                continue
            self.cancelled[run_id] = begun
            left = [one for one in self.world.alive(run_id) if self.is_within_reach(one, here)]
            if left and run_id not in self.world.excused:
                raise Untrue(f"{run_id} was cancelled, and attempt {left[0].attempt.number} lives")

    def is_within_reach(self, start: Start, host: str) -> bool:
        if start.rank.host == worlds.NODE:
            return self.world.reachable and not self.world.lies
        return start.rank.host == host

    def may_time_out(self, run_ids: list[str], host: str, words: str) -> None:
        """Only where what lives is somewhere else."""
        found = statuses(PLAN[0], self.world.root)
        still = [run_id for run_id in run_ids if f"{run_id}: " in words]
        here = [i for i in still if found[i].state in LIVE and found[i].backend == "local" and self.is_only(i, host)]
        if here:
            raise Untrue(f"cancel gave up on {here[0]}, which is on this machine: {words}")

    def is_only(self, run_id: str, host: str) -> bool:
        ticket, newest = RunDir(self.world.root, run_id).ticket(), RunDir(self.world.root, run_id).newest()
        hosts = {ticket.ref.get("host")} if ticket else set()
        return (hosts | ({newest.read("start")["host"]} if newest else set())) == {host}

    def begun(self, run_dir: RunDir) -> None:
        """An attempt begins."""
        if self.cancelled[run_dir.id] > self.submitted[run_dir.id] and run_dir.id not in self.world.excused:
            raise Untrue(f"{run_dir.id} begins although it was cancelled, and nobody submitted it again")

    def remove(self, run_ids: list[str]) -> None:
        chosen = [RunDir(self.world.root, i) for i in run_ids if RunDir(self.world.root, i).config.exists()]
        lives = {i for i in run_ids if self.world.alive(i)}
        try:
            cancel.check(chosen, self.world.root)
            self.world.pause("asks whether to delete")
            cancel.remove(chosen, self.world.root)
        except KdclusterError:
            return
        for run_dir in chosen:
            self.finished.pop(run_dir.id, None)
            if run_dir.id in lives and self.world.alive(run_dir.id) and run_dir.id not in self.world.excused:
                raise Untrue(f"{run_dir.id} was deleted while it lives")

    @precondition(lambda self: len(self.world.commands()) < 3)
    @rule(host=HOST, place=st.sampled_from(("local", "grid")), retry=st.booleans(), at_once=st.booleans())
    def submits(self, host: str, place: str, retry: bool, at_once: bool) -> None:
        self.type(host, lambda: self.submit(place, retry=retry), at_once=at_once)

    @precondition(lambda self: len(self.world.commands()) < 3 and self.world.root.exists())
    @rule(host=HOST, pick=st.integers(0, 2), at_once=st.booleans())
    def cancels(self, host: str, pick: int, at_once: bool) -> None:
        self.type(host, lambda: self.cancel(self.runs[pick : pick + 1] or self.runs), at_once=at_once)

    @precondition(lambda self: len(self.world.commands()) < 3 and self.world.root.exists())
    @rule(host=HOST, pick=st.integers(0, 2))
    def removes(self, host: str, pick: int) -> None:
        self.type(host, lambda: self.remove(self.runs[pick : pick + 1] or self.runs))

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.world.now += 1.0
            self.world.turn()

    def until(self, at: str) -> None:
        """Until one of our processes is there."""
        while not any(actor.at == at for actor in self.world.actors()):
            self.turns(1)
            assert self.world.actors(), f"nobody comes to {at!r}"

    # What moves

    @precondition(lambda self: any(actor.process.is_going() for actor in self.world.actors()))
    @rule(pick=PICK)
    def one_step(self, pick: int) -> None:
        """Of one process that runs our code."""
        going = [actor for actor in self.world.actors() if actor.process.is_going()]
        one = going[-1 - pick % len(going)]
        self.world.now = max(self.world.now, one.wakes)
        one.resume()

    @rule(seconds=st.sampled_from(SPANS_S))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: self.training())
    @rule(pick=PICK, how=st.sampled_from(("finish", "finish", "save", "crash", "kill")))
    def a_rank(self, pick: int, how: str) -> None:
        start = self.training()[pick % len(self.training())]
        if how == "finish":
            start.finish()
        elif how == "save":
            start.save()
        elif how == "crash":
            start.fail("ValueError: no")
        else:
            start.rank.alive = False

    def training(self) -> list[Start]:
        return [start for start in self.world.starts if start.rank.alive and not start.rank.stopped]

    def living(self, *what: str) -> list[Process]:
        return [one for one in self.world.table.values() if one.alive and one.what in what]

    @precondition(lambda self: self.living("supervisor", "task", "agent", "rank", "command"))
    @rule(pick=PICK, what=st.sampled_from(("kill", "stop", "stop", "continue", "continue")))
    def a_process(self, pick: int, what: str) -> None:
        found = self.living("supervisor", "task", "agent", "rank", *(("command",) if what == "kill" else ()))
        if not found:
            return
        process = found[-1 - pick % len(found)]
        if what == "kill":
            process.kill()
            if process.what == "task":  # the place sees that
                for job in self.world.jobs.values():
                    if job.task is process:
                        job.phase, job.end = backend.Phase.ENDED, End.BROKEN
        elif process.actor is None or process.actor.at not in ("begins", "has begun"):  # in between, numbers protect
            process.stopped = what == "stop"

    @precondition(lambda self: self.living("supervisor"))
    @rule()
    def the_machine_goes_down(self) -> None:
        """SIGTERM to a supervisor: what it runs saves and leaves."""
        process = self.living("supervisor")[0]
        if process.is_going() and process.actor is not None and process.actor.at == "waits":
            before, self.world.actor = self.world.actor, process.actor
            self.world.supervisors[process].stop_everything()
            self.world.actor = before

    # The place

    def jobs(self, phase: backend.Phase) -> list[Any]:
        return [job for job in self.world.jobs.values() if job.phase is phase and job.run_dir is not None]

    @precondition(lambda self: self.jobs(backend.Phase.WAITING))
    @rule(pick=PICK, at_once=st.booleans())
    def a_job_begins(self, pick: int, at_once: bool) -> None:
        waiting = self.jobs(backend.Phase.WAITING)
        self.world.begin_job(waiting[pick % len(waiting)])
        if at_once:
            self.hurry()

    @precondition(lambda self: self.jobs(backend.Phase.ACTIVE))
    @rule(pick=PICK, how=st.sampled_from(("preempt", "preempt", "requeue", "lose")))
    def a_job_is_taken(self, pick: int, how: str) -> None:
        active = self.jobs(backend.Phase.ACTIVE)
        job = active[pick % len(active)]
        if how == "preempt":
            job.again = True
            self.world.end_job(job)
        else:
            self.world.lose_job(job, again=how == "requeue")

    @rule(what=st.sampled_from(("lost", "late", "none", "twice", "away", "back", "lies", "true", "comes", "reused")))
    def the_place(self, what: str) -> None:
        """It answers the next question oddly, is away, says that it knows of no job, or gives a number again."""
        world, ended = self.world, [job for job in self.world.jobs.values() if job.phase is backend.Phase.ENDED]
        if what in ("away", "back"):
            world.reachable = what == "back"
        elif what in ("lies", "true"):
            world.lies = what == "lies"
        elif what == "comes":
            while world.late:
                world.accept(*world.late.pop())
        elif what == "reused" and ended:
            world.jobs[ended[0].id] = Job(ended[0].id, "somebody else's", None, backend.Phase.ACTIVE)
        elif what != "reused":
            world.answer = what

    # What holds

    @invariant()
    def never_two_at_once(self) -> None:
        for run_id in self.runs:
            alive = self.world.alive(run_id)
            if len(alive) > 1 and run_id not in self.world.excused:
                raise Untrue(f"{run_id}: attempts {[one.attempt.number for one in alive]} live at once")
            if not alive and not self.world.coming(run_id):
                self.world.excused.discard(run_id)

    @invariant()
    def others_are_left_alone(self) -> None:
        for job in self.world.jobs.values():
            if job.run_dir is None and (job.phase is not backend.Phase.ACTIVE or job.told_at is not None):
                raise Untrue(f"job {job.id} of somebody else was ended")

    @invariant()
    def what_is_shown(self) -> None:
        if not self.world.root.exists():
            return
        for host in HOSTS:
            self.world.view = host
            found = statuses(PLAN[0], self.world.root)
            chosen = submission.to_start(PLAN[0], found, self.world.root)
            for run_id in self.runs:
                if run_id in self.world.excused:
                    continue
                self.startable(run_id, run_id in chosen, found[run_id])
                self.is_true(run_id, found[run_id], host)

    def startable(self, run_id: str, chosen: bool, found: Status) -> None:
        if not chosen:
            return
        if alive := self.world.alive(run_id):
            raise Untrue(
                f"{run_id} is startable ({found.state}: {found.reason}); attempt {alive[0].attempt.number} lives"
            )
        if coming := self.world.coming(run_id):
            raise Untrue(f"{run_id} is startable ({found.state}: {found.reason}), and {coming} has it")

    def is_true(self, run_id: str, found: Status, host: str) -> None:
        run_dir = RunDir(self.world.root, run_id)
        newest = run_dir.newest()
        alive = self.world.alive(run_id)
        words = f"from {host}, {run_id} is shown as {found.state} ({found.reason})"
        if found.state == State.RUNNING and not found.unknown:
            silent_s = self.world.now - (derived.last_sign(newest) if newest else 0)
            if silent_s > LATE_S and not any(word in found.reason for word in ("last heard of", "requeued", "ending")):
                raise Untrue(f"{words}, silent for {silent_s:.0f} s")
            if not alive and not self.world.ended_by(run_id) and newest and newest.read("start")["host"] == host:
                agents = [one for one in self.world.starts if one.attempt == newest and one.agent.alive]
                if not agents:
                    raise Untrue(f"{words}, and is dead")
        elif found.state == State.QUEUED and not found.unknown:
            said = any(word in found.reason for word in ("heard of", "being submitted", "being cancelled"))
            if not self.world.coming(run_id) and not said:
                raise Untrue(f"{words}, and nobody has it")
        elif not found.unknown and alive and found.state != State.DONE:
            here = [one for one in alive if self.is_within_reach(one, host)]
            if here or not run_dir.is_cancelled():
                raise Untrue(f"{words}, and attempt {alive[0].attempt.number} lives")
        if found.state == State.DONE:
            self.stays(run_dir, newest)

    def stays(self, run_dir: RunDir, newest: Any) -> None:
        """A finished run stays what it is."""
        files = (run_dir.path / "result.json", run_dir.weights("best"), newest.path / "start.json")
        now = {path.name: path.read_bytes() for path in files if path.exists()}
        before = self.finished.setdefault(run_dir.id, now)
        if now != before or newest.number != run_dir.result()["attempt"]:  # type: ignore[index]
            raise Untrue(f"{run_dir.id} was done, and changed")

    def holds(self) -> None:
        """All of it."""
        self.never_two_at_once()
        self.others_are_left_alone()
        self.what_is_shown()

    # At the end

    def heals(self) -> None:
        """Everything is reachable again and idle: the next submit goes on, or says what to do."""
        self.world.reachable, self.world.lies, self.world.answer = True, False, "true"
        while self.world.late:
            self.world.accept(*self.world.late.pop())
        for process in self.world.table.values():
            process.stopped = False
        self.until_quiet()
        self.world.now += STALE_S  # what nobody knows is lost by then
        for retry, host, place in product((False, True), HOSTS, PLACES):
            if all(self.is_finished(run_id) for run_id in self.runs):
                return
            self.type(host, partial(self.submit, place, retry=retry))
            self.until_quiet()
        self.world.view = HOSTS[0]
        found = statuses(PLAN[0], self.world.root)
        unknown = [run_id for run_id, one in found.items() if one.unknown and derived.GIVE_UP in one.reason]
        self.type(HOSTS[0], partial(self.cancel, unknown))  # as they say: each host knows the end of one run alone
        self.until_quiet()
        self.type(HOSTS[0], partial(self.submit, "local", retry=True))
        self.until_quiet()
        if not all(self.is_finished(run_id) for run_id in self.runs):
            raise Untrue(f"does not heal: {found}; {self.refused}")

    def is_finished(self, run_id: str) -> bool:
        return run_status(RunDir(self.world.root, run_id)).state == State.DONE

    def until_quiet(self) -> None:
        """Until nothing happens any more by itself."""
        for _ in range(200):
            for job in self.jobs(backend.Phase.WAITING):
                self.world.begin_job(job)
            for start in self.training():
                if not start.published and start.told_at is None:
                    start.finish()
            self.world.advance(10.0)
            if not self.world.actors() and not self.training():
                break
        else:
            raise Untrue(f"does not come to rest: {[(a.process.what, a.at) for a in self.world.actors()]}")
        self.what_is_shown()


class WatchedLife(Life):
    """On each host somebody watches, and is shown what a command shows."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = {host: Watching() for host in HOSTS}

    @invariant()
    def what_is_watched(self) -> None:
        for host in HOSTS if self.world.root.exists() else ():
            self.world.view = host
            found = statuses(PLAN[0], self.world.root)
            if (watched := statuses(PLAN[0], self.world.root, watching=self.watching[host])) != found:
                raise Untrue(f"who watches from {host} is shown {watched}, and it is {found}")
        until_the_clock_of_the_disk_goes_on(self.world.folder / "probe")


def until_the_clock_of_the_disk_goes_on(probe: Path) -> None:
    """So that what is written next can be told from what was there, for which a watch else waits."""
    probe.touch()
    before = stamp_of(probe.stat())
    while stamp_of(probe.stat()) == before:
        probe.touch()


@pytest.fixture(autouse=True)
def in_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not PLAN:
        PLAN.append(make_plan(tmp_path, {"distill.logits": "computed"}).only(["distilled"]))
    worlds.fake_processes(monkeypatch)
    monkeypatch.setattr(watching, "is_settled", lambda stamp: True)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lives(machine: type[Life] = Life, **budget: Any) -> None:
    """So many lives of so many steps, the same ones each time."""
    chosen = settings(
        **{**BUDGET, **budget},
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_whatever_happens_what_is_shown_is_true_and_nothing_is_started_twice() -> None:
    lives()


# Put back, each fault is found


def preempted_where_the_place_cannot_be_asked(patch: pytest.MonkeyPatch) -> None:
    """A requeued job's run counts as preempted, and may be started, while the place is away."""
    of_ended = derived._of_ended
    away = backend.Phase.UNKNOWN
    gone = Seen(backend.Phase.ENDED)
    patch.setattr(
        derived, "_of_ended", lambda *given: of_ended(*given[:2], gone if given[2].phase is away else given[2])
    )


def asked_again_after_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    """Without a look for the job, and without a look of the job at its ticket."""

    def ask(self: Grid, name: str, run_dir: RunDir) -> str:
        for _ in range(3):
            try:
                return World.now_running().queue(name, run_dir)
            except KdclusterError:
                World.now_running().pause("asks again", 1.0)
        raise SchedulerError("no answer")

    patch.setattr(Grid, "ask", ask)
    patch.setattr(Grid, "guarded", False)


def running_without_an_age(patch: pytest.MonkeyPatch) -> None:
    """As long as its supervisor is there."""
    of_unended = derived._of_unended

    def aged(run_dir: RunDir, started: Attempt, seen: Seen, *, alive: bool = False) -> Status:
        if seen.phase is backend.Phase.ACTIVE or alive:
            return derived._of(run_dir, started, State.RUNNING, "")
        return of_unended(run_dir, started, seen, alive=alive)

    patch.setattr(derived, "_of_unended", aged)


def cancelled_by_asking_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cancel, "kill", lambda run_dir: None)


def unlocked(what: str, patch: pytest.MonkeyPatch) -> None:
    """A cancel or a rm in the middle of a submit."""
    locked = cancel.one_at_a_time
    patch.setattr(cancel, "one_at_a_time", lambda root, who: nullcontext() if who == what else locked(root, who))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "1": preempted_where_the_place_cannot_be_asked,
    "4": asked_again_after_a_lost_answer,
    "6 unseen": running_without_an_age,
    "6 never ended": cancelled_by_asking_alone,
    "7 cancel": partial(unlocked, "cancel"),
    "7 rm": partial(unlocked, "rm"),
}
HERE = HOSTS[0]


def story_1(life: Life) -> None:
    """A preempted run waits in a place that is away."""
    life.submits(HERE, "grid", retry=False, at_once=True)
    life.a_job_begins(0, at_once=True)
    life.turns(20)
    life.a_job_is_taken(0, "preempt")
    life.turns(20)
    life.the_place("away")


def story_6(life: Life) -> None:
    """A supervisor is stopped, and its agent killed."""
    life.submits(HERE, "local", retry=False, at_once=True)
    life.turns(5)
    life.living("supervisor")[0].stopped = True
    life.living("agent")[0].kill()
    life.time_passes(700.0)
    life.holds()
    life.cancels(HERE, 2, at_once=False)
    life.time_passes(700.0)


def story_7_cancel(life: Life) -> None:
    """A cancel while a submit is at its checks."""
    life.submits(HERE, "local", retry=False, at_once=False)
    life.until("prepares")
    life.cancels(HERE, 2, at_once=False)
    life.time_passes(700.0)


def story_7_rm(life: Life) -> None:
    """A rm of what a submit is about to need."""
    life.submits(HERE, "local", retry=False, at_once=True)
    life.a_rank(0, "finish")
    life.turns(10)
    life.a_rank(0, "crash")
    life.turns(20)
    life.submits(HERE, "local", retry=True, at_once=False)
    life.until("prepares")
    life.removes(HERE, 2)
    life.turns(20)


STORIES = {
    "1": story_1,
    "6 unseen": story_6,
    "6 never ended": story_6,
    "7 cancel": story_7_cancel,
    "7 rm": story_7_rm,
}


def tell(story: Callable[[Life], None]) -> None:
    life = Life()
    try:
        story(life)
        life.holds()
    finally:
        life.teardown()


def test_whatever_happens_who_watches_is_shown_what_a_command_shows() -> None:
    lives(WatchedLife, max_examples=30)


@pytest.mark.parametrize("fault", STORIES)
def test_the_life_in_which_a_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(STORIES[fault])
    FAULTS[fault](monkeypatch)
    with pytest.raises(Untrue):
        tell(STORIES[fault])


@pytest.mark.parametrize("fault", ["4"])
def test_it_finds_by_itself_what_was_mended(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises((Untrue, Damaged)):  # a ticket may come to hold the other place's reference
        lives(max_examples=300)
