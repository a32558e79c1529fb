"""Measured latency, where a run directory has a benchmark.json, as `kdcluster export --benchmark` leaves it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.errors import Damaged
from kdcluster.files import read_json
from kdcluster.plan import Role, Run
from kdcluster.runs import RunDir

ABOUT = ("device", "device_name", "date", "batch")
"""Keys of what a number was measured on."""


@dataclass(frozen=True)
class Latency:
    """Of one image, on one device; of one run of a role: all of them have the same model."""

    role: Role
    device: str
    ms: float
    """Median."""
    date: str


def read(runs: Mapping[Role, Sequence[Run]], root: Path) -> tuple[Latency, ...]:
    """The first of each role and device that was measured; that nothing was is no fault."""
    found: dict[tuple[Role, str], Latency] = {}
    for role, ours in runs.items():
        for run in ours:
            for one in _of_run(role, RunDir(root, run.id).path / "benchmark.json"):
                found.setdefault((role, one.device), one)
    return tuple(found.values())


def _of_run(role: Role, path: Path) -> Iterator[Latency]:
    """Every median in milliseconds at batch 1 in a file that another version may have written."""
    try:
        found = list(_medians(read_json(path), {}))
    except (Damaged, RecursionError):
        return
    for device, date, ms in found:
        yield Latency(role, device, ms, date)


def _medians(known: Any, above: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(device, date, ms) wherever a block says so of one image; device, date and batch may stand in a block above."""
    if isinstance(known, list):
        for one in known:
            yield from _medians(one, above)
    if not isinstance(known, dict):
        return
    about = {**above, **{key: value for key, value in known.items() if key in ABOUT and value is not None}}
    for key, value in known.items():
        inner: Any = value.get("p50") if isinstance(value, dict) and key.endswith("_ms") else value
        median = key.endswith("_ms") and ("p50" in key or inner is not value)
        device = about.get("device_name") or about.get("device")
        if median and device and about.get("batch", 1) == 1 and type(inner) in (int, float) and 0 < inner < math.inf:
            yield str(device), str(about.get("date", "")), float(inner)
        else:
            yield from _medians(value, about)
