"""What a page says to others: no host, no folder of its maker, and nothing that was not committed.

Every text of the facts is gone through, so that what is added to them is, too: names of hosts become HOST, and of a
path its last part is left, or what lies below RUNS and DATA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from kdcluster.report.facts import Facts
from kdcluster.report.origin import Origin

THEIR_OWN = ("--data-dir", "--runs-dir")
"""Options that are left out of commands: others have folders of their own, where they have them by default."""
QUOTED = re.compile(r"""(['"])(?:~[\w.-]*)?/(?!/)(?:[^'"\n]*/)?([^'"/\n]+)/?\1""")
PATH = re.compile(r"""(?<![^\s'"`=(\[{,;:|])(?:~[\w.-]*)?/(?!/)[^\s'"`,;:()\[\]{}<>|]+""")
"""One that is absolute, or of a home; with blanks in it only where it is quoted, or begins with a folder we know."""
ADDRESS = re.compile(r"(?<=://)[^\s/'\"]+|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
HOME = re.compile(r"/(?:home|Users)/[^/]+")


def public(facts: Facts) -> Facts:
    """The same, to be passed on."""
    found = facts.origin
    records = {run: [replace(one, where="", traceback=None) for one in ours] for run, ours in found.records.items()}
    folders = list(dict.fromkeys(folder for one in found.commits for folder, *_ in one.of))
    code = {folder: f"CODE{at}" if len(folders) > 1 else "" for at, folder in enumerate(folders, 1)}
    commits = tuple(
        replace(
            one, diff="", diff_file=None, of=tuple((code[folder], commit, dirty) for folder, commit, dirty in one.of)
        )
        for one in found.commits
    )
    submitted = tuple(dict.fromkeys(map(_elsewhere, found.submitted)))
    file = Path(found.file).name
    origin = replace(found, records=records, commits=commits, submitted=submitted, file=file, commands={})
    bare = replace(facts, origin=replace(origin, hosts=(), places={}), again=_elsewhere(facts.again))
    told: Facts = _each(bare, _cleaner(found))
    return told


def _each(value: Any, told: Callable[[str], str]) -> Any:
    """A value, with each text in it as it is told."""
    if type(value) is str:
        return told(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: _each(getattr(value, one.name), told) for one in fields(value)})
    if isinstance(value, Mapping):
        return {_each(key, told): _each(one, told) for key, one in value.items()}
    if isinstance(value, tuple | list):
        parts = [_each(one, told) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _cleaner(origin: Origin) -> Callable[[str], str]:
    """Tells a text without what only its maker has to know."""
    known = sorted(origin.places.items(), key=lambda one: -len(one[0]))
    folders = [
        (re.compile(rf"{re.escape(folder)}(?![\w.-])"), re.sub(r"[^\w/.-]", "-", name))  # one word, for what follows
        for folder, name in known
        if len(folder) > 1
    ]
    hosts = re.compile(rf"(?<![\w.-])(?:{'|'.join(_hosts(origin.hosts))})(?:\.[a-zA-Z][\w-]*)*(?![\w-])")

    def told(text: str) -> str:
        if text.startswith("data:"):  # an image
            return text
        if text in origin.places:
            return origin.places[text].removeprefix("/")
        for folder, name in folders:
            text = folder.sub(lambda _, name=name: name, text)  # type: ignore[misc]
        text = PATH.sub(_last, QUOTED.sub(r"\1\2\1", text))
        return text if re.fullmatch(r"[\w.-]+", text) else hosts.sub("HOST", ADDRESS.sub("HOST", text))

    return told


def _last(path: re.Match[str]) -> str:
    return "HOME" if HOME.fullmatch(path[0].rstrip("/")) else Path(path[0]).name


def _hosts(names: Iterable[str]) -> Iterator[str]:
    """A pattern for each: of `node[1-3],gpu7` one for each part, whatever stands in the brackets; of a full name the
    short one, which may have the rest behind it."""
    for name in sorted({part for told in names for part in re.split(r",(?![^\[]*\])", told)} - {"localhost", ""}):
        short = name.split(".")[0] if not name[0].isdigit() else name
        yield r"\d+".join(map(re.escape, re.split(r"\[[^\]]*\]", short)))
    yield r"(?!)"


def _elsewhere(words: Sequence[str]) -> tuple[str, ...]:
    """The arguments of a command as they can be typed elsewhere."""
    before = ("", *words)
    kept = [(last, word) for last, word in zip(before, words, strict=False) if not {last, word} & {*THEIR_OWN}]
    return tuple("CLUSTER" if last == "--cluster" else _plain(word) for last, word in kept)


def _plain(word: str) -> str:
    """A path by its last part, also one that a --set has behind its key."""
    key, sign, value = word.partition("=") if word[:1] not in "/~." else ("", "", word)
    return f"{key}{sign}{Path(value).name if value[:1] in ('/', '~') or value.startswith('..') else value}"
