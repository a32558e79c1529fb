"""Numbers of the results table as print has them."""

from __future__ import annotations

import re

from kdcluster.results import words
from kdcluster.results.table import Row
from kdcluster.results.words import MISSING as MISSING
from kdcluster.results.words import chance as chance
from kdcluster.results.words import parameters as parameters
from kdcluster.results.words import percent as percent
from kdcluster.results.words import ratio as ratio


def points(value: float | None) -> str:
    """`+3.50`, in percentage points."""
    return _signed(words.points(value))


def interval(ends: tuple[float, float] | None) -> str:
    """`2.91 to 4.09`."""
    return MISSING if ends is None else _signed(f"{ends[0]:z.2f} to {ends[1]:z.2f}")


def sentence(said: str) -> str:
    """What is said in a terminal, as a page says it."""
    return f"{said[:1].upper()}{re.sub(r'(?<=[ [])-(?=[0-9])', '−', said[1:])}."


def _signed(number: str) -> str:
    """With the minus of print, which no line breaks after."""
    return number.replace("-", "−")


def brief_number(value: float) -> str:
    """`20 k`, `3 M`, `0.5`, as an axis has it."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def configuration(row: Row) -> str:
    """With the number of its note; α and T stay together in a line."""
    name = re.sub(r"\(.*?\)", lambda found: found[0].replace(" ", "\xa0"), row.configuration)
    return name if row.note is None else f"{name} [{row.note}]"


def counted(row: Row) -> str:
    """Of how many seeds, and of how many it should be."""
    return str(row.n) if row.n == row.n_expected else f"{row.n} of {row.n_expected}"
