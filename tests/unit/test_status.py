"""Every state is derived from what lies on disk and from processes that are looked up; none is remembered."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kdcluster.commands.next_steps import next_steps
from kdcluster.files import write_json
from kdcluster.launch import derived, status
from kdcluster.launch.status import blocked_by, run_status, statuses
from kdcluster.plan import Plan, Run
from kdcluster.processes import process_record
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import ENDED
from tests import fabricated
from tests.fabricated import BEAT, DEAD, LIVE, STATES, ended, publish, put, started
from tests.tiny import make_plan

ELSEWHERE = {**LIVE, "host": "another"}
"""A process of a machine that cannot be asked."""


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return make_plan(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run_dir(made: Plan, root: Path) -> RunDir:
    return put(root, made.runs[0], "planned")


def role(made: Plan, name: str) -> Run:
    return next(run for run in made.runs if run.role == name)


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run_by_itself(run_dir: RunDir, state: str) -> None:
    STATES[state](run_dir)
    found = run_status(run_dir)
    assert found.state == state
    assert found.attempts == (0 if state in ("planned", "queued") else 1)
    assert (found.state in ENDED) == (state not in ("planned", "queued", "running"))
    assert bool(found.log) == (found.attempts > 0)


def test_a_folder_that_is_not_there_is_planned(root: Path) -> None:
    assert run_status(RunDir(root, "teacher-x-s0-00000000")).state == "planned"
    assert not root.exists()


def test_queued_needs_a_live_supervisor(run_dir: RunDir) -> None:
    run_dir.write_ticket("local", DEAD)
    assert run_status(run_dir).state == "planned"
    run_dir.write_ticket("local", LIVE)
    assert run_status(run_dir).state == "queued"
    run_dir.drop_ticket()
    assert run_status(run_dir).state == "planned"


@pytest.mark.parametrize("before", ["failed", "lost", "cancelled"])
def test_a_run_that_is_queued_again_is_queued(run_dir: RunDir, before: str) -> None:
    STATES[before](run_dir)
    run_dir.write_ticket("local", LIVE)
    assert run_status(run_dir).state == "queued"
    started(run_dir, supervisor=LIVE)
    assert run_status(run_dir).state == "running"  # the ticket is used up
    assert run_status(run_dir).attempts == 2


def test_running_by_agent_or_supervisor(run_dir: RunDir) -> None:
    attempt = started(run_dir, supervisor=LIVE)  # between the attempt's start and torchrun's
    assert run_status(run_dir).state == "running"
    attempt.write("agent", DEAD)  # torchrun has ended, its outcome is being written
    assert run_status(run_dir).state == "running"


def test_the_same_pid_with_another_start_time_is_not_alive(run_dir: RunDir) -> None:
    attempt = started(run_dir, agent={**LIVE, "start_time": str(int(LIVE["start_time"]) + 1)})
    assert run_status(run_dir).state == "lost"
    attempt.write("agent", LIVE)
    assert run_status(run_dir).state == "running"


def test_lost_says_where_it_ran_and_what_is_safe(run_dir: RunDir) -> None:
    fabricated.lost(run_dir)
    assert run_status(run_dir).reason == f"its processes on {socket.gethostname()} are gone; nothing is saved yet"
    for step in (3, 12, 9):
        fabricated.save(run_dir, step)
    assert run_status(run_dir).reason.endswith("are gone; step 12 is saved")


def test_an_outcome_that_comes_while_we_look_is_not_missed(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor writes the last outcome and is gone a moment later; that must never look like `lost`."""
    fabricated.running(run_dir)
    attempt = run_dir.attempt(1)

    def last_moment(_: object) -> bool:
        ended(attempt, "failed", "rank 0: no")
        return False

    monkeypatch.setattr(derived, "is_alive", last_moment)
    assert run_status(run_dir).state == "failed"


def test_done_by_result_by_outcome_or_by_both(run_dir: RunDir) -> None:
    attempt = started(run_dir, agent=DEAD)
    publish(run_dir, 61.5)  # the supervisor was killed before it wrote the outcome
    assert (run_status(run_dir).state, run_status(run_dir).top1) == ("done", 61.5)
    ended(attempt, "done")
    attempt.write("heartbeat", BEAT)
    assert (run_status(run_dir).state, run_status(run_dir).top1) == ("done", 61.5)
    (run_dir.path / "result.json").unlink()
    assert (run_status(run_dir).state, run_status(run_dir).top1) == ("done", BEAT["best_top1"])
    (attempt.path / "heartbeat.json").unlink()
    assert (run_status(run_dir).state, run_status(run_dir).top1) == ("done", None)


