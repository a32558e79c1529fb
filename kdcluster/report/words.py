"""Numbers of the results table as a page has them."""

from __future__ import annotations

import re

from kdcluster.results.table import Row

MISSING = "–"


def percent(value: float | None, sd: float | None = None) -> str:
    """`89.38 ± 0.52`."""
    spread = "" if sd is None else f" ± {sd:.2f}"
    return MISSING if value is None else f"{value:.2f}{spread}"


def points(value: float | None) -> str:
    """`+3.50`, in percentage points."""
    return MISSING if value is None else _signed(f"{value:+z.2f}")


def interval(ends: tuple[float, float] | None) -> str:
    """`2.91 to 4.09`."""
    return MISSING if ends is None else _signed(f"{ends[0]:z.2f} to {ends[1]:z.2f}")


def _signed(number: str) -> str:
    """With the minus of print, which no line breaks after."""
    return number.replace("-", "−")


def parameters(number: int | None) -> str:
    """`11.2 M`, `97.2 k`."""
    if number is None:
        return MISSING
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def brief_number(value: float) -> str:
    """`20 k`, `3 M`, `0.5`, as an axis has it."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def ratio(value: float | None, unit: str) -> str:
    """`15.5×`, `91.4 %`."""
    return MISSING if value is None else f"{value:.1f}{unit}"


def configuration(row: Row) -> str:
    """With the number of its note; α and T stay together in a line."""
    name = re.sub(r"\(.*?\)", lambda found: found[0].replace(" ", "\xa0"), row.configuration)
    return name if row.note is None else f"{name} [{row.note}]"


def counted(row: Row) -> str:
    """Of how many seeds, and of how many it should be."""
    return str(row.n) if row.n == row.n_expected else f"{row.n} of {row.n_expected}"


def chance(p: float) -> str:
    """`0.031`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
