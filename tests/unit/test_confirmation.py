"""What fresh seeds say of a sweep's winner, from run directories made by hand."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.sweep import recommended
from kdcluster.experiment import configfile
from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir
from kdcluster.sweep.confirmation import arms, begun, confirmed
from kdcluster.sweep.points import FRESH, Point, Space
from kdcluster.sweep.scored import tried
from kdcluster.sweep.screen import Screen, screen
from tests.fabricated import done, evaluated, put
from tests.tiny import write_experiment

POINTS = "in brackets the 95 % t interval of the difference, by seed: while it holds zero, nothing is shown"


def space(folder: Path, block: dict[str, Any] | None = None, **changes: Any) -> Space:
    write_experiment(folder, {**changes, "sweep": block or {"trials": 1}})
    return Space(configfile.load(str(folder / "tiny.yaml")))


def finish(root: Path, run: Run, top1: float) -> RunDir:
    run_dir = put(root, run, "planned")
    done(run_dir, top1)
    evaluated(run_dir, [{"step": 10, "test/top1": top1, "val/top1": top1}])
    return run_dir


def trained(searched: Space, best: Point, root: Path, tops: dict[str, Sequence[float]]) -> Plan:
    """The confirmation of a point in which each arm reached these, seed by seed."""
    made = searched.confirmation(best, len(tops["winner"]))
    finish(root, made.runs[0], 90.0)
    for one in arms(made):
        reached = next(found for arm, found in tops.items() if arm in one.values["arm"])
        finish(root, one.runs[0], reached[one.values["seed"] - FRESH])
    return made


@pytest.mark.parametrize(
    ("winner", "own", "baseline", "holds", "words"),
    [
        (
            [60.0, 61.0, 62.0],
            [55.0, 56.1, 57.0],
            [50.0, 51.1, 52.0],
            True,
            (
                "on 3 fresh seeds, the winner is better than no distillation: "
                "61.00 % against 51.03 %, +9.97 points [9.82, 10.11]",
                "the winner is better than the file's own settings: 61.00 % against 56.03 %, +4.97 points [4.82, 5.11]",
            ),
        ),
        (
            [56.0, 56.0, 56.0],
            [54.0, 54.5, 55.0],
            [59.0, 56.0, 53.7],
            False,
            (
                "on 3 fresh seeds, the winner is not shown to be better than no distillation: "
                "56.00 % against 56.23 %, -0.23 points [-6.84, 6.37]",
                "the winner is better than the file's own settings: 56.00 % against 54.50 %, +1.50 points [0.26, 2.74]",
            ),
        ),
        (
            [50.0, 51.0],
            [60.0, 61.1],
            [40.0, 41.1],
            False,
            (
                "on 2 fresh seeds, the winner is better than no distillation: "
                "50.50 % against 40.55 %, +9.95 points [9.31, 10.59]",
                "the winner is worse than the file's own settings: "
                "50.50 % against 60.55 %, -10.05 points [-10.69, -9.41]",
            ),
        ),
    ],
)
def test_a_winner_holds_up_against_the_baseline_and_the_files_settings(
    tmp_path: Path, winner: list[float], own: list[float], baseline: list[float], holds: bool, words: tuple[str, ...]
) -> None:
    searched, root = space(tmp_path), tmp_path / "runs"
    best = searched.drawn(1)[0]
    made = trained(searched, best, root, {"winner": winner, "the file's own settings": own, "baseline": baseline})
    after = confirmed(made, root)
    assert after.verdict is not None
    assert after.verdict.words == (*words, POINTS)
    assert after.verdict.holds is holds
    again = f"kdcluster sweep tiny.yaml --confirm {len(winner)} --both"
    chosen = Chosen(("tiny.yaml",), backend="slurm", nodes=2, runs_dir=root)
    said = recommended(chosen, best, after, again)
    if holds:
        settings = " ".join(f"--set {one}" for one in best.settings)
        assert said == f"recommended: kdcluster submit tiny.yaml --backend slurm {settings} --runs-dir {root}"
    else:
        more = f"kdcluster sweep tiny.yaml --both --confirm {2 * len(winner)}"
        assert said == f"nothing is recommended; more seeds may tell: {more}"


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    searched, root = space(tmp_path), tmp_path / "runs"
    best = searched.drawn(1)[0]
    made = trained(searched, best, root, {"winner": [60.0], "the file's own settings": [55.0], "baseline": [50.0]})
    verdict = confirmed(made, root).verdict
    assert verdict is not None
    assert not verdict.holds
    assert verdict.words == (
        "on 1 fresh seed, nothing tells the winner from no distillation: "
        "60.00 % against 50.00 %, +10.00 points, of one seed",
        "nothing tells the winner from the file's own settings: 60.00 % against 55.00 %, +5.00 points, of one seed",
    )


def test_a_winner_that_is_the_file_or_no_distillation_is_called_that(tmp_path: Path) -> None:
    searched, root = space(tmp_path, {"space": {"distill.alpha": {"grid": [0.0, 0.5, 0.6]}}}), tmp_path / "runs"
    none, own, _ = searched.drawn(3)
    tops = {"the file's own settings": [55.0, 56.0], "baseline": [50.0, 51.1]}
    after = confirmed(trained(searched, own, root, {**tops, "winner": [55.0, 56.0]}), root)
    assert after.verdict is not None
    assert (after.verdict.holds, after.verdict.words[1]) == (False, "the winner is the file's own settings")
    assert {one.values["arm"] for one in arms(searched.confirmation(none, 1))} == {
        "baseline and winner",
        "the file's own settings",
    }


def test_each_run_of_it_has_its_arm_and_seed(tmp_path: Path) -> None:
    searched = space(tmp_path, {"space": {"train.lr": {"grid": [0.03]}}})
    made = searched.confirmation(searched.drawn(1)[0], 2)
    found = [(one.values["arm"], one.values["seed"], one.runs[0].role) for one in arms(made)]
    own = [("baseline", "baseline"), ("the file's own settings", "distilled")]
    winner = [("winner's baseline", "baseline"), ("winner", "distilled")]
    assert found == [(arm, seed, role) for arm, role in (*own, *winner) for seed in (FRESH, FRESH + 1)]


def test_its_runs_are_named_by_arm_and_seed_while_they_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    searched, root = space(tmp_path), tmp_path / "runs"
    one, two, *_ = arms(searched.confirmation(searched.drawn(1)[0], 1))
    finish(root, one.runs[0], 61.5)
    put(root, two.runs[0], "running")
    with Screen([one, two], 3, "test/top1", root, sys.stderr, what="confirmation"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        'confirmation 1/3  arm="baseline" seed=1000  done  test/top1 61.50 after 1 epoch',
        'confirmation 2/3  arm="the file\'s own settings" seed=1000  running',
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(screen(tried([one, two], "test/top1", root), 3, "test/top1", width=80, height=24))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0] == ["arm", "seed", "test/top1", "epochs", "state", "runs"]
    assert lines[2] == ["baseline", "1000", "61.50", "1", "done", one.ids[0][-8:]]
    assert lines[3][:2] == ["3", "runs:"]


def test_what_is_there_of_it_is_found_again_and_shown_with_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searched, root = space(tmp_path), tmp_path / "runs"
    (best,) = searched.drawn(1)
    finish(root, best.runs[0], 70.0).note_trial("tiny", best.values)

    def results(*words: str) -> Result:
        return CliRunner().invoke(main, ["results", "tiny.yaml", "--sweep", *words])

    assert begun(searched, best, root) is None
    assert json.loads(results("--json").stdout)["confirmation"] is None
    assert "tiny-best" not in results().output
    made = searched.confirmation(best, 3)
    put(root, arms(made)[0].runs[0], "running")
    put(root, arms(made)[1].runs[0], "queued")
    assert begun(searched, best, root) == searched.confirmation(best, 2)
    result = results()
    assert "not every run of the confirmation is done" in result.stdout
    assert result.stderr.splitlines()[-1] == "next: kdcluster sweep tiny.yaml"
    for one in arms(made)[:2]:
        (root / one.ids[0]).rename(tmp_path / one.ids[0])
    tops = {"winner": [60.0, 61.0, 62.0], "the file's own settings": [5.0, 6.1, 7.0], "baseline": [50.0, 51.1, 52.0]}
    trained(searched, best, root, tops)
    for style in ("table", "md"):
        result = results("--format", style)
        assert "tiny-best: best test/top1 in percent" in result.stdout
        assert "on 3 fresh seeds, the winner is better than no distillation: 61.00 %" in result.stdout
        assert result.stderr.splitlines()[-1].startswith("recommended: kdcluster submit tiny.yaml --set distill.alpha=")
    found = json.loads(results("--json").stdout)["confirmation"]
    assert (found["holds"], len(found["words"]), found["table"]["schema"]) == (True, 3, "kdcluster.results/1")


LR = {"space": {"distill.alpha": {"uniform": [0.1, 0.9]}, "train.lr": {"loguniform": [1e-4, 1e-1]}}, "trials": 1}


@pytest.mark.parametrize(("plain", "holds", "sentences"), [(59.0, False, 3), (49.0, True, 2)])
def test_a_baseline_that_was_not_tuned_counts_where_it_is_the_better_one(
    tmp_path: Path, plain: float, holds: bool, sentences: int
) -> None:
    searched, root = space(tmp_path, LR, **{"teacher.train": {"lr": 0.01}}), tmp_path / "runs"
    of_baseline = searched.of_baseline()
    assert of_baseline is not None
    made = searched.confirmation(searched.drawn(1)[0], 2, of_baseline.drawn(1)[0])
    finish(root, made.runs[0], 90.0)
    tops = {"winner": [58.0, 58.02], "winner's baseline": [plain] * 2, "tuned baseline": [50.0, 50.0]}
    for one in arms(made):
        finish(root, one.runs[0], tops.get(one.values["arm"], [45.0, 45.0])[one.values["seed"] - FRESH])
    after = confirmed(made, root)
    assert after.verdict is not None
    assert after.verdict.holds is holds
    assert len(after.verdict.words) == sentences + 1
    assert any("worse than no distillation" in words for words in after.verdict.words) is not holds


def test_the_tuned_baseline_is_a_row_and_what_the_winner_is_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searched, root = space(tmp_path, LR, **{"teacher.train": {"lr": 0.01}}), tmp_path / "runs"
    of_baseline = searched.of_baseline()
    assert of_baseline is not None
    (best,), (tuned,) = searched.drawn(1), of_baseline.drawn(1)
    for one in (best, tuned):
        finish(root, one.runs[0], 70.0).note_trial("tiny", one.values)
    made = searched.confirmation(best, 2, tuned)
    finish(root, made.runs[0], 90.0)
    tops = {"winner": [60.0, 61.0], "winner's baseline": [50.0, 51.1], "tuned baseline": [58.0, 61.5]}
    for one in arms(made):
        finish(root, one.runs[0], tops.get(one.values["arm"], [55.0, 55.0])[one.values["seed"] - FRESH])
    assert begun(searched, best, root, tuned) == made
    after = confirmed(made, root)
    first = "on 2 fresh seeds, the winner is not shown to be better than the tuned baseline: 60.50 % against 59.75 %"
    assert after.verdict is not None
    assert after.verdict.words[0].startswith(first)
    assert not after.verdict.holds
    rows = after.table.experiments[-1].rows
    assert [row.configuration.partition(":")[0] for row in rows] == [
        "teacher",
        "baseline",
        "baseline, tuned",
        "distilled",
    ]
    assert rows[2].gain == pytest.approx(9.2)
    notes = after.table.experiments[-1].notes
    assert any(note.startswith("distilled - the tuned baseline is +0.75 points over 2 seeds") for note in notes)
    assert not any("of the gain includes" in note for note in notes)
    result = CliRunner().invoke(main, ["results", "tiny.yaml", "--sweep"])
    assert "the baseline with the same chance:" in result.stdout
    assert first in " ".join(result.stdout.split())
    assert "kdcluster sweep tiny.yaml --both" in result.stderr
    document = json.loads(CliRunner().invoke(main, ["results", "tiny.yaml", "--sweep", "--json"]).stdout)
    assert [trial["role"] for trial in document["trials"]] == ["distilled", "baseline"]
