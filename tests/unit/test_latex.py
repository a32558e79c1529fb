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
from kdcluster.results.render import render
from kdcluster.results.table import Problem, Table
from tests.unit.test_render import BASELINE, DISTILLED, SEEDS, TEACHER, row, table

HOSTILE = r"_%&#$~^\{}<>|`\"'[1]*+-- \end{table} \input{/etc/passwd} % α±Δλ größe Ł ñ ç 中文 İ ﬁ ffi ?` ,, \x1b\x07"
CLASSES = [r"\documentclass{article}", r"\documentclass[twocolumn]{article}"]


def needs_latex() -> None:
    """In CI nothing is skipped: .ci/run installs it."""
    if os.environ.get("CI") != "true" and shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here")


def compiled(folder: Path, text: str, kind: str = CLASSES[0]) -> str:
    """The compiler's log."""
    (folder / "table.tex").write_text(text, encoding="utf-8")
    body = "\\begin{document}\nAs table~\\ref{tab:exp1} shows.\n\\input{table}\n\\end{document}\n"
    (folder / "paper.tex").write_text(f"{kind}\n\\usepackage{{booktabs,graphicx}}\n{body}", encoding="utf-8")
    argv = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    for _ in "12":  # the reference is known to the second
        done = subprocess.run(argv, cwd=folder, capture_output=True, timeout=600, check=False)
        log = (folder / "paper.log").read_text(encoding="latin-1")
        assert done.returncode == 0, log[-3000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return log


def whole(name: str = "exp1", **changes: object) -> Table:
    problems = (Problem("run", "failed", "RuntimeError: 100 % of a_b", "runs/a_b/log"),)
    made = table(TEACHER, BASELINE, DISTILLED, problems=problems, name=name)
    return replace(made, experiments=(replace(made.experiments[0], seeds=SEEDS, **changes),))


@pytest.mark.parametrize("kind", CLASSES, ids=["one column", "two columns"])
@pytest.mark.parametrize("hostile", [False, True], ids=["usual", "hostile"])
def test_it_compiles(tmp_path: Path, kind: str, hostile: bool) -> None:
    needs_latex()
    made = whole()
    if hostile:
        rows = tuple(replace(one, configuration=HOSTILE, runs=(HOSTILE,)) for one in made.experiments[0].rows)
        problems = (Problem(HOSTILE, "failed", HOSTILE, HOSTILE),)
        experiment = replace(made.experiments[0], rows=rows, problems=problems, notes=(f"[1] {HOSTILE}", HOSTILE))
        made = replace(made, experiments=(experiment, replace(experiment, name=HOSTILE)))
    log = compiled(tmp_path, render(made, "latex", per_seed=True), kind)
    for trouble in ("Overfull \\hbox", "Missing character", "undefined", "LaTeX Warning", "LaTeX Font Warning"):
        assert trouble not in log, log
    assert ("2 pages" if hostile else "1 page") in log or kind != CLASSES[0]


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
    assert lines[0] == r"% in the preamble: \usepackage{booktabs,graphicx}"
    assert lines[2:6] == [
        r"\begin{table}", r"\centering", r"\caption{exp1: best test/top1 in percent}", r"\label{tab:exp1}",
    ]  # fmt: skip
    at = lines.index(r"\midrule")
    assert lines[at - 3 : at - 1] == [r"\begin{tabular}{lrr@{~}lr@{~}lr@{~}lrr@{~}l}", r"\toprule"]
    assert lines[at - 1].startswith(r"model configuration & n & \multicolumn{2}{c}{best test accuracy} & ")
    assert [re.sub(" +", " ", line) for line in lines[at + 1 : at + 4]] == [
        r"teacher: big$|$net & 1 & 91.12 & & -- & & 85.9 & M & -- & -- & \\",
        r"baseline & 0/3 & -- & & -- & & -- & & -- & -- & \\",
        r"distilled: small ($\alpha$ 0.5, T 4)\textsuperscript{1} & 2/3 & 83.38 & $\pm$ 0.21 & $+$6.47 & "
        r"{[}5.9, 7.0{]} & 5.5 & M & 15.5$\times$ & 91.5 & \% \\",
    ]
    notes = lines[lines.index(r"\begin{minipage}{\linewidth}\raggedright") + 1 : -2]
    assert notes == [
        r"\textsuperscript{1}~a note on $\alpha$\par",
        r"not in the means: run: failed: RuntimeError: 100 \% of a\_b (log: runs/a\_b/log)\par",
        r"$\pm$ is the spread\par",
    ]
    assert lines.count(r"\toprule") == lines.count(r"\midrule") == lines.count(r"\bottomrule") == 2


def test_a_minus_is_no_hyphen() -> None:
    text = render(table(row("distilled", gain=-1.236, gain_ci95=(-2.04, -0.01))), "latex")
    assert r"$-$1.24 & {[}$-$2.0, 0.0{]}" in text
    assert latex.figure("vit-2 1e-3") == "vit-2 1e-3"
