"""`kdcluster report` and `plot`: what they say, against values computed by hand, whatever the runs are called."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster import cli
from kdcluster.experiment import configfile
from kdcluster.plan import plan
from kdcluster.report import pictures
from kdcluster.report.curves import convergence
from kdcluster.report.facts import Facts, gather
from kdcluster.runs import RunDir
from tests.fabricated import ended, evaluated, publish, started
from tests.tiny import write_experiment

TOPS = {
    ("teacher", 0): [60.0, 90.0],
    ("baseline", 0): [40.0, 70.0],
    ("baseline", 1): [44.0, 74.0],
    ("distilled", 0): [71.0, 80.0],
    ("distilled", 1): [75.0, 78.0],
}
"""Test accuracy after each of two epochs, by role and seed."""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words, catch_exceptions=False)


def finished(root: Path, made: Any, tops: dict[tuple[str, int], list[float]] = TOPS) -> None:
    """Runs of an experiment as their trainers leave them."""
    for one in made.runs:
        if (one.role, one.seed) not in tops:
            continue
        run_dir = RunDir(root, one.id)
        run_dir.prepare(one)
        attempt = started(run_dir)
        attempt.write("trainer", {"steps_per_epoch": 4, "params": 1000 if one.role == "teacher" else 100})
        epochs = [
            {"epoch": number, "step": 4 * number, "test/top1": top1}
            for number, top1 in enumerate(tops[one.role, one.seed], 1)
        ]
        evaluated(run_dir, epochs)
        best = max(epochs, key=lambda epoch: epoch["test/top1"])
        publish(run_dir, 0.0, best=best, last=epochs[-1], params=1000 if one.role == "teacher" else 100)
        ended(attempt, "done")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, {"seeds": [0, 1]})
    return tmp_path


def gathered(folder: Path) -> Facts:
    return gather(configfile.load(str(folder / "tiny.yaml")), [], folder / "runs", folder / "data")


class Parsed(html.parser.HTMLParser):
    """A page: its elements, its text, and whether each element is closed where it was opened."""

    VOID = ("meta", "img", "br")

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
    assert f"−{12.7062 * 3 - 7:.1f} to {12.7062 * 3 + 7:.1f}" in said
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
    assert found.pairs == ((1, 2), (1, 2))
    said = list(convergence(found))
    assert said[0] == (
        "The distilled mean reaches the baseline's best mean, 72.00 % after epoch 2, after epoch 1, 2.0 times sooner."
    )
    assert said[1].endswith("sooner in 2 of 2.")
    assert "half true" in said[-1]


def test_that_it_converges_faster_is_refuted_where_it_does_not(folder: Path) -> None:
    tops = {**TOPS, ("distilled", 0): [30.0, 60.0], ("distilled", 1): [30.0, 60.0]}
    finished(folder / "runs", plan([configfile.load("tiny.yaml")]), tops)
    said = list(convergence(gathered(folder).curves))
    assert said[0].startswith("The distilled mean never reaches the baseline's best mean, 72.00 %")
    assert "refuted" in said[-1]


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


def test_a_figure_of_no_known_format_is_refused_before_anything_is_read(folder: Path) -> None:
    result = run("plot", "tiny.yaml", "--output", "a.gif")
    assert result.exit_code == 2
    assert "--output a.gif: its end says no format; give it one of .pdf, .png, .svg" in result.stderr


def test_before_a_run_has_begun_there_is_a_page_and_no_figure(folder: Path) -> None:
    result = run("report", "tiny.yaml", "--output", "a.html")
    assert result.exit_code == 0
    assert "there are no runs in" in result.stderr
    said = " ".join(Parsed((folder / "a.html").read_text()).text)
    assert "No gain can be told yet" in said
    assert "Not in the means: 5" in said
    assert all(one.id in said for one in plan([configfile.load("tiny.yaml")]).runs if "logits" not in one.id)
    result = run("plot", "tiny.yaml", "--output", "a.pdf")
    assert result.exit_code == 1
    assert "nothing for the picture curves yet" in result.stderr
    assert not (folder / "a.pdf").exists()