def test_an_older_attempts_result_does_not_finish_the_newest(run_dir: RunDir) -> None:
    fabricated.done(run_dir)
    (run_dir.attempt(1).path / "outcome.json").unlink()
    started(run_dir, agent=LIVE)
    assert run_status(run_dir).state == "running"


def test_failed_says_why_and_where_to_read(run_dir: RunDir) -> None:
    fabricated.failed(run_dir)
    found = run_status(run_dir)
    assert found.reason == "rank 1, step 7: ValueError: no; nothing is saved yet"
    assert found.log == run_dir.attempt(1).log(1)


def test_the_log_of_one_rank_is_named_of_several_their_folder(run_dir: RunDir) -> None:
    attempt = started(run_dir, agent=LIVE)
    attempt.log().touch()
    attempt.log(0).touch()
    assert run_status(run_dir).log == attempt.log(0)
    attempt.log(1).touch()
    assert run_status(run_dir).log == attempt.path


def test_a_half_written_attempt_changes_nothing(run_dir: RunDir) -> None:
    aside = run_dir.path / "attempts" / ".start-abc"
    aside.mkdir(parents=True)
    (aside / "start.json").write_text('{"supervisor": null')
    assert run_status(run_dir).state == "planned"
    run_dir.write_ticket("local", LIVE)
    assert run_status(run_dir).state == "queued"


@pytest.mark.parametrize("state", ["running", "done", "failed", "lost"])
def test_a_heartbeat_is_not_needed(run_dir: RunDir, state: str) -> None:
    STATES[state](run_dir)
    assert run_status(run_dir).heartbeat == {}
    attempt = run_dir.newest()
    assert isinstance(attempt, Attempt)
    attempt.write("heartbeat", BEAT)
    assert run_status(run_dir).heartbeat == BEAT


REASONS = {
    "failed": " is failed: rank 1, step 7: ValueError: no; nothing is saved yet",
    "cancelled": " is cancelled: as asked; nothing is saved yet",
    "done": " reached 50.00 %, under teacher.min_top1 60; train it longer or lower the gate",
}


@pytest.mark.parametrize("state", STATES)
def test_what_a_need_means_for_a_student(tmp_path: Path, root: Path, state: str) -> None:
    made = make_plan(tmp_path, {"teacher.min_top1": 60.0})
    teacher, student = role(made, "teacher"), role(made, "distilled")
    put(root, teacher, state)
    found = statuses(made, root)
    expected = teacher.id + REASONS[state] if state in REASONS else ""
    assert found[student.id].reason == expected
    assert found[student.id].state == ("blocked" if expected else "planned")
    assert found[role(made, "baseline").id].state == "planned"  # needs nothing
    assert list(found) == [run.id for run in made.runs]
    put(root, student, "queued")  # its supervisor is about to find out
    assert statuses(made, root)[student.id].state == ("blocked" if expected else "queued")


@pytest.mark.parametrize(("gate", "top1", "blocks"), [(None, 0.0, False), (50.0, 50.0, False), (50.01, 50.0, True)])
def test_the_gate(tmp_path: Path, root: Path, gate: float | None, top1: float, blocks: bool) -> None:
    made = make_plan(tmp_path, {"teacher.min_top1": gate})
    fabricated.done(RunDir(root, put(root, role(made, "teacher"), "planned").id), top1)
    assert (statuses(made, root)[role(made, "distilled").id].state == "blocked") == blocks


@pytest.mark.parametrize("own", ["done", "running", "failed", "lost", "cancelled"])
def test_a_run_that_has_started_keeps_its_own_state(made: Plan, root: Path, own: str) -> None:
    put(root, role(made, "teacher"), "failed")
    put(root, role(made, "distilled"), own)
    assert statuses(made, root)[role(made, "distilled").id].state == own


def test_blocked_is_passed_on(made: Plan) -> None:
    student = role(made, "distilled")
    found: dict[str, Any] = {student.needs[0]: status.Status("blocked", "x is failed")}
    assert blocked_by(student, found) == f"{student.needs[0]} is blocked: x is failed"


@pytest.mark.parametrize(
    ("states", "steps"),
    [
        (("done", "running", "blocked"), []),
        (
            ("done", "failed", "blocked"),
            ["kdcluster logs r1 --runs-dir x", "kdcluster submit demo --runs-dir x --retry"],
        ),
        (("cancelled", "lost"), ["kdcluster submit demo --runs-dir x --retry"]),
        (("preempted", "done"), ["kdcluster submit demo --runs-dir x"]),
        (("lost",), ["kdcluster submit demo --runs-dir x"]),
        (("planned", "done"), ["kdcluster submit demo --runs-dir x"]),
    ],
)
def test_what_to_type_next(states: tuple[str, ...], steps: list[str]) -> None:
    found = {f"r{number}": status.Status(state) for number, state in enumerate(states)}
    assert next_steps(found, dict.fromkeys(found, "demo"), " --runs-dir x") == steps


