"""Images a second, and a CPU second, from files to pixels: one by one, in threads, in processes, going on after a kill.

    PYTHONPATH=. python benchmarks/decoding.py [ROUNDS]

JPEGs of noise, of 32 px and of 256 px for 224, in the page cache; every round does all of it in turns, forward and
backward. `in processes` is what a build does, from its first images alone to the end of its processes.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from kdcluster.processes import threads_available
from kdcluster.train import pixels, pool

KINDS = {"32 px": (20_000, 32, 32), "256 px for 224": (1_500, 256, 224)}
"""Images, their side, and the side they are kept at."""


def make_images(folder: Path, count: int, side: int) -> list[Path]:
    """Noise over a pattern, so that a JPEG has about as many bytes as a photograph (32 px: 1.0 KB, 256 px: 22 KB)."""
    folder.mkdir()
    rng = np.random.RandomState(0)
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.randint(0, 256, (4, 4, 3)).astype(np.uint8)).resize((side, side))
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 12, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


def in_threads(work: pixels.Writer, paths: list[Path], count: int) -> None:
    """As it was before there were processes."""
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda start: work(start, paths[start : start + 64]), range(0, len(paths), 64)))


def start_s() -> float:
    """From nothing to the answer of the last of the processes."""
    began = time.perf_counter()
    cores = threads_available()
    with pool._children(pixels.refused, cores) as children:
        for connection in children:
            connection.send((0, []))
        for connection in children:
            connection.recv()
        return time.perf_counter() - began


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    cores = threads_available()
    with tempfile.TemporaryDirectory() as name:
        for kind, (count, side, kept) in KINDS.items():
            folder = Path(name) / str(side)
            paths = make_images(folder, count, side)
            files = folder / "images.npy", folder / "marks.npy"
            pixels.writable(files[0], np.uint8, (count, 3, kept, kept))
            marks = pixels.writable(files[1], pixels.MARK, (count,))
            work = pixels.Writer(*files)

            ways: dict[str, Callable[[], object]] = {
                "one after another": lambda work=work, paths=paths: work(0, paths),
                f"{cores} threads": lambda work=work, paths=paths: in_threads(work, paths, cores),
                "16 threads": lambda work=work, paths=paths: in_threads(work, paths, 16),
                f"{cores} processes": lambda work=work, paths=paths: pool.each(work, paths, "decoding"),
            }
            speeds: dict[str, list[tuple[float, float]]] = {way: [] for way in (*ways, "going on")}
            for round_ in range(rounds):
                for way in reversed(ways) if round_ % 2 else ways:
                    marks[:] = 0
                    speeds[way].append(speed(ways[way], count))
                speeds["going on"].append(speed(ways[f"{cores} processes"], count))
            size = statistics.mean(path.stat().st_size for path in paths) / 1e3
            print(f"{kind}, {count:,} JPEGs of {size:.1f} KB, n = {rounds}, images/s | images/CPU s:")
            for way, found in speeds.items():
                print(f"  {way}: {' | '.join(spread(values) for values in zip(*found, strict=True))}")
    starts = [start_s() for _ in range(rounds)]
    print(f"start of {cores} processes: {statistics.median(starts):.2f} s ({min(starts):.2f} to {max(starts):.2f})")


def speed(work: Callable[[], object], count: int) -> tuple[float, float]:
    """Images a second and a second of CPU time, that of processes that have ended included."""
    began, used = time.perf_counter(), sum(os.times()[:4])
    work()
    return count / (time.perf_counter() - began), count / (sum(os.times()[:4]) - used)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    main()
