"""A run that was stopped and resumed at 3 ranks ends in the same bits; on another number of ranks it goes on."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdcluster.files import read_json
from kdcluster.runs import RunDir
from kdcluster.train.distributed import World
from kdcluster.train.trainer import Progress, train
from tests import tiny

pytestmark = pytest.mark.integration


def test_resume_at_three_ranks_and_on_one(tmp_path):
    tiny.put_images(tmp_path / "data")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    script = Path(__file__).parents[1] / "resume_ranks.py"
    root = Path(__file__).parents[2]
    started = [*argv, "-m", "tests.resume_ranks", str(tmp_path), "5"]
    assert script.is_file()
    done = subprocess.run(started, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run_id = (tmp_path / "id").read_text()
    whole, resumed, evaluated = (RunDir(tmp_path / name, run_id) for name in ("whole", "resumed", "evaluated"))
    at = resumed.attempt(1).read("preempted")["step"]
    assert 5 <= at < 12
    assert resumed.attempt(2).read("trainer")["resumed_at_step"] == at
    assert evaluated.attempt(1).read("preempted") == {"step": 4}  # in the evaluation: before a step of the next epoch
    assert evaluated.attempt(2).read("trainer")["resumed_at_step"] == 4
    theirs = load_file(whole.weights("last"))
    for run_dir in (resumed, evaluated):
        ours = load_file(run_dir.weights("last"))
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
        assert run_dir.result()["best"] == whole.result()["best"]

    # The same checkpoint on one rank: the same step, the same data, weights that differ by rounding alone.
    single = RunDir(tmp_path / "single", run_id)
    single.prepare(whole.load())
    shutil.copytree(tmp_path / "stopped", single.checkpoints)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(single, single.start_attempt({}), World(0, 1, torch.device("cpu")), tmp_path / "data", Progress())
    torch.set_num_threads(threads)
    assert read_json(single.path / "result.json")["steps"] == 12
    assert single.attempt(1).read("trainer")["resumed_at_step"] == at
    alone = load_file(single.weights("last"))
    for name, value in theirs.items():
        np.testing.assert_allclose(alone[name], value, atol=2e-3)
