"""How long the commands that read take at 1,000 runs, and how much of a core `status --watch` does.

Makes a runs directory of 1,000 runs with event files of 5,000 scalars beside those of the evaluations, then times each
command in a fresh process, alternating: cold (without an index), and again. PYTHONPATH says which version is timed.
"""

from __future__ import annotations

import argparse
import compileall
import os
import pty
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

import kdcluster
from kdcluster.experiment import configfile, yamlfile
from kdcluster.files import trainer_code, write_json
from kdcluster.plan import Run, plan
from kdcluster.processes import process_record
from kdcluster.runs import RunDir
from kdcluster.sweep.points import Space

SEEDS = {"wide": 200, "broad": 100, "narrow": 50, "small": 25, "smaller": 25}
"""Experiment -> its seeds; each has a teacher, and a baseline and a distilled run for each seed."""
TRIALS = {"narrow": 132, "small": 67}
EPOCHS, STEPS = 10, 500
"""Of a run, and of an epoch."""
TAGS = ("train/loss", "train/ce", "train/kd", "train/lr", "perf/images_per_s", "perf/data_wait_pct")
SCALARS = 5000
ENDS = {7: "failed", 19: "preempted", 37: "cancelled", 53: "planned"}
"""How every so manieth run stands; the others are done."""
GONE = {"host": socket.gethostname(), "pid": os.getpid(), "start_time": "1"}
WATCH_S = 20.0


def event(step: int, tag: str, value: float) -> event_pb2.Event:
    made = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return event_pb2.Event(wall_time=1.7e9 + step / 7, step=step, summary=made)


