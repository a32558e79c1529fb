"""What of the table is shown: formats for documents and scripts, columns, order, several experiments in one."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kdcluster.errors import ConfigError
from kdcluster.results.render import FORMATS, render
from kdcluster.results.table import ExperimentTable, Problem, Table
from kdcluster.results.view import View, blocks
from tests.unit.test_render import BASELINE, DISTILLED, SEEDS, TEACHER, row, table

HOSTILE = "<script>alert('1')</script> & \"q\" \x1b[31m α"
EMPTY = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """A parsed fragment: its elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in EMPTY
        self.open.append(tag)
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found[-1][2].append(data.strip())

    def texts(self, tag: str, **attributes: str) -> list[str]:
        found = [(attrs, text) for name, attrs, text in self.found if name == tag]
        return ["".join(text) for attrs, text in found if attributes.items() <= attrs.items()]


def two(**changes: object) -> Table:
    """exp1 and exp2 with one teacher and one baseline."""
    baseline = row("baseline", top1_mean=77.0, runs=("b0", "b1"))
    teacher = replace(TEACHER, runs=("t",))
    lost = Problem("b1", "failed", "no", None)
    one = ExperimentTable("exp1", (teacher, baseline, DISTILLED), (lost,), ("[1] odd", "protocol best", "1 of 2"))
    better = replace(DISTILLED, top1_mean=84.0, runs=("d",), gain=None, gain_ci95=None)
    other = ExperimentTable("exp2", (teacher, baseline, better), (lost,), ("[1] odd", "protocol best", "2 of 2"))
    return Table("best", "test/top1", (one, other), ("± is the spread",))


def test_html_is_a_table_to_a_screen_reader_and_nothing_else_to_a_page() -> None:
    page = Page(render(table(TEACHER, BASELINE, DISTILLED), "html"))
    assert page.texts("caption") == ["exp1: best test/top1 in percent"]
    columns = ["model configuration", "n", "best test accuracy", "gain", "params", "reduction", "retention"]
    assert page.texts("th", scope="col") == columns
    assert page.texts("th", scope="row") == ["teacher: big|net", "baseline", "distilled: small (α 0.5, T 4) [1]"]
    assert page.texts("td")[-6:] == ["2/3", "83.38 ± 0.21", "+6.47 [5.91, 7.03]", "5.5 M", "15.5×", "91.5 %"]
    assert page.texts("li") == ["[1] a note on α", "± is the spread"]
    kinds = {(name, key) for name, attrs, _ in page.found for key in attrs}
    assert kinds == {("th", "scope"), ("th", "style"), ("td", "style")}
    sides = {attrs["style"] for _, attrs, _ in page.found if "style" in attrs}
    assert sides == {"text-align: left", "text-align: right"}


def test_html_shows_what_it_is_given_and_runs_none_of_it() -> None:
    made = table(row("teacher", configuration=HOSTILE), problems=(Problem(HOSTILE, "failed", HOSTILE, None),))
    made = replace(made, experiments=(replace(made.experiments[0], name=HOSTILE, notes=(HOSTILE,), seeds=SEEDS),))
    text = render(made, "html", per_seed=True)
    page = Page(text)
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert page.texts("caption")[0] == f"{shown}: best test/top1 in percent"
    assert page.texts("th", scope="row")[0] == shown
    assert shown in page.texts("li")
    assert page.texts("script") == []
    ascii = render(made, "html", per_seed=True, ascii=True)
    assert ascii.isascii()
    assert Page(ascii).found == page.found