def test_each_run_goes_on_with_the_words_that_started_it() -> None:
    found = {name: status.Status(state) for name, state in (("a", "failed"), ("b", "lost"), ("c", "done"))}
    words = {"a": "x --gpus 2", "b": "y", "c": "z"}
    steps = ["kdcluster logs a", "kdcluster submit x --gpus 2 --retry", "kdcluster submit y"]
    assert next_steps(found, words, "") == steps


def test_a_run_that_is_named_goes_on_where_it_was_cancelled() -> None:
    found = {name: status.Status(state) for name, state in (("a", "cancelled"), ("b", "failed"), ("c", "preempted"))}
    steps = ["kdcluster logs b", "kdcluster submit a c", "kdcluster submit b --retry"]
    assert next_steps(found, dict(zip(found, found, strict=True)), "") == steps


def test_a_teacher_without_whole_weights_is_lost_to_a_student_that_needs_them(made: Plan, root: Path) -> None:
    teacher, store, baseline, student = (put(root, run, "planned") for run in made.runs)
    fabricated.done(teacher, 90.0)
    fabricated.done(baseline, 50.0)
    teacher.weights("best").unlink(missing_ok=True)
    found = statuses(made, root)[teacher.id]
    assert (found.state, found.top1) == ("lost", 90.0)
    assert "best weights are gone" in found.reason
    teacher.weights("best").write_bytes(fabricated.NO_WEIGHTS)
    assert statuses(made, root)[teacher.id].state == "done"
    teacher.weights("best").write_bytes(fabricated.NO_WEIGHTS[:-1])
    found = statuses(made, root)[teacher.id]
    assert (found.state, found.reason) == (
        "lost",
        "its best weights are damaged (no header of safetensors), and a student needs them; submit makes them again",
    )
    teacher.weights("best").unlink()
    fabricated.done(student, 60.0)
    assert statuses(made, root)[teacher.id].state == "done"
    fabricated.failed(store)  # nobody reads it any more
    assert statuses(made, root)[teacher.id].state == "done"


def test_a_run_of_another_machine_runs_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, "run")
    attempt = started(run_dir, supervisor=ELSEWHERE, agent=ELSEWHERE)
    attempt.write("heartbeat", {**BEAT, "time": time.time() - 40})
    found = run_status(run_dir)
    assert (found.state, found.unknown) == ("running", "")
    assert re.fullmatch("on another, which cannot be asked from here; last heard of 4[0-9] s ago", found.reason)


def test_a_silent_run_of_another_machine_is_unknown_until_somebody_gives_it_up(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, "run")
    attempt = started(run_dir, supervisor=ELSEWHERE, agent=ELSEWHERE)
    attempt.write("heartbeat", {**BEAT, "time": time.time() - 700})
    found = run_status(run_dir)
    assert (found.state, found.unknown) == ("running", "on another, which cannot be asked from here")
    assert "last heard of 12 min ago; if it is gone for good: kdcluster cancel" in found.reason
    run_dir.mark_cancelled()
    found = run_status(run_dir)
    assert (found.state, found.unknown) == ("cancelled", "")


def test_the_supervisor_of_another_machine_is_believed_as_long_as_it_beats(tmp_path: Path) -> None:
    run_dir, folder = RunDir(tmp_path, "run"), tmp_path / "submission"
    folder.mkdir()
    run_dir.path.mkdir()
    run_dir.write_ticket("local", {**ELSEWHERE, "folder": str(folder)})
    assert run_status(run_dir).unknown == "on another, which cannot be asked from here"
    write_json(folder / "heartbeat.json", {"time": time.time() - 20})
    found = run_status(run_dir)
    assert (found.state, found.unknown) == ("queued", "")
    assert re.fullmatch("waits for its turn; on another, heard of 2[0-9] s ago", found.reason)
    write_json(folder / "heartbeat.json", {"time": time.time() - 100})
    assert (run_status(run_dir).state, bool(run_status(run_dir).unknown)) == ("queued", True)


def test_a_late_heartbeat_is_said_with_its_age_and_with_what_is_stopped(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        run_dir = RunDir(tmp_path, "run")
        attempt = started(run_dir, supervisor=process_record(child.pid), agent=DEAD)
        attempt.write("heartbeat", {**BEAT, "time": time.time() - 240})
        assert run_status(run_dir).reason == "last heard of 4 min ago"
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        found = run_status(run_dir)
        assert (found.state, found.reason) == ("running", "last heard of 4 min ago; its supervisor is stopped")
    finally:
        child.kill()
        child.wait()
