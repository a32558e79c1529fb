"""`kdcluster status` as it is typed: which runs it shows, in what words, and what it says to type next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.commands import status as command
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.progress import Look, Shown
from kdcluster.commands.status import _Desk
from kdcluster.experiment import configfile
from kdcluster.plan import Plan, plan, trial
from kdcluster.runs import RunDir
from kdcluster.states import State
from tests.fabricated import BEAT, put
from tests.tiny import write_experiment


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    return result


def document(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("status", *words, "--json").stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made(folder: Path) -> Plan:
    """An experiment whose teacher is done and whose baseline failed, in ./fashion.yaml."""
    path = write_experiment(folder, {}, "fashion")
    made = plan([configfile.load(str(path))])
    for one, state in zip(made.runs, ("done", "done", "failed", "queued"), strict=True):
        run_dir = put(folder / "runs", one, state)
        run_dir.add_experiments(["fashion"])
        run_dir.note_submit("fashion.yaml --procs 1")
    return made


def tried(folder: Path) -> RunDir:
    (run,) = trial(configfile.load("fashion.yaml", ["distill.alpha=0.25"]), [0], 0.1)
    run_dir = put(folder / "runs", run, "done")
    run_dir.add_experiments(["fashion"])
    run_dir.note_trial("fashion", {"distill.alpha": 0.25})
    return run_dir


def test_trials_stand_under_their_sweep_also_where_their_experiment_is_named(folder: Path, made: Plan) -> None:
    point = tried(folder)
    for words in ((), ("fashion.yaml",)):
        lines = run("status", *words).stdout.splitlines()
        at = lines.index("sweep of fashion: 1 of 1 done")
        assert lines[at + 1].split()[0] == point.id
        assert lines[-1] == "3 of 5 done; 1 failed, 1 queued"
    rows = {row["id"]: row for row in document("fashion.yaml")["runs"]}
    assert rows.keys() == {point.id, *(one.id for one in made.runs)}
    assert rows[point.id]["trial_of"] == ["fashion"]
    assert all(row["trial_of"] == [] for run_id, row in rows.items() if run_id != point.id)


def test_a_damaged_run_does_not_change_in_what_others_differ(folder: Path, made: Plan) -> None:
    run_dir = put(folder / "runs", made.runs[2].model_copy(update={"id": "baseline-x-s9-00000009"}), "done")
    run_dir.add_experiments(["fashion"])
    for name in (run_dir.id, "teacher"):  # of the second one not even the seed is known
        (folder / "runs" / name).mkdir(exist_ok=True)
        (folder / "runs" / name / "config.yaml").write_text("")
        RunDir(folder / "runs", name).add_experiments(["fashion"])
    assert "settings" not in run("status").stdout


def test_what_is_known_of_the_time_is_in_json_too(folder: Path, made: Plan) -> None:
    assert document()["seconds_left"] is None
    teacher, store, baseline, student = (RunDir(folder / "runs", one.id) for one in made.runs)
    student.drop_ticket()
    assert document()["seconds_left"] is None
    attempt = put(folder / "runs", made.runs[3], "running").newest()
    assert attempt is not None
    attempt.write("heartbeat", BEAT)  # 70 of 100 steps to go, 10 a second
    assert document()["seconds_left"] == pytest.approx(7.0)
    assert run("status").stdout.splitlines()[-1] == "2 of 4 done, less than a minute left; 1 running, 1 failed"
    assert [teacher.id, store.id, baseline.id] == [row["id"] for row in document()["runs"][:3]]


def test_a_watch_finds_what_came_and_what_went_and_reads_each_run_once(
    folder: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "fashion.yaml").rename(folder / "moved.txt")  # only the directories tell
    read: list[str] = []
    known = RunDir.known
    monkeypatch.setattr(RunDir, "known", lambda self: read.append(self.id) or known(self))  # type: ignore[func-returns-value]
    desk = _Desk(Chosen(runs_dir=folder / "runs"))
    first = desk.look(None)
    assert set(first.ids) == {one.id for one in made.runs}
    assert desk.look(first) is first
    (folder / "moved.txt").rename(folder / "fashion.yaml")
    point = tried(folder)
    second = desk.look(first)
    assert set(second.ids) == {*first.ids, point.id}
    assert [group.title for group in second.groups] == ["fashion", "sweep of fashion"]
    (folder / "runs" / made.runs[2].id).rename(folder / "gone")
    assert set(desk.look(second).ids) == {*second.ids} - {made.runs[2].id}
    assert sorted(read) == sorted(set(read))


def test_a_named_experiment_keeps_what_it_wants_in_a_watch(folder: Path, made: Plan) -> None:
    desk = _Desk(Chosen(names=("fashion.yaml",), runs_dir=folder / "runs"))
    first = desk.look(None)
    (folder / "runs" / made.runs[2].id).rename(folder / "gone")
    assert desk.look(first).ids == first.ids
    point = tried(folder)
    assert desk.look(first).ids == (*first.ids, point.id)


def test_what_came_during_a_watch_is_in_the_table_after_it(
    folder: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = []

    def watched(shown: Shown, *_: Any, look: Look, **__: Any) -> None:
        point.append(tried(folder).id)
        look(shown)

    monkeypatch.setattr(command, "follow", watched)
    for words in ((), ("fashion.yaml",)):
        assert "sweep of fashion: 1 of 1 done" in run("status", *words, "--watch").stdout
        (folder / "runs" / point[-1]).rename(folder / f"gone{len(point)}")


def test_what_many_trials_need_is_read_once(folder: Path, made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    known = RunDir.known
    monkeypatch.setattr(RunDir, "known", lambda self: read.append(self.id) or known(self))  # type: ignore[func-returns-value]
    for seed in range(3):
        one = made.runs[3].model_copy(update={"id": f"distilled-x-s{seed}-0000000{seed}"})
        put(folder / "runs", one, "done").note_trial("fashion", {"seed": seed})
    read.clear()
    assert len(document("fashion.yaml")["runs"]) == 7
    assert sorted(read) == [f"distilled-x-s{seed}-0000000{seed}" for seed in range(3)]
    (folder / "runs" / made.runs[0].id).rename(folder / "gone")
    (folder / "fashion.yaml").unlink()
    read.clear()
    document()
    assert read.count(made.runs[0].id) == 1


def test_an_interrupted_watch_says_that_the_runs_go_on(
    folder: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "follow", interrupted)
    assert run("status", "--watch", code=130).stderr == "interrupted; the runs go on\n"


def next_steps(*words: str) -> list[str]:
    return [line.removeprefix("next: ") for line in run("status", *words).stderr.splitlines()]


def test_the_advice_names_a_file_that_is_there(folder: Path, made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = made.runs[2].id
    logs = f"kdcluster logs {failed}"
    assert next_steps() == [logs, "kdcluster submit fashion.yaml --procs 1 --retry"]
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    where = f" --runs-dir {folder}/runs"
    there = ("--runs-dir", f"{folder}/runs")
    assert next_steps(*there) == [logs + where, f"kdcluster submit ../fashion.yaml --procs 1{where} --retry"]
    (folder / "fashion.yaml").rename(folder / "other.yaml")
    assert next_steps(*there) == [logs + where, f"kdcluster submit {failed}{where} --retry"]


def test_what_was_never_submitted_is_advised_by_the_name_of_its_file(folder: Path, made: Plan) -> None:
    for name in ("submit.json", "ticket.json"):
        for one in made.runs[2:]:
            (folder / "runs" / one.id / name).unlink(missing_ok=True)
    assert next_steps()[1:] == ["kdcluster submit ./fashion.yaml --retry"]


def test_a_cancel_ends_with_how_to_go_on(folder: Path, made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made.runs[2].id
    monkeypatch.setattr("kdcluster.launch.cancel.cancel", lambda *_: {one: State.CANCELLED})
    for name, again in (("fashion.yaml", "fashion.yaml --procs 1 --retry"), (one, one)):
        assert run("cancel", name).stderr.splitlines()[-2:] == ["1 run stopped", f"next: kdcluster submit {again}"]
    monkeypatch.setattr("kdcluster.launch.cancel.cancel", lambda *_: {})
    assert "next" not in run("cancel", one).stderr


def test_many_single_runs_are_advised_in_one_command(folder: Path, made: Plan) -> None:
    (folder / "fashion.yaml").unlink()
    for seed in range(5):
        one = made.runs[2].model_copy(update={"id": f"baseline-x-s{seed}-0000000{seed}"})
        RunDir(folder / "runs", one.id).prepare(one)
        put(folder / "runs", one, "failed")
    steps = next_steps()
    assert len(steps) == 3
    assert len(steps[1].removesuffix(" --retry").split()) == 2 + 4
    assert steps[2] == "the same for 2 others"


def test_runs_of_other_settings_are_said_with_the_command_that_shows_them(folder: Path, made: Plan) -> None:
    """`submit EXP --set …` had started three, and `status EXP` said `7 planned, next: submit`."""
    for alpha, state in (("0.25", "running"), ("0.75", "done")):
        (other,) = plan([configfile.load("fashion.yaml", [f"distill.alpha={alpha}"])]).runs[3:]
        run_dir = put(folder / "runs", other, state)
        run_dir.add_experiments(["fashion"])
        run_dir.note_submit(f"fashion.yaml --set distill.alpha={alpha} --procs 1")
    tried(folder)
    said = [
        "1 more run of fashion with other settings or seeds{}: kdcluster {} fashion.yaml --set distill.alpha=" + alpha
        for alpha in ("0.25", "0.75")
    ]
    for look in ("status", "results"):
        expected = {said[0].format(", 1 running", look), said[1].format("", look)}
        assert set(run(look, "fashion.yaml").stderr.splitlines()[:2]) == expected
    assert "other settings" not in run("status").stderr
    for one in made.runs[1:]:
        RunDir(folder / "runs", one.id).note_submit("fashion.yaml")
    path = folder / "fashion.yaml"
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.02"))
    there = run("status", "fashion.yaml").stderr
    assert "4 more runs of fashion with other settings or seeds: kdcluster status\n" in there


def test_once_all_is_done_the_table_is_next(folder: Path, made: Plan) -> None:
    assert not [step for step in next_steps("fashion.yaml") if "results" in step]
    for one in made.runs[1:]:
        put(folder / "runs", one, "done")
    for words in (("status", "fashion.yaml"), ("status", "fashion.yaml", "--watch"), ("submit", "fashion.yaml")):
        assert run(*words).stderr.splitlines()[-1] == "next: kdcluster results fashion.yaml"
    assert run("submit", "fashion.yaml", "--wait").stderr.count("next: kdcluster results fashion.yaml\n") == 1
    assert "next" not in run("status", made.runs[0].id).stderr


def test_results_without_a_name_are_of_what_was_started_here(folder: Path, made: Plan) -> None:
    """`Missing argument 'EXP...'`, where `status` alone works."""
    write_experiment(folder, {"train.lr": 0.5}, "never")
    tables = json.loads(run("results", "--json").stdout)["experiments"]
    assert [table["name"] for table in tables] == ["fashion"]
    nothing = run("results", "--runs-dir", "elsewhere", code=5).stderr
    assert nothing == f"nothing was started yet in {folder}/elsewhere; name an experiment\n"


def test_a_key_that_is_set_twice_is_said(folder: Path, made: Plan) -> None:
    said = "--set distill.alpha=0.5 does not count: a later --set has the same key\n"
    twice = ("--set", "distill.alpha=0.5", "--set", "distill.alpha=0.9")
    assert run("results", "fashion.yaml", *twice).stderr.startswith(said)
    assert "does not count" not in run("results", "fashion.yaml", *twice[2:]).stderr
