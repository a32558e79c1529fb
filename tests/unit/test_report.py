"""`kdcluster report` and `plot`: what they say, against values computed by hand, whatever the runs are called."""

from __future__ import annotations

import base64
import html.parser
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from kdcluster import cli, predictions
from kdcluster.experiment import configfile
from kdcluster.files import write_json
from kdcluster.plan import plan
from kdcluster.report import captions, draw, examples, pictures
from kdcluster.report.curves import Race, convergence
from kdcluster.report.facts import Facts, gather
from kdcluster.report.sections import images
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.saved import weights_digest
from kdcluster.sweep.confirmation import OWN, arms
from kdcluster.sweep.points import FRESH
from kdcluster.wording import one_line
from tests.fabricated import put
from tests.reported import HOSTILE, TOPS, finish, finished, with_names, with_pixels, with_predictions, with_sweep
from tests.tiny import put_images, train_here, write_experiment


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words, catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, {"seeds": [0, 1]})
    return tmp_path


def gathered(folder: Path) -> Facts:
    return gather(configfile.load(str(folder / "tiny.yaml")), [], folder / "runs", folder / "data")


class Parsed(html.parser.HTMLParser):
    """A page: its elements, its text, and whether each element is closed where it was opened."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_says_what_the_table_says(folder: Path) -> None:
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    result = run("report", "tiny.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "tiny-report.html\n", "")
    page = Parsed((folder / "tiny-report.html").read_text())
    said = " ".join(" ".join(page.text).split())
    # baseline 70, 74; distilled 80, 78: means 72 and 79, gains 10 and 4, t(0.975, 1) = 12.706
    assert "72.00 ± 2.83" in said
    assert "79.00 ± 1.41" in said
    assert "+7.00" in said
    assert f"−{12.7062 * 3 - 7:.2f} to {12.7062 * 3 + 7:.2f}" in said
    assert "87.8 %" in said  # 79 / 90
    assert "10.0×" in said
    assert "includes zero: no gain is shown" in said


def test_curves_are_means_over_seeds_and_say_who_is_sooner(folder: Path) -> None:
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    found = gathered(folder).curves
    assert found.unit == "epoch"
    assert found.of["baseline"].at == (1, 2)
    assert found.of["baseline"].mean == pytest.approx((42.0, 72.0))
    assert found.of["baseline"].sd == pytest.approx((8**0.5, 8**0.5))
    assert found.of["distilled"].mean == pytest.approx((73.0, 79.0))
    assert found.of["teacher"].sd is None
    assert found.races == (Race(1, 2, 2, 2),) * 2
    said = list(convergence(found))
    best, there = said[0].split(". ")
    assert best == "The baselines' mean is best after epoch 2, with 72.00 %"
    assert there == "The distilled mean gets there after epoch 1, in 50 % of the epochs."
    assert said[-2].startswith("Seed by seed: in 2 of 2 the distilled student has the best accuracy of its baseline in")
    assert "in 0 it has 99 % of its own best before" in said[-2]
    assert said[-1].startswith("So they are earlier where the baselines end, as students that end higher are")


def test_that_it_converges_faster_is_said_where_each_seed_shows_it_by_both_measures(folder: Path) -> None:
    tops = {**TOPS, ("distilled", 0): [80.0, 80.5], ("distilled", 1): [84.0, 84.5]}
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]), tops)
    said = list(convergence(gathered(folder).curves))
    assert said[-1] == "So distilled students converge faster here, by both measures in every seed."


def test_that_it_converges_faster_is_refuted_where_it_does_not(folder: Path) -> None:
    tops = {**TOPS, ("distilled", 0): [30.0, 60.0], ("distilled", 1): [30.0, 60.0]}
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]), tops)
    said = list(convergence(gathered(folder).curves))
    assert "The distilled mean never gets there; its own best is 60.00 %" in said[0]
    assert said[-1] == "So it is not shown that distilled students converge faster here."


def test_why_the_best_of_a_curve_is_not_the_number_of_the_table_is_said(folder: Path) -> None:
    """Baselines best in other epochs: 70 and 74 are 72 in the table; their mean is 65, then 67."""
    tops = {**TOPS, ("baseline", 0): [70.0, 60.0], ("baseline", 1): [60.0, 74.0]}
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]), tops)
    told = "The table has 72.00 instead of 67.00 % (baseline): there each seed counts at its own best epoch, in a curve"
    assert told in page_of(folder)


def page_of(folder: Path, *options: str) -> str:
    """What the report says, in one line."""
    assert run("report", "tiny.yaml", "--output", "a.html", *options).exit_code == 0
    return " ".join(" ".join(Parsed((folder / "a.html").read_text()).text).split())


def test_the_data_and_what_flatters_the_numbers_stand_at_the_top(folder: Path) -> None:
    write_experiment(folder, {"seeds": [0, 1], "data.labelled": 1000})
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    top = page_of(folder).partition("Results by configuration")[0]
    assert "Data set cifar10: 10 classes, 50,000 train (1,000 with labels, 49,000 without), 10,000 test, 32×32" in top
    assert "Of each run the evaluation with the best test accuracy counts" in top
    assert "Distilled students also learn from 49,000 images without labels that baselines never see." in top
    write_experiment(folder, {"seeds": [0, 1], "data.val_fraction": 0.1})
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    top = page_of(folder).partition("Results by configuration")[0]
    assert "Of each run the evaluation" not in top
    assert "without labels" not in top


def test_what_other_trainer_code_means_is_said_in_plain_words(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made)
    for one in made.runs:
        if newest := RunDir(folder / "runs", one.id).newest():
            newest.write("trainer", {**newest.read("trainer"), "trainer_code": "another"})
    said = page_of(folder)
    assert said.count("the trainer's code has changed since these were made: 5 of 5 runs; their numbers stand as") == 1
    assert "`kdcluster submit EXP --runs-dir NEW` makes them again with today's" in said


def test_means_over_other_seeds_are_said_to_be_that(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made, {key: tops for key, tops in TOPS.items() if key != ("distilled", 1)})
    found = gathered(folder).curves
    assert found.races == (Race(1, 2, 2, 2),)
    assert "These means are not over the same seeds: baseline has 2, distilled 1." in list(convergence(found))


def test_the_command_line_names_every_picture() -> None:
    assert tuple(pictures.PICTURES) == cli.PICTURES


@pytest.mark.parametrize(("name", "begins"), [("a.pdf", b"%PDF"), ("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_a_figure_is_as_wide_as_was_asked(folder: Path, name: str, begins: bytes) -> None:
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    result = run("plot", "tiny.yaml", "--output", name, "--width-mm", "120")
    assert (result.exit_code, result.stdout) == (0, f"{name}\n")
    content = (folder / name).read_bytes()
    assert content.startswith(begins)
    points = 120 / 25.4 * 72
    if name == "a.pdf":
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", content)
        assert box
        assert float(box[1]) == pytest.approx(points, abs=0.01)
        assert b"/Type3" not in content
    elif name == "a.png":
        assert int.from_bytes(content[16:20], "big") == int(120 / 25.4 * 300)
    run("plot", "tiny.yaml", "--output", f"again{Path(name).suffix}", "--width-mm", "120")
    assert (folder / f"again{Path(name).suffix}").read_bytes() == content


def test_a_figure_fits_a_column_unless_told_otherwise(folder: Path) -> None:
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    run("plot", "tiny.yaml", "--output", "a.pdf")
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", (folder / "a.pdf").read_bytes())
    assert box
    assert float(box[1]) / 72 * 72.27 < 229.5  # of two in the class article, in TeX's points


def test_every_point_of_a_curve_is_in_its_picture(folder: Path) -> None:
    """Once the first ones of a teacher were not."""
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made, {**TOPS, ("teacher", 0): [1.0, 100.0]})
    facts, look = gathered(folder), draw.paper(80)
    with draw.drawing(look):
        figure = draw.figure(pictures.curves, facts, look)
        figure.draw_without_rendering()
    (plot,) = figure.axes
    low, high = plot.get_ylim()
    points = [y for line in plot.lines for y in line.get_ydata()]
    assert low <= min(points)
    assert max(points) <= high
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["teacher", "baseline (2 seeds)", "distilled (2 seeds)", "± 1 std. dev."]
    assert legend.get_window_extent().y0 >= plot.get_window_extent().y1  # it lies on no line


def test_the_lowest_accuracy_of_curves_can_be_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]), {**TOPS, ("teacher", 0): [1.0, 90.0]})
    made: list[Any] = []
    figure = draw.figure
    monkeypatch.setattr(draw, "figure", lambda *given: made.append(figure(*given)) or made[-1])
    result = run("plot", "tiny.yaml", "--output", "a.svg", "--y-min", "62.5")
    (plot,) = made[0].axes
    assert plot.get_ylim()[0] == 62.5
    assert plot.get_ylim()[1] > 90
    assert result.stderr.endswith(" The axis begins at 62.5%.\n")
    assert run("plot", "tiny.yaml", "--output", "a.pdf", "--y-min", "62.5").stderr.endswith("at 62.5\\%.\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--y-min", "90"), "--y-min 90: no curve is higher than 90.00 %"),
        (("--y-min", "50", "--picture", "gains"), "--y-min is of --picture curves; gains has no axis for it"),
        (("--y-min", "100"), "100.0 is not in the range 0<=x<100"),
    ],
)
def test_a_lowest_accuracy_that_shows_nothing_is_refused(folder: Path, options: tuple[str, ...], said: str) -> None:
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]))
    result = run("plot", "tiny.yaml", "--output", "a.pdf", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (folder / "a.pdf").exists()


def test_a_figure_comes_with_a_caption(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made, {key: tops for key, tops in TOPS.items() if key != ("distilled", 1)})
    who = "the teacher, the student trained alone (baseline) and the student distilled from the teacher"
    result = run("plot", "tiny.yaml", "--output", "a.pdf")
    assert (result.stdout, result.stderr) == (
        "a.pdf\n",
        f"caption: Test accuracy on CIFAR-10 (4 test images) over training: {who}. Lines are means over 2 seeds, "
        "bands one standard deviation of the seeds to either side; the teacher and the distilled are single runs. "
        "1 run that is not finished is not shown.\n",
    )
    finished(folder / "runs", made)
    assert "with its 95\\% confidence" in run("plot", "tiny.yaml", "--output", "b.pdf", "--picture", "gains").stderr
    assert "with its 95% confidence" in run("plot", "tiny.yaml", "--output", "b.svg", "--picture", "gains").stderr


@pytest.mark.parametrize("picture", pictures.PICTURES)
def test_every_picture_has_a_caption(folder: Path, picture: str) -> None:
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    said = captions.caption(picture, gathered(folder))
    assert "on CIFAR-10" in said
    assert said.endswith(".")


def test_a_figure_of_no_known_format_is_refused_before_anything_is_read(folder: Path) -> None:
    result = run("plot", "tiny.yaml", "--output", "a.gif")
    assert result.exit_code == 2
    assert "--output a.gif: its end says no format; give it one of .pdf, .png, .svg" in result.stderr


@pytest.mark.parametrize("words", [("report",), ("plot", "--output", "a.pdf")], ids=["report", "plot"])
def test_of_what_was_never_started_there_is_nothing(folder: Path, words: tuple[str, ...]) -> None:
    write_experiment(folder, {"seeds": [0, 1], "distill.alpha": 0.9, "train.lr": 0.5, "teacher.seed": 7}, "other")
    for also in (False, True):
        result = run(*words, "tiny.yaml")
        assert (result.exit_code, result.stdout) == (5, "")
        said = " ".join(result.stderr.split())
        assert f"no run of tiny.yaml was started in {folder / 'runs'}: kdcluster submit tiny.yaml; --runs-dir" in said
        if not also:
            finished(folder / "runs", plan([configfile.load("other.yaml")]))
    assert not [*folder.glob("*.html"), *folder.glob("*.pdf")]


def test_runs_that_are_not_done_are_counted_on_the_terminal(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made, dict(list(TOPS.items())[:4]))
    said = " ".join(run("report", "tiny.yaml").stderr.split())
    assert "1 run of tiny is not done, and in no mean: kdcluster status tiny.yaml" in said
    finished(folder / "runs", made)
    assert "not done" not in run("report", "tiny.yaml").stderr


def test_before_a_run_has_begun_there_is_a_page_and_no_figure(folder: Path) -> None:
    waits = plan([configfile.load("tiny.yaml")]).runs[0]
    RunDir(folder / "runs", waits.id).prepare(waits)
    result = run("report", "tiny.yaml", "--output", "a.html")
    assert result.exit_code == 0
    assert "5 runs of tiny are not done" in result.stderr
    said = " ".join(Parsed((folder / "a.html").read_text()).text)
    assert "No gain can be told yet" in said
    assert "Not in the means: 5" in said
    assert all(one.id in said for one in plan([configfile.load("tiny.yaml")]).runs if "logits" not in one.id)
    result = run("plot", "tiny.yaml", "--output", "a.pdf")
    assert result.exit_code == 1
    assert "nothing for the picture curves yet" in result.stderr
    assert not (folder / "a.pdf").exists()


# What is said of single images


def test_what_is_said_of_images_is_what_counting_by_hand_gives(folder: Path) -> None:
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    found = gathered(folder).images
    assert found.without == ()
    assert found.images == 4
    # baseline: image 0 right, 1 wrong, 2 wrong, 3 right. Seed 0 fixes image 1; seed 1 fixes 1 and breaks 3.
    assert found.pairs == 2
    taught = [one for one in gathered(folder).results.seeds if one.role == "distilled"]
    assert [(one.seed, one.fixed, one.broken, one.p) for one in taught] == [(0, 1, 0, 1.0), (1, 1, 1, 1.0)]
    # class 0 is images 0 and 2: 50 % of both; class 1 is 1 and 3: baseline 50 %, distilled (100 + 50) / 2
    assert [(one.name, one.images, one.baseline, one.distilled) for one in found.classes] == [
        ("class 0", 2, 50.0, 50.0),
        ("class 1", 2, 50.0, 75.0),
    ]
    assert found.classes[1].change == 25.0
    # 1 is taken for 0 once by each baseline; by distilled in seed 1 only
    assert [(one.label, one.guess, one.baseline, one.distilled) for one in found.confused] == [
        ("class 1", "class 0", 1.0, 0.5)
    ]
    teacher, baseline, distilled = found.calibration
    sure = {margin: 1 / (1 + math.exp(-margin)) for margin in (2, 3, 4)}
    assert teacher.ece == pytest.approx(100 * (1 - sure[4]))
    assert baseline.ece == pytest.approx(100 * (sure[2] - 0.5))
    assert distilled.ece == pytest.approx(100 * ((sure[3] - 0.75) + (sure[3] - 0.5)) / 2)
    assert distilled.ece_sd == pytest.approx(100 * 0.25 / math.sqrt(2))
    assert (teacher.agreement, teacher.kl) == (None, None)
    assert baseline.agreement == 50.0
    assert distilled.agreement == pytest.approx((75 + 50) / 2)
    p = sure[4]
    same, other = (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for q in (sure[2], 1 - sure[2]))
    assert baseline.kl == pytest.approx((same + other) / 2)
    # both surer than right: of four images of a confidence of 0.95 three and two are right; 0.88 and two
    ours, theirs = f"{distilled.ece:.2f} points", f"{baseline.ece:.2f}"
    told = (
        f"ECE is {ours} with distillation and {theirs} without; the 95 % interval of the difference over the seeds is "
    )
    said = page_of(folder)
    assert told in said
    assert "that distillation changes it is not shown. On average distilled students are surer than they are" in said
    for change, shows in ((-9.0, "improves it"), (9.0, "worsens it")):
        other = replace(distilled, eces={0: baseline.eces[0] + change, 1: baseline.eces[1] + 1.01 * change})
        assert f": distillation {shows}. " in images._calibrated(baseline, other)


def test_images_are_shown_where_the_data_folder_has_those_that_were_tested_on(folder: Path) -> None:
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    assert "the images are not in" in gathered(folder).examples.no_pixels
    pixels = with_pixels(folder / "data")
    found = gathered(folder).examples
    assert found.no_pixels == ""
    (fixed,), (broken,) = found.fixed, found.broken
    assert (fixed.index, fixed.label, fixed.baseline, fixed.distilled, fixed.seeds, fixed.of) == (
        *(1, "class 1", "class 0", "class 1", 2, 2),
    )
    assert (broken.index, broken.baseline, broken.distilled, broken.seeds) == (3, "class 1", "class 0", 1)
    assert fixed.png
    content = base64.b64decode(fixed.png.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(content))), pixels[1].transpose(1, 2, 0))
    np.save(folder / "data" / "arrays" / "cifar10" / "test_labels.npy", np.array([1, 1, 0, 1]))
    assert "not those that the runs were tested on" in gathered(folder).examples.no_pixels


def test_images_that_changed_in_most_seeds_come_first() -> None:
    """Both broken on balance, image 0 in two seeds and fixed in none, image 1 in three seeds and fixed in one."""
    alone, taught = [[1, 1], [1, 1], [1, 0], [1, 1], [1, 1]], [[0, 0], [0, 0], [1, 1], [1, 0], [1, 1]]
    both = [
        (SimpleNamespace(guess=np.array(a), sure=np.zeros(2)), SimpleNamespace(guess=np.array(t), sure=np.zeros(2)))
        for a, t in zip(alone, taught, strict=True)
    ]
    assert examples._most(-1, both, np.array([1, 1])) == [1, 0]
    assert examples._most(1, both, np.array([1, 1])) == []


def test_pictures_say_what_is_better_and_how_far_seeds_differ(folder: Path) -> None:
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    drawn = page_of(folder)
    assert "distilled − baseline (percentage points)" in drawn
    assert " class better Mean over 2 seeds." in drawn  # the axis, and the legend; no class is worse
    assert "distilled 62.50 ± 17.68 " in drawn  # of 75 and 50, at the mark


def test_of_wrong_classes_that_are_said_as_often_all_are_told() -> None:
    assert examples._most_said([2, 1, 2], ["cat", "dog", "fox"]) == "fox"
    assert examples._most_said([2, 0], ["cat", "dog", "fox"]) == "cat or fox"


def test_runs_without_predictions_are_reported_without_and_it_is_said(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    with_predictions(folder / "runs", made, leave_out=("baseline", 1))
    lacking = next(one.id for one in made.runs if (one.role, one.seed) == ("baseline", 1))
    found = gathered(folder).images
    assert found.pairs == 1
    assert found.without == (f"{lacking}: it keeps no predictions: an earlier version made it",)
    path = predictions.path_of(folder / "runs" / lacking, 8)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    assert "its predictions are damaged" in gathered(folder).images.without[0]
    run("report", "tiny.yaml", "--output", "a.html")
    assert lacking in (folder / "a.html").read_text()


def test_a_run_that_failed_is_never_hidden(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made, {key: tops for key, tops in TOPS.items() if key != ("distilled", 1)})
    broken = next(one for one in made.runs if (one.role, one.seed) == ("distilled", 1))
    put(folder / "runs", broken, "failed")
    run("report", "tiny.yaml", "--output", "a.html")
    said = " ".join(Parsed((folder / "a.html").read_text()).text)
    assert "1 of 2" in said
    assert f"{broken.id} failed rank 1, step 7: ValueError: no" in " ".join(said.split())
    assert f"Not done, and not in the curves: {broken.id} ." in " ".join(said.split())


# Names from outside


@pytest.mark.parametrize("first", range(0, 10, 2))
def test_names_from_outside_are_text(folder: Path, first: int) -> None:
    name = os.fsdecode(b"<script>alert(1)<\xff") + "&" * 150  # no slash: it is a file's
    write_experiment(folder, {"seeds": [0, 1], "variant": HOSTILE[1]}, name)
    loaded = configfile.load(f"{name}.yaml")
    made = plan([loaded])
    with_predictions(folder / "runs", made)
    for one in (one for one in made.runs if one.role != STORE):
        RunDir(folder / "runs", one.id).note_submit(shlex.join([name, "--set", f"variant={HOSTILE[1]}"]))
    with_names(folder / "runs", made, [*HOSTILE[first:], *HOSTILE[:first]])
    assert run("report", f"{name}.yaml", "--output", "a.html").exit_code == 0
    written = (folder / "a.html").read_text()
    page = Parsed(written)
    assert {tag for tag, _ in page.elements} & {"script", "i", "b", "iframe", "object", "link"} == set()
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")]
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
        assert not (attributes.get("href") or "#").startswith(("http", "javascript"))
    said = "".join(page.text)
    assert "\u202e" not in written
    assert all(one_line(one) in said for one in HOSTILE[first : first + 2])
    assert one_line(name) in said


def test_nothing_is_fetched_and_nothing_can_run(folder: Path) -> None:
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    run("report", "tiny.yaml")
    written = (folder / "tiny-report.html").read_text()
    page = Parsed(written)
    policy = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv")]
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not re.search(r"url\((?!#)", written)
    assert "@import" not in written
    addresses = set(re.findall(r"https?://[^\"'<> ]+", written))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_page_can_be_read_without_seeing_it(folder: Path) -> None:
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    run("report", "tiny.yaml")
    page = Parsed((folder / "tiny-report.html").read_text())
    assert dict(page.elements[0][1]) == {"lang": "en"}
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    assert all(attributes.get("scope") for tag, attributes in page.elements if tag == "th")
    drawn = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawn) == tags.count("figure") == tags.count("figcaption") > 4
    assert all(one["role"] == "img" and one["aria-label"] for one in drawn)
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    anchors = {(attributes["href"] or "")[1:] for tag, attributes in page.elements if tag == "a"}
    assert anchors <= set(ids)
    named = {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert named <= set(ids)


def test_several_experiments_stand_in_one_page(folder: Path) -> None:
    write_experiment(folder, {"seeds": [0, 1], "distill.alpha": 0.9}, "other")
    for name in ("tiny", "other"):
        finished(folder / "runs", plan([configfile.load(f"{name}.yaml")]))
    result = run("report", "tiny.yaml", "other.yaml")
    assert result.stdout == "tiny-other-report.html\n"
    page = Parsed((folder / "tiny-other-report.html").read_text())
    assert "All experiments of this page" in page.text
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))


# Sweeps


def test_a_sweep_shows_what_was_stopped_when(folder: Path) -> None:
    write_experiment(folder, {"seeds": [0, 1], "train.epochs": 4, "sweep": {"trials": 8}})
    with_sweep(folder / "runs", folder / "tiny.yaml")
    found = gathered(folder).trials
    assert found
    assert found.metric == "val/top1"
    # of 8 the 4th and 8th failed, the 2nd and 6th were stopped after two epochs; the best of the others is the 7th
    assert [one.value for one in found.tried] == [68.0, 62.0, 56.0, 50.0, 57.0, 45.0, None, None]
    lengths = {one.state: {len(found.courses[one.point.ids])} for one in found.tried}
    assert lengths == {"done": {4}, "stopped": {2}, "failed": {0}}
    run("report", "tiny.yaml", "--output", "a.html")
    said = " ".join(" ".join(Parsed((folder / "a.html").read_text()).text).split())
    assert "8 trials: 4 done, 2 stopped early, 2 failed." in said
    assert "Best: val/top1 68.00" in said
    for picture in ("sweep-map", "sweep-keys", "sweep-courses"):
        assert run("plot", "tiny.yaml", "--picture", picture, "--output", f"{picture}.pdf").exit_code == 0


def test_the_confirmation_of_a_sweep_is_told_with_its_verdict(folder: Path) -> None:
    write_experiment(folder, {"train.epochs": 4, "sweep": {"trials": 1}})
    root = folder / "runs"
    searched = with_sweep(root, folder / "tiny.yaml")
    (best,) = searched.drawn(1)
    finished(root, plan([searched.loaded]))
    made = searched.confirmation(best, 2)
    tops = {"baseline": 50.0, OWN: 40.0, "winner": 60.0}
    for one in arms(made):
        finish(root, one.runs[0], [1.0, tops[one.values["arm"]] + one.values["seed"] - FRESH])
    run("report", "tiny.yaml", "--output", "a.html")
    said = " ".join(" ".join(Parsed((folder / "a.html").read_text()).text).split())
    assert "60.50 ± 0.71" in said  # of 60 and 61
    told = "On 2 fresh seeds, the winner is better than no distillation: 60.50 % against 50.50 %, +10.00 points"
    assert told in said
    assert "confirmation 6 6 0:0" in said  # runs and attempts: three arms of two seeds
    assert "kdcluster submit tiny.yaml kdcluster sweep tiny.yaml kdcluster report tiny.yaml" in said


def test_where_nothing_changes_there_are_pictures_all_the_same(folder: Path) -> None:
    """Warnings of the library, as of axes without a length, are errors here."""
    made = plan([configfile.load("tiny.yaml")])
    with_predictions(folder / "runs", made)
    ours = {one.role + str(one.seed): predictions.path_of(folder / "runs" / one.id, 8) for one in made.runs}
    for seed in "01":
        ours[f"distilled{seed}"].write_bytes(ours[f"baseline{seed}"].read_bytes())
    found = gathered(folder)
    assert [one.change for one in found.images.classes] == [0.0, 0.0]
    assert (found.examples.fixed, found.examples.broken) == ((), ())
    assert run("report", "tiny.yaml", "--output", "a.html").exit_code == 0
    same = {key: [50.0, 50.0] for key in TOPS}
    shutil.rmtree(folder / "runs")
    finished(folder / "runs", made, same)
    assert run("report", "tiny.yaml", "--output", "a.html").exit_code == 0


@pytest.mark.parametrize(
    "roles", [("baseline", "distilled"), ("teacher",), ("baseline",), ("teacher", "distilled")], ids=str
)
def test_with_some_roles_alone_there_is_a_page_of_these(folder: Path, roles: tuple[str, ...]) -> None:
    made = plan([configfile.load("tiny.yaml")])
    with_predictions(folder / "runs", made)
    for one in made.runs:
        if one.role not in roles:
            shutil.rmtree(folder / "runs" / one.id, ignore_errors=True)
    assert run("report", "tiny.yaml", "--output", "a.html").exit_code == 0
    found = gathered(folder)
    assert tuple(found.curves.of) == roles
    assert tuple(one.role for one in found.images.calibration) == roles
    assert bool(found.images.pairs) == ({"baseline", "distilled"} <= set(roles))
    if "teacher" not in roles:
        assert all(one.agreement is None and one.kl is None for one in found.images.calibration)


# Costs


def test_hours_are_the_sum_over_attempts_and_those_of_repeated_steps_are_lost(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    run_dir = RunDir(folder / "runs", made.runs[0].id)
    run_dir.prepare(made.runs[0])
    for started, hours, begun, reached, state in ((1e6, 1.0, 0, 40, "preempted"), (1.1e6, 0.5, 30, 80, "done")):
        attempt = run_dir.start_attempt({"started": started, "gpus_held": 2, "nodes": "node<7>"})
        attempt.write("trainer", {"resumed_at_step": begun})
        attempt.write("heartbeat", {"time": started + 3600 * hours, "step": reached})
        attempt.write("outcome", {"state": state, "reason": "", "time": started + 3600 * hours})
    run("report", "tiny.yaml", "--output", "a.html", "--internal")
    said = " ".join(" ".join(Parsed((folder / "a.html").read_text()).text).split())
    # 2 GPUs for 1.5 hours; of the first attempt's 40 steps, 2 GPU-hours, 10 were done again
    hours = "GPUs were held for 3 GPU-hours, 0.5 of them lost to repeats."
    assert f"2 attempts of 1 run took 1:30:00 together; {hours}" in said
    assert "node<7>" in said
    assert run("plot", "tiny.yaml", "--picture", "time", "--output", "a.pdf").exit_code == 0


# From real training


def test_of_runs_that_were_really_trained(folder: Path, one_thread: None) -> None:
    """What is counted in single images is the table's gain, and the pixels are those of the test set."""
    changes = {"seeds": [0, 1], "distill.logits": "computed", "train.lr": 0.05}
    write_experiment(folder, changes)
    put_images(folder / "data")
    made = plan([configfile.load("tiny.yaml")])
    for one in made.runs:
        train_here(folder / "runs", one, folder / "data")
    found = gathered(folder)
    assert found.images.without == ()
    assert found.images.images == 32
    taught = [one for one in found.results.seeds if one.role == "distilled"]
    assert found.gains == {one.seed: pytest.approx(100 * (one.fixed - one.broken) / 32) for one in taught}
    assert found.curves.of["distilled"].at == (1, 2)
    assert found.examples.no_pixels == ""
    shown = (*found.examples.fixed, *found.examples.broken)
    labels = np.load(folder / "data" / "arrays" / "cifar10" / "test_labels.npy")
    assert shown
    assert all(one.label == f"class {labels[one.index]}" and one.png for one in shown)
    (made_by,) = found.origin.made
    assert len(made_by.runs) == 5
    assert "torch" in dict(made_by.versions)
    assert run("report", "tiny.yaml", "--output", "a.html").exit_code == 0


