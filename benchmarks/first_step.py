"""What a tiny run costs beside its training: from the start of an attempt to its first optimizer step, and to its end.

    PYTHONPATH=. python benchmarks/first_step.py 7 [CHECKOUT_TO_COMPARE_WITH]

Runs one epoch of 4 steps on the CPU, with one and with two processes, of this checkout and of the other one in turns,
and prints the median and range in seconds of each part, and of the CPU time of the agent and its ranks. The parts are
seen from outside: Python loads a `sitecustomize` into every process of a run, which notes when some functions are
entered and left, and where a process begins.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PARTS = (
    ("attempt's records", "launch"),
    ("torchrun's imports", "agent-ready"),
    ("until the ranks begin", "rank-begins"),
    ("until they have all imports", "rank-ready"),
    ("process group", "joined"),
    ("images", "images"),
    ("model, teacher, optimizer", "set-up"),
    ("events file", "publisher"),
    ("first step", "first-step"),
)
"""What each part is called, and the mark that ends it; the start of the first is `start`."""
WHOLE = (
    ("to the first step", "first-step"),
    ("from there to the end", "end"),
    ("in all", "end"),
    ("CPU time, in all", "cpu"),
)

MARKS = """
import importlib.machinery, os, sys, time

def mark(name):
    with open(os.environ["FIRST_STEP_MARKS"], "a") as file:
        file.write(f"{name} {os.getpid()} {time.monotonic()}\\n")

BEFORE = {  # module: {function: mark when it is entered}
    "torch.distributed.run": {"parse_args": "agent-ready"},
    "kdcluster.train.worker": {"main": "rank-ready"},
    "kdcluster.train.trainer": {"train": "joined"},
    "kdcluster.train.step": {"set_up": "images", "settle_buckets": "set-up"},
}
AFTER = {"kdcluster.train.step": {"train_step": "first-step", "settle_buckets": "settled"},
         "kdcluster.train.publish": {"Publisher": "publisher"}}

def noted(function, before, after):
    def inner(*args, **kwargs):
        if before:
            mark(before)
        result = function(*args, **kwargs)
        if after:
            mark(after)
        return result
    return inner

class Finder:
    def find_spec(self, name, path, target=None):
        if name not in BEFORE and name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        loads = spec.loader.exec_module
        def exec_module(module):
            loads(module)
            for marks in (BEFORE, AFTER):
                for function, name_of_mark in marks.get(name, {}).items():
                    names = (name_of_mark, None) if marks is BEFORE else (None, name_of_mark)
                    setattr(module, function, noted(getattr(module, function), *names))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
if "RANK" in os.environ:
    mark("rank-begins")
os.register_at_fork(after_in_child=lambda: mark("rank-begins"))
"""


def one(checkout: Path, procs: int, folder: Path) -> dict[str, float]:
    """One run of a checkout's code: seconds from its start to each mark, of the rank that was last."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(MARKS)
    marks = folder / "marks"
    path = f"{hook}{os.pathsep}{checkout}"
    env = {**os.environ, "PYTHONPATH": path, "FIRST_STEP_MARKS": str(marks)}
    subprocess.run([sys.executable, "-P", __file__, "--start", str(procs), str(folder)], env=env, check=True)
    times: dict[str, dict[int, float]] = {}
    for line in marks.read_text().splitlines():
        name, pid, when = line.split()
        times.setdefault(name, {}).setdefault(int(pid), float(when))
    ranks = times["rank-ready"]  # other processes begin, too: git's
    start = times["start"][0]
    return {
        name: max(when for pid, when in of.items() if pid in ranks or name not in ("rank-begins", "publisher")) - start
        for name, of in times.items()
    }


def start(procs: int, folder: Path) -> None:
    """In a process of its own, as a supervisor: start one attempt, and wait for its end."""
    from kdcluster.launch import attempt
    from kdcluster.launch.torchrun import Layout
    from kdcluster.runs import RunDir
    from tests import tiny

    tiny.put_images(folder / "data")
    run = tiny.make_run(folder, "teacher", {"train.epochs": 1})
    run_dir = tiny.prepare(folder / "runs", run)
    begin, starts = time.monotonic(), attempt.start_torchrun
    launched = []
    attempt.start_torchrun = lambda *args: [launched.append(time.monotonic()), starts(*args)][1]
    child = attempt.Child.start(RunDir(run_dir.root, run.id), folder / "data", Layout("cpu", procs, 1))
    code = child.process.wait()
    end, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = begin + used.ru_utime + used.ru_stime
    if code != 0:
        raise SystemExit(child.attempt.log().read_text())
    with Path(os.environ["FIRST_STEP_MARKS"]).open("a") as file:
        marks = (("start", begin), ("launch", *launched), ("end", end), ("cpu", cpu))
        file.writelines(f"{name} 0 {when}\n" for name, when in marks)


def main() -> None:
    rounds, checkouts = int(sys.argv[1]), [HERE, *(Path(path).resolve() for path in sys.argv[2:])]
    for procs in (1, 2):
        seen: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
        for turn in range(rounds + 1):
            for checkout in checkouts[:: -1 if turn % 2 else 1]:
                with tempfile.TemporaryDirectory() as folder:
                    times = one(checkout, procs, Path(folder))
                if turn:  # the first fills the page cache
                    seen[checkout].append(times)
        print(f"\n{procs} process{'es' * (procs > 1)}, n = {rounds}; one column each: {', '.join(map(str, checkouts))}")
        ends = ["start", *(mark for _, mark in PARTS)]
        rows = [(name, before, mark) for (name, mark), before in zip(PARTS, ends, strict=False)]
        rows += [(name, "first-step" if name.startswith("from") else "start", mark) for name, mark in WHOLE]
        for name, before, mark in rows:
            cells = []
            for checkout in checkouts:
                values = [times[mark] - times.get(before, 0.0) for times in seen[checkout]]
                cells.append(f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})")
            print(f"{name:<30}" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--start":
        start(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
