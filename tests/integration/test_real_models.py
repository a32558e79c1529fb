"""exp1's own models at 224 px, and torch's own compiler: slow, so once each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdcluster.experiment import configfile
from kdcluster.plan import plan
from kdcluster.results import events
from tests import tiny

pytestmark = pytest.mark.integration

MODELS = {"teacher": "vit_base_patch16_224", "student": "vit_tiny_patch16_224"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of CIFAR-100's shape in the data cache, and weights in timm's layout with ImageNet's head."""
    folder = tmp_path_factory.mktemp("real")
    tiny.put_images(folder / "data", "cifar100", train=32, test=16, size=32)
    generator = torch.Generator().manual_seed(0)
    for role, name in MODELS.items():
        with torch.device("meta"):
            shapes = timm.create_model(name).state_dict()
        state = {key: torch.randn(value.shape, generator=generator) * 0.02 for key, value in shapes.items()}
        state |= {key: torch.ones_like(state[key]) for key in state if "norm" in key and key.endswith(".weight")}
        save_file(state, folder / f"{role}.safetensors")
    return folder


def settings(folder: Path, batch_size: int) -> list[str]:
    weights = [f"{role}.pretrained={folder / role}.safetensors" for role in MODELS]
    return [*weights, f"train.batch_size={batch_size}", "resources.device=cpu"]


def losses(events_folder: Path) -> list[float]:
    points = events.read_scalars(events_folder, ("train/",)).points
    assert [point.step for point in points["train/loss"]] == [1, 2]
    return [point.value for point in points["train/ce"]]


def test_exp1s_models_distil_for_two_steps(folder: Path):
    """Through the command line, as a user tries an experiment out: ViT-Base teaches ViT-Tiny at 224 px."""
    sets = [part for setting in settings(folder, 4) for part in ("--set", setting)]
    places = ["--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]
    command = [sys.executable, "-m", "kdcluster.cli", "debug", "exp1", "--steps", "2", *sets, *places]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # spinning hurts on a busy machine
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "stopped after 2 steps, as asked" in done.stderr
    assert "is not trained yet: debugging with its start weights" in done.stderr
    for role in MODELS:
        assert f"{role}.safetensors: the head has another size and starts anew (head.bias, head.weight)" in done.stderr
    (run_folder,) = (folder / "runs" / "debug").glob("distilled-vit_tiny_patch16_224-s0-*")
    assert all(2 < value < 8 for value in losses(run_folder / "events"))  # ln 100 is 4.6
    assert not (run_folder / "result.json").exists()


def test_exp1s_teacher_trains_for_two_steps(folder: Path, one_thread: None):
    loaded = configfile.load("exp1", settings(folder, 2))
    teacher = plan([loaded]).runs[0]
    assert teacher.role == "teacher"
    run_dir = tiny.train_here(folder / "runs2", teacher, folder / "data", max_steps=2)
    assert all(2 < value < 12 for value in losses(run_dir.events))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_by_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None):
    """Student and teacher as they are compiled in earnest; unit tests have the rest of what compile changes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    tiny.put_images(tmp_path / "data")
    changes = {
        "imports": [tiny.TINY_MODELS],
        "student": {"model": "tiny_net", "image_size": 16},
        "teacher": {"model": "tiny_net", "image_size": 16, "model_args": {"width": 12}, "train": {"epochs": 1}},
        "train.epochs": 1,
    }
    found = []
    for compiled in (False, True):
        teacher, _, student = tiny.make_plan(tmp_path, {**changes, "train.compile": compiled}).only(["distilled"]).runs
        if not compiled:
            tiny.train_here(tmp_path / "runs", teacher, tmp_path / "data")
        found.append(tiny.train_here(tmp_path / "runs", student, tmp_path / "data").result()["last"])
    torch._dynamo.reset()
    assert found[1] == pytest.approx(found[0], rel=1e-4)
