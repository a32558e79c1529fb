"""What the models of an experiment cost on one device, for the table: from the benchmark.json of their runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.results.measured import Measured
from kdcluster.run import Arm
from kdcluster.saved import weights_digest


@dataclass(frozen=True)
class Price:
    """Of a model."""

    size_bytes: int
    """Weights in fp32."""
    latency_ms: float
    """Of one image in fp32, the median."""


def prices(root: Path, runs: Mapping[Arm, Sequence[Measured]]) -> tuple[dict[Arm, Price], list[str]]:
    """What the model of each role costs, and what to say of it; nothing where they were measured on several devices.

    The seeds of a role have one model, and so have baseline and distilled: one measurement does for them all.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for m in (m for of_role in runs.values() for m in of_role):
        if _model(m) not in found and (record := _record(root / m.run.id)):
            found[_model(m)] = record
    where = {(speed["name"], speed["engine"]) for record in found.values() for speed in _fp32(record)}
    if len(where) > 1:
        names = " and ".join(sorted(" with ".join(one) for one in where))
        return {}, [f"size and latency are left out: they were measured on {names}; export --benchmark measures here"]
    priced: dict[Arm, Price] = {}
    for role, of_role in runs.items():
        record = found.get(_model(of_role[0]), {}) if of_role else {}
        for speed in _fp32(record):
            priced[role] = Price(record["bytes"]["fp32"], speed["batch1_ms"]["p50"])
    return priced, [_note(found.values(), *one) for one in where if priced]


def _model(m: Measured) -> str:
    """What decides a model's cost; a start from other weights does not."""
    return repr((m.run.model.model_copy(update={"pretrained": False}), m.run.num_classes, m.run.channels))


def _record(folder: Path) -> Mapping[str, Any] | None:
    """A run's benchmark.json, if it is of the weights that it has."""
    record: Mapping[str, Any] | None = records.found(f"{folder}/benchmark.json")
    return record if record and record["weights"] == weights_digest(folder, "best") else None


def _fp32(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [speed for speed in record.get("speeds", ()) if (speed["device"], speed["precision"]) == ("cpu", "fp32")]


def _note(found: Iterable[Mapping[str, Any]], name: str, engine: str) -> str:
    days = sorted({time.strftime("%Y-%m-%d", time.localtime(record["time"])) for record in found})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"size: weights in fp32; latency: median of one image in fp32 on {name}, 1 thread, {engine}, {when}"
