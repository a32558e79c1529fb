"""Kill the whole tree of one distilled run N times at random moments, submit again each time, compare the weights.

    python benchmarks/kill_drill.py 50

A second copy of the run is never disturbed; in the end both must have the same bits. Prints a row for each kill: what
the run was doing, the step it had reached, the step it went on from, and the steps that were done twice.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

from kdcluster.files import read_json
from kdcluster.runs import RunDir
from tests import tiny

EPOCHS = 400
EVERY = 40
CHANGES = {
    "teacher.train": {"epochs": 2},
    "train.epochs": EPOCHS,
    "train.checkpoint_every": f"{EVERY}steps",
    "resources": {"device": "cpu", "procs": 1, "threads": 1},
}


HEARTBEATS = (
    "from kdcluster.train import tracking\n\ntracking.HEARTBEAT_S = 0  # every step, so that the table is exact\n"
)


def kdcluster(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "kdcluster.cli", "-q", *arguments], cwd=folder, check=True)


def prepared(folder: Path) -> RunDir:
    """An experiment in its folder, its teacher done; returns the distilled run."""
    folder.mkdir()
    tiny.put_images(folder / "data", train=640)
    (folder / "heartbeats.py").write_text(HEARTBEATS)
    changes = {**CHANGES, "imports": [str(folder / "heartbeats.py")]}
    tiny.write_experiment(folder, changes)
    os.environ["KDCLUSTER_BACKEND"] = "local"
    kdcluster(folder, "submit", "tiny.yaml", "--role", "teacher", "--wait")
    run = next(run for run in tiny.make_plan(folder, changes).runs if run.role == "distilled")
    return RunDir(folder / "runs", run.id)


def kill_tree(run: RunDir) -> None:
    """SIGKILL for the supervisor, torchrun and its processes, all at once."""
    newest = run.newest()
    assert newest is not None
    agent = newest.read("agent")["pid"]
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for pid in (newest.read("start")["supervisor"]["pid"], agent, *map(int, children)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until_it_trains(run: RunDir, attempt: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        beat = run.attempt(attempt).read("heartbeat")
        if beat and beat["step"] > run.attempt(attempt).read("trainer")["resumed_at_step"]:
            return
        assert time.monotonic() < deadline, "it does not train"
        time.sleep(0.02)


def main() -> None:
    kills, seed = int(sys.argv[1]), 0
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, killed = prepared(Path(name) / "whole"), prepared(Path(name) / "killed")
        print("| kill | writing | reached step | went on from | steps lost |\n|---:|---|---:|---:|---:|")
        kdcluster(killed.root.parent, "submit", "tiny.yaml", "--role", "distilled")
        wait_until_it_trains(killed, 1)
        for number in range(1, kills + 1):
            time.sleep(chance.uniform(0, 2))  # the random moment
            kill_tree(killed)
            reached = killed.attempt(number).read("heartbeat")["step"]
            torn = sorted(p.name.split(".")[1] for p in killed.path.rglob(".*.aside"))
            for leftover in killed.path.rglob(".*.aside"):
                leftover.unlink()
            kdcluster(killed.root.parent, "submit", "tiny.yaml", "--role", "distilled")
            wait_until_it_trains(killed, number + 1)
            resumed = killed.attempt(number + 1).read("trainer")["resumed_at_step"]
            print(
                f"| {number} | {', '.join(torn) or 'nothing'} | {reached} | {resumed} | {reached - resumed} |",
                flush=True,
            )
        for run in (killed, whole):
            kdcluster(run.root.parent, "submit", "tiny.yaml", "--role", "distilled", "--wait")
        ours, theirs = (load_file(run.weights("last")) for run in (killed, whole))
        same = all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
        results = [read_json(run.path / "result.json") for run in (killed, whole)]
        same &= results[0]["best"] == results[1]["best"]
        print(
            f"\n{kills} kills, seed {seed}: the weights and the best epoch are {'the same' if same else 'NOT THE SAME'}"
        )
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
