"""One experiment in two runs directories, made by hand: what changed, and what that shows."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.run import Role
from kdcluster.runs import RunDir
from tests.unit.test_table import fabricate, of, planned

A = {"teacher": [90.0], "baseline": [60.0, 62.0, 64.0], "distilled": [70.0, 71.0, 72.0]}
B = {"teacher": [90.0], "baseline": [61.0, 64.0, 67.0], "distilled": [72.0, 73.0, 74.0]}
HALF = 4.302652729749 / 3**0.5
"""Of the interval of three differences whose standard deviation is 1."""


def made(tmp_path: Path, name: str, tops: dict[Role, list[float]], *overrides: str, **trainer: object) -> Path:
    """A runs directory in which experiment exp1 is done with these settings."""
    plan = planned(tmp_path, "train.epochs=1", *overrides)
    root = tmp_path / name
    for role, values in tops.items():
        for seed, top1 in enumerate(values):
            run = of(plan, role, seed)
            RunDir(root, run.id).prepare(run)
            fabricate(root, run, [top1], **trainer).add_experiments(["exp1"])
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def results(*words: str) -> Result:
    result = CliRunner().invoke(main, ("results", *words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(*words: str) -> dict[str, object]:
    return json.loads(results(*words, "--json").stdout)


@pytest.fixture
def both(tmp_path: Path) -> tuple[str, ...]:
    """B has another learning rate."""
    made(tmp_path, "a", A)
    made(tmp_path, "b", B, "train.lr=0.5", "teacher.train.lr=3e-4")
    return "exp1.yaml", "--compare", "a", "b"


def test_what_changed_by_hand(both: tuple[str, ...]) -> None:
    found = document(*both)
    assert (found["schema"], found["a"], found["b"]) == ("kdcluster.compare/1", "a", "b")
    (experiment,) = found["experiments"]
    rows = {row["what"]: row for row in experiment["rows"]}
    assert list(rows) == ["teacher", "baseline", "distilled", "gain"]
    assert (rows["teacher"]["difference"], rows["teacher"]["shows"]) == (0.0, "the same numbers")
    baseline = rows["baseline"]
    assert (baseline["n_a"], baseline["n_b"], baseline["n"]) == (3, 3, 3)
    assert (baseline["mean_a"], baseline["mean_b"], baseline["sd_a"], baseline["sd_b"]) == (62.0, 64.0, 2.0, 3.0)
    assert baseline["difference"] == 2.0  # of 1, 2 and 3
    assert baseline["difference_ci95"] == pytest.approx([2 - HALF, 2 + HALF])
    assert baseline["shows"] == "the interval includes zero: no difference is shown"
    assert (rows["distilled"]["difference"], rows["distilled"]["difference_ci95"]) == (2.0, [2.0, 2.0])
    assert rows["distilled"]["shows"] == "the interval lies above zero: B is better"
    assert (rows["gain"]["mean_a"], rows["gain"]["mean_b"], rows["gain"]["difference"]) == (9.0, 9.0, 0.0)
    assert rows["gain"]["difference_ci95"] == pytest.approx([-HALF, HALF])


def test_where_settings_differ_it_is_said(both: tuple[str, ...]) -> None:
    (experiment,) = document(*both)["experiments"]
    assert experiment["settings"] == [
        {"role": role, "key": "train.lr", "a": 0.0003, "b": 0.5} for role in ("baseline", "distilled")
    ]
    assert experiment["notes"] == ["teacher: the same settings in A and B in 1 of 1 run"]
    text = results(*both).stdout
    assert "baseline: train.lr is 3e-4 in A, 0.5 in B" in text
    assert "- distilled: train.lr is 3e-4 in A, 0.5 in B" in results(*both, "--format", "md").stdout


def test_for_people_and_as_csv(both: tuple[str, ...]) -> None:
    lines = results(*both).stdout.splitlines()
    assert lines[:3] == ["A: a", "B: b", ""]
    assert lines[3] == "exp1: best test/top1 in percent, and B - A in points"
    assert [line.split("  ")[0] for line in lines[5:10]] == ["role", "teacher", "baseline", "distilled", "gain"]
    assert (
        "62.00 ± 2.00  64.00 ± 3.00  +2.00 [-0.48, 4.48]  the interval includes zero: no difference is shown"
        in lines[7]
    )
    assert "+9.00 ± 1.00" in lines[9]
    rows = list(csv.DictReader(io.StringIO(results(*both, "--format", "csv").stdout)))
    assert [row["what"] for row in rows] == ["teacher", "baseline", "distilled", "gain"]
    assert float(rows[1]["difference_ci95_low"]) == pytest.approx(2 - HALF)
    assert rows[0]["difference_ci95_low"] == ""


def test_runs_that_only_one_has(tmp_path: Path) -> None:
    a = made(tmp_path, "a", A)
    b = made(tmp_path, "b", {"teacher": [90.0], "baseline": [60.0, 61.0]})
    lost = RunDir(b, of(planned(tmp_path, "train.epochs=1"), "baseline", 1).id)
    lost.newest().write("outcome", {"state": "failed"})
    (lost.path / "result.json").unlink()
    (experiment,) = document("exp1.yaml", "--compare", "a", "b", "--set", "train.epochs=1")["experiments"]
    alone = sorted(
        one.name
        for one in a.iterdir()
        if "teacher" not in one.name and "baseline-vit_tiny_patch16_224-s0" not in one.name
    )
    assert sorted(experiment["only_a"]) == [name for name in alone if not name.startswith(".")]
    assert experiment["only_b"] == []
    assert f"B: not done, and in no mean: {lost.id}" in experiment["notes"]
    rows = {row["what"]: row for row in experiment["rows"]}
    assert (rows["baseline"]["n_a"], rows["baseline"]["n_b"], rows["baseline"]["n"]) == (3, 1, 1)
    assert rows["baseline"]["shows"] == "the same numbers"
    assert (rows["distilled"]["mean_b"], rows["distilled"]["difference"]) == (None, None)
    assert rows["distilled"]["shows"] == "no seed is in both"
    assert rows["gain"]["difference"] is None


def test_what_is_no_setting_and_differs_is_said(tmp_path: Path) -> None:
    made(tmp_path, "a", A)
    made(tmp_path, "b", B, trainer_code="tomorrow", procs=4)
    (experiment,) = document("exp1.yaml", "--compare", "a", "b")["experiments"]
    assert experiment["settings"] == []
    assert "baseline: the same settings in A and B in 3 of 3 runs" in experiment["notes"]
    assert "baseline: made by other trainer code in A than in B" in experiment["notes"]
    where = "baseline: trained on cpu, 2 processes with 1 thread each in A, on cpu, 4 processes with 1 thread each in B"
    assert where in experiment["notes"]


def test_numbers_that_contradict_themselves_are_not_compared_in_silence(tmp_path: Path) -> None:
    made(tmp_path, "a", A)
    b = made(tmp_path, "b", A)
    wrong = b / of(planned(tmp_path, "train.epochs=1"), "baseline", 1).id
    result = json.loads((wrong / "result.json").read_text())
    result["best"]["test/top1"] = 99.0
    (wrong / "result.json").write_text(json.dumps(result))
    (experiment,) = document("exp1.yaml", "--compare", "a", "b")["experiments"]
    assert any(note.startswith(f"B: {wrong.name}: result.json contradicts") for note in experiment["notes"])


def test_of_several_settings_todays_are_meant_and_else_the_last(tmp_path: Path) -> None:
    made(tmp_path, "a", A)
    made(tmp_path, "b", A)
    made(tmp_path, "b", B, "train.lr=0.5")
    result = results("--compare", "a", "b", "--json")  # no file: by the directories alone
    (experiment,) = json.loads(result.stdout)["experiments"]
    assert experiment["name"] == "exp1"
    assert experiment["rows"][1]["mean_b"] == 64.0  # started last
    assert "7 more of exp1 in" in result.stderr
    asked = document("exp1.yaml", "--set", "train.epochs=1", "--compare", "a", "b")["experiments"][0]
    assert asked["rows"][1]["mean_b"] == 62.0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--compare", "a", "a"), 2, "both are one directory"),
        (("--compare", "a", "b", "--format", "latex"), 2, "it is shown as table, md, csv, json"),
        (("--compare", "a", "b", "--together"), 2, "--compare goes with"),
        (("--compare", "a", "nowhere"), 2, "does not exist"),
        (("exp9", "--compare", "a", "b"), 5, "no run of exp9 in"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    made(tmp_path, "a", {"teacher": [90.0]})
    made(tmp_path, "b", {"teacher": [90.0]})
    result = results(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


def test_a_narrow_terminal_and_ascii(both: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcluster.terminal.size", lambda _: os.terminal_size((72, 24)))
    text = results(*both).stdout
    assert max(map(len, text.splitlines())) <= 72
    assert "no room here for n A, n B: widen" in text
    done = CliRunner(charset="ascii").invoke(main, ("results", *both))
    assert "62.00 +/- 2.00" in done.stdout
