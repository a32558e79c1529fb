"""The experiment file's fields, as `kdcluster schema` shows them."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kdcluster.experiment import recipes, yamlfile
from kdcluster.experiment.config import Experiment
from kdcluster.wording import MANY, block_of


class FieldDoc(NamedTuple):
    """One key of the experiment file."""

    key: str
    type: str
    unit: str
    default: str
    hashed: bool
    meaning: str

    @property
    def kind(self) -> str:
        """Type and unit; of many names how many there are."""
        names = self.type.split(" | ")
        kind = self.type if len(names) <= MANY else f"one of {len(names)} names (--json has them)"
        return f"{kind} [{self.unit}]" if self.unit else kind


def fields(block: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[FieldDoc]:
    """Every key, depth first; a block's own keys follow it."""
    for name, info in block.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        inner = block_of(info.annotation)
        default = "required" if info.default is PydanticUndefined else _shown(info.default)
        yield FieldDoc(
            prefix + name,
            "block" if inner else _type(info.annotation),
            str(extra.get("unit", "")),
            "" if inner and default != "required" else default,
            bool(extra.get("hashed", True)),
            info.description or "",
        )
        if inner and f"{prefix}{name}" != "teacher.train":  # its keys are those of `train`
            yield from fields(inner, f"{prefix}{name}.")


def json_schema() -> dict[str, Any]:
    """The same as a JSON Schema, which editors take."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}
    options = document["$defs"]["Teacher"]["properties"]["train"]["anyOf"]
    options[options.index({"type": "null"})] = {"const": "none"}  # the file says none, not null
    return document


def recipe_file(name: recipes.Name) -> list[str]:
    """What `recipe: NAME` stands for, as the lines of an experiment file."""
    source = textwrap.wrap(f"{name}: {recipes.RECIPES[name].source}", 98)
    return [f"# {line}" for line in source] + yamlfile.dump(recipes.keys(name)).splitlines()


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return repr(value) if value == "" else str(value)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is NoneType:
        return "null"
    if origin is typing.Literal:
        return " | ".join(map(_shown, arguments))
    if origin in (UnionType, typing.Union):
        return " | ".join(_type(argument) for argument in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {int: "int", float: "float", bool: "bool", str: "text"}
    return names.get(annotation, str(annotation))