def test_without_matplotlib_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for words in (("report", "tiny.yaml"), ("plot", "tiny.yaml", "--output", "a.pdf")):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "pictures need matplotlib: pip install 'kdcluster[report]'" in result.stderr


def test_what_was_not_committed_is_told_with_the_commands_that_bring_it_back(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made)
    run_dir = RunDir(folder / "runs", made.runs[0].id)
    git = {"/src/it's": {"commit": "c" * 40, "dirty": True}}
    attempt = run_dir.start_attempt({"code": {"kdcluster": "0.1.0", "git": git}})
    (attempt.path / "code.diff").write_text("-<script>\n+line\n")
    warned = " ".join(run("report", "tiny.yaml", "--output", "a.html", "--internal").stderr.split())
    assert "names hosts and folders, and shows what was not committed" in warned
    said = "".join(Parsed((folder / "a.html").read_text()).text)
    assert f"git -C '/src/it'\"'\"'s' checkout {'c' * 40}\n" in said
    assert f"git -C '/src/it'\"'\"'s' apply {attempt.path / 'code.diff'}\n" in said
    assert "kdcluster submit tiny.yaml\n" in said
    assert "-<script>\n+line" in said


SECRETS = ["login7", "gpu3", "gpu12.cluster", "10.1.2.3", "mlflow.example", "alice", "paper draft", "/mnt/", "quiet"]
"""Hosts, folders, and what was not committed, in every record that a report reads."""
DIFF = """diff --git a/one.py b/one.py
--- a/one.py
+++ b/one.py
@@ -1,2 +1,2 @@
--- quiet
+++ quiet
 same
diff --git a/two.py b/two.py
@@ -0,0 +1 @@
+quiet
"""


