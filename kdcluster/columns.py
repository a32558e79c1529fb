"""Cells as columns for a terminal, as Markdown, as CSV, and documents as JSON, whatever text they hold."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

from kdcluster.wording import one_line

_SIGNS = {"±": "+/-", "–": "-", "─": "-", "α": "alpha", "×": "x", "…": "..."}


def aligned(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Lines of columns two blanks apart, nothing ever cut; `right`: the columns that end where their heading ends."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


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
