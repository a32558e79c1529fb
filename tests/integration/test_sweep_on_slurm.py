"""A sweep as one job on a real SLURM of two nodes, one of which is set down in the middle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdcluster.ownership import own_folder
from kdcluster.runs import RunDir, run_dirs
from tests.desk import NEEDS_SLURM, Desk, desks, dev_cluster, wait_until
from tests.tiny import TINY_MODELS

pytestmark = [pytest.mark.integration, NEEDS_SLURM]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with dev_cluster(17960) as env:
        yield env


@pytest.fixture
def desk(cluster: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    with desks(tmp_path, cluster) as make:
        yield make


def on_node(desk: Desk, node: str) -> RunDir | None:
    """A trial that trains on a node now, and has saved an epoch."""
    for run_dir in run_dirs(desk.root):
        newest = run_dir.newest()
        if newest and newest.read("start").get("nodes") == node and run_dir.saved_step():
            beat = newest.read("heartbeat")
            if beat and beat["step"] > newest.read("start")["from_step"] and not newest.read("outcome"):
                return run_dir
    return None


def test_a_sweep_uses_both_nodes_and_goes_on_without_one(desk: Callable[..., Desk]) -> None:
    space = {"distill.alpha": {"grid": [0.2, 0.4, 0.6, 0.8]}}
    here = desk(
        imports=["models.py", TINY_MODELS],
        teacher={"model": "tiny_net", "train": {"epochs": 2}},
        student={"model": "slow"},
        sweep={"space": space},
        **{"train.epochs": 8},
    )
    (here.folder / "my venv").symlink_to(sys.prefix)  # Ray takes no blank in it by itself
    here.python = here.folder / "my venv" / "bin" / "python"
    slow = Path(here.env["SLOW"])
    slow.touch()
    words = ("sweep", "tiny.yaml", "--backend", "slurm", "--nodes", "2", "--gpus", "2", "--confirm", "1")
    _, said = here.run(*words)
    (job,) = (line.split()[1] for line in said.splitlines() if line.startswith("job "))
    _, said = here.run(*words)
    assert f"job {job} is at the sweep of tiny already" in said

    wait_until(lambda: on_node(here, "node1"))
    lost = wait_until(lambda: on_node(here, "node2"))
    (token,) = (here.root / ".sweeps" / "tiny" / "slurm" / "1").glob(f".ray-{job}-*/token")
    temp = own_folder() / _told_to_the_nodes(here)
    assert temp.is_dir()
    assert token.stat().st_mode & 0o777 == 0o600
    here.slurm("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    wait_until(lambda: len(lost.attempts()) == 2)
    slow.unlink()
    wait_until(lambda: _state(here, job) not in ("PENDING", "RUNNING", "COMPLETING"))
    log = (here.root / ".sweeps" / "tiny" / "slurm" / "1" / f"{job}.log").read_text()
    assert _state(here, job) == "COMPLETED", log
    assert "Ray has 2 of 2 nodes: 2 cores, 2 GPUs" in log
    assert "tiny-best: best test/top1 in percent" in log
    assert lost.attempt(2).read("start")["nodes"] == "node1"
    assert lost.attempt(2).read("start")["from_step"] > 0
    document = json.loads(here.run("results", "tiny.yaml", "--sweep", "--json")[0])
    assert [row["state"] for row in document["trials"]] == ["done"] * 4
    assert {len(one.attempts()) for one in run_dirs(here.root) if one.id.startswith("teacher")} == {1}
    assert not token.parent.exists()
    assert not temp.exists()


def _told_to_the_nodes(desk: Desk) -> str:
    """The name under which each node has its Ray's files, from the arguments of the first node's step."""
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0") for pid in desk.processes()]
    return next(words[words.index("--node") + 2] for words in lines if "--node" in words)


def _state(desk: Desk, job: str) -> Any:
    return desk.slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()
