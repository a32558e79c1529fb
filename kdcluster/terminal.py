"""What goes to the terminal: data on stdout, talk on stderr. Text from outside comes through this door alone.

A name, a reason or an answer of SLURM may hold what turns, clears or forges a screen: `one_line` and `printable` of
wording.py spell it out here, whoever prints.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn, TextIO

import click

from kdcluster.columns import as_json
from kdcluster.wording import one_line, printable


def show(line: str) -> None:
    """A line of data, on stdout; named, because click sends UTF-8 to a stdout of its own choice where this is ASCII."""
    click.echo(one_line(line), file=sys.stdout)


def show_text(text: str) -> None:
    """Data of several lines: a table, a batch script."""
    click.echo(printable(text.removesuffix("\n")), file=sys.stdout)


def show_log(line: str) -> None:
    """A line of a log: in a file or a pipe as it was written."""
    click.echo(printable(line) if sys.stdout.isatty() else line, file=sys.stdout)


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    show_text(as_json(document))


def say(line: str) -> None:
    """A line of talk, on stderr; nothing with --quiet."""
    if not click.get_current_context().find_root().obj["quiet"]:
        click.echo(one_line(line), file=sys.stderr)


def leave(message: str, code: int) -> NoReturn:
    """End with a message on stderr, of several lines where it needs them."""
    click.echo(printable(message), file=sys.stderr)
    sys.exit(code)


def size(stream: TextIO) -> os.terminal_size | None:
    """Columns and lines of the terminal behind a stream; None: it is none that can move its cursor."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return found if found.columns and found.lines else os.terminal_size((80, 24))  # one that does not know its size


def width() -> int | None:
    """Columns of the terminal behind stdout; None: there is none, and nothing is to be wrapped or left out."""
    found = size(sys.stdout)
    return found.columns if found else None


class Warnings(logging.Handler):
    """What code that cannot `say` warns of, such as an answer of SLURM, as a line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(one_line(record.getMessage()), file=sys.stderr)


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
