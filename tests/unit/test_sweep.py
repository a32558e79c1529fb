"""A sweep's points, its runs, and what came of them; without Ray."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from kdcluster import course, runs
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment import configfile
from kdcluster.experiment.config import Resources
from kdcluster.files import read_json, write_json
from kdcluster.history import history
from kdcluster.launch.local.slots import Slots
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.status import run_status
from kdcluster.launch.torchrun import Layout
from kdcluster.ownership import own_folder
from kdcluster.plan import plan
from kdcluster.processes import is_alive, process_record
from kdcluster.results import events
from kdcluster.results.render import FORMATS
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.sweep import allocation, cluster, flow, job, report, room, scored, trial, tuning, winner
from kdcluster.sweep.adaptive import Adaptive
from kdcluster.sweep.flow import Stop, Sweeping, trial_room
from kdcluster.sweep.points import Point, Source, Space, counted
from kdcluster.sweep.screen import Screen
from kdcluster.sweep.trial import Order, Trainee
from tests.fabricated import BEAT, DEAD, LIVE, ended, put
from tests.tiny import write_experiment


def space(folder: Path, block: dict[str, Any] | None = None, *, allow_teacher: bool = False, **changes: Any) -> Space:
    write_experiment(folder, {**changes, **({"sweep": block} if block else {})})
    return Space(configfile.load(str(folder / "tiny.yaml")), allow_teacher=allow_teacher)


def points(searched: Space) -> list[Point]:
    return searched.drawn(searched.size())


# Which points there are


def test_trials_hold_images_out_and_share_the_experiments_teacher(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 4, "seeds": 2})
    made = points(searched)
    teacher = plan([searched.loaded]).runs[0]
    assert len(made) == 4
    for point in made:
        assert [run.seed for run in point.runs] == [0, 1]
        for run in point.runs:
            assert run.needs == [teacher.id]
            assert run.data.val_fraction == 0.1
            assert run.distill is not None
            assert f"distill.alpha={run.distill.alpha}" in point.settings
    assert teacher.data.val_fraction == 0.0
    assert [point.values for point in points(searched)] == [point.values for point in made]  # the same ones each time


def test_a_split_of_the_file_is_kept(tmp_path: Path) -> None:
    assert points(space(tmp_path, {"trials": 1}, **{"data.val_fraction": 0.25}))[0].runs[0].data.val_fraction == 0.25


def test_a_grid_is_tried_as_a_whole_and_a_point_once(tmp_path: Path) -> None:
    searched = space(tmp_path, {"space": {"distill.temperature": {"grid": [1.0, 2.0, 4]}}, "trials": 1})
    assert [point.values["distill.temperature"] for point in points(searched)] == [1.0, 2.0, 4]
    assert len(points(space(tmp_path, {"space": {"distill.temperature": {"choice": [1.0, 2.0]}}, "trials": 9}))) == 2


def test_no_weight_on_the_teacher_is_the_baseline(tmp_path: Path) -> None:
    searched = space(tmp_path, {"space": {"distill.alpha": {"grid": [0.0, 0.5]}}})
    baseline, distilled = (point.runs[0] for point in points(searched))
    assert (baseline.role, distilled.role) == ("baseline", "distilled")


def test_settings_are_yaml_that_set_takes(tmp_path: Path) -> None:
    values = {"distill.alpha": 0.5, "train.lr": 1e-5, "train.grad_clip": None, "teacher.pretrained": False}
    settings = Point(values, ()).settings
    assert settings == ["distill.alpha=0.5", "train.lr=1e-05", "train.grad_clip=null", "teacher.pretrained=false"]
    write_experiment(tmp_path)
    config = configfile.load(str(tmp_path / "tiny.yaml"), settings).config
    assert (config.train.lr, config.train.grad_clip, config.teacher.pretrained) == (1e-5, None, False)


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        (
            {"distill.alhpa": {"uniform": [0, 1]}},
            r":5: sweep\.space\.distill\.alhpa: unknown key; did you mean",
        ),
        ({"distill.alpha": {"uniform": [0, 2]}}, r":5: sweep\.space\.distill\.alpha: .*\(got 2\)"),
        ({"train.lr": {"loguniform": [1e-4, 1e-2]}}, "train.lr=0.0001 makes another teacher; .* --allow-teacher"),
        ({"teacher.seed": {"grid": [1, 2]}}, "teacher.seed=1 makes another teacher"),
        ({"seeds": {"choice": [[0], [1]]}}, r"sweep\.space\.seeds: makes no other student"),
        ({"resources.threads": {"randint": [1, 2]}}, "resources.threads: makes no other student"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_starts(
    tmp_path: Path, domains: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        space(tmp_path, {"space": domains}).check()


@pytest.mark.parametrize(
    "domains",
    [
        {"train.lr": {"loguniform": [1e-4, 1e-2]}},
        {"train.label_smoothing": {"uniform": [0.0, 0.3]}},
        {"train.grad_clip": {"uniform": [0.5, 2.0]}},
        {"data.augment.pad": {"randint": [0, 4]}},
        {"data.augment.color.hue": {"uniform": [0.0, 0.1]}},
    ],
)
def test_what_is_told_to_keep_one_teacher_does(tmp_path: Path, domains: dict[str, Any]) -> None:
    searched = space(tmp_path, {"space": domains})
    with pytest.raises(ConfigError, match="makes another teacher") as refused:
        searched.check()
    setting = str(refused.value).partition("--set '")[2].partition("'")[0]
    kept = Space(configfile.load(str(tmp_path / "tiny.yaml"), [setting]), (setting,))
    kept.check()
    needed = {need for point in points(kept) for run in point.runs for need in run.needs}
    assert needed == {plan([searched.loaded]).runs[0].id}


def test_teachers_may_be_searched_if_that_is_allowed_and_are_counted(tmp_path: Path) -> None:
    searched = space(tmp_path, {"space": {"teacher.seed": {"grid": [0, 1, 2]}}}, allow_teacher=True)
    searched.check()
    made = points(searched)
    teachers = searched.teachers(made)
    assert sorted(run.role for run in teachers.runs) == ["teacher"] * 3 + [STORE] * 3  # seed 0 is the experiment's own
    waited = {one for point in made for run in point.runs for one in (*run.needs, *run.after)}
    assert waited == {run.id for run in teachers.runs}
    order = [run.id for run in teachers.runs]
    assert all(order.index(need) < order.index(run.id) for run in teachers.runs for need in run.needs)


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_store_of_a_sweep_holds_all_views_that_its_trials_see(tmp_path: Path, search: str) -> None:
    """Of 45,000 images they begin a third time in as many steps as the experiment needs to see 50,000 twice."""
    searched = space(tmp_path, {"trials": 2, "search": search}, train={"steps": 6250, "batch_size": 16})
    made = points(searched)
    assert {course.epochs(run.train, 45_000) for point in made for run in point.runs if run.train} == {3}
    own, asked = (
        [run for run in each.runs if run.role == STORE] for each in (plan([searched.loaded]), searched.teachers(made))
    )
    assert [run.id for run in own] == [run.id for run in asked] == made[0].runs[0].after
    assert ([run.views for run in own], [run.views for run in asked]) == ([2], [3])


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"space": {"distill.alpha": {"choice": []}}}, r"distill\.alpha: choice takes a list of values"),
        (
            {"space": {"train.lr": {"loguniform": [0, 1]}}},
            r"train\.lr: loguniform: low must be above 0",
        ),
        ({"seeds": 2, "scheduler": "asha"}, r"sweep\.seeds: must be 1 with scheduler asha, .* \(got 2\)"),
        ({"space": {"distill.alpha": {"grid": [0.5]}}, "search": "optuna"}, r"sweep\.search: optuna tries no grid"),
    ],
)
def test_a_bad_sweep_stands_at_its_line(tmp_path: Path, block: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"tiny\.yaml:\d+:\d+: .*{said}"):
        space(tmp_path, block)


def test_asha_knows_the_longest_trial(tmp_path: Path) -> None:
    assert space(tmp_path, {"trials": 1}).most_evaluations() == 2
    assert space(tmp_path, {"space": {"train.epochs": {"choice": [3, 9, 5]}}}).most_evaluations() == 9
    for steps, times in ((400, 10), (4, 4)):
        assert space(tmp_path, {"trials": 1}, train={"steps": steps}).most_evaluations() == times


def test_the_confirmation_uses_seeds_that_no_trial_had_and_the_whole_training_set(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 1})
    made = searched.confirmation(points(searched)[0], 2)
    assert list(made.wanted) == ["tiny", "tiny-best"]
    assert {run.seed for run in made.runs if run.role in ("baseline", "distilled")} == {1000, 1001}
    assert all(run.data.val_fraction == 0 for run in made.runs)
    assert len({run.id for run in made.runs}) == 1 + 1 + 2 + 2 + 2


def test_the_baseline_is_searched_over_the_keys_that_concern_it(tmp_path: Path) -> None:
    block = {"distill.alpha": {"uniform": [0.1, 0.9]}, "train.lr": {"loguniform": [1e-4, 1e-1]}}
    searched = space(tmp_path, {"space": block, "trials": 3}, **{"teacher.train": {"lr": 0.01}})
    baseline = searched.of_baseline()
    assert baseline is not None
    assert list(baseline.domains) == ["train.lr"]
    made = baseline.drawn(3)
    assert [(one.runs[0].role, one.runs[0].data.val_fraction) for one in made] == [("baseline", 0.1)] * 3
    assert len({one.ids for one in made}) == 3

    root = tmp_path / "runs"
    for one in (*searched.drawn(2), *made[:1]):
        put(root, one.runs[0], "done").note_trial("tiny", one.values)
    assert [one.ids for one in searched.recorded(root)] == [one.ids for one in searched.drawn(2)]
    assert [one.ids for one in baseline.recorded(root)] == [made[0].ids]
    assert space(tmp_path, {"trials": 1}).of_baseline() is None


def test_points_of_an_earlier_sweep_are_found_while_the_file_makes_the_same_runs(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 3})
    root = tmp_path / "runs"
    first, second, _ = made = points(searched)
    for point in (second, first):
        put(root, point.runs[0], "done").note_trial("tiny", point.values)
    assert [point.values for point in searched.recorded(root)] == [second.values, first.values]
    run_dir = RunDir(root, first.ids[0])
    run_dir.note_trial("tiny", first.values)
    assert len(run_dir.trials_of("tiny")) == 1
    assert run_dir.trials_of("another") == []
    longer = space(tmp_path, {"trials": 3}, **{"train.epochs": 3})
    assert longer.recorded(root) == []
    assert made[2].ids not in [point.ids for point in searched.recorded(root)]


# Points from Optuna


def good(point: Point) -> float:
    return 100 - abs(point.values["distill.alpha"] - 0.3) * 100


def asked(source: Source, value: Callable[[Point], float] = good) -> list[Point]:
    found = []
    while (point := source.next()) is not None:
        found.append(point)
        source.heard(point, 1, value(point))
        source.ended(point, value(point), whole=True)
    return found


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_point_has_no_key_that_its_loss_does_not_use(tmp_path: Path, search: str) -> None:
    domains = {
        "distill.loss": {"choice": ["kd", "hard", "dkd"]},
        "distill.temperature": {"uniform": [1, 8]},
        "distill.dkd_beta": {"uniform": [1, 8]},
    }
    searched = space(tmp_path, {"space": domains, "trials": 12, "search": search})
    searched.check()
    source = Adaptive(searched, 12) if search == "optuna" else None
    points = searched.drawn(12) if source is None else [one for _ in range(8) if (one := source.next())]
    keys = {tuple(point.values) for point in points}
    assert ("distill.loss",) in keys
    assert ("distill.loss", "distill.temperature") in keys
    assert tuple(domains) in keys
    for point in points:
        hard, dkd = (point.values["distill.loss"] == loss for loss in ("hard", "dkd"))
        assert ("distill.temperature" in point.values, "distill.dkd_beta" in point.values) == (not hard, dkd)


def test_optuna_gives_the_same_points_again_and_comes_nearer(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 20, "search": "optuna"})
    found = asked(Adaptive(searched, 20))
    assert len({point.ids for point in found}) == 20
    assert [point.values for point in asked(Adaptive(searched, 20))] == [point.values for point in found]
    assert max(map(good, found[7:])) >= max(map(good, found[:7]))
    assert all(point.values == json.loads(json.dumps(point.values)) for point in found)


def test_optuna_tries_what_was_tried_before_first_and_counts_it(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 5, "search": "optuna"})
    before = asked(Adaptive(searched, 3))
    elsewhere = Point({"train.lr": 0.1}, ())
    outside = Point({"distill.alpha": 0.99, "distill.temperature": 4.0}, ())
    found = asked(Adaptive(searched, 5, [*before, elsewhere, outside]))
    assert [point.ids for point in found[:3]] == [point.ids for point in before]
    assert len(found) == 5


def test_optuna_knows_every_kind_of_domain_and_ends_with_a_small_space(tmp_path: Path) -> None:
    domains = {
        "distill.alpha": {"quniform": [0.1, 0.3, 0.1]},
        "student.model_args": {"choice": [{"embed_dim": 16}, {"embed_dim": 24}]},
        "train.epochs": {"randint": [2, 3]},
    }
    searched = space(tmp_path, {"space": domains, "trials": 40, "search": "optuna"}, **{"teacher.train": {"epochs": 2}})
    found = asked(Adaptive(searched, 40))
    assert len(found) == 12
    assert {point.values["distill.alpha"] for point in found} == {0.1, 0.2, 0.3}
    again = asked(Adaptive(searched, 40, found))
    assert {point.ids for point in again} == {point.ids for point in found}


def test_optuna_draws_another_point_where_its_favourite_was_tried(tmp_path: Path) -> None:
    domains = {"distill.alpha": {"choice": [0.0, 0.3, 0.6]}, "distill.temperature": {"loguniform": [1, 16]}}
    searched = space(tmp_path, {"space": domains, "trials": 12, "search": "optuna"})
    found = asked(Adaptive(searched, 12), lambda point: -float(point.values["distill.alpha"]))
    assert len(found) == 12  # at alpha 0 the temperature makes no other run


def test_optuna_goes_round_points_that_are_no_experiment(tmp_path: Path) -> None:
    domains = {"train.epochs": {"randint": [2, 6]}, "train.warmup_epochs": {"quniform": [0, 5, 1]}}
    changes = {"teacher.train": {"epochs": 6, "warmup_epochs": 0.0}, "train.epochs": 6}
    searched = space(tmp_path, {"space": domains, "trials": 12, "search": "optuna"}, **changes)
    found = asked(Adaptive(searched, 12), lambda point: float(point.values["train.epochs"]))
    assert len(found) >= 5
    assert all(isinstance(point.values["train.warmup_epochs"], int) for point in found)
    assert all(point.values["train.warmup_epochs"] < point.values["train.epochs"] for point in found)


def test_what_failed_or_was_stopped_is_told_to_optuna_as_that(tmp_path: Path) -> None:
    source = Adaptive(space(tmp_path, {"trials": 3, "search": "optuna"}), 3)
    for value, whole in ((None, False), (50.0, False), (60.0, True)):
        point = source.next()
        assert point is not None
        if value is not None:
            source.heard(point, 1, value)
        source.ended(point, value, whole=whole)
    assert [one.state.name for one in source._study.trials] == ["FAIL", "PRUNED", "COMPLETE"]


# What came of them


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Space, list[scored.Tried]]:
    """Four points: one that was best after its first epoch but stopped, one that failed, two that are done."""
    searched = space(tmp_path, {"trials": 4})
    made, root = points(searched), tmp_path / "runs"
    for point, state in zip(made, ("done", "stopped", "done", "failed"), strict=True):
        put(root, point.runs[0], state)
    values = dict(zip((point.ids[0] for point in made), ([50.0, 60.0], [99.0], [70.0, 65.0], []), strict=True))
    monkeypatch.setattr(scored, "values_of", lambda events, metric: values[events.folder.parent.name])
    return searched, scored.tried(made, searched.sweep.metric, root)


def test_the_best_comes_first_and_what_was_stopped_is_not_it(tried: tuple[Space, list[scored.Tried]]) -> None:
    searched, found = tried
    assert [(one.state, one.value, one.epochs) for one in found] == [
        ("done", 70.0, 2),
        ("done", 60.0, 2),
        ("stopped", 99.0, 1),
        ("failed", None, 0),
    ]
    text = report.render(searched, found, "table").splitlines()
    assert text[1].split()[3:6] == ["70.00", "2", "done"]
    assert text[5] == f"{found[3].point.ids[0]}: failed: rank 1, step 7: ValueError: no; nothing is saved yet"
    assert "the best of 3 was selected by val/top1" in text[7]
    assert "10 % of the training images" in text[8]
    assert "their teacher is the experiment's own and was trained on these, too" in text[8]


@pytest.mark.parametrize(
    ("seeds", "metric", "value", "said"),
    [
        (1, "val/top1", "56.00 ± 2.48", "± is the binomial standard error of an accuracy on 400 held-out images"),
        (
            2,
            "val/top1",
            "57.00 ± 1.41",
            "± is the standard deviation over the seeds; the standard error on 400 held-out",
        ),
        (1, "val/loss", "56.00", ""),
    ],
)
def test_a_trial_on_few_images_carries_its_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, metric: str, value: str, said: str
) -> None:
    searched = space(tmp_path, {"trials": 1, "seeds": seeds, "metric": metric})
    (point,) = points(searched)
    for run in point.runs:
        put(tmp_path / "runs", run, "done").attempt(1).write("trainer", {"images": {"test": 1000, "val": 400}})
    values = {run.id: [56.0 + 2 * number] for number, run in enumerate(point.runs)}
    monkeypatch.setattr(scored, "values_of", lambda events, metric: values[events.folder.parent.name])
    found = scored.tried([point], metric, tmp_path / "runs")
    for style in ("table", "md"):
        text = report.render(searched, found, style)
        assert f" {value} " in text
        assert (said in text) if said else ("±" not in text)
    row = json.loads(report.render(searched, found, "json"))["trials"][0]
    assert (row["images"], row["metric_se"] is None) == ((None, True) if metric == "val/loss" else (400, False))


@pytest.mark.parametrize(
    ("width", "shown", "heading"),
    [
        (None, slice(None), "distill.temperature"),
        (80, slice(-8, None), "distill.temperature"),
        (50, None, "temperature"),
    ],
)
def test_the_table_of_trials_fits_the_terminal(
    tried: tuple[Space, list[scored.Tried]], width: int | None, shown: slice | None, heading: str
) -> None:
    """Ids give way to the digits that name a run, too, then keys to their ends, then the ids."""
    searched, found = tried
    lines = report.render(searched, found, "table", width=width).splitlines()
    assert max(map(len, lines[:5] if width else lines[:1])) <= (width or 120)
    assert heading in lines[0].split()
    for one, line in zip(found, lines[1:5], strict=True):
        assert (line.split()[-1] == one.point.ids[0][shown]) if shown else (line.split()[-1] == one.state)
    if width:
        assert all(len(line) <= width or " " not in line.strip() for line in lines)


def test_the_trials_for_documents_and_scripts(tried: tuple[Space, list[scored.Tried]]) -> None:
    searched, found = tried
    document = json.loads(report.render(searched, found, "json"))
    assert (document["schema"], document["selected"], len(document["trials"])) == ("kdcluster.sweep/1", True, 4)
    assert document["trials"][3]["metric_mean"] is None
    lines = report.render(searched, found, "csv").splitlines()
    assert lines[0] == "distill.alpha,distill.temperature,val/top1,sd,se,images,epochs,state,reason,runs,role"
    assert len(lines) == 5
    assert [json.loads(line) for line in report.render(searched, found, "jsonl").splitlines()] == document["trials"]
    page = report.render(searched, found, "html", ascii=True)
    assert page.count('<tr><th scope="row"') == len(found)
    assert page.isascii()
    paper = report.render(searched, found, "latex")
    assert "temperature & val/top1 & epochs & state" in paper
    assert paper.count(r" \\") == len(found) + 1
    assert r"\label{tab:sweep-of-tiny}" in paper
    assert found[0].point.ids[0] not in paper
    assert report.render(searched, found, "md").splitlines()[1] == "| ---: | ---: | ---: | ---: | :--- | :--- |"


def test_points_of_a_smaller_space_stand_in_the_same_table(tried: tuple[Space, list[scored.Tried]]) -> None:
    searched, found = tried
    found[1].point.values.pop("distill.temperature")
    for style in FORMATS:
        assert report.render(searched, found, style)
    rows = list(csv.reader(report.render(searched, found, "csv").splitlines()))
    assert {len(row) for row in rows} == {11}
    assert rows[2][1] == ""


def test_an_alias_in_the_file_does_not_carry_the_best_to_the_teacher(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 1})
    text = (tmp_path / "tiny.yaml").read_text()
    teacher, student = text.index("teacher:"), text.index("student:")
    assert teacher < student
    text = text.replace("  model_args:\n", "  model_args: &shared\n", 1)
    head, _, tail = text.partition("student:")
    (tmp_path / "tiny.yaml").write_text(
        head
        + "student:"
        + tail[: tail.index("  model_args:")]
        + "  model_args: *shared\n"
        + tail[tail.index("train:") :]
    )
    searched = Space(configfile.load(str(tmp_path / "tiny.yaml")))
    target = tmp_path / "best.yaml"
    winner.write_best(searched, {"student.model_args.depth": 2}, target)
    best = configfile.load(str(target)).config
    assert (best.teacher.model_args["depth"], best.student.model_args["depth"]) == (1, 2)


def test_the_best_is_written_as_an_experiment_with_its_comments(tmp_path: Path) -> None:
    searched = space(tmp_path, {"trials": 1})
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text() + "# a word\n")
    target = tmp_path / "configs" / "tiny-best.yaml"
    winner.write_best(searched, {"distill.alpha": 0.25, "distill.temperature": 2.0}, target)
    assert "# a word" in target.read_text()
    assert target.read_text().startswith(
        "# tiny with the best of its sweep: distill.alpha 0.25, distill.temperature 2.0"
    )
    assert configfile.load(str(target)).config.distill.alpha == 0.25
    winner.write_best(searched, {"distill.alpha": 0.25, "distill.temperature": 2.0}, target)  # the same again
    winner.refuse_target(searched, target)  # a sweep's own
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "elsewhere.yaml")
    winner.write_best(searched, {"distill.alpha": 0.25, "distill.temperature": 2.0}, link)
    assert link.is_symlink()
    assert (tmp_path / "elsewhere.yaml").read_text() == target.read_text()
    with pytest.raises(ConfigError, match="is there already and is not overwritten"):
        winner.write_best(searched, {"distill.alpha": 0.5}, target)


@pytest.mark.parametrize("dumb", [False, True])
def test_without_a_cursor_each_change_is_one_line(
    tried: tuple[Space, list[scored.Tried]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dumb: bool,
) -> None:
    searched, found = tried
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: dumb)
    with Screen([one.point for one in found], 4, searched.sweep.metric, tmp_path / "runs", sys.stderr) as screen:
        screen.show()
        screen.show()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("done  val/top1 70.00 after 2 epochs")
    assert "stopped  val/top1 99.00 after 1 epoch" in lines[2]
    assert lines[3].endswith("failed  (rank 1, step 7: ValueError: no; nothing is saved yet)")


def test_the_time_that_is_left_follows_from_the_trials_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, root = points(space(tmp_path, {"trials": 4})), tmp_path / "runs"
    now = [1000.0]
    monkeypatch.setattr("kdcluster.sweep.screen.time.monotonic", lambda: now[0])
    put(root, made[0].runs[0], "done")  # by an earlier sweep
    put(root, made[1].runs[0], "running")
    with Screen(made[:2], 4, "val/top1", root, sys.stderr) as screen:
        screen.show()
        ended(RunDir(root, made[1].ids[0]).attempt(1), "done")
        now[0] += 240.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[2:] for line in lines] == [["done"], ["running"], ["done", "about 8 min left"]]


def test_where_to_look_is_said_once_when_nothing_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcluster.sweep.screen.BEGUN_S", 0.0)
    monkeypatch.setattr("kdcluster.sweep.screen.EVERY_S", 0.0)
    searched = space(tmp_path, {"trials": 1})
    with Screen(
        points(searched), 1, searched.sweep.metric, tmp_path / "runs", sys.stderr, "Ray's logs: there"
    ) as screen:
        screen.show()
        screen.show()
    assert capsys.readouterr().err == "no trial has begun after 0 s; Ray's logs: there\n"


def test_on_a_terminal_what_runs_comes_first(tried: tuple[Space, list[scored.Tried]]) -> None:
    from rich.console import Console

    from kdcluster.sweep.screen import screen

    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(screen(tried[1], 12, "val/top1", width=120, height=40))
    text = console.export_text()
    low = Console(width=80, record=True, file=console.file)
    low.print(screen(tried[1], 12, "val/top1", width=80, height=6))
    lines = low.export_text().splitlines()
    assert len(lines) <= 6
    assert max(map(len, lines)) <= 80
    assert "distilled-" not in "".join(lines)  # an id that is cut is of no use
    console.file.close()
    assert "12 runs: 2 done, 1 stopped, 1 failed, 8 to come" in text
    assert "70.00" in text


# One run of a trial


def order(folder: Path, **changes: Any) -> Order:
    given = {"metric": "val/top1", "token": "ours", "ending": folder / "ending.json", "gpus": 0, **changes}
    return Order("tiny", folder / "runs", folder / "data", Layout("cpu", 1, 1), **given)


def trainee(folder: Path, state: str, **changes: Any) -> Trainee:
    (point,) = points(space(folder, {"trials": 1}))
    put(folder / "runs", point.runs[0], state)
    return Trainee(point.runs[0], point.values, order(folder, **changes))


@pytest.mark.parametrize("state", ["done", "running", "queued", "stopped"])
def test_a_run_that_has_ended_well_or_is_under_way_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(trial.Child, "start", lambda *_, **__: pytest.fail("it was started"))
    one = trainee(tmp_path, state, early=True)
    one.begin()
    one.stop()
    assert one.child is None
    assert one.run_dir.trials_of("tiny") == [{"experiment": "tiny", "values": one.values}]
    assert one.run_dir.experiments() == ["tiny"]


def test_a_finished_run_of_another_user_is_a_trial_and_its_directory_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainee(tmp_path, "done", ending=tmp_path / "runs" / ".sweeps" / "tiny" / "ending.json")
    before = sorted(path.name for path in one.run_dir.path.iterdir())
    write, access = runs.write_json, os.access

    def refusing(path: Path, *given: Any, **more: Any) -> None:
        if one.run_dir.path in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        write(path, *given, **more)

    monkeypatch.setattr(runs, "write_json", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: path != one.run_dir.path and access(path, mode))
    one.begin()
    one.begin()
    assert sorted(path.name for path in one.run_dir.path.iterdir()) == before
    searched = space(tmp_path, {"trials": 1})
    assert [point.ids for point in searched.recorded(tmp_path / "runs")] == [(one.run.id,)]


@pytest.mark.parametrize("state", ["planned", "failed", "lost", "preempted", "cancelled", "stopped"])
def test_a_run_that_is_not_done_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    begun = []
    monkeypatch.setattr(trial.Child, "start", lambda run_dir, *_, **known: begun.append(known["known"]["sweep"]))
    trainee(tmp_path, state).begin()
    assert begun == ["ours"]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of runs that a trial started, had it been for real."""
    ids: list[str] = []
    monkeypatch.setattr(trial.Child, "start", lambda run_dir, *_, **__: ids.append(run_dir.id))
    return ids


