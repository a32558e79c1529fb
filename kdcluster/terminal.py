"""What goes to the terminal: data on stdout, talk on stderr. Text from outside comes through this door alone.

A name, a reason or an answer of SLURM may hold what turns, clears or forges a screen: `one_line` and `printable` of
wording.py spell it out here, whoever prints.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TextIO

import click

from kdcluster.columns import as_json, has_cursor
from kdcluster.wording import one_line, printable, wide, wrapped


def show(line: str) -> None:
    """A line of data, on stdout; named, because click sends UTF-8 to a stdout of its own choice where this is ASCII."""
    click.echo(one_line(line), file=sys.stdout)


def show_wrapped(before: str, text: str) -> None:
    """A line of data; on a terminal it goes on below the end of `before`, and no word or command is cut."""
    if width() is None:
        return show(before + text)
    first = before.rstrip(" ").ljust(len(before), "\xa0") if before.strip() else before
    for part in _broken(first + text, width(), " " * (len(before) or 4)):
        show(part)


def show_text(text: str) -> None:
    """Data of several lines: a table, a batch script."""
    click.echo(printable(text.removesuffix("\n")), file=sys.stdout)


def show_log(line: str) -> None:
    """A line of a log: in a file or a pipe as it was written, on a terminal broken at words where it is too long."""
    text, columns = printable(line) if sys.stdout.isatty() else line, width()
    fits = columns is None or wide(text.expandtabs()) <= columns
    for part in [text] if fits else by_depth(text, columns):
        click.echo(part, file=sys.stdout)


def by_depth(line: str, columns: int | None) -> list[str]:
    """A line as a terminal gets it that is read by its depth, as of a traceback: what has no room stands deeper.

    The marks below a line of code, which mean nothing once it is broken, are then left out.
    """
    if columns is not None and wide(line) > columns and not line.strip(" ^~"):
        return []
    return _broken(line, columns, " " * (len(line) - len(line.lstrip(" ")) + 4))


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    show_text(as_json(document))


def say(line: str) -> None:
    """A line of talk, on stderr; nothing with --quiet."""
    if not click.get_current_context().find_root().obj["quiet"]:
        _talk(line)


def leave(message: str, code: int) -> NoReturn:
    """End with a message on stderr, of several lines where it needs them."""
    for line in printable(message).split("\n"):
        _talk(line)
    sys.exit(code)


def _talk(line: str) -> None:
    """A line on stderr; a terminal gets it broken at words."""
    there = size(sys.stderr)
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    for part in _broken(line, there.columns if there else None, indent):
        click.echo(part, file=sys.stderr)


def _broken(line: str, columns: int | None, indent: str) -> list[str]:
    """A line as a terminal gets it, broken at words, but for a command, which is to be copied as a whole.

    Of one that has no room the lines end in a backslash, which a shell takes as one, unless a quoted word holds blanks.
    """
    if columns is None:
        return [one_line(line)]
    lines = wrapped(_COMMAND.sub(lambda found: found[0].replace(" ", "\xa0"), line), columns, indent)
    return [part for whole in lines for part in _continued(whole, columns, indent)]


def _continued(line: str, columns: int, indent: str) -> list[str]:
    if wide(line) <= columns or not _COMMAND.search(line) or re.search("'[^']* [^']*'", line):
        return [line]
    joined = re.sub(r"( --[\w-]+) (?=[\w'])", "\\1\xa0", line)  # an option and its value stay together
    *before, last = wrapped(joined, columns - 2, f"{indent}  ")
    return [*(f"{part} \\" for part in before), last]


_COMMAND = re.compile(r"(?:(?<![\w,;:] )\b\w+: )?\bkdcluster .*?(?=[,;:)](?: |$)|   |$)")
"""One to type, with a word that alone introduces it, up to the end of its clause."""


def size(stream: TextIO) -> os.terminal_size | None:
    """Columns and lines of the terminal behind a stream; None: it is none that can move its cursor."""
    if not has_cursor(stream):
        return None
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return found if found.columns and found.lines else os.terminal_size((80, 24))  # one that does not know its size


def has_colour() -> bool:
    """Whether a terminal may be given colours (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


def show_screen(lines: Iterable[str]) -> None:
    """Lines with colours of ours, on a terminal's stdout; what came from outside was made fit before."""
    for line in lines:
        sys.stdout.write(line + "\n")


def width() -> int | None:
    """Columns of the terminal behind stdout; None: there is none, and nothing is to be wrapped or left out."""
    found = size(sys.stdout)
    return found.columns if found else None


class Screen:
    """Lines at the bottom of a terminal, of which only those are written again that change.

    They must be as narrow as the terminal and fewer than its lines, and may hold colours of ours. Whatever else is to
    be said meanwhile goes through `above`.
    """

    open: Screen | None = None
    """The one that stands now."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lines: list[str] = []
        self._size: os.terminal_size | None = None

    def __enter__(self) -> Screen:
        Screen.open = self
        self.stream.write("\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        Screen.open = None
        self.stream.write("\x1b[?25h")
        self.stream.flush()

    def show(self, lines: Sequence[str]) -> None:
        """Bring the terminal to these lines."""
        now = size(self.stream)
        out = "\x1b[H\x1b[J" if self._size not in (None, now) else ""  # it has wrapped our lines as it likes
        old = [] if out else self._lines
        at = len(old)  # the cursor's line, counted from the first of ours
        for number, line in enumerate(lines):
            if number >= len(old):
                out += _moved(number - at) + f"{line}\n"
            elif line != old[number]:
                out += _moved(number - at) + f"\x1b[2K{line}\n"
            else:
                continue
            at = number + 1
        out += _moved(len(lines) - at)
        if len(lines) < len(old):
            out += "\x1b[J"
        self._lines, self._size = list(lines), now
        if out:
            self.stream.write(out)
            self.stream.flush()

    def clear(self) -> None:
        """Take the lines away."""
        self.show([])

    def above(self, line: str) -> None:
        """A line that stays, above them."""
        lines = self._lines
        self.clear()
        self.stream.write(line + "\n")
        self.show(lines)


def _moved(down: int) -> str:
    """The cursor to the beginning of a line so far below; it stands at one."""
    return f"\x1b[{-down}A" if down < 0 else f"\x1b[{down}B" if down else ""


class Warnings(logging.Handler):
    """What code that cannot `say` warns of, such as an answer of SLURM, as a line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(record.getMessage())
        if Screen.open is not None:
            return Screen.open.above(line)
        _talk(line)


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
