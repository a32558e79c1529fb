"""What each damaged record means for its run, and what is done about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.errors import ConfigError, SchedulerError
from kdcluster.files import read_json, write_json
from kdcluster.history import history
from kdcluster.launch import cancel as cancelling
from kdcluster.launch import submission
from kdcluster.launch.local.backend import Local
from kdcluster.launch.local.supervisor import Supervisor
from kdcluster.launch.status import blocked_by, run_status, statuses
from kdcluster.launch.submission import to_start
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan
from kdcluster.runs import RunDir
from kdcluster.states import State
from tests import fabricated
from tests.fabricated import DEAD, LIVE, put, started
from tests.tiny import make_plan


def rows(said: Result) -> dict[str, dict[str, Any]]:
    assert said.exit_code == 0, said.output
    return {row["id"]: row for row in json.loads(said.stdout)["runs"]}


def table(said: Result) -> dict[str, Any]:
    assert said.exit_code == 0, said.output
    found: dict[str, Any] = json.loads(said.stdout)["experiments"][0]
    return found


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return make_plan(tmp_path, {"teacher.min_top1": 60.0})


@pytest.fixture
def teacher(made: Plan, tmp_path: Path) -> RunDir:
    return put(tmp_path / "runs", made.runs[0], "planned")


def edit(path: Path, **changes: Any) -> None:
    """As an editor does it: the rest stays, the check sum too."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_edited_result_opens_no_gate(made: Plan, teacher: RunDir) -> None:
    fabricated.done(teacher, 50.0)
    student = next(one for one in made.runs if one.role == "distilled")
    assert "reached 50.00 %, under teacher.min_top1 60" in blocked_by(student, statuses(made, teacher.root))
    edit(teacher.path / "result.json", best={"step": 10, "test/top1": 99.5})
    found = statuses(made, teacher.root)
    assert (found[teacher.id].state, found[teacher.id].top1) == (State.DONE, None)
    assert "its result.json is damaged: its check sum does not hold" in found[teacher.id].reason
    assert "has no accuracy to hold against teacher.min_top1" in blocked_by(student, found)


def test_a_result_that_was_copied_from_another_run_is_not_believed(made: Plan, teacher: RunDir) -> None:
    baseline = put(teacher.root, next(one for one in made.runs if one.role == "baseline"), "done")
    attempt = started(teacher, agent=DEAD)
    shutil.copy(baseline.path / "result.json", teacher.path)
    assert attempt.number == 1
    found = run_status(teacher)
    assert found.state == State.LOST
    assert found.reason.endswith(f"it is of the run {baseline.id}; submit makes it again")


@pytest.mark.parametrize("key", ["best", "last"])
def test_a_result_without_an_accuracy_is_a_stores_alone(teacher: RunDir, key: str) -> None:
    fabricated.done(teacher)
    path = teacher.path / "result.json"
    write_json(path, {**read_json(path), key: None})
    found = run_status(teacher)
    assert (found.state, found.top1) == (State.DONE, None)
    assert f"its result.json is damaged: it lacks {key}" in found.reason


@pytest.mark.parametrize("as_folder", [True, False])
def test_what_only_looks_like_an_attempt_is_none(teacher: RunDir, as_folder: bool) -> None:
    fabricated.done(teacher)
    odd = teacher.path / "attempts" / "2"
    odd.mkdir() if as_folder else odd.touch()
    assert run_status(teacher).state == State.DONE
    assert teacher.start_attempt({}).number == 3


def test_a_done_run_without_its_attempts_is_done(teacher: RunDir) -> None:
    fabricated.done(teacher, 70.0)
    shutil.rmtree(teacher.path / "attempts")
    found = run_status(teacher)
    assert (found.state, found.top1, found.reason) == (State.DONE, 70.0, "its attempts are gone")


def test_a_done_run_is_done_by_either_record(teacher: RunDir) -> None:
    fabricated.done(teacher, 70.0)
    outcome = teacher.attempt(1).path / "outcome.json"
    outcome.write_text("{")
    found = run_status(teacher)
    assert (found.state, found.top1) == (State.DONE, 70.0)
    assert found.reason.startswith("its attempts/1/outcome.json is damaged: it is not JSON")


