"""Measured latency, where a run directory has a benchmark.json, as `kdcluster export --benchmark` leaves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.errors import Damaged
from kdcluster.files import read_json
from kdcluster.plan import Role, Run
from kdcluster.runs import RunDir


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
    """What can be understood of a file that another version may have written: a device, a date, a median at batch 1."""
    try:
        known: Any = read_json(path)
    except Damaged:
        return
    if not isinstance(known, dict):
        return
    for one in known.get("measured", ()) if isinstance(known.get("measured"), list) else ():
        if isinstance(one, dict) and one.get("batch") == 1 and isinstance(one.get("p50_ms"), int | float):
            told = (one.get(key, known.get(key)) for key in ("device_name", "device"))
            device = next((str(name) for name in told if name), "an unnamed device")
            yield Latency(role, device, float(one["p50_ms"]), str(one.get("date", known.get("date", ""))))
