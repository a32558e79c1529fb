"""What a heartbeat a second and a checkpoint cost: the same training with and without, in turns, in one process.

    python benchmarks/heartbeat.py 7

Prints the median and range of the ratio with / without of each pair, for heartbeats, and the share of the time that
checkpoints every 100 steps took, as the trainer logs it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from kdcluster.results import events
from kdcluster.train import tracking
from tests import tiny

CHANGES = {"train.epochs": 40, "train.checkpoint_every": "100steps"}


def main() -> None:
    pairs = int(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.put_images(folder / "data", train=640)
        run = tiny.make_run(folder, "baseline", CHANGES)

        def seconds(place: str, every: float) -> float:
            tracking.HEARTBEAT_S = every
            started = time.perf_counter()
            tiny.train_here(folder / place, run, folder / "data")
            return time.perf_counter() - started

        seconds("warm-up", 1.0)
        ratios, shares = [], []
        for pair in range(pairs):
            order = (1.0, 1e9) if pair % 2 else (1e9, 1.0)
            took = {every: seconds(f"{pair}-{every}", every) for every in order}
            ratios.append(took[1.0] / took[1e9])
            found = events.read_scalars(folder / f"{pair}-1.0" / run.id / "events", ("perf/",))
            shares.append(statistics.mean(p.value for p in found.points["perf/checkpoint_pct"]))
        print(f"n = {pairs} pairs; the last training took {took[1.0]:.1f} s")
        for name, values, unit in (("heartbeats, with / without", ratios, ""), ("checkpoints", shares, " %")):
            print(f"{name}: {statistics.median(values):.3f}{unit} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
