"""float32, as event files have it, in a double."""

from __future__ import annotations

from ctypes import c_float


def float32(value: float) -> float:
    """As an event file would have it."""
    return c_float(value).value


def decimal(value: float) -> float:
    """The shortest decimal that an event file would have as this one: 89.32, not 89.31999969482422."""
    wanted = float32(value)
    return next(short for digits in range(1, 10) if float32(short := float(f"{wanted:.{digits}g}")) == wanted)
