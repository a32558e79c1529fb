"""The records of a run, read: each is held against its shape (shapes.py) here, once.

A record is damaged where it cannot be read, does not hold its check sum (files.py), or lacks or misspells what is used
of it. That is a state of its run alone: `found` takes such a record for one that was never written, `problem` says what
is wrong, and only what decides whether a run may be alive raises `Damaged`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from kdcluster.errors import Damaged
from kdcluster.experiment import yamlfile
from kdcluster.experiment.config import Model, Resources
from kdcluster.files import document, read_json
from kdcluster.rereading import once
from kdcluster.run import STORE, Run
from kdcluster.shapes import NUMBERED, OF_A_RUN, OF_AN_ATTEMPT, OTHERS, Record
from kdcluster.wording import block_of, first_problem


@cache
def _shape(name: str) -> TypeAdapter[Any]:
    kinds: Mapping[str, Any] = {**OF_A_RUN, **OF_AN_ATTEMPT, **OTHERS}
    kind = name.rstrip("0123456789") if name.startswith(NUMBERED) else name
    return TypeAdapter(kinds.get(kind, Record))


FilePath = str | Path
"""As text where many are read: to make a Path takes as long as to look at a file."""


def read(path: FilePath, *, own: bool = False) -> Any:
    """The document in a record, or None where there is none; `own`: only where nobody else can have written it.

    It is not to be changed.

    Raises:
        Damaged: it is not what it ought to be.
        ConfigError: somebody else can have written it.
    """
    try:
        values = None if own else once(path, _document)
    except FileNotFoundError:
        if not os.path.islink(path):  # noqa: PTH114
            return None
        values = None
    except OSError:
        values = None  # what is wrong is said below
    if isinstance(values, Damaged):
        raise Damaged(values.path, values.why)
    if values is None and (values := read_json(Path(path), own=own)) is not None:
        _hold_against_its_shape(str(path), values)
    return values


def _document(path: str, content: bytes) -> Any:
    """What is in a record, or what is wrong with it."""
    try:
        values = document(path, content)
        _hold_against_its_shape(path, values)
    except Damaged as error:
        return error
    return values


def _hold_against_its_shape(path: str, values: Any) -> None:
    name = os.path.basename(path)  # noqa: PTH119
    try:
        _shape(name.removesuffix(".json")).validate_python(values)
    except ValidationError as error:
        raise Damaged(path, first_problem(error)) from None
    if name == "result.json":
        _hold_against_its_folder(Path(path), values)


def _hold_against_its_folder(path: Path, values: Mapping[str, Any]) -> None:
    """A result may be another run's: copied, or in a folder that was renamed. A store's has no accuracies."""
    if values["id"] != path.parent.name:
        raise Damaged(path, f"it is of the run {values['id']}")
    if not values["hash"].startswith(values["id"][-8:]):
        raise Damaged(path, "it is of another run (its hash differs)")
    lacking = [key for key in ("best", "last") if not values.get(key)]
    if lacking and not values["id"].startswith(f"{STORE}-"):
        raise Damaged(path, f"it lacks {' and '.join(lacking)}")


def found(path: FilePath) -> Any:
    """`read`; None where there is none that can be believed, too."""
    try:
        return read(path)
    except Damaged:
        return None


def problem(path: FilePath, base: Path) -> str:
    """What is wrong with a record, for a sentence about the run whose directory is `base`; empty where nothing is."""
    try:
        read(path)
    except Damaged as error:
        return in_words(error, base)
    return ""


def in_words(damage: Damaged, base: Path) -> str:
    """For a sentence about the run whose directory is `base`."""
    return f"its {damage.path.relative_to(base)} is damaged: {damage.why}"


_OF_AN_ATTEMPT = re.compile(
    "|".join(rf"{kind}{'(0|[1-9][0-9]{0,15})' * (kind in NUMBERED)}" for kind in OF_AN_ATTEMPT).join(("(", r")\.json"))
)


def is_of_an_attempt(name: str) -> bool:
    """Whether a file's name is that of a record of an attempt."""
    return _OF_AN_ATTEMPT.fullmatch(name) is not None


