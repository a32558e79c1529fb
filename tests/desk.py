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

from tests.tiny import put_images, write_experiment

DEV_CLUSTER = Path(__file__).parents[1] / "slurm" / "dev-cluster"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

NEEDS_SLURM = pytest.mark.skipif(
    os.environ.get("CI") != "true" and shutil.which("slurmctld", path=PATH) is None,
    reason="needs SLURM: as root, slurm/dev-cluster up --accounting installs it",
)

WITHIN_S = 180.0
SLOW_MODEL = '''
"""A model of the user's own: slow while the file SLOW is there; it raises or hangs where that says so."""
import os, time
from pathlib import Path
import torch
from timm.models import register_model

class Slow(torch.nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.head = torch.nn.Linear(in_chans, num_classes)

    def forward(self, x):
        slow = Path(os.environ["SLOW"])
        if self.training and slow.exists():
            if slow.read_text() == "raise":
                raise ValueError("as asked")
            time.sleep(0.2)
            while slow.exists() and slow.read_text() == "hang":
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


class Desk:
    """A folder with tiny images and an experiment, from which somebody submits."""

    def __init__(self, folder: Path, cluster: dict[str, str]) -> None:
        self.folder, self.root = folder, folder / "runs"
        folder.mkdir(parents=True)
        put_images(folder / "data")
        self.env = {**cluster, "KDCLUSTER_CLUSTER": "dev", "SLOW": str(folder / "SLOW")}
        self.env.pop("KDCLUSTER_BACKEND", None)

    def run(self, *words: str, expect: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a kdcluster command."""
        argv = [sys.executable, "-m", "kdcluster.cli", *words]
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
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"SLOW={self.env['SLOW']}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


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


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)
    return found
