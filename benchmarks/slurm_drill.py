"""Preempt one distilled run N times at random moments on a real SLURM, and compare its weights with an undisturbed run.

    make drill-slurm            (PYTHONPATH=. python benchmarks/slurm_drill.py 20)

Starts a SLURM of its own (slurm/dev-cluster up --user-signal). Each time, the partition `urgent` takes the whole node
of the run, which goes on elsewhere; the two minutes that SLURM makes a requeued job wait are cut short. Prints a row
for each preemption: how long it took from SLURM's signal until the attempt's outcome was on disk, and from where the
next attempt went on.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.desk import MODELS, OnSlurm, desks, dev_cluster, same_weights

EPOCHS = 150
PORT = 17970


def main() -> None:
    times, seed = int(sys.argv[1]), 0
    chance = random.Random(seed)
    changes = {**MODELS, "train.epochs": EPOCHS}
    with (
        tempfile.TemporaryDirectory() as folder,
        dev_cluster(PORT, "--user-signal") as env,
        desks(Path(folder), env) as desk,
    ):
        os.environ["KDCLUSTER_BACKEND"] = "local"
        whole = desk("whole", **changes)
        whole.run("submit", "tiny.yaml", "--backend", "local", "--procs", "1", "--role", "distilled", "--wait")
        place = desk("preempted", **changes)
        place.run("submit", "tiny.yaml", "--backend", "local", "--procs", "1", "--role", "teacher", "--wait")
        run = OnSlurm(place, "distilled")
        run.slow.touch()
        run.submit(max_requeues=times)
        print(
            "| preemption | on | signal to outcome file | stopped at step | went on from |\n|---:|---|---:|---:|---:|"
        )
        seconds, exact = [], 0
        for number in range(1, times + 1):
            run.trains(number)
            time.sleep(chance.uniform(0, 4))  # the random moment
            with run.preempted():
                before = run.attempt(number)
                run.start_now(after=number)
                run.trains(number + 1)
            step, at = before["preempted"]["step"], run.attempt(number + 1)["trainer"]["resumed_at_step"]
            seconds.append(before["outcome"]["time"] - before["stop"]["time"])
            exact += step == at
            print(f"| {number} | {run.node(number)} | {seconds[-1]:.2f} s | {step} | {at} |", flush=True)
        run.slow.unlink()
        row = run.wait()
        same = row["state"] == "done" and same_weights(run.run, OnSlurm(whole, "distilled").run)
        print(
            f"\n{exact} of {times} resumed at the exact step, seed {seed}; signal to outcome file: median "
            f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}); the final weights are "
            f"{'the same bits as' if same else 'NOT THE SAME AS'} the undisturbed run's"
        )
        sys.exit(0 if same and exact == times else 1)


if __name__ == "__main__":
    main()
