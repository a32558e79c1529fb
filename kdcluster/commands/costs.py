"""What models cost, in words: `export --benchmark` on the terminal, and in a model card."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdcluster.wording import size

HEADINGS = ["model", "precision", "device", "size", "top-1", "latency, batch 1", "throughput, batch 64"]
MISSING = "–"
Record = Mapping[str, Any]
"""benchmark.json."""


def rows(found: Sequence[tuple[str, Record, float | None]]) -> Iterator[list[str]]:
    """Headings and a row for each model, precision and device.

    Args:
        found: name, record, and the accuracy in percent of the model as it was trained.
    """
    yield HEADINGS
    for name, record, top1 in found:
        for speed in record["speeds"]:
            precision = speed["precision"]
            right = record["int8_top1"] if precision == "int8" else top1
            yield [
                name,
                precision,
                speed["device"],
                _size(record["bytes"], precision),
                f"{right:.2f} %" if right is not None else MISSING,
                _spread(speed["batch1_ms"], " ms"),
                _spread(speed["batch64_images_per_s"], " images/s"),
            ]


def _size(of: Mapping[str, int | None], precision: str) -> str:
    found = of.get(precision)
    half = f" (fp16 {size(of['fp16'] or 0)})" if precision == "fp32" else ""
    return MISSING if found is None else size(found) + half


def _spread(of: Mapping[str, float], unit: str) -> str:
    low, middle, high = (f"{of[key]:.3g}" if of[key] < 1000 else f"{of[key]:,.0f}" for key in ("p10", "p50", "p90"))
    return f"{middle}{unit} [{low}, {high}]"


def notes(records: Sequence[Record]) -> Iterator[str]:
    """Where and when it was measured, and what is missing."""
    yield from dict.fromkeys(_where(record, speed) for record in records for speed in record["speeds"])
    yield "latency and throughput: median, in brackets the 10th and 90th percentile; after a warm-up, resize included"
    yield "size of fp32 and fp16: the file of weights; of int8: the ONNX file, statically quantized"
    for record in records:
        yield from (f"no {what}: {why}" for what, why in record.get("without", {}).items())


def _where(record: Record, speed: Mapping[str, Any]) -> str:
    return f"{speed['device']}: {speed['name']}, 1 thread, {speed['engine']}, {day(record)}"


def day(record: Record) -> str:
    """When it was measured."""
    return time.strftime("%Y-%m-%d", time.localtime(record["time"]))
