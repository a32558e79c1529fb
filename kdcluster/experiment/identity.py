"""What of some settings decides the numbers, and the hash of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def changed(block: BaseModel) -> dict[str, Any]:
    """The hashed fields of a block whose value is not the default; a block that is off by default counts once it stands
    there, also with nothing in it."""
    found: dict[str, Any] = {}
    for name, info in hashed(type(block)).items():
        value = getattr(block, name)
        if isinstance(value, BaseModel):
            if (inner := changed(value)) or info.default is None:
                found[name] = inner
        elif value != info.default:
            found[name] = value
    return found


@cache
def hashed(block: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a block that decide the numbers."""
    extras = ((name, info, info.json_schema_extra) for name, info in block.model_fields.items())
    return {name: info for name, info, extra in extras if not isinstance(extra, dict) or extra.get("hashed", True)}


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 over values that JSON can hold, whatever their order."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