def test_hosts_folders_and_what_was_not_committed_are_for_oneself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "alice" / "paper draft"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    weights = folder / "the weights.safetensors"
    weights.write_bytes(b"any")
    write_experiment(folder, {"seeds": [0, 1], "student.pretrained": str(weights)})
    made = plan([configfile.load("tiny.yaml")])
    tops = {key: top for key, top in TOPS.items() if key != ("distilled", 1)}
    finished(folder / "runs", made, tops)
    git = {"/mnt/alice/kd": {"commit": "c" * 40, "dirty": True}}
    words = [str(folder / "tiny.yaml"), "--data-dir", "/mnt/alice/some data", "--cluster", "/mnt/alice/mine.yaml"]
    for one in made.runs:
        run_dir = RunDir(folder / "runs", one.id)
        if one.role == STORE:
            continue
        run_dir.prepare(one)
        run_dir.note_submit(shlex.join([*words, "--set", "variant=/mnt/alice/x"]))
        first = run_dir.newest()
        about = {"host": "login7", "nodes": "gpu[1-4,12]", "code": {"git": git}, "command": ["/mnt/alice/python"]}
        attempt = run_dir.start_attempt({"started": 1e6, **about})
        (attempt.path / "code.diff").write_text(DIFF)
        attempt.write("trainer", {**(first.read("trainer") if first else {}), "steps_per_epoch": 4})
        reason = f"no answer of gpu3:29500 (10.1.2.3) to gpu12.cluster or login7; {folder}/rank 0.log, '/mnt/a b/c'"
        reason += ", http://mlflow.example:5000/x, ~alice/x, and /mnt/deep/down/file.py: line 3"
        state = "done" if first else "failed"
        attempt.write("outcome", {"state": state, "reason": reason, "time": 1.1e6, "rank": 0})
    result = run("report", "tiny.yaml", "--data-dir", "/mnt/alice/some data", "--output", "a.html")
    said = "1 run of tiny is not done, and in no mean: kdcluster status tiny.yaml\n"
    assert (result.exit_code, result.stderr) == (0, said)
    written = (folder / "a.html").read_text()
    assert [one for one in [*SECRETS, str(tmp_path)] if one in written] == []
    said = " ".join(" ".join(Parsed(written).text).split())
    assert "no answer of HOST:29500 (HOST) to HOST or HOST;" in said
    assert "'c', http://HOST/x, x, and file.py: line 3" in said
    assert "all 5 runs, with 3 uncommitted lines in 2 files, not shown cccccccccccc" in said
    assert f"git checkout {'c' * 40} kdcluster submit tiny.yaml --cluster CLUSTER" in said
    assert "student.pretrained the weights.safetensors" in said
    run("report", "tiny.yaml", "--data-dir", "/mnt/alice/some data", "--output", "a.html", "--internal")
    written = (folder / "a.html").read_text()
    assert [one for one in SECRETS if one not in written] == []


