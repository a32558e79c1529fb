"""The results table in LaTeX: a real compiler takes it, whatever names are in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kdcluster.results import latex
from kdcluster.results.paper import Paper
from kdcluster.results.render import render
from kdcluster.results.table import Problem, Table
from kdcluster.results.view import View
from kdcluster.run import TRAINED
from tests.unit.test_render import BASELINE, DISTILLED, SEEDS, TEACHER, row, table

HOSTILE = r"_%&#$~^\{}<>|`\"'[1]*+-- \end{table} \input{/etc/passwd} % α±Δλ größe Ł ñ ç 中文 İ ﬁ ffi ?` ,, \x1b\x07"
CLASSES = [r"\documentclass{article}", r"\documentclass[twocolumn]{article}"]


TROUBLES = ("Overfull \\hbox", "Missing character", "undefined", "LaTeX Warning", "LaTeX Font Warning")


def needs_latex() -> None:
    """In CI nothing is skipped: .ci/run installs it."""
    if os.environ.get("CI") != "true" and shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here")


def compiled(folder: Path, text: str, kind: str = CLASSES[0]) -> str:
    """The compiler's log."""
    (folder / "table.tex").write_text(text, encoding="utf-8")
    body = "\\begin{document}\nAs table~\\ref{tab:exp1} shows.\n\\input{table}\n\\end{document}\n"
    (folder / "paper.tex").write_text(f"{kind}\n\\usepackage{{booktabs,tabularx}}\n{body}", encoding="utf-8")
    argv = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    for _ in "12":  # the reference is known to the second
        done = subprocess.run(argv, cwd=folder, capture_output=True, timeout=600, check=False)
        log = (folder / "paper.log").read_text(encoding="latin-1")
        assert done.returncode == 0, log[-3000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return log


SAID = Paper("Top-1 test accuracy on CIFAR-100: a and b.", ("[1] Rows of two precisions.", "Selected on the test set."))


def whole(name: str = "exp1", **changes: object) -> Table:
    problems = (Problem("run", "failed", "RuntimeError: 100 % of a_b", "runs/a_b/log"),)
    notes = ("[1] a note on α", "trained on cpu\x1b", "100 % in a_b: p < 0.05 \\end{document}")
    made = table(TEACHER, BASELINE, DISTILLED, problems=problems, name=name, notes=notes)
    return replace(made, experiments=(replace(made.experiments[0], **{"seeds": SEEDS, "paper": SAID, **changes}),))


def with_names(*names: str) -> Table:
    made = whole()
    rows = (replace(one, configuration=name) for one, name in zip(made.experiments[0].rows, names, strict=True))
    return replace(made, experiments=(replace(made.experiments[0], rows=tuple(rows)),))


@pytest.mark.parametrize("kind", CLASSES, ids=["one column", "two columns"])
@pytest.mark.parametrize("hostile", [False, True], ids=["usual", "hostile"])
def test_it_compiles(tmp_path: Path, kind: str, hostile: bool) -> None:
    needs_latex()
    made = whole()
    if hostile:
        rows = tuple(replace(one, configuration=HOSTILE, runs=(HOSTILE,)) for one in made.experiments[0].rows)
        problems = (Problem(HOSTILE, "failed", HOSTILE, HOSTILE),)
        paper = Paper(HOSTILE, (f"[1] {HOSTILE}", HOSTILE))
        experiment = replace(made.experiments[0], rows=rows, problems=problems, notes=(HOSTILE,), paper=paper)
        made = replace(made, experiments=(experiment, replace(experiment, name=HOSTILE)))
    log = compiled(tmp_path, render(made, "latex", per_seed=True), kind)
    for trouble in TROUBLES:
        assert trouble not in log, log


@pytest.mark.parametrize("kind", CLASSES, ids=["one column", "two columns"])
@pytest.mark.parametrize(
    "view", [View(), View(("configuration", "top1", "gain")), View(("top1", "gain")), View(("configuration", "runs"))]
)
def test_long_names_fit_beside_whole_figures(tmp_path: Path, kind: str, view: View) -> None:
    """Once all was shrunk, below the size of the notes."""
    needs_latex()
    models = ("vit_so150m2_patch16_reg1_gap_256", "convolutionalnetworkofours", "b (α 1, T 4)")
    names = (f"{role}: {model}" for role, model in zip(TRAINED, models, strict=True))
    text = render(with_names(*names), "latex", view=view)
    assert "resizebox" not in text
    log = compiled(tmp_path, text, kind)
    for trouble in TROUBLES:
        assert trouble not in log, log


def test_a_table_spans_both_columns_where_one_has_no_room() -> None:
    assert r"\begin{table*}" in render(whole(), "latex")
    narrow = render(whole(), "latex", view=View(("configuration", "top1", "gain")))
    assert r"\begin{table}" in narrow
    assert r"\end{table}" in narrow


def test_every_character_by_itself_compiles(tmp_path: Path) -> None:
    """What a keyboard of Europe has, Greek, and what the table's own words use."""
    needs_latex()
    chars = [chr(code) for block in ((0x20, 0x7F), (0xA0, 0x180), (0x370, 0x400)) for code in range(*block)]
    texts = [latex.escaped(f"{char}{char} {char}[x]") for char in [*chars, *"–—…≤≥→−×·", "中", "\U0001f600"]]
    assert all(text.isascii() for text in texts)
    log = compiled(tmp_path, "\n\n".join(texts) + "\n\\label{tab:exp1}")
    assert "Missing character" not in log


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b 50% & #1 $x", r"a\_b 50\% \& \#1 \$x"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("α 0.5 ± 1 × 2", r"$\alpha$ 0.5 $\pm$ 1 $\times$ 2"),
        ("Ε ς λ Ω", r"$E$ U+03C2 $\lambda$ $\Omega$"),
        ("größe Łódź ñ", r"gr\"{o}{\ss}e {\L}\'{o}d\'{z} \~{n}"),
        ("--seeds [1]", r"-{}-seeds {[}1{]}"),
        ("中", "U+4E2D"),
        ("a\nb\x1b", r"a b\textbackslash{}x1b"),
    ],
)
def test_text_stays_text(text: str, shown: str) -> None:
    assert latex.escaped(text) == shown


