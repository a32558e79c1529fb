"""Cells as columns for a terminal, as Markdown, as CSV, and documents as JSON, whatever text they hold."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from kdcluster.wording import one_line, wide, wrapped

_SIGNS = {"±": "+/-", "–": "-", "─": "-", "━": "=", "α": "alpha", "×": "x", "…": "...", "\xa0": " ", "▶": ">"}
_SIGNS |= dict(zip("▁▂▃▄▅▆▇", "_.:=+*#", strict=True))


def has_cursor(stream: TextIO) -> bool:
    """Whether lines can be written again there: a terminal, and not one (TERM=dumb) that shows orders as text."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def aligned(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Lines of columns two blanks apart, nothing ever cut; `right`: the columns that end where their heading ends."""
    cells = [list(row) for row in rows]
    return [line for row in fitted(cells, right).rows for line in row] if cells else []


@dataclass(frozen=True)
class Fitted:
    """Rows as lines that fit a width; a row in whose cells text was wrapped has several."""

    rows: list[list[str]]
    left_out: list[str]
    """Headings of the columns that had no room."""


Paint = Callable[[int, int, str], str]
"""(row, column, text as wide as its column) -> the same with colours."""


def fitted(
    rows: Sequence[Sequence[str]],
    right: Container[int] = (),
    *,
    width: int | None = None,
    ranks: Mapping[int, int] = {},
    wraps: Mapping[int, int] = {},
    paint: Paint | None = None,
) -> Fitted:
    """Columns two blanks apart within a width: headings wrap, then text, then columns give way by rank.

    What must not give way and still has no room wraps at words, and the last resort is a line that is too long.

    Args:
        rows: the first holds the headings.
        right: the columns that end where their heading ends.
        width: of the terminal, in columns; None: there is none, and everything stands in one line.
        ranks: of the columns that may give way, the highest first.
        wraps: columns of text -> to which width it wraps before another column gives way.
        paint: puts colours on cells.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    kept = list(range(len(cells[0])))
    while (widths := _widths(cells, kept, width, wraps)) is None:
        going = [at for at in kept if at in ranks]
        if not going:
            widths = _widths(cells, kept, width, dict.fromkeys(wraps, 0), force=True)
            break
        kept.remove(max(going, key=lambda at: (ranks[at], at)))
    assert widths is not None
    made = [_row(number, row, kept, widths, right, paint) for number, row in enumerate(cells)]
    return Fitted(made, [cells[0][at] for at in range(len(cells[0])) if at not in kept])


def _widths(
    cells: Sequence[Sequence[str]],
    kept: Sequence[int],
    width: int | None,
    wraps: Mapping[int, int],
    force: bool = False,
) -> dict[int, int] | None:
    """Of each column; None where they have no room."""
    widths = {at: max(wide(row[at]) for row in cells) for at in kept}
    over = sum(widths.values()) + 2 * (len(kept) - 1) - (width or 0)
    if width is None or over <= 0:
        return widths
    for at in kept:
        head = max(map(wide, cells[0][at].split(" ")))
        body = max((wide(row[at]) for row in cells[1:]), default=0)
        over -= widths[at] - max(head, body)
        widths[at] = max(head, body)
    for at in sorted(wraps, key=lambda at: -widths.get(at, 0)):
        if over > 0 and at in widths:
            longest = max(wide(word) for row in cells for word in row[at].split(" "))
            given = min(over, max(0, widths[at] - max(longest, wraps[at])))
            widths[at] -= given
            over -= given
    return widths if over <= 0 or force else None


def _row(
    number: int,
    row: Sequence[str],
    kept: Sequence[int],
    widths: Mapping[int, int],
    right: Container[int],
    paint: Paint | None,
) -> list[str]:
    parts = {at: wrapped(row[at], widths[at], "  " * (number > 0 and at == 0)) for at in kept}
    height = max(map(len, parts.values()))
    lines = []
    for line in range(height):
        shown = []
        for at in kept:
            part = parts[at]
            index = line - (height - len(part)) if number == 0 else line  # headings stand on their columns
            text = part[index] if 0 <= index < len(part) else ""
            blank = " " * (widths[at] - wide(text))
            text = blank + text if at in right else text + blank
            if at == kept[-1]:
                text = text.rstrip()
            shown.append(paint(number, at, text) if paint and text.strip() else text)
        lines.append("  ".join(shown).rstrip())
    return lines


def markdown(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """The lines of a Markdown table, the first row as headings."""
    head, *body = [[escaped(cell) for cell in row] for row in rows]
    rule = ["---:" if at in right else ":---" for at in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def escaped(text: str) -> str:
    """One line of Markdown that shows the text: no column, markup, link, image or HTML comes of it."""
    return re.sub(r"([\\`*|<]|(?<=\])\()", r"\\\1", one_line(text))


def as_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows with line breaks after each; numbers in full precision, None as an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: text that would be one begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_json(document: Any) -> str:
    """One JSON document in ASCII without control characters, so that no stream can damage it; nan is refused."""
    return json.dumps(document, indent=1, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def in_ascii(text: str) -> str:
    """The same for a stream that can take nothing else."""
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    return text.encode("ascii", "backslashreplace").decode()
