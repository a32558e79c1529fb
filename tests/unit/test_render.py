"""The table as text: figures, alignment, ASCII, Markdown, CSV, JSON."""

import csv
import io
import json
import re
from dataclasses import asdict, replace

import pytest

from kdcluster.results.render import document, render
from kdcluster.results.seeds import SeedRow, cells
from kdcluster.results.table import ExperimentTable, Problem, Row, Table


def row(role, **values):
    empty = dict.fromkeys(
        ("params", "reduction", "top1_mean", "top1_sd", "gain", "gain_ci95", "retention", "reference")
    )
    return Row(**{"configuration": role, "role": role, "n": 3, "n_expected": 3, "runs": (), **empty, **values})


TEACHER = row("teacher", configuration="teacher: big|net", params=85_875_556, n=1, n_expected=1, top1_mean=91.12)
BASELINE = row("baseline", n=0)
DISTILLED = row(
    "distilled",
    configuration="distilled: small (α 0.5, T 4)",
    params=5_543_716,
    reduction=15.4906,
    n=2,
    top1_mean=83.375,
    top1_sd=0.2071,
    gain=6.4666,
    gain_ci95=(5.9123, 7.0311),
    retention=91.501,
    runs=("a", "b", "c"),
    note=1,
)


def table(*rows, problems=(), notes=("[1] a note on α",), name="exp1"):
    return Table("best", "test/top1", (ExperimentTable(name, rows, problems, notes),), ("± is the spread",))


def test_figures():
    head, _, *body = render(table(TEACHER, BASELINE, DISTILLED)).splitlines()[2:7]
    columns = ["model configuration", "n", "best test accuracy", "gain", "params", "reduction", "retention"]
    assert re.split(r"\s{2,}", head) == columns
    assert [[part.strip() for part in line.split("  ") if part] for line in body] == [
        ["teacher: big|net", "1", "91.12", "–", "85.9 M", "–", "–"],
        ["baseline", "0/3", "–", "–", "–", "–", "–"],
        ["distilled: small (α 0.5, T 4) [1]", "2/3", "83.38 ± 0.21", "+6.47 [5.91, 7.03]", "5.5 M", "15.5×", "91.5 %"],
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"gain": -0.001}, "+0.00"),
        ({"gain": -1.236, "gain_ci95": (-2.04, -0.01)}, "-1.24 [-2.04, -0.01]"),
        ({"params": 230_120}, "230.1 k"),
        ({"reference": 77.9}, "77.90"),
    ],
)
def test_small_and_negative_figures(values, shown):
    assert shown in render(table(row("distilled", **values)))


def test_columns_are_aligned_and_nothing_is_cut():
    long = row("teacher", configuration="teacher: " + "x" * 200, top1_mean=9.5)
    lines = render(table(long, DISTILLED)).splitlines()
    head, rule, *body = lines[2:6]
    assert len(head) == len(rule) == len(body[0]) == len(body[1]) > 200
    for name in ("n", "top-1", "gain", "retention"):  # numbers end where their heading ends
        end = head.index(f"  {name}  ") + 2 + len(name) if f"  {name}  " in head else len(head)
        assert all(line[end - 1] != " " and line[end : end + 2].strip() == "" for line in body)


def test_the_reference_column_needs_a_reference():
    assert "published" not in render(table(TEACHER))
    assert "published" in render(table(TEACHER, row("baseline", reference=76.91)))


def test_problems_and_notes_stand_below():
    problems = (
        Problem("run-a", "failed", "RuntimeError: two\n  lines \x1b[31m", "runs/a/torchrun.log"),
        Problem("run-bb", "done", "result.json contradicts", None),
    )
    text = render(table(DISTILLED, problems=problems))
    assert (
        "\nnot in the means (kdcluster logs RUN says more):\n  run-a  failed  RuntimeError: two lines \\x1b[31m\n"
        in text
    )
    assert "\nfinished runs with contradicting or lost records:\n  run-bb  done  result.json contradicts\n" in text
    assert text.endswith("\n\n[1] a note on α\n\n± is the spread\n")
    assert "not in the means" not in render(table(DISTILLED))
    assert render(replace(table(DISTILLED), notes=())).endswith("\n\n[1] a note on α\n")  # without a legend


