"""A desk from which a test submits to a real SLURM (slurm/dev-cluster)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from kdcluster.experiment import yamlfile
from kdcluster.processes import is_alive
from kdcluster.runs import RunDir
from tests.tiny import TINY_MODELS, put_images, write_experiment

DEV_CLUSTER = Path(__file__).parents[1] / "slurm" / "dev-cluster"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

NEEDS_SLURM = pytest.mark.skipif(
    os.environ.get("CI") != "true" and shutil.which("slurmctld", path=PATH) is None,
    reason="needs SLURM: as root, slurm/dev-cluster up --accounting installs it",
)

WITHIN_S = 600.0  # a hang, not a busy machine
SLOW_MODEL = '''
"""A model of the user's own, slow while the file SLOW is there: so many seconds a step; or it raises, or hangs."""
import os, time
from pathlib import Path
import torch
from timm.models import register_model

def asked():
    if "RANK" not in os.environ:  # tried before it is submitted
        return None
    try:
        return Path(os.environ["SLOW"]).read_text()
    except FileNotFoundError:
        return None

class Slow(torch.nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.head = torch.nn.Linear(in_chans, num_classes)

    def forward(self, x):
        said = asked() if self.training else None
        if said == "raise":
            raise ValueError("as asked")
        if said is not None:
            time.sleep(float(said) if said.isdigit() else 0.2)
        while self.training and asked() == "hang":
            time.sleep(0.1)
        return self.head(x.mean((2, 3)))

@register_model
def slow(pretrained=False, num_classes=10, in_chans=3, **_):
    return Slow(num_classes, in_chans)
'''


@contextmanager
def dev_cluster(port: int, *options: str) -> Iterator[dict[str, str]]:
    """A SLURM of its own; the environment in which it is found."""
    folder = tempfile.mkdtemp(prefix="kdcluster-slurm-")
    Path(folder).rmdir()
    env = {**os.environ, "PATH": PATH, "KDCLUSTER_DEV_DIR": folder, "KDCLUSTER_DEV_PORT": str(port)}
    subprocess.run([DEV_CLUSTER, "up", *options], env=env, check=True, stdout=subprocess.DEVNULL)
    try:
        yield {**env, "SLURM_CONF": f"{folder}/slurm.conf"}
    finally:
        subprocess.run([DEV_CLUSTER, "down"], env=env, check=True)
        assert not Path(folder).exists()


def processes_of(slow: str) -> list[int]:
    """Every process whose environment has SLOW=slow, as all have that were started from one desk."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SLOW={slow}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class Desk:
    """A folder with tiny images and an experiment, from which somebody submits."""

    def __init__(self, folder: Path, cluster: dict[str, str]) -> None:
        self.folder, self.root = folder, folder / "runs"
        folder.mkdir(parents=True)
        put_images(folder / "data")
        self.env = {**cluster, "KDCLUSTER_CLUSTER": "dev", "SLOW": str(folder / "SLOW")}
        self.env.pop("KDCLUSTER_BACKEND", None)
        self.python = Path(sys.executable)

    def run(self, *words: str, expect: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a kdcluster command."""
        argv = [str(self.python), "-m", "kdcluster.cli", *words]
        done = subprocess.run(argv, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=WITHIN_S)
        assert done.returncode == expect, done.stderr
        return done.stdout, done.stderr

    def slurm(self, *words: str) -> str:
        return subprocess.run(words, cwd=self.folder, env=self.env, check=True, capture_output=True, text=True).stdout

    def states(self) -> dict[str, dict[str, Any]]:
        """Of each role: its row in `status --json`."""
        rows = json.loads(self.run("status", "tiny.yaml", "--json")[0])["runs"]
        return {row["role"]: row for row in rows}

    def processes(self) -> list[int]:
        """Every process that knows this folder's SLOW file: job scripts, tasks, torchruns and ranks."""
        return processes_of(self.env["SLOW"])


@contextmanager
def desks(folder: Path, cluster: dict[str, str]) -> Iterator[Callable[..., Desk]]:
    """Makes desks; at the end none of their processes may be left."""
    made: list[Desk] = []

    def make(name: str = "desk", env: dict[str, str] = cluster, **changes: Any) -> Desk:
        desk = Desk(folder / name, env)
        made.append(desk)
        write_experiment(desk.folder, {"resources": {"threads": 1}, **changes})
        (desk.folder / "models.py").write_text(SLOW_MODEL)
        return desk

    yield make
    for desk in made:
        wait_until(lambda desk=desk: not desk.processes())  # type: ignore[misc]


def wait_until(condition: Callable[[], Any], poll_s: float = 0.1) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(poll_s)
    return found


MODELS = {
    "imports": ["models.py", TINY_MODELS],
    "teacher": {"model": "tiny_net", "train": {"epochs": 2}},  # of its own, so that it is the same one everywhere
    "student": {"model": "slow"},
    "train.epochs": 6,
}
PROFILE = {"device": "cpu", "gpus_per_node": 8, "cpus_per_gpu": 1, "signal_lead_s": 10, "shutdown_timeout_s": 8}


class OnSlurm:
    """One run of a desk, slow in every step while the file SLOW is there."""

    def __init__(self, desk: Desk, role: str) -> None:
        self.desk, self.role = desk, role
        self.slow = Path(desk.env["SLOW"])
        self.run = RunDir(desk.root, desk.states()[role]["id"])

    @property
    def row(self) -> dict[str, Any]:
        return self.desk.states()[self.role]

    def attempt(self, number: int) -> dict[str, Any]:
        """What that attempt's files say, all together."""
        attempt = self.run.attempt(number)
        return {
            name: attempt.read(name)
            for name in ("start", "trainer", "heartbeat", "preempted", "stop", "outcome", "agent")
        }

    def submit(self, *words: str, gpus: int = 1, **profile: Any) -> None:
        (self.desk.folder / "own.yaml").write_text(yamlfile.dump({**PROFILE, **profile}))
        self.desk.env["KDCLUSTER_CLUSTER"] = "own.yaml"
        self.desk.run("submit", "tiny.yaml", "--gpus", str(gpus), "--role", self.role, *words)

    def wait(self) -> dict[str, Any]:
        """Until the run has ended."""
        self.desk.run("status", "tiny.yaml", "--watch")
        return self.row

    def trains(self, number: int) -> None:
        """Wait until that attempt has done a step."""

        def has_stepped() -> bool:
            found = self.attempt(number)
            return bool(found["heartbeat"]) and found["heartbeat"]["step"] > found["trainer"]["resumed_at_step"]

        wait_until(has_stepped)

    @property
    def job(self) -> str:
        return str(self.run.ticket().ref["id"])  # type: ignore[index]

    def node(self, number: int) -> str:
        return str(self.attempt(number)["start"]["nodes"])

    def slurm_state(self) -> str:
        argv = ["squeue", "--noheader", "--states=all", f"--jobs={self.job}", "--format=%T"]
        return self.desk.slurm(*argv).strip()

    @contextmanager
    def preempted(self) -> Iterator[None]:
        """The urgent partition takes the whole node of this run, and keeps it for the block."""
        node = self.desk.slurm("squeue", "--noheader", f"--jobs={self.job}", "--format=%N").strip()
        argv = ["sbatch", "--parsable", "--partition=urgent", f"--nodelist={node}", "--cpus-per-task=16"]
        urgent = self.desk.slurm(*argv, "--export=NONE", "--output=/dev/null", "--wrap=sleep 600").strip()
        wait_until(lambda: self.slurm_state() in ("PENDING", "REQUEUED"))
        try:
            yield
        finally:
            self.desk.slurm("scancel", urgent)

    def start_now(self, after: int) -> None:
        """Cut the wait of a requeued job short, once nothing is left of that attempt: a node takes a job once."""
        wait_until(lambda: self.run.attempt(after + 1).path.exists() or self.slurm_state() in ("PENDING", "REQUEUED"))
        wait_until(lambda: not is_alive(self.attempt(after)["start"]["supervisor"]))
        if not self.run.attempt(after + 1).path.exists():
            self.desk.slurm(
                "scontrol", "update", f"jobid={self.job}", "starttime=now+3"
            )  # a node refuses it for a second


def same_weights(one: RunDir, other: RunDir) -> bool:
    """Whether the last weights of two runs have the same bits."""
    ours, theirs = (load_file(run.weights("last")) for run in (one, other))
    return all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
