"""How the numbers of a results table are spelt, in a terminal and in a page."""

from __future__ import annotations

MISSING = "–"


def percent(value: float | None, sd: float | None = None) -> str:
    """`89.38 ± 0.52`."""
    spread = "" if sd is None else f" ± {sd:.2f}"
    return MISSING if value is None else f"{value:.2f}{spread}"


def points(value: float | None) -> str:
    """`+3.50`, in percentage points."""
    return MISSING if value is None else f"{value:+z.2f}"


def ratio(value: float | None, unit: str) -> str:
    """`15.5×`, `91.4 %`."""
    return MISSING if value is None else f"{value:.1f}{unit}"


def parameters(number: int | None) -> str:
    """`11.2 M`, `97.2 k`."""
    if number is None:
        return MISSING
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def chance(p: float | None) -> str:
    """A p: `0.034`, or `<0.001`."""
    return MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