def test_a_run_without_a_reason_is_named_with_its_state():
    made = table(DISTILLED, problems=(Problem("run-a", "planned", "", None),))
    assert "\n- run-a: planned\n" in render(made, "md")
    assert "<li>run-a: planned</li>" in render(made, "html")
    assert "Not in the means: run-a (planned).\\par" in render(made, "latex")


def test_a_reason_of_several_runs_is_said_once():
    why = "waits for 2 cores, held by run-x (pid 7)"
    waiting = [Problem(f"run-{number}", "queued", why, None) for number in range(12)]
    odd = [Problem(f"run-{name}", "done", "its events are lost", None) for name in "ab"]
    odd.append(Problem("run-b", "done", "it was renamed", None))  # once it was `2 runs  done  its events are lost`
    problems = (*waiting, Problem("run-f", "failed", "no", "x.log"), *odd)
    text = render(table(DISTILLED, problems=problems))
    assert "(kdcluster logs RUN says more, kdcluster status names them all):\n" in text
    assert f":\n  12 runs  queued  {why}\n  run-f    failed  no\n" in text
    assert (
        "  run-a  done  its events are lost\n  run-b  done  its events are lost\n  run-b  done  it was renamed\n"
        in text
    )
    assert f"\n- 12 runs: queued: {why}\n- run-f: failed" in render(table(DISTILLED, problems=problems), "md")
    assert len(json.loads(render(table(DISTILLED, problems=problems), "json"))["experiments"][0]["problems"]) == 16


def test_a_few_runs_with_the_same_reason_are_named():
    problems = [Problem(f"run-{name}", "planned", "", None) for name in "abcdef"]
    each = "".join(f"  run-{name}  planned\n" for name in "abcdef")
    assert f"not in the means:\n{each}" in render(table(DISTILLED, problems=tuple(problems)))
    problems.append(Problem("run-g", "planned", "", None))
    text = render(table(DISTILLED, problems=tuple(problems)))
    assert "not in the means (kdcluster status names them all):\n  7 runs  planned\n" in text


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_ascii_is_ascii_and_says_the_same(form):
    problems = (Problem("run", "failed", "café ± 1", None),)
    text = render(table(TEACHER, DISTILLED, problems=problems, name="größe"), form, ascii=True)
    assert text.isascii()
    if form in ("table", "md"):
        assert "83.38 +/- 0.21" in text
        assert "(alpha 0.5, T 4)" in text
        assert "15.5x" in text


def test_ascii_columns_are_aligned_too():
    head, rule, *body = render(table(TEACHER, DISTILLED), ascii=True).splitlines()[2:6]
    assert len({len(line) for line in (head, rule, *body)}) == 1


def test_markdown_escapes_and_aligns():
    problem = Problem("run", "failed", "a|b *c* <class 'x'>", None)
    lines = render(table(TEACHER, DISTILLED, problems=(problem,)), "md").splitlines()
    assert lines[0] == "### exp1: best test/top1 in percent"
    assert lines[3] == "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4].startswith("| teacher: big\\|net | 1 | 91.12 | – |")
    assert "- run: failed: a\\|b \\*c\\* \\<class 'x'>" in lines
    assert "- [1] a note on α" in lines


def test_csv_has_full_precision_and_empty_cells():
    first, second = csv.DictReader(io.StringIO(render(table(BASELINE, DISTILLED), "csv")))
    assert (first["experiment"], first["protocol"], first["metric"]) == ("exp1", "best", "test/top1")
    assert (first["top1_mean"], first["gain"], first["gain_ci95_low"], first["params"]) == ("", "", "", "")
    assert float(second["gain"]) == 6.4666
    assert (float(second["gain_ci95_low"]), float(second["gain_ci95_high"])) == (5.9123, 7.0311)
    assert second["configuration"] == "distilled: small (α 0.5, T 4)"
    assert second["runs"] == "a b c"


SEEDS = (
    SeedRow("teacher", 0, "teacher-big-s0-0", 91.12, None, 3.0, 3723.4),
    SeedRow("baseline", 1, "baseline-small-s1-1", 77.0, None, 0.25, 83.0),
    SeedRow("distilled", 1, "distilled-small-s1-2", 83.5, 6.5, 0.0, 0.0),
)


