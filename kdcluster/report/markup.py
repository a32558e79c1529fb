"""Elements of HTML. Text from outside is escaped wherever it becomes part of one: `Html` alone is taken as it is."""

from __future__ import annotations

import html
import re
from collections.abc import Container, Iterable, Sequence

from kdcluster.wording import one_line, printable

VOID = ("meta", "img", "br", "wbr")


WORD = 14
"""Letters up to which a cell's words are never broken."""


class Html(str):
    """Markup that a function of this module has made."""

    __slots__ = ()


def raw(markup: str) -> Html:
    """Markup of our own: a style sheet, a drawing; what comes from outside never goes this way."""
    return Html(markup)


def together(*parts: object) -> Html:
    """Elements and text beside each other."""
    return Html("".join(map(text, parts)))


def joined(parts: Iterable[object], separator: str = ", ") -> Html:
    """The same, with something between them."""
    return Html(text(separator).join(map(text, parts)))


def text(value: object) -> Html:
    """A value in one line, with what controls or turns a line spelt out; markup stays as it is."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(re.sub(r"(?<=\d) (?=%|px\b)", "\xa0", one_line(str(value)))))  # `92.60 %` is not torn apart


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """`element("td", "a", class_="number", aria_label="b")`; an attribute that is None or False is left out."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    given = "".join(
        f" {key}" if value is True else f' {key}="{text(str(value))}"'
        for key, value in named.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{given}>" + ("" if name in VOID else f"{''.join(map(text, children))}</{name}>"))


def block(content: str) -> Html:
    """Lines as they are, as of a command or a file."""
    return element("pre", Html(html.escape(printable(content))), tabindex=0)


def named(value: str) -> Html:
    """A name from outside in a sentence: in whatever direction it is written, what follows is not turned."""
    return element("bdi", value)


def breakable(path: str) -> Html:
    """A path, whose lines break behind its folders alone."""
    return joined(re.split("(?<=./)(?=.)", path), Html("<wbr>"))


def paragraphs(lines: Iterable[object], **attributes: object) -> Html:
    return together(*(element("p", line, **attributes) for line in lines))


def listed(items: Iterable[object], **attributes: object) -> Html:
    """A list; nothing where there is nothing in it."""
    found = [element("li", item) for item in items]
    return element("ul", *found, **attributes) if found else Html()


def table(
    caption: object,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    right: Container[int] = (),
    strong: Container[int] = (),
    names: bool = False,
) -> Html:
    """A table whose first column names the rows, in a box that scrolls sideways, with the keyboard, too.

    Args:
        caption: what it is.
        head: headings of the columns.
        rows: as many cells each.
        right: columns of numbers.
        strong: rows that stand out.
        names: the first column has long ones.
    """
    number = ["number" if at in right else None for at in range(len(head))]

    def kind(cell: object, at: int) -> str | None:
        return number[at] or ("word" if len(str(cell)) <= WORD else None)

    heads = (element("th", cell, scope="col", class_=number[at]) for at, cell in enumerate(head))
    body = []
    for at, (first, *others) in enumerate(rows):
        cells = (element("td", cell, class_=kind(cell, column)) for column, cell in enumerate(others, 1))
        name = element("th", first, scope="row", class_=kind(first, 0))
        body.append(element("tr", name, *cells, class_="strong" if at in strong else None))
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        class_="names" if names else None,
    )
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=_plain(caption))


def _plain(caption: object) -> str:
    """As a name that is read aloud, which has no elements."""
    return html.unescape(re.sub("<[^>]*>", "", caption)) if isinstance(caption, Html) else str(caption)


def folded(summary: object, *children: object) -> Html:
    """What opens when somebody asks for it, without a script."""
    return element("details", element("summary", summary), *children)