def test_json_lines_are_the_rows_in_full() -> None:
    lines = [json.loads(line) for line in render(two(), "jsonl").splitlines()]
    assert [(line["experiment"], line["role"]) for line in lines] == [
        (name, role) for name in ("exp1", "exp2") for role in ("teacher", "baseline", "distilled")
    ]
    assert (lines[2]["gain"], lines[2]["gain_ci95"], lines[2]["runs"]) == (6.4666, [5.9123, 7.0311], ["a", "b", "c"])
    assert lines[0]["gain"] is None
    assert lines[0]["metric"] == "test/top1"
    made = table(TEACHER)
    made = replace(made, experiments=(replace(made.experiments[0], seeds=SEEDS),))
    assert [json.loads(line)["run"] for line in render(made, "jsonl", per_seed=True).splitlines()] == [
        seed.run for seed in SEEDS
    ]


def test_columns_as_they_are_named() -> None:
    view = View(("gain", "configuration"))
    assert render(two(), "md", view=view).splitlines()[2:7] == [
        "| gain | model configuration |",
        "| ---: | :--- |",
        "| – | teacher: big\\|net |",
        "| – | baseline |",
        "| +6.47 [5.91, 7.03] | distilled: small (α 0.5, T 4) [1] |",
    ]
    (first, *_) = csv.DictReader(io.StringIO(render(two(), "csv", view=view)))
    assert list(first) == ["gain", "gain_ci95_low", "gain_ci95_high", "configuration"]
    assert list(json.loads(render(two(), "jsonl", view=view).splitlines()[0])) == ["gain", "gain_ci95", "configuration"]
    rows = json.loads(render(two(), "json", view=View(("experiment", "top1_sd"))))["experiments"][1]["rows"]
    assert rows == [{"experiment": "exp2", "top1_sd": sd} for sd in (None, None, 0.2071)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("option", "view"), [("--columns", View(("gian",))), ("--sort", View(sort="-gian"))])
def test_a_misspelt_column_is_named_with_those_there_are(form: str, option: str, view: View) -> None:
    with pytest.raises(ConfigError, match=f"{option}: there is no column 'gian'; did you mean gain") as error:
        render(two(), form, view=view)
    assert "retention" in str(error.value)


def test_rows_by_a_column_with_what_is_missing_last() -> None:
    made = table(BASELINE, row("distilled", top1_mean=83.0), row("teacher", top1_mean=91.0))
    for sort, wanted in (("top1", [83.0, 91.0, None]), ("-top1", [91.0, 83.0, None])):
        assert [line.row.top1_mean for line in blocks(made, View(sort=sort))[0].lines] == wanted
        lines = render(made, "jsonl", view=View(sort=sort)).splitlines()
        assert [json.loads(line)["top1_mean"] for line in lines] == wanted
    assert [line.row.role for line in blocks(made, View(sort="role"))[0].lines] == ["baseline", "distilled", "teacher"]
    both = render(two(), "csv", view=View(("experiment", "top1"), "-top1"))
    assert [line.split(",")[0] for line in both.splitlines()[1:]] == ["exp1", "exp2", "exp2", "exp1", "exp1", "exp2"]


def test_experiments_together_with_what_they_share_once() -> None:
    text = render(two(), view=View(together=True))
    assert text.splitlines()[0] == "exp1, exp2: best test/top1 in percent"
    assert text.splitlines()[2].split("  ")[0] == "experiment"
    rows = [[part.strip() for part in line.split("  ") if part] for line in text.splitlines()[4:8]]
    assert [(one[0], one[1], one[3]) for one in rows] == [
        ("exp1, exp2", "teacher: big|net", "91.12"),
        ("exp1, exp2", "baseline", "77.00"),
        ("exp1", "distilled: small (α 0.5, T 4) [1]", "83.38 ± 0.21"),
        ("exp2", "distilled: small (α 0.5, T 4) [2]", "84.00 ± 0.21"),
    ]
    assert text.count("  b1  failed  no\n") == 1
    below = text.split("\n\n")[-2].splitlines()
    assert below == ["[1] exp1: odd", "[2] exp2: odd", "protocol best", "exp1: 1 of 2", "exp2: 2 of 2"]


def test_one_experiment_together_is_itself() -> None:
    made = table(TEACHER, DISTILLED)
    assert render(made, view=View(together=True)) == render(made)
