"""Words for people: what is wrong with a file, in its writer's words; counts; text from outside, and commands to type.

Names, reasons and answers of other programs are text from outside: they may hold control characters. `one_line` and
`printable` make them fit for a screen, `quoted` for a shell.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Key = tuple[str | int, ...]
Problem = tuple[Key, str]
"""Where (("train", "lr")), and what is wrong there."""


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    words = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"{where}: {words}" if where else words


def problems(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Every problem once, in pydantic's order; a key that is missing because it is misspelt is one problem."""
    found: dict[Key, str] = {}
    misspelt: set[Key] = set()
    for problem in error.errors(include_url=False):
        key: Key = tuple(problem["loc"])
        if key[-1] in ("bool", "str") and _block_at(root, key[:-1]) is None:  # a branch of `bool | str`
            found[key[:-1]] = f"must be true, false or a file name (got {shown(problem['input'])})"
        elif problem["type"] == "extra_forbidden":
            found[key], meant = _unknown(root, key)
            misspelt.add(meant)
        elif problem["type"] != "too_short" or not problem["input"]:  # [x] is called too short once x is refused
            found[key] = _words(problem, key)
    return [(key, what) for key, what in found.items() if not (key in misspelt and what == _MISSING)]


def syntax(problem: str, opened: int) -> str:
    """A YAML error; `opened` is the line in which the innermost bracket begins."""
    for pattern, words in _SYNTAX:
        if match := re.fullmatch(pattern, problem):
            return match.expand(words).replace("LINE", str(opened)).replace("'<stream end>'", "the end of the file")
    return problem