def test_a_trial_on_a_share_of_a_gpu_holds_no_more_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    monkeypatch.setattr("kdcluster.launch.attempt.command", lambda *_, **__: ["true"])
    one = trainee(tmp_path, "planned", gpus=0.5)
    one.order = replace(one.order, layout=Layout("cuda", 1, None))
    one.begin()
    one.child.process.wait()
    one.child.outcome()
    one.child.attempt.write("outcome", {"state": "done", "reason": "", "time": time.time() + 7200})
    (record,) = history(one.run_dir)
    assert record.gpu_hours == pytest.approx(1.0, abs=0.1)  # half of two hours


def test_a_run_that_waits_for_the_gpus_of_the_sweep_is_started_by_it(tmp_path: Path, begun: list[str]) -> None:
    one = trainee(tmp_path, "queued")
    one.order = replace(one.order, layout=Layout("cuda", 1, None))
    one.begin()
    assert begun == [one.run.id]


@pytest.mark.parametrize("meanwhile", ["nothing", "somebody begins it"])
def test_a_trial_waits_for_the_cores_that_a_submit_beside_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[str], meanwhile: str
) -> None:
    core = f"core-{tmp_path.name}"
    monkeypatch.setattr(trial, "own_cores", lambda: [core])
    held = Slots("core", [core], tmp_path).take(1, "another")
    assert held is not None
    one = trainee(tmp_path, "planned", own_cores=True)

    def wait(seconds: float) -> None:
        if meanwhile == "somebody begins it":
            put(tmp_path / "runs", one.run, "running")
        held[0][1].release()

    monkeypatch.setattr(trial.time, "sleep", wait)
    one.begin()
    assert begun == ([one.run.id] if meanwhile == "nothing" else [])
    assert one.run_dir.experiments() == ["tiny"]


