"""Kill the whole tree of a distilled run at three moments, submit again: the same weights, the same table."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests import tiny

pytestmark = pytest.mark.integration

KILLER = str(Path(__file__).parents[1] / "killer.py")
CHANGES = {
    "imports": [KILLER],
    "train.epochs": 3,
    "train.checkpoint_every": "3steps",
    "resources": {"device": "cpu", "procs": 2, "threads": 1},
}
"""3 epochs of 4 steps: checkpoints after steps 4, 7, 8, 10 and 12, since ranks agree on one a step after it is due."""


def kdcluster(folder, *args, check=True, **env):
    argv = [sys.executable, "-m", "kdcluster.cli", *args]
    done = subprocess.run(argv, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 or not check, done.stderr
    return done


def processes_of(folder):
    """Command lines that name this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line.replace("\0", " "))
    return found


def assert_nothing_is_left(folder):
    """Within some seconds: a killed process is reaped by whoever adopted it."""
    deadline = time.monotonic() + 10
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def table(folder):
    """What the results table says, but for how long it took."""
    lines = kdcluster(folder, "results", "tiny.yaml", "--role", "distilled").stdout.splitlines()
    return [line for line in lines if " runs took " not in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.put_images(folder / "data")
    tiny.write_experiment(folder, CHANGES)
    kdcluster(folder, "submit", "tiny.yaml", "--role", "distilled", "--wait")
    return folder


@pytest.mark.parametrize("moment", ["save", "step", "evaluation"])
def test_the_same_bits_after_a_kill(tmp_path, undisturbed, moment):
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    shutil.copy(undisturbed / "tiny.yaml", tmp_path)
    (tmp_path / "runs").mkdir()
    teacher, whole = (next((undisturbed / "runs").glob(f"{role}-vit*")) for role in ("teacher", "distilled"))
    shutil.copytree(teacher, tmp_path / "runs" / teacher.name)
    arguments = ("tiny.yaml", "--role", "distilled")
    killed = kdcluster(tmp_path, "submit", *arguments, "--wait", check=False, KDTEST_KILL=moment)
    assert killed.returncode == 1
    assert_nothing_is_left(tmp_path)
    row = json.loads(kdcluster(tmp_path, "status", "tiny.yaml", "--json").stdout)["runs"]
    assert next(r["state"] for r in row if r["id"] == whole.name) == "lost"
    run = tmp_path / "runs" / whole.name
    assert len(list((run / "checkpoints").glob("*.ckpt"))) >= 2
    kdcluster(tmp_path, "submit", *arguments, "--wait")
    resumed = json.loads((run / "attempts" / "2" / "trainer.json").read_text())["resumed_at_step"]
    assert 0 < resumed < 12
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(run / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
    assert table(tmp_path) == table(undisturbed)
    assert_nothing_is_left(tmp_path)
