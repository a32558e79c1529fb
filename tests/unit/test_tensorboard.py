"""Names of runs in TensorBoard: links that a person can read, whatever the records hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdcluster.cli import main
from kdcluster.commands.bands import WHAT, Band, over_seeds
from kdcluster.commands.tensorboard import LONGEST, Links
from kdcluster.plan import Run
from kdcluster.results.events import Point, read_scalars
from kdcluster.runs import RunDir
from tests.fabricated import evaluated, put
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


# Bands over seeds


def curve(*points: tuple[int, float]) -> list[Point]:
    return [Point(step, 1.0, value, 1) for step, value in points]


def test_a_band_is_over_the_seeds_that_have_come_so_far() -> None:
    found = over_seeds([curve((4, 10.0), (8, 30.0)), curve((4, 20.0), (8, 40.0), (12, 50.0)), []])
    assert found == [(4, 15.0, 10.0, 20.0), (8, 35.0, 30.0, 40.0), (12, 50.0, 50.0, 50.0)]


def seen(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard's own reader takes a run, and as ours does."""
    accumulator = EventAccumulator(str(folder)).Reload()
    tags = accumulator.Tags()["scalars"]
    found = {tag: [(one.step, one.value) for one in accumulator.Scalars(tag)] for tag in tags}
    ours = read_scalars(folder, ("over seeds/",)).points
    assert found == {tag: [(point.step, point.value) for point in points] for tag, points in ours.items()}
    return {tag.rpartition(" ")[2]: points for tag, points in found.items()}


def test_a_band_is_written_on_and_anew(tmp_path: Path) -> None:
    curves = {"a": curve((4, 10.0)), "b": curve()}
    band = Band(tmp_path / "run", "one", ["a", "b"])
    band.look(lambda _: [])
    assert not band.folder.exists()
    band.look(curves.__getitem__)
    assert seen(band.folder) == {key: [(4, 10.0)] for key in WHAT}
    (file,) = band.folder.iterdir()
    size = file.stat().st_size
    band.look(curves.__getitem__)
    assert file.stat().st_size == size
    curves["a"] = curve((4, 10.0), (8, 20.0))
    band.look(curves.__getitem__)
    assert seen(band.folder)["mean"] == [(4, 10.0), (8, 20.0)]
    grown, size = file.stat().st_size - size, file.stat().st_size
    curves["b"] = curve((4, 30.0))
    band.look(curves.__getitem__)
    assert seen(band.folder) == {
        "mean": [(4, 20.0), (8, 20.0)],
        "lowest": [(4, 10.0), (8, 20.0)],
        "highest": [(4, 30.0), (8, 20.0)],
    }
    assert file.stat().st_size - size > grown
    curves["a"] = curve((4, 10.0))  # it went back to a checkpoint
    band.look(curves.__getitem__)
    assert seen(band.folder)["mean"] == [(4, 20.0)]


def test_only_runs_that_differ_in_their_seed_alone_share_a_band(tmp_path: Path) -> None:
    """Their names may be equal: those of other settings say so only where they would be the same."""
    root, folder = tmp_path / "runs", tmp_path / "links"
    both = make_plan(tmp_path, {"seeds": [0, 1]}).runs
    other = make_plan(tmp_path, {"seeds": [2], "train.epochs": 3}).runs
    trial = make_plan(tmp_path, {"seeds": [3]}).runs[-1]
    for run in (*both, *other, trial):
        if run.role in ("baseline", "distilled"):
            evaluated(begun(root, run, "one"), [{"step": 4, "test/top1": 10.0 * (run.seed + 1)}])
    RunDir(root, trial.id).note_trial("one", {"distill.alpha": 0.5})
    Links(root, folder).look()
    bands = {path.name: seen(path)["mean"] for path in (folder / "one").iterdir() if not path.is_symlink()}
    odd = {run.role: f"{run.hash[:8]}, mean" for run in other}
    assert bands == {
        "baseline, mean": [(4, 15.0)],
        f"baseline {odd['baseline']}": [(4, 30.0)],
        "distilled α 0.5 T 4, mean": [(4, 15.0)],
        f"distilled α 0.5 T 4 {odd['distilled']}": [(4, 30.0)],
    }


def test_a_band_writes_nothing_beside_the_runs(tmp_path: Path, runs: dict[str, Run]) -> None:
    root = tmp_path / "runs"
    evaluated(begun(root, runs["baseline"], "one"), [{"step": 4, "test/top1": 10.0}])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    Links(root, tmp_path / "links").look()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("evil", ["../../up", "/etc", "..", ".", "", "\x1b[2J", "x" * 999, "\ud800"])
def test_no_record_leads_a_link_out_of_its_folder(tmp_path: Path, runs: dict[str, Run], evil: str) -> None:
    root, folder = tmp_path / "runs", tmp_path / "links"
    evaluated(begun(root, runs["teacher"], evil), [{"step": 4, "test/top1": 10.0}])
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