def test_a_run_of_others_that_is_interrupted_goes_on_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(trial, "values_of", lambda *_: [1.0, 2.0])
    one = trainee(tmp_path, "preempted")

    def start(*_: Any, **__: Any) -> Any:
        begun.append(1)
        return Torchrun(one.run_dir, polls=1)

    monkeypatch.setattr(trial.Child, "start", start)
    monkeypatch.setattr(trial, "POLL_S", 0.0)
    assert [one.next(), one.next()] == [(1.0, False), (2.0, True)]
    assert begun == [1]


@pytest.mark.parametrize("early", [True, False])
def test_a_run_that_was_stopped_early_is_an_end_for_a_search_that_stops_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    monkeypatch.setattr(trial.Child, "start", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    monkeypatch.setattr(trial, "values_of", lambda *_: [1.0])
    one = trainee(tmp_path, "stopped", early=early)
    if early:
        assert one.next() == (1.0, True)
        assert not one.is_done
    else:
        with pytest.raises(InterruptedError):  # it is started
            one.next()


def test_a_trial_that_tune_restarts_takes_its_run_over_from_a_node_that_nobody_can_ask(
    tmp_path: Path, begun: list[str]
) -> None:
    one = trainee(tmp_path, "planned")
    known = {"supervisor": {**DEAD, "host": "another"}, "host": "another"}
    attempt = one.run_dir.start_attempt({**known, "sweep": "an earlier one's", "sweep_of": "tiny"})
    attempt.write("heartbeat", {**BEAT, "time": time.time()})
    assert run_status(one.run_dir).state == "running"
    one.begin()
    assert begun == [one.run.id]


def test_a_trial_that_somebody_cancelled_is_not_tried_again_in_the_same_sweep(tmp_path: Path) -> None:
    one = trainee(tmp_path, "planned")
    attempt = one.run_dir.start_attempt({"supervisor": DEAD, "sweep": "ours"})
    attempt.write("outcome", {"state": "cancelled", "reason": "stopped", "rank": None})
    with pytest.raises(KdclusterError, match="is cancelled"):
        one.begin()


def test_a_finished_run_reports_all_its_epochs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainee(tmp_path, "done")
    monkeypatch.setattr(trial, "values_of", lambda *_: [1.0, 2.0, 3.0])
    assert one.run.train is not None
    assert one.run.train.epochs == 2
    assert [one.next() for _ in range(3)] == [(1.0, False), (2.0, False), (3.0, True)]
    assert one.is_done


def test_a_teacher_with_few_labels_has_not_seen_what_the_trials_hold_out(tmp_path: Path) -> None:
    (said,) = (note for note in report.notes(space(tmp_path, {"trials": 2}), []) if "hold out" in note)
    assert said.endswith("their teacher is the experiment's own and was trained on these, too")
    (said,) = (n for n in report.notes(space(tmp_path, {"trials": 2}, **{"data.labelled": 9}), []) if "hold out" in n)
    assert said.endswith("their teacher is the experiment's own")


def test_a_run_of_steps_has_ended_after_its_last_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (point,) = points(space(tmp_path, {"trials": 1}, train={"steps": 4}))
    put(tmp_path / "runs", point.runs[0], "planned")
    one = Trainee(point.runs[0], point.values, order(tmp_path))
    monkeypatch.setattr(trial, "POLL_S", 0.0)
    monkeypatch.setattr(trial, "values_of", lambda *_: [0.0, 1.0, 2.0, 3.0])
    one.child = Torchrun(one.run_dir, polls=7)  # type: ignore[assignment]
    assert [one.next() for _ in range(4)] == [(0.0, False), (1.0, False), (2.0, False), (3.0, True)]
    assert one.child.process.polls < 0  # type: ignore[attr-defined]
    assert point.unit == "tenth"
    assert counted([point]) == "tenths"
    assert counted([]) == counted(points(space(tmp_path, {"trials": 1}))) == "epochs"


def test_a_trial_reads_its_events_once_however_often_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainee(tmp_path, "planned")
    one.child = Torchrun(one.run_dir)  # type: ignore[assignment]
    read: list[int] = []
    split = events.split
    monkeypatch.setattr(events, "split", lambda data, *base: read.append(len(data)) or split(data, *base))
    with SummaryWriter(one.run_dir.events, filename_suffix=".a1") as writer:

        def epoch(number: int) -> None:
            for step in range(100):
                writer.add_scalar("train/loss", 1.0, 100 * number + step)
            writer.add_scalar("val/top1", number, 100 * number + 99)
            writer.flush()

        looks = iter([*[lambda: None] * 20, lambda: epoch(2)])
        monkeypatch.setattr(trial, "time", SimpleNamespace(sleep=lambda _: next(looks)()))
        epoch(1)
        assert one.next() == (1.0, False)
        one.run = one.run.model_copy(update={"train": None})  # no word on how many epochs there are
        assert one.next() == (2.0, False)
        (path,) = one.run_dir.events.iterdir()
        assert len(read) > 20
        assert sum(read) == path.stat().st_size


@pytest.mark.parametrize("measured", [[], [1.0], [1.0, 2.0]])
def test_a_run_that_failed_says_why_whatever_it_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[float]
) -> None:
    one = trainee(tmp_path, "failed")
    monkeypatch.setattr(trial, "values_of", lambda *_: measured)
    for value in measured[:-1]:
        assert one.next() == (value, False)
    with pytest.raises(KdclusterError, match="is failed: rank 1, step 7: ValueError: no"):
        one.next()


