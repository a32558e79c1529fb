"""Names of runs in TensorBoard: links that a person can read, whatever the records hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.commands.tensorboard import LONGEST, Links
from kdcluster.plan import Run
from kdcluster.runs import RunDir
from tests.fabricated import put
from tests.tiny import make_plan


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    return {run.role: run for run in make_plan(tmp_path).runs}


def begun(root: Path, run: Run, *experiments: str) -> RunDir:
    run_dir = put(root, run, "planned")
    run_dir.add_experiments(experiments)
    run_dir.events.mkdir()
    return run_dir


def linked(folder: Path) -> dict[str, str]:
    links = (path for path in folder.rglob("*") if path.is_symlink())
    return {str(path.relative_to(folder)): path.resolve().parent.name for path in links}


def test_a_run_has_a_name_in_each_experiment_that_wants_it(tmp_path: Path, runs: dict[str, Run]) -> None:
    root, folder = tmp_path / "runs", tmp_path / "links"
    begun(root, runs["teacher"], "one", "two")
    begun(root, runs["distilled"], "one").note_trial("one", {"train.lr": 1e-3, "distill.alpha": 0.25})
    put(root, runs["baseline"], "queued").add_experiments(["one"])  # has no events yet
    begun(root / "debug", runs["baseline"], "one")
    links = Links(root, folder)
    assert links.look() == 2
    teacher, trial = runs["teacher"].id, runs["distilled"].id
    assert linked(folder) == {
        "one/teacher s0": teacher,
        "two/teacher s0": teacher,
        "one/trial α 0.25 lr 1e-3 s0": trial,
    }
    RunDir(root, runs["baseline"].id).events.mkdir()
    assert links.look() == 3
    assert linked(folder)["one/baseline s0"] == runs["baseline"].id
    alone = Links(root, tmp_path / "alone", ["two"])
    assert alone.look() == 1
    assert linked(tmp_path / "alone") == {"teacher s0": teacher}


def test_runs_of_the_same_name_stay_apart_and_names_stay(tmp_path: Path, runs: dict[str, Run]) -> None:
    root, folder = tmp_path / "runs", tmp_path / "links"
    begun(root, runs["distilled"], "one")
    links = Links(root, folder)
    links.look()
    longer = make_plan(tmp_path, {"train.epochs": 3}).runs[-1]
    begun(root, longer, "one")
    links.look()
    retaught = make_plan(tmp_path, {"teacher.seed": 1}).runs[-1]  # no setting of its own differs
    begun(root, retaught, "one")
    links.look()
    assert linked(folder) == {
        "one/distilled α 0.5 T 4 s0": runs["distilled"].id,
        "one/distilled α 0.5 T 4 epochs 3 s0": longer.id,
        f"one/distilled α 0.5 T 4 s0 {retaught.hash[:8]}": retaught.id,
    }


@pytest.mark.parametrize("evil", ["../../up", "/etc", "..", ".", "", "\x1b[2J", "x" * 999, "\ud800"])
def test_no_record_leads_a_link_out_of_its_folder(tmp_path: Path, runs: dict[str, Run], evil: str) -> None:
    root, folder = tmp_path / "runs", tmp_path / "links"
    begun(root, runs["teacher"], evil)
    begun(root, runs["distilled"], evil).note_trial(evil, {evil: evil})
    assert Links(root, folder).look() == 2
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    assert len(links) == 2
    assert {len(path.relative_to(folder).parts) for path in links} == {2}
    assert all(str(path).isprintable() and len(path.name) <= LONGEST for path in links)


@pytest.mark.parametrize("config", ["{]", "", "distill: 3", "role: distilled\ndistill: {alpha: x}", None])
def test_a_damaged_run_has_a_name(tmp_path: Path, runs: dict[str, Run], config: str | None) -> None:
    root, folder = tmp_path / "runs", tmp_path / "links"
    run_dir = begun(root, runs["distilled"], "one")
    run_dir.start_attempt({})
    run_dir.config.unlink() if config is None else run_dir.config.write_text(config)
    assert Links(root, folder).look() == 1
    assert linked(folder) == {"one/distilled s0": run_dir.id}


def test_an_experiment_that_nobody_knows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["tensorboard", "nope"])
    assert result.exit_code == 5
    assert "no experiment 'nope'" in result.stderr