def test_a_commit_is_told_once_with_its_runs_and_what_was_not_in_it(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made)
    trained = [one for one in made.runs if one.role != STORE]
    for one, diff in zip(trained, ["", "", DIFF, DIFF.partition("diff --git a/two")[0], DIFF], strict=True):
        git = {"/src/a_folder": {"commit": "b" + "c" * 39, "dirty": bool(diff)}}
        run_dir = RunDir(folder / "runs", one.id)
        before = run_dir.newest()
        attempt = run_dir.start_attempt({"code": {"git": git}})
        attempt.write("trainer", before.read("trainer") if before else {})
        (attempt.path / "code.diff").write_text(diff)
        attempt.write("outcome", {"state": "done", "reason": "", "time": 1.1e6})
    hidden = "all 5 runs, 3 of them with 2 to 3 uncommitted lines in 1 to 2 files, not shown bccccccccccc"
    said = page_of(folder)
    assert hidden in said
    assert said.count("bccccccccccc") == 2  # there, and in the command that checks it out
    assert hidden.replace(", not shown", "") + " /src/ a_folder" in page_of(folder, "--internal")


def test_without_a_weight_of_the_teacher_there_is_nothing_to_compare(folder: Path) -> None:
    write_experiment(folder, {"seeds": [0, 1], "distill.alpha": 0.0})
    with_predictions(folder / "runs", plan([configfile.load("tiny.yaml")]))
    found = gathered(folder)
    assert found.images.pairs == 0
    assert list(convergence(found.curves)) == []
    run("report", "tiny.yaml", "--output", "a.html")
    assert "α is 0: the distilled runs are the baseline runs" in (folder / "a.html").read_text()


