"""A sweep's search space: what each key may be, and which points that makes. Pure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step]",
    "randint": "[low, high], both of them possible",
    "choice": "a list of values",
    "grid": "a list of values, each of which is tried",
}
"""What may stand behind a key, and what it takes."""
DIGITS = 4
"""Significant digits of a drawn number: enough for any of these, and a run's id can be typed again."""


def domain_problem(domain: Any) -> str | None:
    """What is wrong with the domain of one key; None: nothing."""
    if not isinstance(domain, Mapping) or len(domain) != 1:
        return f"must be one of {', '.join(f'{{{kind}: …}}' for kind in KINDS)}"
    ((kind, values),) = domain.items()
    if kind not in KINDS:
        return f"there is no {kind!r}; there are {', '.join(KINDS)}"
    if not isinstance(values, list | tuple) or not values:
        return f"{kind} takes {KINDS[kind]} (got {values!r})"
    if kind in ("choice", "grid"):
        return None
    whole = kind == "randint"
    if len(values) != (3 if kind == "quniform" else 2) or not all(_is_number(value, whole=whole) for value in values):
        return f"{kind} takes {KINDS[kind]}{', whole numbers' if whole else ''} (got {list(values)})"
    if not values[0] < values[1]:
        return f"{kind}: low must be less than high (got {list(values)})"
    if kind == "loguniform" and values[0] <= 0:
        return f"loguniform: low must be above 0 (got {values[0]:g})"
    if kind == "quniform" and values[2] <= 0:
        return f"quniform: the step must be above 0 (got {values[2]:g})"
    return None


def corners(domain: Mapping[str, Any]) -> list[Any]:
    """Values of a domain that show whether all of it is allowed: its ends, or each of its values."""
    ((kind, values),) = domain.items()
    return list(values) if kind in ("choice", "grid") else list(values[:2])


def grid_size(space: Mapping[str, Mapping[str, Any]]) -> int:
    """How many points the grids of a space have; 1 where it has none."""
    return math.prod(len(domain["grid"]) for domain in space.values() if "grid" in domain)


def points(space: Mapping[str, Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Points without end: every point of the grids in turn, everything else drawn; the same ones for the same seed."""
    chance = random.Random(seed)
    grids = [[(key, value) for value in domain["grid"]] for key, domain in space.items() if "grid" in domain]
    while True:
        for fixed in itertools.product(*grids):
            drawn = {key: draw(domain, chance) for key, domain in space.items() if "grid" not in domain}
            known = {**dict(fixed), **drawn}
            yield {key: known[key] for key in space}


def draw(domain: Mapping[str, Any], chance: random.Random) -> Any:
    """One value of a domain."""
    ((kind, values),) = domain.items()
    if kind in ("choice", "grid"):
        return chance.choice(list(values))
    low, high = values[:2]
    if kind == "randint":
        return chance.randint(low, high)
    if kind == "quniform":
        return rounded(low + values[2] * chance.randint(0, steps(values)), values)
    if kind == "loguniform":
        return rounded(math.exp(chance.uniform(math.log(low), math.log(high))), values)
    return rounded(chance.uniform(low, high), values)


def steps(values: Sequence[float]) -> int:
    """Of a quniform [low, high, step]: how many steps there are from low to the last value that is not above high."""
    return math.floor((values[1] - values[0]) / values[2] + 1e-9)


def rounded(value: float, values: Sequence[float]) -> float:
    """To `DIGITS` significant digits, inside [low, high, ...]; of a quniform of whole numbers, whole."""
    if len(values) == 3 and all(isinstance(one, int) for one in values):
        return round(value)
    return min(values[1], max(values[0], float(f"{value:.{DIGITS}g}")))


def _is_number(value: Any, *, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
