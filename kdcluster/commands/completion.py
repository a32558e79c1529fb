"""What the shell offers when TAB is pressed: experiments, runs, roles, profiles, keys for --set and their values.

It answers between two keystrokes, so names are taken from folders alone, without YAML and pydantic (0.1 s); only what
stands behind an option is looked up where it is known. What cannot be looked at has no names. A name that would have to
be quoted is not offered: shells put what they are given into the command line as it is.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from kdcluster.files import is_experiment, shipped

Items = list[CompletionItem[str]]


def experiments(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Experiments by name, those of the working directory by file, with their first line; else files."""
    found: dict[str, Path] = {}
    for path in _listed(Path("configs"), shipped("configs")):
        if path.suffix == ".yaml":
            found.setdefault(path.stem, path)
    found |= {path.name: path for path in _listed(Path()) if is_experiment(path)}
    items = [CompletionItem(name, help=_about(path)) for name, path in found.items()]
    return _fitting(items, ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Ids of runs in the runs directory that is named before, in the environment, or by default."""
    root = ctx.params.get("runs_dir") or os.environ.get("KDCLUSTER_RUNS_DIR") or "runs"
    names = (path.name for path in _listed(Path(root)))
    items = [CompletionItem(name) for name in names if re.fullmatch(r"\w[\w.-]*-s\d+-[0-9a-f]{8}", name, re.ASCII)]
    return _fitting(items, ctx, param, incomplete)


def experiments_and_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Both; files where neither begins so."""
    ids = runs(ctx, param, incomplete)
    return [item for item in experiments(ctx, param, incomplete) if item.type == "plain" or not ids] + ids


def roles(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The last one of a list with commas."""
    from kdcluster.plan import ROLES

    return _fitting(_last_of(ROLES, incomplete), ctx, param, incomplete)


def columns(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Of the results table; the last one of a list with commas."""
    from kdcluster.results.view import COLUMNS

    return _fitting(_last_of((column.name for column in COLUMNS), incomplete), ctx, param, incomplete)


def _last_of(names: Iterable[str], incomplete: str) -> Items:
    before = incomplete[: incomplete.rfind(",") + 1]
    return [CompletionItem(before + name) for name in names if name not in before.split(",")]


def backends(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """`auto`, and what is installed here."""
    from kdcluster.launch.backend import names

    return _fitting([CompletionItem(name) for name in ("auto", *names())], ctx, param, incomplete)


def clusters(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Cluster profiles by name; files where none begins so."""
    from kdcluster.launch.slurm.profile import profiles

    items = [CompletionItem(name) for name in profiles()]
    return _fitting(items, ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


def settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Keys of the experiment file with their meaning, as `KEY=`; behind that the words that a key may have."""
    from kdcluster.experiment.schema import fields

    key, equals, _ = incomplete.partition("=")
    items = []
    for doc in fields():
        for name in (doc.key, *([f"teacher.{doc.key}"] if doc.key.startswith("train.") else [])):
            if equals and name == key:
                items += [CompletionItem(f"{key}={word}") for word in _words(doc.type)]
            elif not equals and doc.type != "block":
                items.append(CompletionItem(name + ("." if doc.type == "mapping" else "="), help=doc.meaning))
    return _fitting(items, ctx, param, incomplete)


def _words(type_: str) -> Iterator[str]:
    """The values that a type has by name, as `schema` shows it."""
    for word in type_.split(" | "):
        if word == "bool":
            yield from ("true", "false")
        elif word not in ("int", "float", "text", "mapping") and not word.startswith("list of "):
            yield word


def _listed(*folders: Path) -> Iterator[Path]:
    """What lies in folders, by name; nothing in one that cannot be looked into."""
    for folder in folders:
        try:
            yield from sorted(folder.iterdir())
        except OSError:
            continue


def _about(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(200)
    except OSError:
        return None
    words = first.lstrip("# ").rstrip()
    return words if first.startswith("#") and words.isprintable() else None


def _fitting(items: Iterable[CompletionItem[str]], ctx: click.Context, param: click.Parameter, begun: str) -> Items:
    """Those that begin so, can be typed as they are, and were not given before."""
    given = ctx.params.get(param.name or "")
    known = given if isinstance(given, tuple) else ()
    safe = (item for item in items if item.value.startswith(begun) and item.value not in known)
    return [item for item in safe if shlex.quote(item.value) == item.value]


# What the shells do with it


def _script(template: str, *changes: tuple[str, str]) -> str:
    """Click's own script with small changes; where a later click has changed it, it stays as it is there."""
    for old, new in changes:
        template = template.replace(old, new)
    return template


class _Bash(BashComplete):
    """Bash breaks words at "=", and puts what it is given behind the last one."""

    _typed = ""
    """What stands before the part of a word that bash wants completed."""

    @property
    def source_template(self) -> str:  # type: ignore[override]
        silent = ("=bash_complete $1)", "=bash_complete $1 2>/dev/null)")
        no_blank = ("    return 0\n", "    [[ $COMPREPLY == *[=.] ]] && compopt -o nospace\n    return 0\n")
        return _script(BashComplete.source_template, silent, no_blank)

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        joined: list[str] = []
        for word in args:
            if joined and (word == "=" or joined[-1].endswith("=")):
                joined[-1] += word
            else:
                joined.append(word)
        if incomplete == "=" and joined:
            joined[-1] += incomplete
            incomplete = ""
        if joined and joined[-1].endswith("="):
            typed = joined.pop()
            self._typed = typed.partition("=")[2] if typed.startswith("-") else typed
            incomplete = typed + incomplete
        return joined, incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self._typed)}"


class _WholeWord(ShellComplete):
    """Zsh and fish put what they are given in the place of the whole word, also of an option and its value."""

    _typed = ""
    """An option and "=", which click leaves out."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        option, equals, _ = incomplete.partition("=")
        self._typed = option + equals if equals and option.startswith("-") else ""
        return args, incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        return super().format_completion(CompletionItem(self._typed + item.value, item.type, item.help))


class _Zsh(_WholeWord, ZshComplete):
    @property
    def source_template(self) -> str:  # type: ignore[override]
        silent = ("=zsh_complete %(prog_name)s)", "=zsh_complete %(prog_name)s 2>/dev/null)")
        no_blank = (
            '        if [[ "$type" == "plain" ]]; then\n',
            '        [[ "$key" == *[=.] ]] && suffix=(-S "")\n        if [[ "$type" == "plain" ]]; then\n',
        )
        return _script(
            ZshComplete.source_template,
            *(silent, no_blank, ("    local -a response\n", "    local -a response suffix\n")),
            ("completions_with_descriptions -U\n", 'completions_with_descriptions -U "${suffix[@]}"\n'),
            ("compadd -U -V unsorted", 'compadd -U "${suffix[@]}" -V unsorted'),
        )


class _Fish(_WholeWord, FishComplete):
    @property
    def source_template(self) -> str:  # type: ignore[override]
        silent = ("(commandline -t) %(prog_name)s)", "(commandline -t) %(prog_name)s 2>/dev/null)")
        commas = ('string split "," ', 'string split -m1 "," ')  # in values and in what is said of them
        return _script(FishComplete.source_template, silent, commas)


def register() -> None:
    """Have click take these for the shells."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