def test_figures_of_a_column_stand_below_each_other() -> None:
    text = render(whole(), "latex", per_seed=True)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == r"% in the preamble: \usepackage{booktabs,tabularx}"
    at = lines.index(r"\midrule")
    assert lines[at - 3].removeprefix(r"\begin{tabularx}{\linewidth}").count("X") == 1
    assert lines[at - 3].endswith("Xrr@{~}lr@{~}lrrr@{}}")
    assert lines[at - 1] == (
        r"model & n & \multicolumn{2}{c}{top-1 (\%)} & \multicolumn{2}{c}{gain} & "
        r"\begin{tabular}[b]{@{}r@{}}params\\(M)\end{tabular} & reduction & "
        r"\begin{tabular}[b]{@{}r@{}}retention\\(\%)\end{tabular} \\"
    )
    assert [re.sub(" +", " ", line) for line in lines[at + 1 : at + 4]] == [
        r"teacher: big$|$net & 1 & 91.12 & & -- & & 85.9 & -- & -- \\",
        r"baseline & 0/3 & -- & & -- & & -- & -- & -- \\",
        r"distilled: small ($\alpha=0.5$, $T=4$)\textsuperscript{1} & 2/3 & 83.38 & $\pm$ 0.21 & $+6.47$ & "
        r"[5.91, 7.03] & 5.5 & 15.5$\times$ & 91.5 \\",
    ]
    assert "McNemar" not in text
    tested = replace(SEEDS[2], fixed=9, broken=2, p=0.065)
    text = render(whole(seeds=(tested,)), "latex", per_seed=True)
    assert r"is right; p: McNemar's exact test of these, two-sided. Not in the means" in text
    assert lines.count(r"\toprule") == lines.count(r"\midrule") == lines.count(r"\bottomrule") == 2