def test_the_runs_behind_the_means():
    whole = table(TEACHER, DISTILLED)
    whole = replace(whole, experiments=(replace(whole.experiments[0], seeds=SEEDS),))
    lines = render(whole, per_seed=True).splitlines()
    assert lines[7:11] == [
        "run                   best test   gain  GPU-hours     time",
        "teacher-big-s0-0          91.12      –          3  1:02:03",
        "baseline-small-s1-1       77.00      –       0.25     1:23",
        "distilled-small-s1-2      83.50  +6.50          0        –",
    ]
    assert "| distilled-small-s1-2 | 83.50 | +6.50 | 0 | – |" in render(whole, "md", per_seed=True).splitlines()
    _, second, third = csv.DictReader(io.StringIO(render(whole, "csv", per_seed=True)))
    assert (second["experiment"], second["protocol"], second["run"], second["seed"]) == (
        "exp1",
        "best",
        SEEDS[1].run,
        "1",
    )
    assert (third["role"], float(third["gain"]), second["gain"], float(second["wall_s"])) == (
        "distilled",
        6.5,
        "",
        83.0,
    )
    assert json.loads(render(whole, "json"))["experiments"][0]["seeds"][0] == asdict(SEEDS[0])
    assert SEEDS[1].run not in render(whole)
    on_cpus = [replace(seed, gpu_hours=0.0) for seed in SEEDS]
    assert cells(on_cpus, "best")[0] == ["run", "best test", "gain", "time"]


def test_json_follows_its_schema():
    problems = (Problem("run", "failed", "why", None),)
    found = json.loads(render(table(BASELINE, DISTILLED, problems=problems), "json"))
    assert set(found) == {"schema", "protocol", "metric", "experiments", "notes"}
    assert (found["schema"], found["protocol"], found["metric"]) == ("kdcluster.results/1", "best", "test/top1")
    (experiment,) = found["experiments"]
    assert set(experiment) == {"name", "rows", "problems", "notes", "cost", "costs", "seeds", "paper"}
    assert experiment["cost"] == {"gpu_hours": 0.0, "lost_gpu_hours": 0.0, "wall_s": 0.0}
    assert experiment["problems"] == [{"run": "run", "state": "failed", "reason": "why", "log": None}]
    baseline, distilled = experiment["rows"]
    assert set(baseline) == {
        "configuration", "role", "params", "reduction", "n", "n_expected", "top1_mean", "top1_sd", "gain",
        "gain_ci95", "retention", "reference", "runs", "note", "size_bytes", "latency_ms",
    }  # fmt: skip
    assert baseline["top1_mean"] is None
    assert (distilled["gain"], distilled["gain_ci95"], distilled["n"]) == (6.4666, [5.9123, 7.0311], 2)
    assert document(table(DISTILLED))["experiments"][0]["rows"][0]["top1_sd"] == 0.2071


def test_json_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="JSON compliant"):
        render(table(row("teacher", top1_mean=float("nan"))), "json")


def at_width(width, **changes):
    given = {"problems": (Problem("distilled-small-s2-0123abcd", "failed", "rank 1, " + "no way " * 20, "a/log"),)}
    return render(table(TEACHER, BASELINE, DISTILLED, **{**given, **changes}), width=width).splitlines()


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120])
def test_a_narrow_terminal_gets_whole_words_and_the_columns_that_matter(width):
    lines = at_width(width)
    assert max(map(len, lines)) <= width
    text = re.sub(r"no room here for [^:]*: widen the terminal, or --format md ", "", " ".join(map(str.strip, lines)))
    words = set(text.replace("─", "").split())
    assert words <= set(" ".join(at_width(None)).split())
    assert {"83.38", "+6.47", "[5.91,", "7.03]", "2/3", "failed"} <= words


def test_columns_give_way_by_rank_and_are_named():
    assert "no room here" not in " ".join(at_width(120))
    text = " ".join(at_width(80, notes=(), problems=())).partition("no room here")[0]
    assert ("params" in text, "reduction" in text) == (False, True)  # by which distillation is known
    assert "no room here for params, reduction: widen" in " ".join(at_width(74, notes=(), problems=()))


def test_the_letters_and_their_values_stand_in_one_line():
    assert [line.split("  ")[0] for line in at_width(74)[7:9]] == ["distilled: small", ""]
    assert at_width(74)[8] == "  (α 0.5, T 4) [1]"


def test_headings_wrap_before_anything_is_left_out():
    head = at_width(100)[2:4]
    assert [line.split() for line in head] == [
        ["best", "test"],
        ["model", "configuration", "n", "accuracy", "gain", "params", "reduction", "retention"],
    ]
