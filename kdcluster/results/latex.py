"""Cells as a LaTeX table with booktabs, in ASCII, whatever text they hold: any engine takes it as it is.

Its names wrap, and its figures are never shrunk: a table has the size of its notes in whatever column.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Sequence

from kdcluster.columns import in_ascii
from kdcluster.wording import one_line

PREAMBLE = r"% in the preamble: \usepackage{booktabs,tabularx}"
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
    """A cell of numbers: a sign, or what a number is compared with, is one piece of mathematics with it."""
    text = escaped(text).replace("{[}", "[").replace("{]}", "]")  # no cell of numbers begins a row with one
    return re.sub(r"(?<![\w.])(\$[<>]\$|[+-])(\d[\d.,]*\d|\d)", lambda one: f"${one[1].strip('$')}{one[2]}$", text)


BREAKS = r"  \renewcommand{\_}{\textunderscore\penalty500\relax}"
"""A name breaks at an underscore, where it has to."""
IN_ONE_COLUMN = 58
"""So many characters have room in one of two columns: 229.5 pt in the class article."""
LONGEST = 16
"""Characters of a text, or of a word, that does not wrap."""

Tables = Sequence[tuple[Sequence[Sequence[str]], Container[int]]]
"""Cells, the first row as headings, and which columns hold numbers."""


def float_of(label: str, caption: str, tables: Tables, notes: Sequence[str] = (), comments: Sequence[str] = ()) -> str:
    """Tables below each other, as wide as the column of text, and the notes below them; comments stand above it all.

    In a paper of two columns it spans both of them where it has no room in one; `table*` is `table` in others.

    Args:
        label: `tab:` and this, without what a label cannot hold.
        caption: what it shows.
        tables: from top to bottom.
        notes: sentences; one that begins with [1] belongs to the row that ends so.
        comments: what is for who reads the file.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-") or "results"
    kind = "table" if max(_characters(*one) for one in tables) <= IN_ONE_COLUMN else "table*"
    lines = [f"% {in_ascii(one_line(comment))}" for comment in comments]
    lines += [f"\\begin{{{kind}}}", r"  \centering\setlength{\belowcaptionskip}{4pt}"]
    lines += [f"  \\caption{{{escaped(caption)}}}", f"  \\label{{tab:{name}}}"]
    lines += [r"  \footnotesize\setlength{\tabcolsep}{3pt}", BREAKS]
    for cells, right in tables:
        lines += [*(f"  {line}" for line in _tabular(cells, right)), r"  \par\medskip"]
    if notes:
        numbered = [note for note in notes if note.startswith("[")]
        rest = " ".join(_marked(note) for note in notes if not note.startswith("["))
        lines += [r"  \begin{minipage}{\linewidth}\raggedright"]
        lines += [f"    {text}\\par" for text in [*map(_marked, numbered), *([rest] if rest else [])]]
        lines += [r"  \end{minipage}"]
    return "\n".join([*lines, f"\\end{{{kind}}}"])


def _characters(cells: Sequence[Sequence[str]], right: Container[int]) -> int:
    """How wide a table is; names wrap."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return sum(2 + (width if at in right else min(width, LONGEST)) for at, width in enumerate(widths))


def _tabular(cells: Sequence[Sequence[str]], right: Container[int]) -> list[str]:
    """Figures below each other at their decimal point; names wrap in the room that these leave."""
    each = enumerate(zip(*cells, strict=True))
    columns = [_figures(column) if at in right else _names(column) for at, column in each]
    spec = "".join(one[0] for one in columns)
    head, *body = (" & ".join(row) + r" \\" for row in zip(*(one[1] for one in columns), strict=True))
    wide = "X" in spec
    begin, end = (r"\begin{tabularx}{\linewidth}", "tabularx") if wide else (r"\begin{tabular}", "tabular")
    rules = (r"\toprule", head, r"\midrule", *body, r"\bottomrule")
    return [f"{begin}{{@{{}}{spec}@{{}}}}", *(f"  {line}" for line in rules), rf"\end{{{end}}}"]


def _names(column: Sequence[str]) -> tuple[str, list[str]]:
    """The kind of a column of text, and its cells."""
    kind = "l" if max(map(len, column)) <= LONGEST else r">{\raggedright\arraybackslash\hangindent=1em\relax}X"
    words = re.compile(rf"(?<=[^\s_-]{{{LONGEST}}})(?=[^\s_-])")  # one that is longer breaks anywhere, where it has to
    return kind, [r"\penalty900{}".join(map(_marked, words.split(text))) for text in column]


def _figures(column: Sequence[str]) -> tuple[str, list[str]]:
    """The kind of a column of numbers, and its cells.

    A unit that all share stands in the heading; what else is behind a number, as ± or another unit, is a second column.
    """
    title, *body = column
    head = escaped(title)
    parts = [text.replace("< ", "<").partition(" ")[::2] for text in body]
    behind = {rest for number, rest in parts if rest or any(map(str.isdigit, number))}
    unit = "".join(behind)
    if len(behind) == 1 and unit and not any(map(str.isdigit, unit)):
        head = rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{head}\\({escaped(unit)})\end{{tabular}}"
        parts, behind = [(number, "") for number, _ in parts], set()
    two = any(behind)
    digits = [number.partition(".")[2] for number, _ in parts if number[-1:].isdigit()]
    cells = []
    for number, rest in parts:
        lacks = max(map(len, digits)) - len(number.partition(".")[2]) if number[-1:].isdigit() else 0
        pad = rf"\phantom{{{'' if '.' in number else '.'}{'0' * lacks}}}" if lacks else ""
        cells.append(f"{figure(number)}{pad}" + (f" & {figure(rest)}" if two else ""))
    return ("r@{~}l", [rf"\multicolumn{{2}}{{c}}{{{head}}}", *cells]) if two else ("r", [head, *cells])


def _marked(text: str) -> str:
    """The number of a note, at either end, is raised; alpha and temperature are mathematics."""
    text = escaped(text)
    text = re.sub(r"^\{\[\}(\d+)\{\]\} ", r"\\textsuperscript{\1}~", text)
    text = re.sub(r"\(\$\\alpha\$ ([\d.e+-]+), T ([\d.e+-]+)\)", r"($\\alpha=\1$, $T=\2$)", text)
    return re.sub(r" \{\[\}(\d+)\{\]\}$", r"\\textsuperscript{\1}", text)
