"""A store that 1, 2 and 3 ranks make is the same file; on each number of them its students have the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from kdcluster.launch.torchrun import Layout, environment
from kdcluster.runs import RunDir
from tests import store_ranks, tiny

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("augment", store_ranks.AUGMENT)
def test_on_one_two_and_three_ranks(tmp_path: Path, augment: str) -> None:
    data_dir = tmp_path / "data"
    tiny.put_images(data_dir, train=110)  # 7 rounds of one rank, 4 of two, 3 of three
    teacher, store, student = (
        tiny.make_run(tmp_path, role, store_ranks.changes(augment))
        for role in ("teacher", "teacher-logits", "distilled")
    )
    tiny.train_here(tmp_path / "first", teacher, data_dir)
    stores = {}
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        shutil.copytree(tmp_path / "first", folder / "runs")
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        argv += ["-m", "tests.store_ranks", str(folder), str(data_dir), augment]
        env = environment(os.environ, Layout("cpu", ranks, 1))
        done = subprocess.run(argv, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-6000:]

        run_dir = RunDir(folder / "runs", store.id)
        steps = [run_dir.attempt(number).read("preempted")["step"] for number in range(1, store_ranks.STOPS + 1)]
        assert [0, *steps] == sorted({0, *steps})  # each attempt gained, however early it was stopped
        assert (run_dir.result() or {})["views"] == 3
        stores[ranks] = {path.name: path.read_bytes() for path in (run_dir.path / "logits").iterdir()}

        students = {name: RunDir(folder / name, student.id) for name in ("runs", "computed", "mixed")}
        theirs = load_file(students["computed"].weights("last"))
        for one in students.values():
            ours = load_file(one.weights("last"))
            assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
        results = {name: one.result() or {} for name, one in students.items()}
        assert len({repr((result["best"], result["last"])) for result in results.values()}) == 1
        assert {name: result["views"] for name, result in results.items()} == {
            "runs": {"read": 3},
            "computed": {"computed": 3},
            "mixed": {"read": 2, "computed": 1},
        }
        assert 6 <= students["mixed"].attempt(1).read("preempted")["step"] < 12
    assert sorted(stores[1]) == ["manifest.json", "view-00000.npy", "view-00001.npy", "view-00002.npy"]
    assert stores[1] == stores[2] == stores[3]
