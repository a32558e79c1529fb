"""Measured latency, where a run directory has a benchmark.json of its weights (`kdcluster export --benchmark`)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.errors import Damaged
from kdcluster.files import read_json
from kdcluster.plan import Role, Run
from kdcluster.runs import RunDir
from kdcluster.saved import weights_digest
from kdcluster.wording import count


@dataclass(frozen=True)
class Latency:
    """Of one image, in milliseconds; the runs of a role have one model, and so have baseline and distilled."""

    role: Role
    on: str
    """Device, precision, threads and what ran it."""
    p10: float
    p50: float
    p90: float
    date: str


def read(runs: Mapping[Role, Sequence[Run]], root: Path) -> tuple[Latency, ...]:
    """The first measurement of each model on each device; that there is none is no fault."""
    found: dict[str, list[tuple[str, float, float, float, str]]] = {}
    for run in (run for ours in runs.values() for run in ours):
        if not found.get(_model(run)):
            found[_model(run)] = list(_measured(RunDir(root, run.id)))
    return tuple(Latency(role, *one) for role, ours in runs.items() if ours for one in found[_model(ours[0])])


def _model(run: Run) -> str:
    """What decides a latency; a start from other weights does not."""
    return repr((run.model.model_copy(update={"pretrained": False}), run.num_classes, run.channels))


def _measured(run_dir: RunDir) -> Iterator[tuple[str, float, float, float, str]]:
    """What can be understood of a file that another version may have written, of the weights that are there."""
    try:
        known: Any = read_json(run_dir.path / "benchmark.json")
    except Damaged:
        return
    if not isinstance(known, dict) or known.get("weights") != weights_digest(run_dir.path, "best"):
        return
    when: Any = known.get("time")
    date = time.strftime("%Y-%m-%d", time.localtime(when)) if _number(when) and when < 4e10 else ""
    for one in known["speeds"] if isinstance(known.get("speeds"), list) else ():
        spread = one.get("batch1_ms") if isinstance(one, dict) else None
        if not isinstance(spread, dict) or not all(_number(spread.get(at)) for at in ("p10", "p50", "p90")):
            continue
        threads = [count(one["threads"], "thread")] if _number(one.get("threads")) else []
        parts = [one.get("name"), one.get("precision"), *threads, one.get("engine")]
        on = ", ".join(str(part) for part in parts if part)
        yield on, float(spread["p10"]), float(spread["p50"]), float(spread["p90"]), date


def _number(value: Any) -> bool:
    """Whether it is a time that can have been measured."""
    return type(value) in (int, float) and 0 < value < math.inf
