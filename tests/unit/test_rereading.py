"""What is as it was is not read again, and what has changed is, in a command and in a watch."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster import records, rereading
from kdcluster.cli import main
from kdcluster.commands import progress
from kdcluster.errors import Damaged
from kdcluster.files import write_json
from kdcluster.history import history
from kdcluster.launch import status, watching
from kdcluster.launch.status import statuses
from kdcluster.launch.watching import Watching
from kdcluster.plan import Plan
from kdcluster.rereading import once, stamp_of
from kdcluster.runs import RunDir
from tests.fabricated import DEAD, LIVE, STATES, ended, put, started
from tests.tiny import make_plan


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as old as they need to be."""
    for module in (rereading, watching):
        monkeypatch.setattr(module, "is_settled", lambda stamp: True)


def until_changed(path: Path, change: Callable[[], object]) -> None:
    """Until the clock of the disk has gone on, in which two changes may else fall together."""
    before = stamp_of(path.stat())
    while stamp_of(path.stat()) == before:
        change()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    found: list[str] = []
    monkeypatch.setattr(
        records, "document", lambda path, content: found.append(Path(path).name) or document(path, content)
    )
    return found


document = records.document


def test_a_record_is_read_again_when_it_has_changed(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "heartbeat.json"
    assert records.read(path) is None
    write_json(path, {"step": 1})
    assert [records.read(path)["step"] for _ in range(3)] == [1, 1, 1]
    write_json(path, {"step": 2})
    assert [records.read(str(path))["step"] for _ in range(3)] == [2, 2, 2]
    assert len(reads) == 2
    path.unlink()
    assert records.read(path) is None


def test_damage_is_found_although_size_and_time_are_as_before(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    write_json(path, {"step": 1})
    assert records.read(path) == {"step": 1}
    found = path.stat()
    content = path.read_bytes().replace(b"1", b"2", 1)

    def damage() -> None:
        path.write_bytes(content)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    until_changed(path, damage)
    for _ in range(2):  # what is wrong is remembered, too
        with pytest.raises(Damaged, match=r"heartbeat\.json is damaged: its check sum does not hold"):
            records.read(path)


def test_what_was_written_just_now_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes within one tick of the disk's clock leave the same times."""
    monkeypatch.undo()
    path, made = tmp_path / "a", []
    path.write_text("x")
    for _ in range(2):
        once(path, lambda _, content: made.append(content))
    assert made == [b"x", b"x"]


def test_a_command_reads_each_record_once(tmp_path: Path, reads: list[str]) -> None:
    made, root = make_plan(tmp_path), tmp_path / "runs"
    for run in made.runs:
        put(root, run, "failed")
    reads.clear()
    statuses(made, root)
    assert len(reads) <= 1  # `put` has looked at them: the last one was written after that


def test_an_account_of_attempts_opens_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = put(tmp_path / "runs", make_plan(tmp_path).runs[0], "failed")
    opened: list[str] = []
    monkeypatch.setattr(records, "once", lambda path, make: opened.append(Path(path).name) or once(path, make))
    assert history(run_dir)
    names = sorted(path.name for path in run_dir.attempt(1).path.glob("*.json"))
    assert names == ["agent.json", "outcome.json", "start.json"]
    assert sorted(opened) == names


def test_a_table_asks_the_state_of_what_is_not_done_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of what that needs: `results` of 1,000 runs would look at all of them twice."""
    monkeypatch.chdir(tmp_path)
    made = make_plan(tmp_path)
    teacher, store, baseline, distilled = made.runs
    for run, state in zip(made.runs, ("done", "done", "done", "failed"), strict=True):
        put(tmp_path / "runs", run, state)
    asked: list[str] = []

    def noted(plan: Plan, root: Path) -> Any:
        asked.extend(run.id for run in plan.runs)
        return statuses(plan, root)

    monkeypatch.setattr("kdcluster.tabled.statuses", noted)
    result = CliRunner().invoke(main, ["results", "tiny.yaml", "--json"])
    assert asked == [teacher.id, store.id, distilled.id]
    assert baseline.id not in asked
    assert [one["run"] for one in json.loads(result.stdout)["experiments"][0]["problems"] if one["state"] == "failed"]


# --- who watches


@pytest.fixture
def world(tmp_path: Path) -> tuple[Plan, Path]:
    return make_plan(tmp_path), tmp_path / "runs"


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were looked at in full."""
    found: list[str] = []

    def counted(run_dir: RunDir, seen: Any) -> Any:
        found.append(run_dir.id)
        return derived(run_dir, seen)

    monkeypatch.setattr(status, "derived", counted)
    return found


derived = status.derived


@pytest.mark.parametrize("state", STATES)
def test_what_has_ended_is_not_looked_at_again(world: tuple[Plan, Path], derivations: list[str], state: str) -> None:
    made, root = world
    put(root, made.runs[0], state)
    kept = Watching()
    derivations.clear()
    looks = [statuses(made, root, watching=kept) for _ in range(3)]
    assert looks[0] == looks[1] == looks[2] == statuses(made, root)
    many = derivations.count(made.runs[0].id) - 1
    assert many == (3 if state in ("running", "queued") else 1)


@pytest.mark.parametrize("then", STATES)
@pytest.mark.parametrize("first", STATES)
def test_what_becomes_of_a_run_is_seen(world: tuple[Plan, Path], first: str, then: str) -> None:
    made, root = world
    run_dir = put(root, made.runs[0], first)
    kept = Watching()
    assert statuses(made, root, watching=kept) == statuses(made, root)
    probe = root.parent / "probe"
    probe.touch()
    until_changed(probe, probe.touch)
    run_dir.write_ticket("local", DEAD)
    STATES[then](run_dir)
    assert statuses(made, root, watching=kept) == statuses(made, root)
    run_dir.mark_cancelled()
    assert statuses(made, root, watching=kept) == statuses(made, root)


def test_one_that_is_deleted_and_one_that_is_renamed_are_seen(world: tuple[Plan, Path]) -> None:
    made, root = world
    first, second = put(root, made.runs[0], "done"), put(root, made.runs[1], "failed")
    kept = Watching()
    for change in (lambda: first.path.rename(root / "elsewhere"), lambda: second.path.rename(root / ".trash")):
        statuses(made, root, watching=kept)
        probe = root.parent / "probe"
        probe.touch()
        until_changed(probe, probe.touch)
        change()
        assert statuses(made, root, watching=kept) == statuses(made, root)
    assert "elsewhere holds it" in statuses(made, root, watching=kept)[first.id].reason


def test_what_changed_just_now_is_looked_at_again(
    world: tuple[Plan, Path], derivations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, root = world
    monkeypatch.setattr(watching, "is_settled", lambda stamp: False)
    put(root, made.runs[0], "failed")
    kept = Watching()
    derivations.clear()
    for _ in range(2):
        statuses(made, root, watching=kept)
    assert derivations.count(made.runs[0].id) == 2


def test_a_watch_rests_the_longer_the_more_a_look_costs(world: tuple[Plan, Path], monkeypatch: Any) -> None:
    made, root = world
    run_dir = RunDir(root, made.runs[0].id)
    run_dir.prepare(made.runs[0])
    attempt = started(run_dir, agent=LIVE)
    clock, pauses = [0.0], []

    def look(*given: Any) -> Any:
        clock[0] += 0.12
        return statuses(*given)

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            ended(attempt, "failed")
            attempt.write("agent", DEAD)

    monkeypatch.setattr(progress, "statuses", look)
    monkeypatch.setattr(progress.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(progress.time, "sleep", sleep)
    progress.follow(made.only(["teacher"]), root, io.StringIO())
    assert pauses == [progress.POLL_S, pytest.approx(0.12 / progress.SHARE)]
