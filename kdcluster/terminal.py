"""What goes to the terminal: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import click


def show(text: str, *, nl: bool = True) -> None:
    """Data, on stdout; named, because click sends UTF-8 to a stdout of its own choice where this one is ASCII."""
    click.echo(text, file=sys.stdout, nl=nl)


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    show(json.dumps(document, indent=1, allow_nan=False))  # ASCII, so that no stdout can damage it


def say(message: str) -> None:
    """Talk, on stderr; nothing with --quiet."""
    if not click.get_current_context().find_root().obj["quiet"]:
        click.echo(message, file=sys.stderr)


def leave(message: str, code: int) -> NoReturn:
    """End with a message on stderr."""
    click.echo(message, file=sys.stderr)
    sys.exit(code)


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
