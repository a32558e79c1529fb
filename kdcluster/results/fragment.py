"""Cells as a piece of HTML to put into any page: every text escaped, no style but the side of each column."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from html import escape

from kdcluster.wording import one_line


def table(cells: Sequence[Sequence[str]], right: Container[int], caption: str = "") -> list[str]:
    """The lines of a `table`: the first row as headings of the columns, the first cell of each other as the row's."""
    side = [f' style="text-align: {"right" if at in right else "left"}"' for at in range(len(cells[0]))]
    head, *body = [[escaped(cell) for cell in row] for row in cells]
    lines = ["<table>", *([f"<caption>{escaped(caption)}</caption>"] if caption else []), "<thead>", "<tr>"]
    lines += [f'<th scope="col"{side[at]}>{cell}</th>' for at, cell in enumerate(head)]
    lines += ["</tr>", "</thead>", "<tbody>"]
    for first, *others in body:
        each = (f"<td{side[at]}>{cell}</td>" for at, cell in enumerate(others, 1))
        lines.append(f'<tr><th scope="row"{side[0]}>{first}</th>{"".join(each)}</tr>')
    return [*lines, "</tbody>", "</table>"]


def items(texts: Iterable[str]) -> list[str]:
    """The lines of a list; none without texts."""
    found = [f"<li>{escaped(text)}</li>" for text in texts]
    return ["<ul>", *found, "</ul>"] if found else []


def escaped(text: str) -> str:
    """One line of text, also for an attribute."""
    return escape(one_line(text))
