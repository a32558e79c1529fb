"""Every field of the experiment file, and another valid value for each, made from the model's own metadata."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from kdcluster.experiment.config import Experiment
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.wording import block_of

FILES = {
    "/images": "aa",
    "/images2": "aa",  # a copy in another place
    "/teacher.pt": "bb",
    "/teacher.pt2": "b2",
    "/student.pt": "cc",
    "/student.pt2": "c2",
    "/my_models.py": "dd",
}
"""Files that an experiment may name, and the digests of what they hold."""

BASE: dict[str, Any] = {
    "data": {"name": "image_folder", "path": "/images"},
    "teacher": {"model": "resnet18", "pretrained": "/teacher.pt"},
    "student": {"model": "resnet10t", "pretrained": "/student.pt"},
}
"""An experiment in which every field can be changed on its own."""


def leaves(block: Any = Experiment, above: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key that is no block; the teacher's own `train` too."""
    for name, info in block.model_fields.items():
        if inner := block_of(info.annotation):
            yield from leaves(inner, (*above, name))
        else:
            yield ".".join((*above, name)), info


def hashed(info: FieldInfo) -> bool:
    """Whether the field says that it enters the id."""
    extra = info.json_schema_extra
    return not isinstance(extra, dict) or bool(extra.get("hashed", True))


def get(values: Any, key: str) -> Any:
    """A nested value; None in a block that is None."""
    for part in key.split("."):
        values = values[part] if isinstance(values, Mapping) else values and getattr(values, part)
    return values


def put(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested values with one dotted key set."""
    first, _, rest = key.partition(".")
    return {**values, first: put(values.get(first, {}), rest, value) if rest else value}


def another(info: FieldInfo, value: Any) -> Any:
    """A valid value other than `value`."""
    if value == "5min":
        return "500steps"
    kinds = set(_kinds(info.annotation))
    literals = [kind for kind in kinds if not isinstance(kind, type)]
    if literals:
        return sorted(option for option in literals if option not in (value, info.default))[0]
    if bool in kinds and str not in kinds:
        return value is False
    if str in kinds:
        return f"{value or '/images'}2"
    if int in kinds:
        return (value or 0) + 3
    if float in kinds and tuple not in kinds:
        return (value or 0.0) + 0.25
    if dict in kinds:
        return {**(value or {}), "drop_rate": {"choice": [0.25]}}
    if "tuple[float" in str(info.annotation):
        return tuple(one / 2 for one in value or info.default)
    assert tuple in kinds, f"no other value is known for {info.annotation}"
    if float in kinds:
        return (*(value or ()), 0.25)
    return (*value, "/my_models.py" if "str" in str(info.annotation) else 7)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types and literal values inside an annotation."""
    origin = typing.get_origin(annotation)
    if origin in (tuple, dict):
        yield origin
        if "float" in str(annotation):
            yield float
    elif origin is typing.Annotated:
        yield from _kinds(typing.get_args(annotation)[0])
    elif origin is not None:
        for argument in typing.get_args(annotation):
            yield from _kinds(argument)
    elif annotation is not type(None):
        yield annotation


def experiment(values: Mapping[str, Any], name: str = "exp", files: Mapping[str, str] = FILES) -> LoadedExperiment:
    """Values as if they had been read from a file, with made-up digests."""
    return LoadedExperiment(name, Path(f"{name}.yaml"), Experiment.model_validate(values), files, 10, 1_000)
