"""kill -9 of whoever makes a store, at random moments, each followed by another start: the same files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kdcluster.plan import Run
from kdcluster.processes import is_alive
from kdcluster.runs import RunDir
from kdcluster.train.distributed import World
from kdcluster.train.trainer import Progress, train
from tests import tiny
from tests.desk import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

KILLS = 20
CHANGES = {
    "teacher": {**tiny.CNN, "train": {"epochs": 1}},
    "train.epochs": 2,
    "resources": {"device": "cpu", "procs": 1, "threads": 1},
}
IMAGES = 1500
"""12 rounds a view."""


def content(run_dir: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir.path / "logits").iterdir()}


def begin(root: Path, run: Run, data_dir: Path) -> int:
    """A process that makes the store, without the seconds in which torch is imported; its id."""
    run_dir = tiny.prepare(root, run)
    attempt = run_dir.start_attempt({})
    if child := os.fork():
        return child
    try:
        train(run_dir, attempt, World(0, 1, torch.device("cpu")), data_dir, Progress())
        os._exit(0)
    finally:
        os._exit(1)


def files_of(run_dir: RunDir) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (run_dir.path / "logits").glob("*")))


def wait_for(ending: str, run_dir: RunDir, child: int) -> None:
    """Until the child has written such a file, or has ended."""
    ended = os.WNOHANG | os.WEXITED | os.WNOWAIT
    wait_until(
        lambda: any(name.endswith(ending) for name in files_of(run_dir)) or os.waitid(os.P_PID, child, ended),
        poll_s=0.001,
    )


def test_killed_twenty_times_at_random_moments(tmp_path: Path) -> None:
    """Those that make it, as forks of this process; then torchrun's agent and a rank of what `submit` has started."""
    data_dir = tmp_path / "data"
    tiny.put_images(data_dir, train=IMAGES)
    teacher, store = (tiny.make_run(tmp_path, role, CHANGES) for role in ("teacher", "teacher-logits"))
    tiny.train_here(tmp_path / "whole", teacher, data_dir)
    shutil.copytree(tmp_path / "whole", tmp_path / "runs")
    started = time.monotonic()
    untouched = content(tiny.train_here(tmp_path / "whole", store, data_dir))
    took_s = time.monotonic() - started
    run_dir = RunDir(tmp_path / "runs", store.id)

    moments, seen = random.Random(7), set[str]()
    for turn in range(KILLS - 2):
        child = begin(tmp_path / "runs", store, data_dir)
        if after := ("", ".partial.npy", "00000.npy")[turn % 3]:  # a busy machine's moments lie elsewhere
            wait_for(after, run_dir, child)
        time.sleep(moments.uniform(0, took_s / 3 if after else took_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.update(files_of(run_dir))
        if run_dir.result():
            assert content(run_dir) == untouched
            shutil.rmtree(run_dir.path)  # from the beginning
    assert seen >= {".partial.npy", "view-00000.npy"}  # they came in the midst of it

    for whom in ("agent", "rank"):
        shutil.rmtree(run_dir.path, ignore_errors=True)
        argv = [sys.executable, "-m", "kdcluster.cli", "submit", "tiny.yaml", "--role", "teacher-logits"]
        subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=120)
        attempt = wait_until(lambda: (newest := run_dir.newest()) and newest.read("trainer") and newest)
        agent = attempt.read("agent")
        children = Path(f"/proc/{agent['pid']}/task/{agent['pid']}/children").read_text().split()
        os.kill(agent["pid"] if whom == "agent" else int(children[0]), signal.SIGKILL)
        wait_until(lambda ends=(agent, attempt.start["supervisor"]): not any(map(is_alive, ends)))
        if run_dir.result():  # it was faster
            continue
        done = subprocess.run([*argv, "--wait", "--retry"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert content(run_dir) == untouched
        assert run_dir.attempt(2).read("outcome")["state"] == "done"
