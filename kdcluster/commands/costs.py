"""What models cost, in words: `export --benchmark` on the terminal, and in a model card."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdcluster.columns import fitted
from kdcluster.wording import size, wide

HEADINGS = ["model", "type", "on", "size", "top-1 %", "ms, batch 1", "images/s, batch 64"]
MISSING = "–"
Record = Mapping[str, Any]
"""benchmark.json."""


def rows(found: Sequence[tuple[str, Record, float | None]]) -> Iterator[list[str]]:
    """Headings and a row for each model, precision and device; of fp16 the size alone is known.

    Args:
        found: name, record, and the accuracy in percent of the model as it was trained.
    """
    yield HEADINGS
    for name, record, top1 in found:
        sizes = {kind: MISSING if number is None else size(number) for kind, number in record["bytes"].items()}
        for speed in record["speeds"]:
            precision = speed["precision"]
            right = record["int8_top1"] if precision == "int8" else top1
            yield [
                name,
                precision,
                speed["device"],
                sizes.get(precision, MISSING),
                f"{right:.2f}" if right is not None else MISSING,
                _spread(speed["batch1_ms"]),
                _spread(speed["batch64_images_per_s"]),
            ]
        yield [name, "fp16", MISSING, sizes["fp16"], *[MISSING] * 3]


def for_terminal(table: Sequence[Sequence[str]], columns: int | None) -> Iterator[str]:
    """The lines of a table; where it is too wide, each model's name stands above its rows."""
    whole = [line for row in fitted(table, range(3, 7)).rows for line in row]
    if columns is None or max(map(wide, whole)) <= columns:
        yield from whole
        return
    fit = fitted([row[1:] for row in table], range(2, 6), width=columns - 2)
    name = table[0][0]
    for row, lines in zip(table, fit.rows, strict=True):
        if row[0] != name:
            yield (name := row[0])
        yield from (f"  {line}" for line in lines)


def _spread(of: Mapping[str, float]) -> str:
    low, middle, high = (f"{of[key]:.3g}" if of[key] < 1000 else f"{of[key]:,.0f}" for key in ("p10", "p50", "p90"))
    return f"{middle} [{low}–{high}]"


def notes(records: Sequence[Record]) -> Iterator[str]:
    """Where and when it was measured, and what is missing."""
    yield from dict.fromkeys(_where(record, speed) for record in records for speed in record["speeds"])
    yield "ms and images/s: median, in brackets the 10th and 90th percentile; after a warm-up, resize included"
    yield "size of fp32 and fp16: the file of weights; of int8: the ONNX file, statically quantized"
    for record in records:
        yield from (f"no {what}: {why}" for what, why in record.get("without", {}).items())


def _where(record: Record, speed: Mapping[str, Any]) -> str:
    return f"{speed['device']}: {speed['name']}, 1 thread, {speed['engine']}, {day(record)}"


def day(record: Record) -> str:
    """When it was measured."""
    return time.strftime("%Y-%m-%d", time.localtime(record["time"]))