class Torchrun:
    """A child that saves and ends when it is told to, or when its last epoch is over."""

    def __init__(self, run_dir: RunDir, polls: int = 10**6) -> None:
        self.run_dir, self.process = run_dir, self
        self.attempt = run_dir.start_attempt({"supervisor": DEAD, "sweep": "ours"})
        self.attempt.write("agent", DEAD)
        self.told, self.polls = False, polls

    def wait(self, timeout: float) -> None:
        assert timeout < 10

    def poll(self) -> int | None:
        self.polls -= 1
        return 0 if self.told or self.polls < 0 else None

    def tell_to_stop(self) -> None:
        self.told = True
        self.attempt.write("preempted", {"step": 7})

    def outcome(self, *, told_to_stop: bool) -> dict[str, Any]:
        state = "preempted" if told_to_stop else "done"
        return {"state": state, "reason": "stopped at step 7" if told_to_stop else "", "rank": None}


@pytest.mark.parametrize(
    ("why", "state", "reason"),
    [
        ("asha", "stopped", trial.OTHERS_WERE_BETTER),
        ("told to stop by SIGINT", "preempted", "told to stop by SIGINT"),
        (None, "preempted", "the sweep has ended"),  # by an error, and the disk may be full
    ],
)
def test_what_the_scheduler_stops_is_stopped_and_what_anything_else_stops_goes_on_later(
    tmp_path: Path, why: str | None, state: str, reason: str
) -> None:
    one = trainee(tmp_path, "planned")
    one.child = Torchrun(one.run_dir)  # type: ignore[assignment]
    stopped = Point({}, (one.run,))
    trial.note_stopped(stopped, order(tmp_path, token="another's"))  # which reports this run, too
    if why == "asha":
        trial.note_stopped(stopped, order(tmp_path))
    elif why:
        write_json(tmp_path / "ending.json", {"why": why})
    one.stop()
    status = run_status(one.run_dir)
    assert status.state == state
    assert f"stopped at step 7: {reason}" in status.reason
    if why != "asha":
        trial.note_stopped(stopped, order(tmp_path))  # Tune says so of a finished trial, too
    assert run_status(one.run_dir) == status