def is_attempt(folder: FilePath) -> bool:
    """Whether a folder was made for an attempt: something has written a record there, readable or not."""
    start = f"{folder}/start.json"  # which each attempt has, unless it was lost
    return os.path.lexists(start) or any(map(is_of_an_attempt, entries(folder)))


def entries(folder: FilePath) -> list[str]:
    """Names in a folder; none where it cannot be looked into."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []


def numbered(names: Iterable[str], before: str, after: str) -> Iterator[tuple[int, str]]:
    """(number, name) of the names that are a number between two texts, in the order of the numbers; odd ones left out.

    `rank0.old.log` and `02` are none: they were made by somebody else.
    """
    made = _between(before, after)
    yield from sorted((int(match[1]), name) for name in names if (match := made.fullmatch(name)))


@cache
def _between(before: str, after: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(before)}(0|[1-9][0-9]{{0,15}}){re.escape(after)}")


# config.yaml


def held(path: FilePath) -> str:
    """The id in a config.yaml, without understanding all of it; empty where that says none."""
    try:
        return once(path, _held)
    except OSError:
        return ""


def _held(_: str, content: bytes) -> str:
    said = _ID.search(content)
    return said[1].decode() if said else ""


_ID = re.compile(rb"^id: *'?([\w.-]+)'?\s*$", re.MULTILINE | re.ASCII)


def config(path: Path) -> tuple[Run, str]:
    """The run in a config.yaml as far as it can be read, to be shown and deleted, and what is wrong with the file.

    Its id is the folder's name. What cannot be read is taken from that name, or is nothing.
    """
    try:
        return once(path, _config)
    except OSError as error:
        return _known_of(path.parent.name, None, str(error.strerror))


def _config(path: str, content: bytes) -> tuple[Run, str]:
    try:
        values, problem = yamlfile.parse(content.decode()), "it has no keys"
    except ValueError as error:
        values, problem = None, " ".join(str(error).split())
    return _known_of(Path(path).parent.name, values, problem)


def _known_of(name: str, values: Any, problem: str) -> tuple[Run, str]:
    """A run by its folder's name and what its config.yaml says; `problem`: what is wrong with that where it is none."""
    if not isinstance(values, dict):
        values = {}
    with suppress(ValidationError):
        run = Run.model_validate(values, strict=False).as_today()
        return run if run.id == name else run.model_copy(update={"id": name}), ""
    kept, unknown = _pruned(values, Run)
    role, seed = re.match(r"([a-z]*(?:-logits)?)(?:.*-s(\d{1,9})-)?", name).groups()  # type: ignore[union-attr]
    read: dict[str, Any] = {**_NOTHING, "role": role, "seed": seed and int(seed), "model": Model(model=name)}
    wrong = []
    for key in Run.model_fields:
        try:
            read[key] = _adapter(key).validate_python(kept[key], strict=False)
        except KeyError:
            unknown.append(f"{key} is missing")
        except ValidationError as error:
            wrong.append(f"{key}: {first_problem(error)}")
    if read["teacher"] and not re.fullmatch(r"\w[\w.-]*", read["teacher"].id):
        wrong.append("teacher: no id of a run")
        read["teacher"] = None
    what = f"was written by another version ({', '.join(unknown)}), which can start it"
    if wrong or not values:
        what = f"is damaged: {'; '.join(wrong) or problem}"
    return Run.model_construct(**{**read, "id": name}), f"its config.yaml {what}"


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    annotation: Any = Run.model_fields[key].annotation
    return TypeAdapter(annotation)


_NOTHING = {"hash": "", "recipe": 0, "data": None, "num_classes": 0, "channels": 0, "train": None, "distill": None}
_NOTHING |= {"teacher": None, "variant": "", "imports": (), "digests": {}, "resources": Resources()}
_NOTHING |= {"store": None, "views": None}


def _pruned(values: Mapping[str, Any], block: type[BaseModel], above: str = "") -> tuple[dict[str, Any], list[str]]:
    """What this version knows of a block, and the rest in words."""
    kept, unknown = {}, []
    for key, value in values.items():
        if key not in block.model_fields:
            unknown.append(f"{above}{key} is unknown here")
            continue
        inner = block_of(block.model_fields[key].annotation)
        if inner and isinstance(value, dict):
            value, more = _pruned(value, inner, f"{above}{key}.")
            unknown += more
        kept[key] = value
    return kept, unknown