@pytest.mark.parametrize("record", ["ticket.json", "attempts/1/start.json"])
@pytest.mark.parametrize("state", ["running", "preempted", "failed"])
def test_who_has_a_run_must_be_known_before_it_is_started(made: Plan, teacher: RunDir, state: str, record: str) -> None:
    teacher.write_ticket("local", {**DEAD, "host": "another"})
    fabricated.STATES[state](teacher)
    teacher.attempt(1).write("start", {**teacher.attempt(1).read("start"), "started": 1000.0})
    teacher.attempt(1).write("agent", {**DEAD, "host": "another"})
    if record != "ticket.json":
        teacher.drop_ticket()
    (teacher.path / record).write_text("[")
    found = statuses(made, teacher.root)
    alive = record == "ticket.json" or state == "running"
    assert bool(found[teacher.id].unknown) == alive, found[teacher.id]
    assert (teacher.id in to_start(made, found, teacher.root, retry=True)) != alive
    assert f"its {record} is damaged: it is not JSON" in found[teacher.id].reason
    if alive:
        with pytest.raises(ConfigError, match="cancel it first"):
            cancelling.check([teacher], teacher.root)
        cancelling.cancel([teacher.id], teacher.root)
        assert not run_status(teacher).unknown
        assert teacher.id in to_start(made, statuses(made, teacher.root), teacher.root, retry=True)
        cancelling.check([teacher], teacher.root)


def test_the_start_of_an_attempt_may_be_lost_where_its_torchrun_is_known_to_be_gone(teacher: RunDir) -> None:
    attempt = started(teacher, agent=DEAD)
    (attempt.path / "start.json").unlink()
    found = run_status(teacher)
    assert (found.state, found.unknown) == (State.LOST, "")
    assert found.reason.endswith("are gone; nothing is saved yet; its attempts/1/start.json is gone")
    attempt.write("agent", LIVE)
    assert run_status(teacher).state == State.RUNNING


def test_an_empty_marker_cancels(teacher: RunDir) -> None:
    (teacher.path / "cancel.json").touch()
    assert run_status(teacher).state == State.CANCELLED


def test_a_submit_starts_the_others_and_says_what_it_leaves(made: Plan, teacher: RunDir, tmp_path: Path) -> None:
    fabricated.running(teacher)
    teacher.write_ticket("local", DEAD)
    (teacher.path / "ticket.json").write_bytes(bytes(40))
    teacher.attempt(1).write("agent", DEAD)
    given: list[str] = []

    class Place(Local):
        def start(self, plan: Plan, chosen: Sequence[str], root: Path, data_dir: Path) -> str:
            given.extend(chosen)
            return "here"

    done = submission.submit(made, teacher.root, tmp_path, Place(), lambda runs: None)
    assert given == done.started == [one.id for one in made.runs if one.role == "baseline"]
    assert "who has it is not known, since its ticket.json is damaged" in done.left[teacher.id].reason
    with pytest.raises(SchedulerError, match="so nothing is started"):
        submission.submit(made.only(["teacher"]), teacher.root, tmp_path, Place(), lambda runs: None)


def test_a_supervisor_goes_on_with_its_other_runs(made: Plan, teacher: RunDir) -> None:
    baseline = put(teacher.root, next(one for one in made.runs if one.role == "baseline"), "planned")
    runs = [teacher.load(), baseline.load()]
    supervisor = Supervisor(teacher.root, teacher.root, runs, {run.id: Layout("cpu", 1, 1) for run in runs})
    baseline.write_ticket("local", supervisor.ref(baseline.id))
    (teacher.path / "ticket.json").write_text("{")
    began: list[str] = []
    supervisor._start = lambda run, taken: began.append(run.id)  # type: ignore[method-assign]
    supervisor.tick()
    assert (began, list(supervisor.pending)) == ([baseline.id], [baseline.id])


