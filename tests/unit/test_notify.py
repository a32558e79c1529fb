"""Telling somebody that runs have ended: which command, what it gets, and that nothing goes wrong by it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kdcluster.cli import main
from kdcluster.commands import notify
from kdcluster.experiment import configfile
from kdcluster.launch.status import statuses
from kdcluster.plan import plan
from kdcluster.runs import RunDir
from tests.fabricated import NO_WEIGHTS, ended, started
from tests.unit.test_ownership import kdcluster
from tests.unit.test_table import TEACHER, fabricate, of, planned

ANOTHER = 12345
"""A user id."""


@pytest.fixture(autouse=True)
def said_aloud() -> Iterator[None]:
    """As in a command that was not told to be quiet."""
    with click.Context(main, obj={"quiet": False}):
        yield


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "kdcluster" / "notify"
    path.parent.mkdir(parents=True)
    path.write_text("mail -s done me\n")
    return path


# --- which command


def test_the_command_line_comes_first(own: Path) -> None:
    assert notify.wanted(None) == "mail -s done me"
    assert notify.wanted("true") == "true"
    assert notify.wanted("") == ""
    own.unlink()
    assert notify.wanted(None) == ""
    own.parent.rmdir()
    assert notify.wanted(None) == ""


@pytest.mark.parametrize("what", [".", "notify"])
def test_what_others_may_write_is_not_run(own: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    (own.parent / what).chmod(0o777)
    assert notify.wanted(None) == ""
    said = capsys.readouterr().err
    assert f"{own} is not run, and nobody will be told: others may write" in said
    assert f"chmod -R go-w {own.parent}" in said


def test_what_another_has_put_there_is_not_run(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
    assert notify.wanted(None) == ""
    assert "belongs to another user" in capsys.readouterr().err


def test_no_experiment_file_names_a_command(tmp_path: Path, empty_folder: Path) -> None:
    Path("exp.yaml").write_text(
        "notify: touch executed\ndata: {name: cifar10}\nteacher: {model: t}\nstudent: {model: s}\n"
    )
    result = kdcluster("plan", "exp.yaml")
    assert result.exit_code == 2
    assert "notify: unknown key" in result.stderr


# --- what it gets


def test_what_became_of_an_experiment(tmp_path: Path) -> None:
    made = planned(tmp_path, seeds=[0, 1])
    fabricate(tmp_path, of(made, "teacher"), TEACHER).weights("best").write_bytes(NO_WEIGHTS)
    for seed, tops in enumerate(([70.0, 77.0, 76.0], [71.0, 75.0, 76.0])):
        fabricate(tmp_path, of(made, "baseline", seed), tops)
    fabricate(tmp_path, of(made, "distilled", 0), [75.0, 83.0, 83.5])
    lost = RunDir(tmp_path, of(made, "distilled", 1).id)
    lost.prepare(of(made, "distilled", 1))
    ended(started(lost), "failed", "no memory")
    found = notify.of_runs(made, tmp_path, statuses(made, tmp_path), "ended")
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))
    assert (found["schema"], found["what"], found["event"]) == ("kdcluster.notify/1", "submit", "ended")
    assert (found["experiments"], found["runs_dir"]) == (["exp1"], str(tmp_path))
    assert found["counts"] == {"done": 4, "planned": 1, "failed": 1}  # the store was never made
    assert found["subject"] == "exp1: 4 done, 1 planned, 1 failed"
    rows = {row["role"]: row for row in found["rows"]}
    assert (rows["baseline"]["top1_mean"], rows["distilled"]["gain"]) == (76.5, 6.5)
    assert rows["distilled"]["experiment"] == "exp1"
    [problem] = [problem for problem in found["problems"] if problem["state"] == "failed"]
    assert (problem["run"], problem["reason"][:9]) == (lost.id, "no memory")
    assert found["text"].startswith("exp1: 4 done, 1 planned, 1 failed\n\nexp1: best test/top1 in percent\n")


def test_runs_of_no_experiment_are_named(tmp_path: Path) -> None:
    made = planned(tmp_path, seeds=[0])
    alone = made.cut({of(made, "teacher").id})
    alone = type(alone)(alone.runs, {}, {})
    found = notify.of_runs(alone, tmp_path, statuses(alone, tmp_path), "ended")
    assert (found["subject"], found["rows"]) == ("1 run: 1 planned", [])
    assert found["problems"] == [{"run": alone.runs[0].id, "state": "planned", "reason": "", "log": None}]


@pytest.mark.parametrize("name", ["exp1", "exp2", "demo"])
def test_a_plan_is_carried_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    """To a process of its own, which sees the experiment as it was when it was submitted."""
    made = plan([configfile.load(name)])
    for run in made.runs:
        RunDir(tmp_path, run.id).prepare(run)
    carried = notify.after(made, tmp_path, "the command")
    assert carried["argv"][-1] == notify.__name__
    text = json.dumps({**carried["given"], "event": "failed"})
    seen = []
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr(notify, "of_runs", lambda *given: seen.append(given))
    monkeypatch.setattr(notify, "tell", lambda command, summary: (seen.append(command), summary()))
    notify.main()
    command, (again, root, found, event) = seen
    assert (command, root, event) == ("the command", tmp_path, "failed")
    assert again.runs == made.runs
    assert again.experiments == made.experiments
    assert {k: {r: tuple(ids) for r, ids in v.items()} for k, v in again.wanted.items()} == made.wanted
    assert {status.state for status in found.values()} == {"planned"}
    train = again.experiments[name].teacher.train
    if train is not None:
        assert train.model_fields_set == made.experiments[name].teacher.train.model_fields_set


# --- and that nothing goes wrong by it


def test_a_command_gets_the_summary(tmp_path: Path) -> None:
    document = {"text": "größe ± \x1b", "many": "x" * 1_000_000}
    notify.tell(f"cat > '{tmp_path}/told'", lambda: document)
    assert json.loads((tmp_path / "told").read_text()) == document


@pytest.mark.parametrize(
    ("command", "said"),
    [("exit 3", "failed: exit code 3"), ("no-such-command-anywhere", "failed: exit code 127"), ("true", "")],
)
def test_a_command_that_fails_is_said(command: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    notify.tell(command, lambda: {"many": "x" * 1_000_000})
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err


def test_what_it_prints_is_no_data(capfd: pytest.CaptureFixture[str]) -> None:
    notify.tell("echo sent", dict)
    assert capfd.readouterr() == ("", "sent\n")


def test_a_command_that_hangs_is_ended_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_S", 1.0)
    os.mkfifo(tmp_path / "alive")  # whose other end is open as long as a process is there
    notify.tell(f"(sleep 600 > '{tmp_path}/alive') & echo > '{tmp_path}/begun'; wait", lambda: {"x": "x" * 1_000_000})
    assert (tmp_path / "begun").exists()
    assert "it took more than 1 s" in capsys.readouterr().err
    with open(tmp_path / "alive", "rb", buffering=0, opener=lambda p, f: os.open(p, f | os.O_NONBLOCK)) as alive:
        assert alive.read() == b""  # nobody writes any more
