"""Who may write into the runs directory does not say what this user runs: what others can change is only read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.launch import cancel, preflight, submission
from kdcluster.launch.local.backend import Local
from kdcluster.launch.status import statuses
from kdcluster.ownership import foreign, keep_to_oneself, own_text, refuse_foreign, shared_folder
from kdcluster.plan import Plan, Run
from kdcluster.processes import is_alive, process_record
from kdcluster.runs import RunDir
from kdcluster.sweep.cluster import Session
from tests.fabricated import LIVE, put, started
from tests.tiny import make_plan, put_images


def kdcluster(*words: str) -> Result:
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Runs whose `imports` leave a file, in the directory of a user who has data."""
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').close()\n")
    put_images(tmp_path / "data")
    monkeypatch.setenv("KDCLUSTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return make_plan(tmp_path, {"imports": [str(tmp_path / "planted.py")]})


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--retry", "--backend", "local"]])
def test_a_run_that_was_planted_is_not_executed(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """Its config.yaml has `imports:` and digests that fit, so it looks like any other run."""
    run_dir = put(tmp_path / "runs", planned.runs[1], "planned")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    result = kdcluster("submit", run_dir.id, *options)
    assert result.exit_code == 2
    assert f"{run_dir.config} belongs to another user" in result.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["", "config.yaml", "attempts", "attempts/1", "attempts/1/start.json"])
def test_what_others_may_write_in_a_run_keeps_it_from_being_started(planned: Plan, tmp_path: Path, name: str) -> None:
    root = tmp_path / "runs"
    put(root, planned.runs[0], "done")
    run_dir = put(root, planned.runs[2], "failed")
    (run_dir.path / name).chmod(0o775)
    for words in ([run_dir.id], ["tiny.yaml"]):
        result = kdcluster("submit", *words, "--retry", "--backend", "local")
        assert result.exit_code == 2
        assert "others may write" in result.stderr
        assert f"chmod -R go-w {run_dir.path}" in result.stderr
    assert run_dir.newest() == run_dir.attempt(1)
    assert not (tmp_path / "executed").exists()
    for words in (["status"], ["results", "tiny.yaml"], ["logs", run_dir.id]):
        assert kdcluster(*words).exit_code == 0, words  # it is read all the same


def test_a_colleagues_finished_teacher_is_used_and_executes_nothing(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a runs directory of a group: the student is one's own, its teacher not."""
    root = tmp_path / "runs"
    teacher = put(root, planned.runs[0], "done")
    student = put(root, planned.runs[-1], "planned")
    before = {path: path.read_bytes() for path in teacher.path.rglob("*") if path.is_file()}
    teacher.path.chmod(0o777)
    needed, own = student.with_needs()
    assert (needed.id, needed.imports) == (teacher.id, ())
    assert own == planned.runs[-1]
    checked: list[Run] = []
    monkeypatch.setattr(Local, "start", lambda *_: "here")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != teacher.path)
    done = submission.submit(planned, root, tmp_path / "data", Local(), checked.extend)
    assert done.started == [run.id for run in planned.runs[1:]]
    assert teacher.id not in {run.id for run in checked}
    assert {path: path.read_bytes() for path in teacher.path.rglob("*") if path.is_file()} == before


def test_a_colleagues_store_that_is_too_short_is_left_alone_and_stops_nobody(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lacks students compute; a store under way is not told to go on to more views either."""
    root = tmp_path / "runs"
    teacher, store, *students = planned.runs
    put(root, teacher, "done")
    run_dir = put(root, store.model_copy(update={"views": 1}), "done")
    run_dir.path.chmod(0o775)
    found = statuses(planned, root)[store.id]
    assert (found.state, found.reason.split("; ")[0]) == ("done", "holds 1 of 2 views")
    monkeypatch.setattr(Local, "start", lambda *_: "here")
    done = submission.submit(planned, root, tmp_path / "data", Local(), lambda runs: None)
    assert done.started == [run.id for run in students]
    run_dir.path.chmod(0o755)
    assert statuses(planned, root)[store.id].state == "planned"
    started(run_dir, agent=LIVE)
    run_dir.path.chmod(0o775)
    submission.submit(planned, root, tmp_path / "data", Local(), lambda runs: None)
    assert run_dir.known()[0].views == 1
    run_dir.path.chmod(0o755)
    submission.submit(planned, root, tmp_path / "data", Local(), lambda runs: None)
    assert run_dir.known()[0].views == 2


def test_a_teacher_that_is_not_finished_and_not_ours_is_not_started(planned: Plan, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    teacher = put(root, planned.runs[0], "planned")
    teacher.path.chmod(0o775)
    with pytest.raises(ConfigError, match="others may write"):
        submission.submit(planned, root, tmp_path / "data", Local(), lambda runs: None)
    assert not (root / planned.runs[1].id).exists()


# Ids and hashes


@pytest.mark.parametrize(
    ("what", "instead", "words"),
    [
        ("id: {id}", "id: ../elsewhere", "not a run's configuration"),
        ("id: {id}", "id: baseline-other-s0-12345678", "holds the run baseline-other-s0-12345678; rename it back"),
        ("lr: 0.01", "lr: 0.02", "these settings are another run's"),
        ("seed: 0", "seed: 1", "these settings are another run's"),
        ("hash: {hash}", "hash: " + "a" * 64, "these settings are another run's"),
        ("  id: {teacher}", "  id: ../elsewhere", "not a run's configuration"),
    ],
)
def test_a_configuration_is_held_against_its_name_and_its_hash(
    planned: Plan, tmp_path: Path, what: str, instead: str, words: str
) -> None:
    run = planned.runs[-1]
    run_dir = put(tmp_path / "runs", run, "planned")
    text = run_dir.config.read_text()
    old = what.format(id=run.id, hash=run.hash, teacher=run.needs[0])
    assert old in text
    run_dir.config.write_text(text.replace(old, instead, 1))
    result = kdcluster("submit", run_dir.id)
    assert result.exit_code == 2
    assert words in result.stderr.replace("\n", " ")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "data", "planted.py", "tiny.yaml"}
    assert not (tmp_path / "executed").exists()


def test_every_planned_run_has_the_hash_that_its_file_gives(planned: Plan, tmp_path: Path) -> None:
    for run in planned.runs:
        assert RunDir(tmp_path, put(tmp_path, run, "planned").id).load() == run


def test_a_configuration_of_before_teachers_had_their_hash_in_it_is_loaded(planned: Plan, tmp_path: Path) -> None:
    run_dir = put(tmp_path / "runs", planned.runs[-1], "planned")
    text = run_dir.config.read_text()
    line = f"  hash: {planned.runs[0].hash}\n"
    assert line in text
    run_dir.config.write_text(text.replace(line, ""))
    assert run_dir.load().hash == planned.runs[-1].hash


def test_what_users_of_a_group_put_side_by_side_lies_in_folders_as_open_as_the_runs_directory(tmp_path: Path) -> None:
    for mode in (0o755, 0o2775, 0o700):
        root = tmp_path / str(mode)
        root.mkdir()
        root.chmod(mode)
        assert stat.S_IMODE(shared_folder(root / ".submissions").stat().st_mode) == mode
        Session(root / ".sweeps" / "exp1").begin()
        assert stat.S_IMODE((root / ".sweeps").stat().st_mode) == mode
        assert foreign(root / ".sweeps" / "exp1") == ""


# Processes that a file names


@pytest.fixture
def victim() -> Any:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_planted_record_of_a_process_kills_nothing(
    planned: Plan, tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    """Of a run that is cancelled, and of a sweep that is begun."""
    run_dir = put(tmp_path / "runs", planned.runs[1], "planned")
    attempt = started(run_dir)
    attempt.write("agent", process_record(victim.pid))
    run_dir.path.chmod(0o777)
    cancel.kill(run_dir)
    folder = tmp_path / ".sweeps"
    folder.mkdir()
    write_json(folder / "processes.json", {"processes": [process_record(victim.pid)], "temp": ""})
    folder.chmod(0o777)
    with pytest.raises(KdclusterError, match="others may write"):
        Session(folder).begin()
    assert is_alive(process_record(victim.pid))
    folder.chmod(0o755)
    assert Session(folder).begin() == [victim.pid]  # one's own are removed


def test_what_another_user_has_closed_is_said(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    going, done = put(root, planned.runs[0], "running"), put(root, planned.runs[1], "done")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for refused in (lambda: cancel.cancel([going.id], root), lambda: cancel.check([done], root)):
        with pytest.raises(ConfigError, match="may not be changed by you; ask its owner"):
            refused()
    assert not going.is_cancelled()


# Files and modes


def test_a_link_to_nowhere_decides_nothing_and_one_to_others_does(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "nowhere").symlink_to("gone")
    assert foreign(tmp_path / "run") == ""
    assert foreign(tmp_path / "none") == ""
    (tmp_path / "theirs").touch()
    (tmp_path / "theirs").chmod(0o666)
    (tmp_path / "run" / "link").symlink_to(tmp_path / "theirs")
    assert foreign(tmp_path / "run").endswith("link (mode 666)")
    with pytest.raises(ConfigError):
        refuse_foreign(tmp_path / "run")


def test_the_file_that_is_read_is_the_one_that_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be swapped at any moment, where others may rename in the folder above."""
    path = tmp_path / "config.yaml"
    path.write_text("mine")
    fstat = os.fstat

    def swap(handle: int) -> os.stat_result:
        (tmp_path / "planted").write_text("theirs")
        (tmp_path / "planted").replace(path)
        return fstat(handle)

    monkeypatch.setattr(os, "fstat", swap)
    assert own_text(path) == "mine"


def test_whatever_the_umask_others_write_nothing_of_a_run(planned: Plan, tmp_path: Path) -> None:
    umask = os.umask(0o002)
    try:
        keep_to_oneself()
        run_dir = put(tmp_path / "runs", planned.runs[0], "planned")
        started(run_dir)
        made = [run_dir.path, *run_dir.path.rglob("*")]
        assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o022] == []
        os.umask(0o077)
        keep_to_oneself()
        assert os.umask(0o077) == 0o077  # what is closed stays closed
    finally:
        os.umask(umask)


def test_whoever_may_write_in_a_runs_directory_may_wait_for_its_lock(tmp_path: Path) -> None:
    for mode, lock in ((0o755, 0o644), (0o2775, 0o664), (0o1777, 0o666)):
        root = tmp_path / str(mode)
        root.mkdir()
        root.chmod(mode)
        with submission.one_at_a_time(root, "submit"):
            pass
        assert stat.S_IMODE((root / ".submit.lock").stat().st_mode) == lock


def test_the_check_of_models_executes_no_imports_of_a_colleagues_run(planned: Plan, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    teacher, student = put(root, planned.runs[0], "done"), put(root, planned.runs[-1], "planned")
    teacher.path.chmod(0o777)
    needed, _ = student.with_needs()
    preflight.preflight([needed], tmp_path / "data", fetch=False)
    assert not (tmp_path / "executed").exists()
    preflight.preflight([planned.runs[0]], tmp_path / "data", fetch=False)
    assert (tmp_path / "executed").exists()
    assert read_json(teacher.path / "result.json")
