"""What the experiment file's blocks are made of: documented fields, strict mappings, contradictions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Contradictions = list[tuple[tuple[str, ...], str]]
"""What no single field can know: (dotted key, what is wrong)."""


def field(meaning: str, default: Any = ..., *, unit: str = "", hashed: bool = True, **limits: Any) -> Any:
    """A documented field; `limits` are pydantic's (ge, gt, le, lt, min_length …)."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit, "hashed": hashed}, **limits)


class Block(BaseModel):
    """A mapping in the experiment file: unknown keys refused, no silent conversions, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
