"""The training seconds of 16 trials that share one store against 16 that run the teacher themselves.

    PYTHONPATH=. python benchmarks/trials.py 5

One thread, batch 128, 32 px, each trial a short epoch; all 16 are trained, CPU and wall clock, in turns. With a store
the teacher's pass over the view counts once, with what writing it costs. s is a student's bare step, t the teacher's
bare forward pass of a batch: without any other cost it would be N(s+t)/(t+Ns) times as fast.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.others import bare_student, bare_teacher
from benchmarks.setting import CHEAP, DEAR, Bench, Times, in_turns, said, small

TRIALS = 16
BATCHES = 3
"""Of a trial's epoch."""


def main() -> None:
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    for name, teacher in (("resnet18", CHEAP), ("vit_tiny", DEAR)):
        with tempfile.TemporaryDirectory() as folder:
            found = trials(Path(folder), teacher, rounds)
        cpu = {what: [one for one, _ in times] for what, times in found.items()}
        s, t = (statistics.median(cpu[what]) for what in ("bare student", "bare teacher"))
        ideal = TRIALS * (s + t) / (t + TRIALS * s)
        print(f"teacher {name}: n = {rounds}, {TRIALS} trials of {BATCHES} batches, seconds of CPU, and of the clock")
        for what in ("with a store", "without"):
            each = [said([one[at] / 1e3 for one in found[what]]) for at in (0, 1)]
            print(f"  {what:<14} {each[0]:<26} {each[1]}")
        ratios = [slow / fast for slow, fast in zip(cpu["without"], cpu["with a store"], strict=True)]
        shares = [one / ideal for one in ratios]
        print(f"  {said(ratios)} times as fast; N(s+t)/(t+Ns) = {ideal:.2f}, {said(shares)} of it")


def trials(root: Path, teacher: dict[str, object], rounds: int) -> Times:
    """All of them with and without a store, and the bare student and teacher."""
    bench = Bench(root, small(teacher), BATCHES * 128, 32, torch.device("cpu"))
    bench.store()
    batches = [bench.view(one) for one in bench.index.split(128)]
    stored, computed = (bench.training(bench.distilled, bench.targets(stored=one)) for one in (True, False))

    def with_a_store() -> None:
        bench.store_again()
        stored.targets = bench.targets(stored=True)
        for _ in range(TRIALS):
            bench.epoch(stored)

    def without() -> None:
        for _ in range(TRIALS):
            bench.epoch(computed)

    bare = {"bare student": bare_student(bench, batches), "bare teacher": bare_teacher(bench, batches)}
    return in_turns({**bare, "with a store": with_a_store, "without": without}, rounds)


if __name__ == "__main__":
    main()