def count(number: float, what: str) -> str:
    """`1 run`, `2 runs`, `0.5 GPUs`, `2 processes`."""
    return f"{number:.15g} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def size(number: int) -> str:
    """Bytes as `312 B`, `1.2 KiB`, `448.5 MiB`, `1.3 GiB`."""
    if number < 1024:
        return f"{number} B"
    value, units = number / 1024, iter(("KiB", "MiB", "GiB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)):
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def one_line(text: str) -> str:
    """Text as a value in a row: a line break becomes a blank, and what shows nothing is spelt out."""
    if text.isprintable():
        return text
    indent = text[: len(text) - len(text.lstrip(" "))]
    return printable(indent + " ".join(filter(None, map(str.strip, text.split("\n"))))).replace("\t", " ")


def wide(text: str) -> int:
    """Columns of a terminal that one line of text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """One line of text as lines of a width, broken at words alone; `indent` begins all but the first.

    No width: no break. There is none at a no-break space, either, which is shown as a blank.
    """
    text = re.sub(r"(?<=\d) (?=%|px\b)", "\xa0", one_line(text))
    if width is None or wide(text) <= width:
        return [text.replace("\xa0", " ")]
    within = max(1, width - (wide(text) - len(text)))
    lines = textwrap.wrap(text, within, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines] or [""]


def printable(text: str) -> str:
    """Text of several lines: breaks and tabs stay, what shows nothing is spelt out.

    That is ESC (as \\x1b) and all else that controls a terminal, that turns the direction of what follows, and halves
    of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(map(_spelt_out, text))


def _spelt_out(c: str) -> str:
    if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs":
        return c
    return c.encode("unicode_escape").decode()


def command(words: Iterable[str]) -> str:
    """A command to type, each word quoted."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """One word for bash, without line breaks or control characters: SLURM refuses DOS ones."""
    if word.isprintable():
        return shlex.quote(word)
    known = {"\\": "\\\\", "'": "\\'"}
    return f"$'{''.join(known.get(c, c if c.isprintable() else _in_bytes(c)) for c in word)}'"


def _in_bytes(c: str) -> str:
    is_byte = "\udc80" <= c <= "\udcff"  # of a file name that is not UTF-8
    return "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass"))


SUBMIT_OPTIONS = (
    *("--set", "--seeds", "--role", "--gpus", "--procs", "--data-dir"),
    *("--backend", "--cluster", "--nodes"),
)
"""Options of `kdcluster submit` that a run remembers; each has a value."""


def submit_words(stored: Any) -> list[str]:
    """The arguments of a `kdcluster submit` as a run's directory has them; nothing where they are not such ones.

    A user is told to type them, and whoever can write there may have put in others.

    Args:
        stored: the words; of older versions the text that shlex.join makes of them.
    """
    words = stored
    if isinstance(stored, str):
        try:
            words = shlex.split(stored)
        except ValueError:
            return []
        if shlex.join(words) != stored:  # not ours: something stands there unquoted
            return []
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return []
    left = iter(words)
    sound = all((word in SUBMIT_OPTIONS and next(left, None) is not None) or not word.startswith("-") for word in left)
    return words if sound else []


def shown(value: Any) -> str:
    """A value as the file would have it, cut short."""
    text = spelt(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The block inside a field's annotation (`Train`, `Train | None`), or None for a plain value."""
    from pydantic import BaseModel  # here, so that what only needs words does not wait for it

    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


_SYNTAX = (
    (r"found character '\\t'.*", "a tab where YAML wants spaces"),
    (r"found character '(.)'.*", r"text that begins with \1 needs quotes"),
    (r"found undefined alias '(.*)'", r"no anchor &\1 stands before this; text that begins with * needs quotes"),
    (r"could not determine a constructor for the tag '(.*)'", r"unknown tag \1; text that begins with ! needs quotes"),
    (r"found unexpected end of stream", "this quote is not closed"),
    (r"expected ',' or '.', but .*stream end.*", "this bracket is not closed"),
    (r"expected (',' or '.'), but .*", r"expected \1; the bracket opened in line LINE is not closed yet"),
    (r"expected the node content, but (.*)", r"expected a value, \1"),
    (r"expected <block end>, but .*", "does not fit the lines above; check the indentation"),
    (
        r"mapping values are not allowed here",
        "a key cannot stand here; check the indentation, and put text with a colon in quotes",
    ),
    (r"but found another document", "a second document begins here; a file holds one experiment"),
)
"""ruamel's words -> ours."""
MANY = 20  # values of a field, more of which nobody reads in a message
_MISSING = "required key is missing"
_WORDS = {
    "missing": _MISSING,
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "model_type": "must be a block of keys",
    "dict_type": "must be a block of keys",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:.10g}",
    "less_than_equal": "must be at most {le:g}",
}


def _words(problem: Any, key: Key) -> str:
    kind, got, limits = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing":
        return _MISSING
    if kind == "literal_error":
        named = re.split(", | or ", limits["expected"])
        options = [name.strip("'") if name.startswith("'") else name.lower() for name in named]  # True is true
        small = {option.lower(): option for option in options}
        close = difflib.get_close_matches(str(got).lower(), small, 1, cutoff=0.5)
        many = f"the {len(options)} that `kdcluster schema --json` lists" if len(options) > MANY else ", ".join(options)
        return f"must be one of {many} (got {shown(got)}){f'; did you mean {small[close[0]]}?' if close else ''}"
    if kind == "tuple_type":
        example = {"seeds": "[0, 1, 2]", "imports": "[my_models.py]"}.get(str(key[-1]), "[0.5, 0.9]")
        return f"must be a list, as in {example} (got {shown(got)})"
    words = _WORDS[kind].format(**limits) if kind in _WORDS else problem["msg"].removeprefix("Value error, ")
    if key == ("teacher", "train") and kind == "model_type":
        words += ", or none to take its weights as they are"
    if kind == "string_type" and got is not None and not isinstance(got, list | dict):
        words += "; put it in quotes"
    return words if "(got " in words else f"{words} (got {shown(got)})"  # a check of ours says which part of it


def _unknown(root: type[BaseModel], key: Key) -> tuple[str, Key]:
    """What to say of an unknown key, and the key that it may stand for."""
    name, block = str(key[-1]), _block_at(root, key[:-1])
    known = list(block.model_fields) if block else []
    if close := [_USUAL[name]] if _USUAL.get(name) in known else difflib.get_close_matches(name, known, 1, cutoff=0.75):
        return f"unknown key; did you mean {'.'.join(map(str, (*key[:-1], close[0])))}?", (*key[:-1], close[0])
    if elsewhere := [other for other in _leaves(root) if other[-1] == name]:
        top = " at the top of the file" if len(elsewhere[0]) == 1 else ""
        return f"unknown key; did you mean {'.'.join(elsewhere[0])}{top}?", ()
    if close := difflib.get_close_matches(name, known, 1, cutoff=0.5):
        return f"unknown key; did you mean {'.'.join(map(str, (*key[:-1], close[0])))}?", (*key[:-1], close[0])
    return f"unknown key; known: {', '.join(known)}", ()


_USUAL = {
    **dict.fromkeys(("name", "arch", "architecture", "backbone"), "model"),
    **dict.fromkeys(("root", "dir", "folder", "data_dir"), "path"),
    **dict.fromkeys(("img_size", "input_size", "resolution"), "image_size"),
    **dict.fromkeys(("learning_rate", "base_lr"), "lr"),
    **dict.fromkeys(("T", "t", "temp", "tau"), "temperature"),
    **dict.fromkeys(("clip_grad", "max_grad_norm", "gradient_clip_val"), "grad_clip"),
    "wd": "weight_decay",
    "bs": "batch_size",
    "dataset": "name",
}
"""What others call a key -> the key."""


def _leaves(block: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a file, those of outer blocks first."""
    yield from ((*above, name) for name in block.model_fields)
    for name, info in block.model_fields.items():
        if (inner := block_of(info.annotation)) and (above, name) != (("teacher",), "train"):
            yield from _leaves(inner, (*above, name))


def _block_at(root: type[BaseModel], key: Key) -> type[BaseModel] | None:
    """The pydantic block that a key leads to."""
    block: type[BaseModel] | None = root
    for part in key:
        if block is None or part not in block.model_fields:
            return None
        block = block_of(block.model_fields[str(part)].annotation)
    return block


def spelt(value: Any) -> str:
    """A value as the file would have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    if isinstance(value, list):
        return f"[{', '.join(map(spelt, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {spelt(inner)}' for key, inner in value.items())}}}"
    return repr(value) if isinstance(value, str) else str(value)