@pytest.mark.parametrize("change", ["more", "less", "noise", "gone"])
def test_a_configuration_of_another_version_can_be_read_and_not_started(
    made: Plan, teacher: RunDir, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCLUSTER_RUNS_DIR", str(teacher.root))
    student = put(teacher.root, next(one for one in made.runs if one.role == "distilled"), "done")
    text = student.config.read_text()
    if change == "gone":
        student.config.unlink()
    else:
        less = text.replace("  view_seed: 0\n", "").replace("imports: []\n", "")
        texts = {"more": text + "future: 1\n" + "#\n", "less": less, "noise": "[" * 900}
        student.config.write_text(texts[change])
    known, wrong = student.known()
    assert (known.id, known.role, known.seed) == (student.id, "distilled", 0)
    assert known.needs == ([teacher.id] if change in ("more", "less") else [])
    version = "its config.yaml was written by another version"
    expected = {"more": f"{version} (future is unknown here)", "less": f"{version} (imports is missing)"}
    assert wrong.startswith(expected.get(change, "its config.yaml is damaged: "))
    row = next(one for one in rows(CliRunner().invoke(main, ["status", "--json"])).values() if one["id"] == student.id)
    assert (row["state"], row["reason"]) == ("done", wrong)
    refused = CliRunner().invoke(main, ["submit", student.id, "--dry-run"])
    assert (refused.exit_code, str(student.config) in refused.stderr) == (2, True)
    assert CliRunner().invoke(main, ["rm", student.id]).exit_code == 0
    needed = CliRunner().invoke(main, ["rm", teacher.id])
    assert (needed.exit_code == 2) == (change in ("more", "less"))
    student.prepare(made[student.id])
    assert student.config.read_text() == text


def test_a_renamed_run_says_whose_it_is(made: Plan, teacher: RunDir) -> None:
    fabricated.done(teacher)
    teacher.path.rename(teacher.root / "foo")
    words = ["--json", "--runs-dir", str(teacher.root)]
    row = rows(CliRunner().invoke(main, ["status", *words]))["foo"]
    assert row["state"] == "lost"
    assert f"foo holds the run {teacher.id}: it was copied or renamed; rename it back" in row["reason"]
    exp = str(teacher.root.parent / "tiny.yaml")
    found = table(CliRunner().invoke(main, ["results", exp, *words]))
    (problem,) = [one for one in found["problems"] if one["run"] == teacher.id]
    assert problem["reason"] == f"{teacher.root / 'foo'} holds it; rename that back, or submit makes it again"
    refused = CliRunner().invoke(main, ["submit", "foo", "--runs-dir", str(teacher.root)])
    assert (refused.exit_code, f"foo holds the run {teacher.id}; rename it back" in refused.stderr) == (2, True)


@pytest.mark.parametrize("state", ["done", "running", "failed"])
def test_a_run_whose_id_is_misspelt_in_its_own_file_stays_what_it_is(made: Plan, teacher: RunDir, state: str) -> None:
    fabricated.STATES[state](teacher)
    teacher.config.write_text(teacher.config.read_text().replace(teacher.id, teacher.id[:-1] + "x"))
    found = statuses(made, teacher.root)
    assert found[teacher.id].state == state
    assert "it was copied or renamed" in found[teacher.id].reason
    assert teacher.id not in to_start(made, found, teacher.root)


def test_a_run_whose_need_has_no_directory_is_shown(made: Plan, teacher: RunDir) -> None:
    student = put(teacher.root, next(one for one in made.runs if one.role == "distilled"), "done")
    shutil.rmtree(teacher.path)
    found = rows(CliRunner().invoke(main, ["status", "--json", "--runs-dir", str(teacher.root)]))
    assert list(found) == [student.id]


def test_gpu_hours_that_nobody_knows_are_said(teacher: RunDir) -> None:
    fabricated.done(teacher)
    (teacher.attempt(1).path / "start.json").write_text("7")
    (record,) = history(teacher)
    assert (record.started, record.gpu_hours, record.state) == (None, 0.0, State.DONE)
    assert record.reason.startswith("its attempts/1/start.json is damaged: ")
    exp = str(teacher.root.parent / "tiny.yaml")
    found = table(CliRunner().invoke(main, ["results", exp, "--json", "--runs-dir", str(teacher.root)]))
    assert any(f"without attempt 1 of {teacher.id}" in note for note in found["notes"])