def measured(run_dir: RunDir, p50: float) -> dict[str, Any]:
    """benchmark.json, as `kdcluster export --benchmark` leaves it."""
    about = {"device": "cpu", "name": "CPU <x>", "engine": "onnxruntime 1", "threads": 1}
    spread = {"p10": p50 / 2, "p50": p50, "p90": 2 * p50}
    speeds = [{**about, "precision": kind, "batch1_ms": spread} for kind in ("fp32", "int8")]
    weights = weights_digest(run_dir.path, "best")
    return {"schema": "kdcluster.benchmark/1", "weights": weights, "time": 1.8e9, "speeds": speeds}


def test_latency_is_shown_where_it_was_measured(folder: Path) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made)
    assert gathered(folder).latencies == ()
    assert run("plot", "tiny.yaml", "--picture", "latencies", "--output", "a.pdf").exit_code == 1
    first = {one.role: RunDir(folder / "runs", one.id) for one in reversed(made.runs)}
    for role, ms in (("teacher", 40.0), ("distilled", 4.0)):
        write_json(first[role].path / "benchmark.json", measured(first[role], ms))
    found = gathered(folder).latencies
    assert [(one.role, one.on, one.p10, one.p50, one.p90, one.date) for one in found] == [
        (role, f"CPU <x>, {kind}, 1 thread, onnxruntime 1", p50 / 2, p50, 2 * p50, "2027-01-15")
        for role, p50 in (("teacher", 40.0), ("baseline", 4.0), ("distilled", 4.0))  # baseline is the same model
        for kind in ("fp32", "int8")
    ]
    run("report", "tiny.yaml", "--output", "a.html")
    said = "".join(Parsed((folder / "a.html").read_text()).text)
    assert "Median latency of one image: CPU <x>, fp32, 1 thread, onnxruntime 1, 2027-01-15." in said
    assert "distilled: 4 ms (2 to 8) on CPU <x>, fp32, 1 thread, onnxruntime 1, 2027-01-15" in said
    assert run("plot", "tiny.yaml", "--picture", "latencies", "--output", "a.pdf").exit_code == 0
    of_others = {**measured(first["distilled"], 4.0), "weights": "those of before"}
    write_json(first["distilled"].path / "benchmark.json", of_others)
    assert {one.role for one in gathered(folder).latencies} == {"teacher"}


