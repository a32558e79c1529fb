"""A sweep's points, its runs, and what came of them; without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcluster import configfile, sweep, trials
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import plan
from kdcluster.runs import RunDir
from kdcluster.sweep import points, table, tried
from kdcluster.trials import Point, Trainee
from tests.fabricated import put
from tests.tiny import write_experiment


def load(folder: Path, block: dict[str, Any] | None = None, **changes: Any) -> configfile.LoadedExperiment:
    write_experiment(folder, {**changes, **({"sweep": block} if block else {})})
    return configfile.load(str(folder / "tiny.yaml"))


def test_trials_hold_images_out_and_share_the_experiments_teacher(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"trials": 4, "seeds": 2})
    made = points(loaded, [])
    teacher = plan([loaded]).runs[0]
    assert len(made) == 4
    for point in made:
        assert [run.seed for run in point.runs] == [0, 1]
        for run in point.runs:
            assert run.needs == [teacher.id]
            assert run.data.val_fraction == 0.1
            assert run.distill is not None
            assert f"distill.alpha={run.distill.alpha}" in point.settings
    assert teacher.data.val_fraction == 0.0
    assert [point.values for point in points(loaded, [])] == [point.values for point in made]  # the same ones each time


def test_a_split_of_the_file_is_kept(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"trials": 1}, **{"data.val_fraction": 0.25})
    assert points(loaded, [])[0].runs[0].data.val_fraction == 0.25


def test_a_grid_is_tried_as_a_whole_and_a_point_once(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"space": {"distill.temperature": {"grid": [1.0, 2.0, 4]}}, "trials": 1})
    assert [point.values["distill.temperature"] for point in points(loaded, [])] == [1.0, 2.0, 4]
    loaded = load(tmp_path, {"space": {"distill.temperature": {"choice": [1.0, 2.0]}}, "trials": 9})
    assert len(points(loaded, [])) == 2


def test_no_weight_on_the_teacher_is_the_baseline(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"space": {"distill.alpha": {"grid": [0.0, 0.5]}}})
    baseline, distilled = (point.runs[0] for point in points(loaded, []))
    assert (baseline.role, distilled.role) == ("baseline", "distilled")


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        ({"distill.alhpa": {"uniform": [0, 1]}}, "did you mean"),
        ({"distill.alpha": {"uniform": [0, 2]}}, "distill.alpha"),
        ({"train.lr": {"loguniform": [1e-4, 1e-2]}}, "makes another teacher; only the students can be searched"),
        ({"teacher.seed": {"grid": [1, 2]}}, "makes another teacher"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_starts(
    tmp_path: Path, domains: dict[str, Any], said: str
) -> None:
    loaded = load(tmp_path, {"space": domains})
    with pytest.raises(ConfigError, match=said):
        points(loaded, [])


def test_a_bad_space_stands_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill\.alpha: choice takes a list of values"):
        load(tmp_path, {"space": {"distill.alpha": {"choice": []}}})
    with pytest.raises(ConfigError, match=r"sweep.seeds: must be 1 with scheduler asha, .* \(got 2\)"):
        load(tmp_path, {"seeds": 2, "scheduler": "asha"})


def test_the_best_comes_first_and_what_was_stopped_is_not_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tmp_path, {"trials": 4})
    chosen = points(loaded, [])
    states = ("done", "stopped", "done", "failed")
    values = {chosen[0].runs[0].id: [50.0, 60.0], chosen[1].runs[0].id: [99.0], chosen[2].runs[0].id: [70.0, 65.0]}

    class Found:
        def __init__(self, measured: list[float]) -> None:
            self.points = {"val/top1": [type("P", (), {"value": value}) for value in measured]}

    root = tmp_path / "runs"
    known = {point.runs[0].id: state for point, state in zip(chosen, states, strict=True)}
    monkeypatch.setattr(sweep, "run_status", lambda run_dir: type("S", (), {"state": known[run_dir.id]}))
    monkeypatch.setattr(sweep, "read_scalars", lambda events, tags: Found(values.get(events.parent.name, [])))
    found = tried(chosen, loaded.config.sweep, root)
    assert [(one.states, one.value) for one in found] == [
        (("done",), 70.0),
        (("done",), 60.0),
        (("stopped",), 99.0),
        (("failed",), None),
    ]
    lines = table(found, "val/top1")
    assert len(lines) == 5
    assert "70.00" in lines[1]


def test_the_confirmation_uses_seeds_that_no_trial_had_and_the_whole_training_set(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"trials": 1})
    (best,) = points(loaded, [])
    made = sweep.confirmation(loaded, [], best, 2)
    assert list(made.wanted) == ["tiny", "tiny-best"]
    assert {run.seed for run in made.runs if run.role != "teacher"} == {1000, 1001}
    assert all(run.data.val_fraction == 0 for run in made.runs)
    assert len({run.id for run in made.runs}) == 1 + 2 + 2 + 2


# One run of a trial


def trainee(tmp_path: Path, state: str) -> Trainee:
    (point,) = points(load(tmp_path, {"trials": 1}), [])
    run_dir: RunDir = put(tmp_path / "runs", point.runs[0], state)
    return Trainee(point.runs[0], run_dir.root, tmp_path / "data", Layout("cpu", 1, 1), "val/top1", "tiny")


@pytest.mark.parametrize("state", ["done", "running", "queued"])
def test_a_run_that_is_done_or_under_way_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(trials.Child, "start", lambda *_: pytest.fail("it was started"))
    one = trainee(tmp_path, state)
    one.begin()
    one.stop()
    assert one.child is None


def test_a_finished_run_reports_all_its_epochs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainee(tmp_path, "done")
    monkeypatch.setattr(Trainee, "measured", lambda self: [1.0, 2.0, 3.0])
    assert [one.next() for _ in range(3)] == [(1.0, False), (2.0, False), (3.0, True)]


def test_a_run_that_failed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainee(tmp_path, "failed")
    monkeypatch.setattr(Trainee, "measured", lambda self: [])
    with pytest.raises(KdclusterError, match="is failed: rank 1, step 7: ValueError: no"):
        one.next()


def test_points_name_their_settings() -> None:
    assert Point({"distill.alpha": 0.5, "train.lr": 1e-3}, ()).settings == ["distill.alpha=0.5", "train.lr=0.001"]