def test_below_stands_what_a_reader_needs_and_beside_it_all_else() -> None:
    text = render(whole(), "latex")
    lines = [line.strip() for line in text.splitlines()]
    notes = lines[lines.index(r"\begin{minipage}{\linewidth}\raggedright") + 1 : -2]
    assert notes == [
        r"\textsuperscript{1}~Rows of two precisions.\par",
        r"Selected on the test set. $\pm$: sample standard deviation over 2 seeds; the students share one teacher. "
        r"Gain: distilled minus baseline of the same seed, in percentage points, with its 95\% confidence interval "
        r"over the seeds (Student's t). Reduction: the teacher's parameters divided by the student's. "
        r"Retention: the student's accuracy divided by the teacher's. "
        r"Not in the means: run (failed: RuntimeError: 100 \% of a\_b).\par",
    ]
    assert r"\caption{Top-1 test accuracy on CIFAR-100: a and b.}" in lines
    assert r"\label{tab:exp1}" in lines
    assert [line for line in lines if line.startswith("%")][1:] == [
        "% exp1: best test/top1 in percent",
        "% [1] a note on alpha",
        r"% trained on cpu\x1b",
        r"% 100 % in a_b: p < 0.05 \end{document}",
        "% +/- is the spread",
    ]
    assert "runs/a_b/log" not in text


def test_what_is_said_of_a_column_goes_with_it() -> None:
    text = render(whole(), "latex", view=View(("configuration", "top1")))
    assert r"$\pm$: sample" in text
    assert "Gain:" not in text
    assert "Retention:" not in text
    assert "Not in the means: run (failed" in text  # a failed run always is


def test_numbers_with_fewer_decimals_leave_their_room_free() -> None:
    rows = (row("teacher", latency_ms=12.0), row("baseline", latency_ms=1.25), row("distilled"))
    lines = render(table(*rows), "latex", view=View(("role", "latency"))).splitlines()
    assert [line.strip() for line in lines if line.strip().startswith(("teacher", "base", "distilled"))] == [
        r"teacher & 12\phantom{.00} \\",
        r"baseline & 1.25 \\",
        r"distilled & -- \\",
    ]


def test_several_experiments_say_what_they_share_once() -> None:
    one = whole().experiments[0]
    two = replace(one, name="exp2", paper=Paper(SAID.caption, ("[1] Other.", "Selected on the test set.", "More.")))
    text = render(replace(whole(), experiments=(one, two)), "latex", view=View(together=True))
    assert text.count(r"\caption{Top-1 test accuracy on CIFAR-100: a and b.}") == 1
    assert r"\textsuperscript{2}~exp2: Other.\par" in text
    assert text.count("Selected on the test set.") == 1
    assert "exp2: More." in text
    assert r"\label{tab:exp1-exp2}" in text


def test_a_sign_is_mathematics_with_its_number() -> None:
    text = render(table(row("distilled", gain=-1.236, gain_ci95=(-2.04, -0.01))), "latex")
    assert r"$-1.24$ & [$-2.04$, $-0.01$]" in text
    assert latex.figure("<0.001") == "$<0.001$"
    assert latex.figure("vit-2 1e-3") == "vit-2 1e-3"


@pytest.mark.parametrize("kind", CLASSES, ids=["one column", "two columns"])
def test_the_trials_of_a_search_fit_the_text(tmp_path: Path, kind: str) -> None:
    """A table of numbers alone, which has no name that could wrap."""
    needs_latex()
    keys = {"alpha": "0.4321", "temperature": "3.254", "lr": "0.00032", "drop_path_rate": "0.1", "weight_decay": "0.05"}
    counted = {"val/top1": "78.25 ± 2.11", "epochs": "10", "state": "done"}
    found = []
    for searched in (5, 2):
        trial = {**dict(list(keys.items())[:searched]), **counted}
        table = [list(trial), *[list(trial.values())] * 3], range(len(trial) - 1)
        found.append(latex.float_of("exp1", "Trials.", [table], ["Selected by val/top1."]))
    assert ["table*" in text for text in found] == [True, False]
    log = compiled(tmp_path, found[0] + "\n" + found[1].replace("tab:exp1", "tab:exp2"), kind)
    for trouble in TROUBLES:
        assert trouble not in log, log
