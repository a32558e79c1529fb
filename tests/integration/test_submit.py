"""`kdcluster submit` on this machine with real torchrun processes: what a user types, sees, and can rely on.

A start of torchrun costs 6 to 8 s on two cores, so each test follows one story and looks at much on its way.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdcluster.experiment import configfile
from kdcluster.launch.status import Status, run_status
from kdcluster.plan import Plan, Run, plan
from kdcluster.results.events import read_scalars
from kdcluster.runs import RunDir
from tests.tiny import TINY_MODELS, put_images, write_experiment

pytestmark = pytest.mark.integration

WITHIN_S = 600.0  # a hang, not a busy machine
"""For what takes seconds on an idle machine."""

MOODY = '''
"""A model of the user's own that does what the file MOOD says, from step 3 on."""
import os, signal, time
from pathlib import Path
import torch
from timm.models import register_model

STEPS_PER_EPOCH = 4

class Moody(torch.nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.head = torch.nn.Linear(in_chans, num_classes)
        self.calls = -(os.environ.get("WORLD_SIZE", "1") != "1")  # one forward is for DDP, and thrown away

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.feel(Path(os.environ["MOOD"]), os.environ.get("RANK"))
        return self.head(x.mean((2, 3)))

    def feel(self, mood, rank):
        if mood.read_text() == "raise" and self.calls == 3 and rank == "1":
            raise ValueError("rank one is broken")
        if mood.read_text() == "kill" and self.calls == 3 and rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        while mood.read_text() == "wait" and self.calls > STEPS_PER_EPOCH:
            time.sleep(0.02)
        if mood.read_text() == "break":
            breakpoint()

@register_model
def moody(pretrained=False, num_classes=10, in_chans=3, **_):
    return Moody(num_classes, in_chans)
'''


class Place:
    """A folder with tiny images and an experiment, in which somebody types commands."""

    def __init__(self, folder: Path, changes: Mapping[str, Any]) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.mood = folder / "mood"
        self.mood.write_text("")
        (folder / "moody.py").write_text(MOODY)
        put_images(folder / "data")
        self.file = write_experiment(folder, changes)
        self.root = folder / "runs"

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """`kdcluster …` in this folder."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "kdcluster.cli", *arguments],
            **pipes,  # type: ignore[call-overload]
            text=True,
            cwd=self.folder,
            env={**os.environ, "MOOD": str(self.mood), **variables},
            # A shell that runs the tests in its background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *arguments: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr of a command."""
        with self.start(*arguments, **variables) as process:
            out, err = process.communicate(stdin, timeout=WITHIN_S)
        return process.returncode, out, err

    def plan(self, *overrides: str) -> Plan:
        return plan([configfile.load(str(self.file), overrides)])

    def states(self) -> dict[str, dict[str, Any]]:
        """`status --json` by role and seed: teacher0, baseline0 …"""
        code, out, _ = self.run("status", "tiny.yaml", "--json")
        assert code == 0
        document = json.loads(out)
        assert document["schema"] == "kdcluster.status/1"
        return {f"{row['role']}{row['seed']}": row for row in document["runs"]}

    def status(self, run: Run) -> Status:
        return run_status(RunDir(self.root, run.id))

    def processes(self) -> list[int]:
        """Every process with this folder in its command line: supervisors, torchruns, ranks."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    line = (folder / "cmdline").read_bytes()
                except OSError:  # it has just ended
                    continue
                if os.fsencode(self.root) in line:
                    found.append(int(folder.name))
        return found


def wait_until(true: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


Places = Callable[..., Place]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    """Makes places; afterwards no process of theirs may be left."""
    made: list[Place] = []

    def make(name: str = "place", **changes: Any) -> Place:
        made.append(Place(tmp_path / name, {key.replace("__", "."): value for key, value in changes.items()}))
        return made[-1]

    yield make
    try:
        for place in made:
            wait_until(lambda place=place: not place.processes(), within_s=15)
    finally:
        for pid in [pid for place in made for pid in place.processes()]:
            os.kill(pid, signal.SIGKILL)


TINY = {"imports": [TINY_MODELS], "teacher": {"model": "tiny_net"}, "student": {"model": "tiny_net"}}


def test_from_one_file_to_runs_that_are_done(places: Places) -> None:
    """Two submits at the same moment, in a folder with an odd name, from inside somebody's torchrun."""
    place = places('it\'s "the" place', **TINY, train__epochs=1, seeds=[0, 1])
    around = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "elsewhere.invalid", "MASTER_PORT": "1"}
    pair = [place.start("submit", "tiny.yaml", "--wait", **around) for _ in range(2)]
    ended = [process.communicate(timeout=2 * WITHIN_S) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ended
    made = place.plan()
    roles = ["teacher", "teacher-logits", "baseline", "baseline", "distilled", "distilled"]
    assert [run.role for run in made.runs] == roles
    assert [out for out, _ in ended] == ["", ""]
    assert sum("6 of 6 runs on this machine; log: " in err for _, err in ended) == 1
    assert sum("nothing to start: all 6 runs are as shown" in err for _, err in ended) == 1
    for _, err in ended:
        for run in made.runs:
            assert f"\n{run.id}  running\n" in err
            said = "\n" if run.role == "teacher-logits" else "  best test top-1 "
            assert f"\n{run.id}  done{said}" in err
    assert len(list((place.root / ".submissions").iterdir())) == 1

    wait_until(lambda: not place.processes())  # a run is done once its result is there; its processes then end
    for run in made.runs:
        run_dir = RunDir(place.root, run.id)
        [attempt] = run_dir.attempts()
        assert attempt.read("outcome")["state"] == "done"
        assert attempt.read("start")["command"].count(str(run_dir.path)) == 1
        assert attempt.read("trainer")["procs"] == 1
        assert run_dir.weights("last").is_file() == (run.role != "teacher-logits")
        assert run_dir.load() == run
    for row in place.states().values():
        steps = 1 if row["role"] == "teacher-logits" else 4
        assert (row["state"], row["attempts"], row["epoch"], row["epochs"], row["step"]) == ("done", 1, 1, 1, steps)
        assert (row["best_top1"] is None) == (row["role"] == "teacher-logits")
        assert row["reason"] == ""

    code, out, err = place.run("submit", "tiny.yaml", "--wait")
    assert (code, out) == (0, "")
    assert "nothing to start: all 6 runs are as shown" in err
    assert "started" not in err

    code, out, _ = place.run("logs", made.runs[0].id[:-3])
    assert code == 0
    assert "[attempt 1 rank 0] " in out
    assert "epoch 1/1  loss " in out

    gated = ["--set", "teacher.min_top1=100", "--set", "distill.alpha=0.25"]
    code, out, err = place.run("submit", "tiny.yaml", "--wait", *gated)
    assert (code, out) == (1, "")
    teacher = made.runs[0].id
    for run in place.plan("distill.alpha=0.25").runs[4:]:
        assert f"\n{run.id}  blocked  ({teacher} reached " in err
        assert not (place.root / run.id).exists()
    why = " %, under teacher.min_top1 100; train it longer or lower the gate"
    assert err.count(f"{why})\n") == 2  # as progress
    assert (err.count("  blocked: 2 runs: "), err.count(f"{why}\n")) == (1, 1)


def test_a_run_that_fails_is_killed_or_loses_its_supervisor(places: Places) -> None:
    """One teacher on two ranks through everything that can happen to it, until it is done."""
    place = places(imports=["moody.py", TINY_MODELS], teacher={"model": "moody"}, student={"model": "tiny_net"})
    two = ["submit", "tiny.yaml", "--procs", "2"]
    teacher, store, baseline, distilled = place.plan("resources.procs=2").runs
    run_dir = RunDir(place.root, teacher.id)

    # A rank raises: the run fails at once, what needs it is blocked, the others are done.
    place.mood.write_text("raise")
    code, out, err = place.run(*two, "--wait")
    assert (code, out) == (1, "")
    reason = f"rank 1 on {socket.gethostname()}, step 2: ValueError: rank one is broken; nothing is saved yet"
    assert f"\n{teacher.id}  failed  ({reason})\n" in err
    assert f"\n{distilled.id}  blocked  ({teacher.id} is failed: {reason})\n" in err
    assert f"\n{baseline.id}  done  best test top-1 " in err
    assert f"\nnext: kdcluster logs {teacher.id}\n" in err
    assert "\nnext: kdcluster submit tiny.yaml --procs 2 --retry\n" in err
    assert err.endswith("not every run is done\n")
    rows = place.states()
    assert {name: row["state"] for name, row in rows.items()} == {
        "teacher0": "failed",
        "teacher-logits0": "blocked",
        "baseline0": "done",
        "distilled0": "blocked",
    }
    assert rows["teacher0"]["reason"] == reason
    assert Path(rows["teacher0"]["log"]) == run_dir.attempt(1).log(1)
    assert "ValueError: rank one is broken" in run_dir.attempt(1).log(1).read_text()
    assert rows["distilled0"]["attempts"] == 0
    [raised] = [failure for failure in run_dir.attempt(1).failures() if failure["rank"] == 1]
    assert run_dir.attempt(1).read("outcome")["time"] - raised["time"] < 20  # torchrun took the sibling down

    # Failed is failed until somebody says --retry. Then a rank is killed, and only torchrun can tell.
    place.mood.write_text("kill")
    code, _, err = place.run(*two, "--wait")
    assert code == 1
    assert f"  {teacher.id}  failed ({reason})\n" in err
    assert "1 failed is left out (--retry)\n" in err
    assert "nothing to start: all 4 runs are as shown" in err
    code, _, err = place.run(*two, "--wait", "--retry")
    assert code == 1
    reason = (
        f"rank 1 on {socket.gethostname()} was killed by SIGKILL (the kernel does that when memory runs out); "
        "nothing is saved yet"
    )
    assert f"\n{teacher.id}  failed  ({reason})\n" in err
    assert f"\n{distilled.id}  blocked  ({teacher.id} is failed: {reason})\n" in err
    assert run_dir.attempt(2).read("outcome")["signal"] == "SIGKILL"

    # Ctrl-C leaves, and the runs go on; so does a time-out.
    place.mood.write_text("wait")
    with place.start(*two, "--wait", "--retry") as waiting:
        wait_until(lambda: run_dir.attempt(3).read("heartbeat").get("step") == 4)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=WITHIN_S)
    assert (waiting.returncode, out) == (130, "")
    assert err.endswith(
        f"\ndetached; still going: {teacher.id}, {store.id}, {distilled.id}\n"
        "next: kdcluster status tiny.yaml --watch, or kdcluster cancel tiny.yaml to stop them\n"
    )
    assert place.status(teacher).state == "running"
    code, _, err = place.run(*two, "--wait", "--timeout", "0.02")
    assert code == 3
    assert "nothing to start" in err
    assert err.endswith(
        f"\nstill going after the time-out: {teacher.id}, {store.id}, {distilled.id}; "
        "they go on, and submit --wait looks at them again\n"
    )
    code, out, _ = place.run("logs", "teacher-moody", "--rank", "1")
    assert code == 0
    assert "[attempt 1 rank 1] ValueError: rank one is broken" in out
    assert "rank 0]" not in out
    code, out, _ = place.run("logs", "teacher-moody")
    assert "[attempt 3 rank 0] " in out
    assert "torchrun] " in out
    assert place.status(teacher).state == "running"

    # kill -9 of the supervisor, and of nothing else, takes everything with it.
    os.kill(run_dir.attempt(3).read("start")["supervisor"]["pid"], signal.SIGKILL)
    wait_until(lambda: not place.processes(), within_s=15)
    assert place.status(teacher).state == "lost"
    assert {name: row["state"] for name, row in place.states().items()} == {
        "teacher0": "lost",
        "teacher-logits0": "planned",
        "baseline0": "done",
        "distilled0": "planned",
    }

    # Submit starts it again, on one process as well, and what the lost attempt told TensorBoard is void.
    place.mood.write_text("")
    code, _, err = place.run("submit", "tiny.yaml", "--wait")
    assert code == 0, err
    assert {name: (row["state"], row["attempts"]) for name, row in place.states().items()} == {
        "teacher0": ("done", 4),
        "teacher-logits0": ("done", 1),
        "baseline0": ("done", 1),
        "distilled0": ("done", 1),
    }
    assert {path.suffix for path in run_dir.events.iterdir()} >= {".a3", ".a4"}
    points = read_scalars(run_dir.events).points["test/top1"]
    assert [point.step for point in points] == [4, 8]
    assert [run_dir.attempt(number).read("trainer")["procs"] for number in (3, 4)] == [2, 1]


def test_gpus_that_are_not_there_and_a_debug_run(places: Places) -> None:
    place = places(imports=["moody.py"], teacher={"model": "moody"}, student={"model": "moody"})
    teacher, *_, distilled = place.plan().runs

    code, out, err = place.run("submit", "tiny.yaml", "--gpus", "2", "--wait", CUDA_VISIBLE_DEVICES="")
    assert (code, out) == (1, "")
    assert err == (
        "2 GPUs asked for, this machine shows none; ask for fewer with --gpus, or run on the CPU with --procs\n"
    )
    assert not place.root.exists()

    # One process in the foreground: its output, and its input, are the terminal's.
    place.mood.write_text("break")
    code, out, err = place.run("debug", "tiny.yaml", "--steps", "1", stdin="p 6 * 7\nc\n")
    assert code == 0, err
    assert "(Pdb) 42\n" in out
    assert f"the teacher {teacher.id} is not trained yet: debugging with its start weights" in err
    assert "stopped after 1 steps, as asked" in err
    assert [path.name for path in place.root.iterdir()] == ["debug"]
    assert RunDir(place.root / "debug", distilled.id).result() is None
