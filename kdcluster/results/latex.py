"""Cells as a LaTeX table with booktabs, in ASCII, whatever text they hold: any engine takes it as it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Sequence

from kdcluster.wording import one_line

PREAMBLE = r"% in the preamble: \usepackage{booktabs,graphicx}"
"""Said once above the tables of a file."""
_SIGNS = {char: f"\\{char}" for char in "_%&#${}"}
_SIGNS |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_SIGNS |= {"<": "$<$", ">": "$>$", "|": "$|$", "`": "{`}", '"': "{''}"}  # in OT1 these are other letters, and ligatures
_SIGNS |= {"[": "{[}", "]": "{]}", "*": "{*}"}  # behind \\ they would be its arguments
_SIGNS |= {"±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---", "…": r"\dots{}", "\xa0": "~", "·": r"$\cdot$"}
_SIGNS |= {"≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$", "−": "$-$", "°": r"$^\circ$", "µ": r"$\mu$"}
_SIGNS |= {"ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "æ": r"{\ae}", "Æ": r"{\AE}", "œ": r"{\oe}", "Œ": r"{\OE}"}
_SIGNS |= {"ł": r"{\l}", "Ł": r"{\L}", "ı": r"{\i}", "‘": "`", "’": "'", "“": "``", "”": "''"}
_ACCENTS = {
    chr(0x300 + at): sign for at, sign in zip((0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 39), "`'^~=u.\"rHvc", strict=True)
}
"""A combining sign -> the command that puts it on a letter; all of them work with the fonts of OT1."""
_SMALL = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho sigma tau upsilon phi chi psi"
)
_CAPITALS = "A B Gamma Delta E Z H Theta I K Lambda M N Xi O Pi P Sigma T Upsilon Phi X Psi Omega"
"""Greek in TeX: a command, or the Latin letter that looks the same."""
_SIGNS |= {
    char: f"${name if len(name) == 1 else chr(92) + name}$"
    for letters, names in (("αβγδεζηθικλμνξοπρστυφχψω", f"{_SMALL} omega"), ("ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ", _CAPITALS))
    for char, name in zip(letters, names.split(), strict=True)
}


def escaped(text: str) -> str:
    """One line of text that shows as it is: no command, mathematics, comment, column or argument comes of it.

    What the fonts of TeX do not have is spelt out, as in U+4E2D.
    """
    found = "".join(map(_escaped, unicodedata.normalize("NFC", one_line(text))))
    return found.replace("--", "-{}-") if "--" in text else found  # an option of a command line is no dash


def _escaped(char: str) -> str:
    if char in _SIGNS:
        return _SIGNS[char]
    if char.isascii():
        return char
    parts = unicodedata.normalize("NFD", char)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"U+{ord(char):04X}"


def figure(text: str) -> str:
    """A cell of numbers: its signs are mathematics, so that minus is not a hyphen."""
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped(text))


def float_of(
    caption: str, tables: Sequence[tuple[Sequence[Sequence[str]], Container[int]]], notes: Sequence[str]
) -> str:
    """A `table` environment: tables below each other, none wider than the column of text, and the notes below them.

    Args:
        caption: also the beginning of its label, `tab:…`.
        tables: cells, the first row as headings, and which columns hold numbers.
        notes: sentences; one that begins with [1] belongs to the row that ends so.
    """
    label = re.sub(r"[^A-Za-z0-9]+", "-", caption.partition(":")[0]).strip("-") or "results"
    lines = [r"\begin{table}", r"  \centering", f"  \\caption{{{escaped(caption)}}}", f"  \\label{{tab:{label}}}"]
    lines += [r"  \footnotesize\setlength{\tabcolsep}{4pt}"]
    for cells, right in tables:
        lines += [*_fitted(_tabular(cells, right)), r"  \par\medskip"]
    if notes:
        lines += [r"  \begin{minipage}{\linewidth}\raggedright"]
        lines += [f"    {_marked(note)}\\par" for note in notes]
        lines += [r"  \end{minipage}"]
    return "\n".join([*lines, r"\end{table}"])


def _fitted(lines: Sequence[str]) -> list[str]:
    """Shrunk to the column of text where it is wider, and else as it is."""
    return [
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        *(f"    {line}" for line in lines[:-1]),
        f"    {lines[-1]}}}",
    ]


def _tabular(cells: Sequence[Sequence[str]], right: Container[int]) -> list[str]:
    """A column of numbers that have something behind them, as ± or a unit, is two: so they stand below each other."""
    head, *body = cells
    two = {at for at in range(len(head)) if at in right and any(" " in row[at] for row in body)}
    spec = "".join("r@{~}l" if at in two else "r" if at in right else "l" for at in range(len(head)))

    def row(texts: Sequence[str]) -> str:
        parts: list[str] = []
        for at, text in enumerate(texts):
            spell = figure if at in right else _marked
            parts += map(spell, text.partition(" ")[::2] if at in two else [text])
        return " & ".join(parts).replace("  ", " ") + r" \\"

    headings = [rf"\multicolumn{{2}}{{c}}{{{escaped(h)}}}" if at in two else escaped(h) for at, h in enumerate(head)]
    rows = [row(texts) for texts in body]
    rules = (r"\toprule", " & ".join(headings) + r" \\", r"\midrule", *rows, r"\bottomrule")
    return [rf"\begin{{tabular}}{{{spec}}}", *(f"  {line}" for line in rules), r"\end{tabular}"]


def _marked(text: str) -> str:
    """The number of a note, at either end, is raised."""
    text = escaped(text)
    text = re.sub(r"^\{\[\}(\d+)\{\]\} ", r"\\textsuperscript{\1}~", text)
    return re.sub(r" \{\[\}(\d+)\{\]\}$", r"\\textsuperscript{\1}", text)
