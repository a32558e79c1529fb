"""In what runs differ: by key, and in words so short that a row has room for them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdcluster.experiment.distilling import NOT_FOR_ALL
from kdcluster.plan import Run
from kdcluster.settings import Setting, of_run

SIGNS = {"distill.alpha": "α", "distill.temperature": "T"}
SIGNS |= {f"data.augment.{way}.alpha": f"{way} α" for way in ("mixup", "cutmix")}
SIGNS |= {f"data.augment.{way}.share": f"{way} share" for way in ("mixup", "cutmix")}
"""Keys that have a name of their own."""
_DIGITS = range(3, 18)
"""Significant digits with which numbers are tried until those that differ look different."""


def settings(run: Run) -> dict[str, Any]:
    """What decides a run's numbers, by dotted key; of a damaged config.yaml what could be read."""
    return {key: one.value for key, one in _hashed(run).items()}


def _hashed(run: Run) -> dict[str, Setting]:
    """Without what its loss does not use."""
    idle = {f"distill.{key}" for key in NOT_FOR_ALL if run.distill and key not in run.distill.used}
    return {key: one for key, one in of_run(run).items() if one.hashed and key not in idle}


def differing(runs: Iterable[Run], leave_out: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Run id -> its values of the keys in which not all of these runs agree; None where it has no such key."""
    known = {run.id: _hashed(run) for run in runs}
    found = {run_id: {key: one.value for key, one in has.items()} for run_id, has in known.items()}
    keys = dict.fromkeys(key for one in found.values() for key in one if key not in leave_out)
    varied = [key for key in keys if len({repr(one.get(key)) for one in found.values()}) > 1]
    plain = {  # a default of distillation, beside runs that are not distilled
        key
        for key in varied
        if key.startswith("distill.")
        and key not in SIGNS
        and all(has[key].is_default for has in known.values() if key in has)
    }
    return {run_id: {key: one.get(key) for key in varied if key not in plain} for run_id, one in found.items()}


def in_words(runs: Iterable[Run], leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Run id -> in what it differs from the others, as in `α 0.43 T 2.05` or `lr 1e-3 seed 2`.

    Args:
        runs: those that stand in one table.
        leave_out: keys that another column says already.
    """
    values = differing(runs, leave_out)
    keys = list(next(iter(values.values()), {}))
    spelt = {key: _spelt([one[key] for one in values.values()]) for key in keys}
    if "teacher" in spelt:
        spelt["teacher"] = [name[-8:] for name in spelt["teacher"]]
    return {
        run_id: " ".join(
            f"{label(key, keys)} {spelt[key][at]}" for key in keys if one[key] is not None and spelt[key][at] != ""
        )
        for at, (run_id, one) in enumerate(values.items())
    }


def words(values: Mapping[str, Any]) -> Iterator[str]:
    """`α 0.43`, `T 2.05`, `lr 1e-3`."""
    return (f"{label(key, values)} {short(value)}" for key, value in values.items())


def label(key: str, among: Iterable[str], signs: Mapping[str, str] = SIGNS) -> str:
    """The shortest name of a key: its letter, or its end where no other key ends so."""
    end = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == end for other in among) < 2
    return signs.get(key, end if alone else key)


def _spelt(values: list[Any]) -> list[str]:
    """Values with as few digits as keep those apart that differ."""
    numbers = {value for value in values if isinstance(value, float)}
    digits = next(n for n in _DIGITS if len({short(value, n) for value in numbers}) == len(numbers))
    return [short(value, digits) for value in values]


def short(value: Any, digits: int = 6) -> str:
    """A value in few letters: 1e-3, 0.43, no, 8 8."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value and math.isfinite(value) and not 0.01 <= abs(value) < 1e5:
            mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
            return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
        return f"{value:.{digits}g}"
    if isinstance(value, list | tuple):
        return " ".join(short(one, digits) for one in value)
    return "none" if value is None else str(value)