def test_a_run_is_done_only_once_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last epoch is on disk a second before it has saved and left: that is no end, and then no failure."""
    monkeypatch.setattr(trial, "values_of", lambda *_: [1.0, 2.0])
    monkeypatch.setattr(trial, "POLL_S", 0.0)
    one = trainee(tmp_path, "planned")
    one.child = Torchrun(one.run_dir, polls=5)  # type: ignore[assignment]
    assert one.next() == (1.0, False)
    assert one.child.polls > 0  # type: ignore[union-attr]
    assert one.next() == (2.0, True)
    assert one.child.polls < 0  # type: ignore[union-attr]
    assert one.is_done


def test_in_the_middle_of_an_epoch_a_run_saves_when_the_search_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "values_of", lambda *_: [])
    one = trainee(tmp_path, "planned")
    one.child = Torchrun(one.run_dir)  # type: ignore[assignment]
    write_json(tmp_path / "ending.json", {"why": "the time budget is over"})
    with pytest.raises(trial.Ending, match="the time budget is over"):
        one.next()
    assert run_status(one.run_dir).reason.startswith("stopped at step 7: the time budget is over")
    with pytest.raises(trial.Ending):  # and nothing is begun any more
        one.begin()


# Where it runs


@pytest.mark.parametrize(
    ("resources", "per_trial", "cores", "expected"),
    [
        ({"device": "cpu"}, None, 4, (Layout("cpu", 1, 4), 0)),
        ({"device": "cpu", "procs": 2}, None, 4, (Layout("cpu", 2, 2), 0)),
        ({"device": "cpu", "threads": 1}, None, 4, (Layout("cpu", 1, 1), 0)),
        ({"device": "cpu"}, 2, 4, (Layout("cpu", 2, 2), 2)),
        ({"device": "cuda"}, None, 4, (Layout("cuda", 1, None), 1)),
        ({"gpus": 4}, None, 4, (Layout("cuda", 4, None), 4)),
        ({"gpus": 4}, 0.5, 4, (Layout("cuda", 1, None), 0.5)),
        ({}, 2, 4, (Layout("cuda", 2, None), 2)),
    ],
)
def test_on_what_a_trial_runs(
    resources: dict[str, Any], per_trial: float | None, cores: int, expected: tuple[Layout, float]
) -> None:
    assert trial_room(Resources(**resources), per_trial, cores) == expected


def test_more_than_one_gpu_is_whole() -> None:
    with pytest.raises(ConfigError, match=r"--gpus-per-trial 1\.5: a share of one GPU, or whole GPUs"):
        trial_room(Resources(), 1.5, 1)


def test_a_sweep_removes_what_an_earlier_one_left_and_no_process_that_got_its_number(tmp_path: Path) -> None:
    left = subprocess.Popen(["sleep", "600"])
    try:
        record = process_record(left.pid)
        known = [record, {**LIVE, "start_time": "1"}]  # this process, by its number alone
        write_json(tmp_path / "processes.json", {"driver": DEAD, "temp": "", "processes": known})
        session = cluster.Session(tmp_path)
        assert session.begin() == [left.pid]
        assert left.wait(10) == -signal.SIGKILL
        assert not is_alive(record)
    finally:
        left.kill()


def test_a_sweep_removes_the_files_of_an_earlier_ones_ray_and_no_others(tmp_path: Path) -> None:
    for temp, goes in ((own_folder() / tmp_path.name, True), (tmp_path / "thesis", False)):
        temp.mkdir()
        write_json(tmp_path / "processes.json", {"driver": DEAD, "temp": str(temp), "processes": []})
        session = cluster.Session(tmp_path)
        session.begin()
        session.close()
        assert temp.exists() is not goes


def test_two_sweeps_of_one_experiment_do_not_run_at_once_on_whatever_machines(tmp_path: Path) -> None:
    first = cluster.Session(tmp_path)
    first.begin()
    there = read_json(tmp_path / "processes.json")
    write_json(tmp_path / "processes.json", {**there, "driver": {"host": "login2", "pid": 77, "start_time": "1"}})
    with pytest.raises(KdclusterError, match=r"is under way already \(process 77 on login2\); wait for it"):
        cluster.Session(tmp_path).begin()
    first.close()
    cluster.Session(tmp_path).begin()


def test_a_search_begins_whatever_has_ended_the_one_before(tmp_path: Path) -> None:
    session = cluster.Session(tmp_path)
    session.end("the time budget is over")
    session.go_on()
    assert not session.ending.exists()
    session.go_on()


def test_a_sweep_is_not_queued_while_another_one_has_its_lock(tmp_path: Path) -> None:
    first = cluster.Session(tmp_path / "tiny")
    first.refuse_another()
    first.begin()
    with pytest.raises(KdclusterError, match="a sweep of tiny is under way already"):
        cluster.Session(tmp_path / "tiny").refuse_another()


def test_what_a_trial_raised_is_said_where_no_run_knows_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = space(tmp_path, {"trials": 2})
    first, second = points(searched)
    put(tmp_path / "runs", second.runs[0], "failed")
    monkeypatch.setattr(cluster.Session, "ray_here", lambda *_, **__: nullcontext())
    monkeypatch.setattr(flow, "search", lambda *_, **__: [(first, "no permission"), (second, "as the table says")])
    with Sweeping(searched, tmp_path / "runs", tmp_path / "data") as swept:
        swept.session.begin()
        swept.search([first, second], sys.stderr)
    assert capsys.readouterr().err == f"{' '.join(first.settings)}: no permission\n"


def test_the_words_of_an_error_that_ray_has_wrapped() -> None:
    wrapped = RuntimeError("a page of traceback")
    wrapped.cause = KdclusterError("first\nlast")  # type: ignore[attr-defined]
    assert [tuning._words(one) for one in (wrapped, ValueError())] == ["last", "ValueError"]


def test_a_job_waits_for_the_lock_of_a_node_that_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(cluster, "acquire", lambda lock, without, timeout_s: asked.append(timeout_s))
    monkeypatch.setattr(cluster, "is_inside_job", lambda: True)
    cluster.Session(tmp_path).begin()
    assert asked == [cluster.LEASE_S]


def test_a_sigterm_while_ray_starts_is_an_interruption() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def start() -> None:
        with cluster._sigterm_kept():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
            signal.raise_signal(signal.SIGTERM)  # to this thread

    with pytest.raises(KeyboardInterrupt):
        start()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_ends_a_search_and_a_second_ctrl_c_at_once() -> None:
    stop = Stop()
    with stop.on_signals():
        signal.raise_signal(signal.SIGTERM)
        assert stop.why == "the sweep was told to stop by SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class OneNode:
    """A Ray of one node, which is this process."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "0" * 56, "NodeManagerHostname": "node7"}]

    def remote(self, **_: Any) -> Any:
        def task(function: Callable[[], str]) -> Any:
            return type("Task", (), {"options": lambda self, **_: self, "remote": lambda self: function()})()

        return task

    def get(self, answer: str) -> str:
        return answer


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("", ""),
        ("runs", "node node7: it does not see .*; --runs-dir must lie on a file system that all nodes share"),
        ("data", "node node7: it does not see .*; --data-dir must lie on a file system that all nodes share"),
        ("code", "node node7: its kdcluster is another version than this one"),
    ],
)
def test_every_node_is_asked_for_what_a_trial_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    monkeypatch.setattr(room, "ray_module", OneNode)
    data = tmp_path / "data"
    if missing != "data":
        data.mkdir()
    if missing == "runs":
        monkeypatch.setattr(room, "write_aside", lambda path, text: None)
    if missing == "code":
        monkeypatch.setattr(room, "trainer_code", lambda: "another")
    if not missing:
        return room.check_nodes(tmp_path, data)
    with pytest.raises(KdclusterError, match=said):
        room.check_nodes(tmp_path, data)


