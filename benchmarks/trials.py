"""The training seconds of 16 trials that share one store against 16 that run the teacher themselves.

    PYTHONPATH=. python benchmarks/trials.py 5

One thread, batch 128, 32 px, a short epoch for each trial; CPU time, in turns. With a store the teacher's pass over the
view counts once, with what writing it costs. s is a student's bare step, t the teacher's bare forward pass of a batch:
without any other cost it would be N(s+t)/(t+Ns) times as fast.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.others import BATCHES, bare_student, bare_teacher
from benchmarks.setting import CHEAP, DEAR, Bench, in_turns, said, small

TRIALS = 16


def main() -> None:
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    for name, teacher in (("resnet18", CHEAP), ("vit_tiny", DEAR)):
        with tempfile.TemporaryDirectory() as folder:
            found = trials(Path(folder), teacher, rounds)
        s, t = (statistics.median(found[what]) for what in ("bare student", "bare teacher"))
        ideal = TRIALS * (s + t) / (t + TRIALS * s)
        stored = [store + TRIALS * each for store, each in zip(found["store"], found["stored"], strict=True)]
        computed = [TRIALS * each for each in found["computed"]]
        ratios = [slow / fast for slow, fast in zip(computed, stored, strict=True)]
        print(f"teacher {name}: n = {rounds}, {TRIALS} trials of {BATCHES} batches, seconds of CPU")
        for what, values in (("with a store", stored), ("without", computed)):
            print(f"  {what:<14} {said([value / 1e3 for value in values])}")
        shares = [one / ideal for one in ratios]
        print(f"  {said(ratios)} times as fast; N(s+t)/(t+Ns) = {ideal:.2f}, {said(shares)} of it")


def trials(root: Path, teacher: dict[str, object], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of an epoch: of the store's view, of a student from it, and of one with the teacher along."""
    bench = Bench(root, small(teacher), BATCHES * 128, 32, torch.device("cpu"))
    bench.store()
    batches = [bench.view(one) for one in bench.index.split(128)]
    stored, computed = (bench.training(bench.distilled, bench.targets(stored=one)) for one in (True, False))
    actions = {
        "bare student": bare_student(bench, batches),
        "bare teacher": bare_teacher(bench, batches),
        "store": bench.store_again,
        "stored": lambda: bench.epoch(stored),
        "computed": lambda: bench.epoch(computed),
    }
    return {what: [cpu for cpu, _ in times] for what, times in in_turns(actions, rounds).items()}


if __name__ == "__main__":
    main()