def write_events(folder: Path, events: Iterator[event_pb2.Event]) -> None:
    folder.mkdir()
    with (folder / "events.out.tfevents.1700000000.host.1.0.a1").open("wb") as file:
        writer = RecordWriter(file)
        begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        first = (event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2"), event_pb2.Event(session_log=begin))
        for one in chain(first, events):
            writer.write(one.SerializeToString())


def make(folder: Path) -> None:
    """The experiments and their runs, until there are 1,000."""
    (folder / "configs").mkdir()
    resources = {"device": "cpu", "procs": 1, "threads": 1}
    for number, (name, seeds) in enumerate(SEEDS.items()):
        values = {
            "data": {"name": "cifar10"},
            "teacher": {"model": "resnet18", "image_size": 32, "min_top1": 20.0},
            "student": {"model": "vit_tiny_patch16_224", "image_size": 32, "model_args": {"patch_size": 4, "depth": 4}},
            "train": {"epochs": EPOCHS, "lr": 1e-3, "amp": "none"},
            "distill": {"alpha": 0.5 + number / 100, "temperature": 4.0},
            "seeds": list(range(seeds)),
            "variant": name,
            "resources": resources,
        }
        (folder / "configs" / f"{name}.yaml").write_text(yamlfile.dump(values))
    numbers = count()
    train = [event(EPOCHS * STEPS * at // SCALARS + 1, TAGS[at % len(TAGS)], 1 / (at + 1)) for at in range(SCALARS)]
    for name in SEEDS:
        loaded = configfile.load(name)
        for run in plan([loaded]).runs:
            put(folder / "runs", run, name, next(numbers), train)
    for name, trials in TRIALS.items():
        for point in Space(configfile.load(name)).drawn(trials):
            run_dir = put(folder / "runs", point.runs[0], name, next(numbers), train)
            run_dir.note_trial(name, point.values)


def put(root: Path, run: Run, experiment: str, number: int, train: list[event_pb2.Event]) -> RunDir:
    """One run with all that one leaves."""
    run_dir = RunDir(root, run.id)
    if run_dir.path.exists():
        return run_dir
    found = (end for every, end in ENDS.items() if number % every == every - 1)
    end = "done" if run.role == "teacher" or experiment == "broad" else next(found, "done")
    run_dir.prepare(run)
    run_dir.add_experiments([experiment])
    run_dir.note_submit(experiment)
    if end == "planned":
        return run_dir
    run_dir.write_ticket("local", GONE)
    ref = {"backend": "local", "ref": GONE, "supervisor": GONE, "gpus_held": 0}
    one = run_dir.start_attempt({**ref, "from_step": 0, "started": 1.7e9})
    one.write("agent", GONE)
    facts = {"params": 11_000_000 if run.role == "teacher" else 2_000_000, "batchnorm_batch": None}
    facts |= {"trainer_code": trainer_code(), "procs": 1, "device": "cpu", "threads": 1}
    one.write("trainer", {"steps_per_epoch": STEPS, "resumed_at_step": 0, **facts})
    epochs = EPOCHS if end == "done" else EPOCHS // 2
    tags = ("test/top1", "test/top5", "test/loss", *(["val/top1", "val/loss"] * (run.data.val_fraction > 0)))
    tests = [event(epoch * STEPS, tag, 30 + epoch + number % 17 / 8) for epoch in range(1, epochs + 1) for tag in tags]
    write_events(run_dir.events, chain(train, tests))
    last = {"epoch": epochs, "step": epochs * STEPS, "test/top1": 30.0 + epochs + number % 17 / 8}
    told = {"time": 1.7e9 + 60, "epochs": EPOCHS, "steps": EPOCHS * STEPS, "best_top1": last["test/top1"]}
    one.write("heartbeat", {**last, **told})
    for log in (one.log(), one.log(0)):
        log.write_text("a line\n" * 50)
    if end == "done":
        run_dir.weights("best").write_bytes((2).to_bytes(8, "little") + b"{}")
        known = {"schema": "kdcluster.result/1", "id": run.id, "hash": run.hash, "attempt": 1, **facts}
        write_json(run_dir.path / "result.json", {**known, "best": last, "last": last}, sync=False)
    if end == "preempted":
        one.write("preempted", {"step": last["step"]})
    one.write("outcome", {"state": end, "reason": "", "rank": None, "time": 1.7e9 + 60})
    for path in run_dir.path.rglob("*.json"):  # a run of yesterday
        os.utime(path, (1.7e9, 1.7e9))
    return run_dir


TIMER = """
import os, sys, time
started = time.perf_counter()
silent = os.open(os.devnull, os.O_WRONLY)
quiet = [(os.POSIX_SPAWN_DUP2, silent, stream) for stream in (1, 2)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, used = os.wait4(pid, 0)
took = time.perf_counter() - started
print(took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, os.waitstatus_to_exitcode(status))
"""
"""In a process of its own, which is small: the peak of a child begins with that of its parent."""


def timed(argv: list[str], folder: Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU and MiB that a command took."""
    timer = [sys.executable, "-S", "-c", TIMER, *argv]
    said = subprocess.run(timer, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    took, cpu, peak, code = map(float, said.split())
    assert code == 0, argv
    return took, cpu, peak


def watched(argv: list[str], folder: Path, terminal: bool) -> tuple[float, float]:
    """Share of a core in percent that `status --watch` does once it is up, and MiB."""
    keeper, end = pty.openpty()
    os.set_blocking(keeper, True)
    threading.Thread(target=drain, args=(keeper,), daemon=True).start()
    stream = end if terminal else subprocess.DEVNULL
    process = subprocess.Popen(argv, cwd=folder, stdin=stream, stdout=stream, stderr=stream, start_new_session=True)
    time.sleep(max(10.0, WATCH_S / 2))
    before, at = cpu_s(process.pid), time.perf_counter()
    time.sleep(WATCH_S)
    share = 100 * (cpu_s(process.pid) - before) / (time.perf_counter() - at)
    assert process.poll() is None, "it has ended by itself"
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = -9
    os.close(end)
    return share, used.ru_maxrss / 1024


def drain(handle: int) -> None:
    try:
        while os.read(handle, 1 << 16):
            pass
    except OSError:  # the terminal is gone
        pass


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shown(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="how often each is timed")
    parser.add_argument("--folder", type=Path, help="keep the runs here, and use those that are there")
    parser.add_argument("--only", default="", help="the commands that have this word in them")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        if not (folder / "configs").exists():
            make(folder)
        measure(folder, given.n, given.only)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)


def measure(folder: Path, n: int, only: str) -> None:
    root = folder / "runs"
    print(f"{sum(not path.name.startswith('.') for path in root.iterdir())} runs")
    compileall.compile_dir(Path(kdcluster.__file__).parent, quiet=1)  # as an installed package is
    command = [sys.executable, "-m", "kdcluster.cli"]
    commands = ["plan wide --backend local", "status wide", "status", "results wide", f"results {' '.join(SEEDS)}"]
    commands += ["results narrow --sweep", "submit broad --backend local"]
    print("| command | cold: s | s of CPU | again: s | s of CPU | peak: MiB |\n|---|---|---|---|---|---|")
    for words in (one for one in commands if only in one):
        took: list[list[tuple[float, float, float]]] = [[], []]
        for _ in range(n):
            shutil.rmtree(root / ".index", ignore_errors=True)
            for times in took:
                times.append(timed([*command, *words.split()], folder))
        cells = [shown([one[what] for one in times]) for times in took for what in (0, 1)]
        peak = max(one[2] for times in took for one in times)
        print(f"| `{words}` | {' | '.join(cells)} | {peak:.0f} |", flush=True)
    if only not in "status --watch":
        return
    live = process_record(os.getpid())
    run_dir = next(
        RunDir(root, path.parent.name) for path in root.glob("*/config.yaml") if not path.with_name("attempts").exists()
    )
    attempt = run_dir.start_attempt({"supervisor": live, "from_step": 0, "started": time.time()})
    try:
        attempt.write("agent", live)
        attempt.write("heartbeat", {"time": time.time() + 3600, "step": 1, "steps": 10, "epoch": 1, "epochs": 2})
        for name, terminal in (("into a file", False), ("on a terminal", True)):
            share, peak_mib = watched([*command, "status", "--watch"], folder, terminal)
            print(f"status --watch {name}: {share:.1f} % of a core, {peak_mib:.0f} MiB", flush=True)
    finally:
        shutil.rmtree(run_dir.path / "attempts")


if __name__ == "__main__":
    main()