def test_nobody_waits_for_a_ray_that_is_not_there() -> None:
    with pytest.raises(KdclusterError, match=r"--ray-address 127\.0\.0\.1:1: .*refused; is a Ray up there"):
        cluster.joined("127.0.0.1:1").__enter__()


def test_a_dashboard_that_is_not_installed_is_an_error_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "DASHBOARD", ("no_such_package",))
    monkeypatch.setattr(cluster, "ray_module", lambda: type("Ray", (), {"shutdown": staticmethod(lambda: None)}))
    session = cluster.Session(tmp_path)
    session.begin()
    with pytest.raises(KdclusterError, match=r"--dashboard needs more of Ray: pip install 'ray\[default\]'"):
        session.ray_here(0, dashboard=True).__enter__()
    assert not Path(session.temp).exists()


@pytest.fixture
def ray_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Ray needs in the environment goes with the test."""
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_USAGE_STATS_ENABLED",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    ):
        monkeypatch.setenv(name, "")


LONGEST_SOCKET = "session_2026-11-27_03-00-00_123456_1234567/sockets/dash_UsageStatsHead"


@pytest.mark.usefixtures("ray_variables")
def test_what_ray_opens_to_all_lies_in_a_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []

    class Ray:
        @staticmethod
        def init(*, _temp_dir: str, **_: object) -> None:
            folder = Path(_temp_dir)
            folder.chmod(0o777)  # as ray._common.utils.try_to_create_directory does
            closed.extend(one for one in (folder, *folder.parents) if one.stat().st_mode & 0o077 == 0)
            assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o077 == 0
            assert len(str(folder / LONGEST_SOCKET).replace(f"-{os.getuid()}/", f"-{2**32}/")) <= 107  # sun_path's room

        @staticmethod
        def shutdown() -> None: ...

    monkeypatch.setattr(cluster, "ray_module", lambda: Ray)
    session = cluster.Session(tmp_path)
    session.begin()
    with session.ray_here(0):
        assert closed == [own_folder()]
    assert not Path(session.temp).exists()


# In SLURM


@pytest.mark.usefixtures("ray_variables")
def test_the_ray_of_a_job_uses_no_folder_that_another_user_may_have_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocation.nodes, "names", lambda _: ["node1"])
    monkeypatch.setattr(allocation, "_own_address", lambda _: "127.0.0.1")
    monkeypatch.setattr(allocation, "joined", lambda _: (_ for _ in ()).throw(InterruptedError))
    (tmp_path / ".ray-7-0").mkdir()  # by somebody who has guessed it
    told: list[tuple[str, int]] = []

    def step(node: str, address: str, name: str) -> subprocess.Popen[bytes]:
        (folder,) = (one for one in tmp_path.iterdir() if one.name != ".ray-7-0")
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder / "token")
        told.append((name, folder.stat().st_mode & 0o777))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(allocation, "_step", step)
    for _ in range(2):
        with pytest.raises(InterruptedError), allocation.ray_on_all_nodes():
            pass
    (first, mode), (second, _) = told
    assert first != second
    assert mode == 0o700
    assert list((tmp_path / ".ray-7-0").iterdir()) == []
    assert [one.name for one in tmp_path.iterdir()] == [".ray-7-0"]


def test_a_node_has_its_rays_files_in_the_users_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocation.nodes, "names", lambda _: ["n1"])
    monkeypatch.setattr(allocation.signal, "signal", lambda *_: None)
    started: list[list[str]] = []

    def popen(argv: list[str], **_: object) -> Any:
        started.append(argv)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(allocation.subprocess, "Popen", popen)
    assert allocation._node("127.0.0.1:1", "c0ffee11", "n1") == 0
    assert f"--temp-dir={own_folder()}/c0ffee11" in started[0]


def test_a_sweep_as_one_job(tmp_path: Path) -> None:
    profile = Profile(device="cpu", gpus_per_node=8, cpus_per_gpu=2, partition="normal", signal_lead_s=60)
    layout, words = job.allocation(Resources(), profile, 4, 2, None, 1)
    assert layout == Layout("cpu", 4, 2, 2, 4)
    assert words[:2] == ["--gpus-per-trial", "1"]
    assert "resources.device=cpu" in words
    text = job.script("sweep-tiny.1", layout, profile, tmp_path, ["7"], ["tiny", "--set", "distill.alpha='a b'"])
    lines = text.splitlines()
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --no-kill",
        "#SBATCH --signal=B:USR2@60",
        "#SBATCH --gres=gpu:2",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --dependency=afterok:7",
        "#SBATCH --partition=normal",
    ):
        assert line in lines
    assert "set -- tiny --set 'distill.alpha='\"'\"'a b'\"'\"''" in lines
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_a_job_has_a_copy_of_the_file_that_nobody_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models.py").touch()
    searched = space(tmp_path, {"trials": 1}, imports=["models.py"])
    monkeypatch.setattr(job.ask, "submit", lambda path, name, since: "7")
    before, folder = points(searched), tmp_path / "runs" / ".sweeps" / "tiny"
    slurm = SimpleNamespace(profile=Profile())
    job.submit(
        folder,
        Layout("cpu", 1, 1),
        slurm,
        [],  # type: ignore[arg-type]
        searched.loaded,
        ["--confirm", "0"],
        "again",
    )
    copy = folder / "slurm" / "1" / "tiny.yaml"
    assert f"set -- {copy} --confirm 0" in (folder / "slurm" / "1" / "job.sh").read_text().splitlines()
    (tmp_path / "tiny.yaml").write_text("broken")
    there = Space(configfile.load(str(copy)))
    assert points(there) == before
    assert there.loaded.config == searched.loaded.config


@pytest.mark.parametrize("ending", [False, True])
def test_the_death_of_the_first_nodes_ray_ends_the_sweep_with_a_word(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ending: bool
) -> None:
    left: list[int] = []
    monkeypatch.setattr(allocation.os, "_exit", left.append)
    over = threading.Event()
    if ending:
        over.set()
    allocation._watch(subprocess.Popen(["true"]), over)
    assert left == ([] if ending else [1])
    assert ("Ray has died on the first node" in capfd.readouterr().err) is not ending


def test_a_sweep_without_gpus_gets_cores_for_its_trials_at_once() -> None:
    layout, words = job.allocation(Resources(threads=3), Profile(), None, 2, None, 4)
    assert layout == Layout("cpu", 4, 3, 2, 0)
    assert words[1::2] == [f"resources.{one}" for one in ("device=cpu", "gpus=null", "procs=1", "threads=3")]


def test_real_gpus_are_what_trials_run_on_whatever_the_file_says() -> None:
    layout, words = job.allocation(Resources(device="cpu", procs=2), Profile(gpus_per_node=8), 16, None, 0.5, 1)
    assert layout == Layout("cuda", 16, None, 2, 16)
    assert words[:2] == ["--gpus-per-trial", "0.5"]
    assert words[3::2] == [f"resources.{one}" for one in ("device=cuda", "procs=null", "gpus=1")]


@pytest.mark.parametrize(
    ("resources", "gpus", "per_trial", "said"),
    [
        ({}, 4, 3, "a trial needs 1 core and 3 GPUs on one node, and none has that .1 core and 2 GPUs."),
        ({"procs": 2}, None, None, "a trial needs 2 cores on one node, and none has that .1 core and 0 GPUs."),
    ],
)
def test_a_trial_that_fits_on_no_node_is_not_queued(
    resources: dict[str, Any], gpus: int | None, per_trial: float | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        job.allocation(Resources(**resources), Profile(gpus_per_node=8), gpus, 2, per_trial, 1)


@pytest.mark.parametrize("said", ["gpus", "cores"])
def test_a_trial_that_can_never_fit_is_an_error_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(flow, "visible_gpus", lambda: ["GPU-a", "GPU-b"])
    resources = {"gpus": 4} if said == "gpus" else {"device": "cpu", "procs": 1000}
    swept = Sweeping(space(tmp_path, {"trials": 1}, resources=resources), tmp_path / "runs", tmp_path / "data")
    with pytest.raises(ConfigError, match="2 GPUs" if said == "gpus" else "a trial needs 1000 cores"):
        swept.check()


def test_a_sweep_holds_the_gpus_that_its_ray_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked for everybody else, so that Ray's own account of shares is the only one."""
    cards = [f"GPU-{tmp_path.name}-{letter}" for letter in "abc"]
    monkeypatch.setattr(flow, "visible_gpus", lambda: cards)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    given = []

    @contextmanager
    def ray_here(self: cluster.Session, gpus: int, *, dashboard: bool) -> Iterator[None]:
        given.append((gpus, os.environ["CUDA_VISIBLE_DEVICES"]))
        assert Slots("GPU", cards, tmp_path).take(1, "another") is None or gpus < 2
        yield

    monkeypatch.setattr(cluster.Session, "ray_here", ray_here)
    monkeypatch.setattr(flow, "search", lambda *_, **__: [])
    searched = space(tmp_path, {"trials": 1}, resources={"device": "cuda"})
    other = Slots("GPU", cards[:1], tmp_path).take(1, "another")  # another run has the first one
    assert other is not None

    def swept(gpus: int | None = None) -> Sweeping:
        return Sweeping(searched, tmp_path / "runs", tmp_path / "data", gpus, 0.5)

    with swept() as one:
        one.search(points(searched), sys.stderr)
        with pytest.raises(KdclusterError, match="0 of 3 GPUs are free"), swept() as two:
            two.search(points(searched), sys.stderr)
    assert given == [(2, f"{cards[1]},{cards[2]}")]
    with pytest.raises(KdclusterError, match="2 of 3 GPUs are free"), swept(3) as three:
        three.search(points(searched), sys.stderr)
    with swept(1) as four:  # all were let go
        four.search(points(searched), sys.stderr)
    assert given[1:] == [(1, cards[1])]
    other[0][1].release()


# Where the interpreter lies


def test_an_interpreter_whose_path_has_a_blank_reaches_ray_in_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integration tests run one for real; here is the other case, and that nothing is given without need."""
    monkeypatch.setattr(sys, "executable", "/opt/my venv/bin/python")
    assert cluster._environment() == {"py_executable": "'/opt/my venv/bin/python'"}
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    assert cluster._environment() == {}