ODD: list[Any] = [7, ["x"], {"git": 7}, {"git": {"/src": "x"}}, {"git": {"/src": {"commit": ["<b>"]}}, "kdcluster": {}}]


@pytest.mark.parametrize("code", ODD)
def test_records_that_only_people_read_may_hold_anything(folder: Path, code: Any) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made)
    attempt = RunDir(folder / "runs", made.runs[0].id).start_attempt({"code": code, "command": code})
    attempt.write("trainer", {"versions": code, "python": code})
    (attempt.path / "code.diff").write_bytes(b"\xff" * 30_000)
    assert run("report", "tiny.yaml", "--output", "a.html").exit_code == 0
    assert "b" not in {tag for tag, _ in Parsed((folder / "a.html").read_text()).elements}


NONE = ["[", "[]", "[" * 900 + "]" * 900, "null", '"x"', "{}", '{"weights": WEIGHTS, "speeds": 1}']
NONE += ['{"weights": WEIGHTS, "time": "x", "speeds": [1, {"batch1_ms": 1}, {"batch1_ms": {"p10": 1, "p50": true}}]}']


@pytest.mark.parametrize("content", NONE)
def test_a_benchmark_that_cannot_be_understood_is_none(folder: Path, content: str) -> None:
    made = plan([configfile.load("tiny.yaml")])
    finished(folder / "runs", made)
    run_dir = RunDir(folder / "runs", made.runs[0].id)
    weights = json.dumps(weights_digest(run_dir.path, "best"))
    (run_dir.path / "benchmark.json").write_text(content.replace("WEIGHTS", weights))
    assert gathered(folder).latencies == ()
