"""What is compiled, when it is worth it, and for which models cuDNN searches."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch

from kdcluster import saved
from kdcluster.train import checkpoint, speed
from kdcluster.train.distributed import World
from kdcluster.train.speed import WORTH_STEPS
from tests import tiny

CPU, GPU = World(0, 1, torch.device("cpu")), World(0, 1, torch.device("cuda"))


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with all that torch.compile needs."""
    monkeypatch.setattr(speed, "_lacks", lambda: "")


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize(
    ("asked", "world", "steps", "found"),
    [
        ("auto", GPU, WORTH_STEPS, True),
        ("auto", GPU, WORTH_STEPS - 1, False),
        ("auto", CPU, 10**9, False),
        (True, CPU, 1, True),
        (True, GPU, 1, True),
        (False, GPU, 10**9, False),
    ],
)
def test_auto_compiles_where_the_steps_left_earn_it_back(tmp_path: Path, asked, world, steps, found):
    run = tiny.make_run(tmp_path, "baseline", {"train.compile": asked})
    decided = speed.decided(run, world, steps)
    assert decided.train.compile is found
    assert decided.has_identity()


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize(
    ("asked", "world", "steps", "state", "found"),
    [
        ("auto", GPU, 1, {"compile": True}, True),
        ("auto", GPU, WORTH_STEPS, {"compile": False}, False),
        ("auto", GPU, WORTH_STEPS, {}, True),  # an earlier version's
        ("auto", CPU, WORTH_STEPS, {"compile": True}, False),
        (False, GPU, WORTH_STEPS, {"compile": True}, False),
    ],
)
def test_a_run_that_goes_on_stays_as_it_began_where_it_can(tmp_path: Path, asked, world, steps, state, found):
    run = tiny.make_run(tmp_path, "baseline", {"train.compile": asked})
    assert speed.decided(run, world, steps, state).train.compile is found


@pytest.mark.parametrize(("asked", "used"), [("auto", False), (True, True)])
def test_a_checkpoint_says_whether_its_run_was_compiled(tmp_path: Path, monkeypatch, asked, used):
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    data_dir = tmp_path / "data"
    tiny.put_images(data_dir)
    run_dir = tiny.train_here(tmp_path, tiny.make_run(tmp_path, "baseline", {"train.compile": asked}), data_dir)
    assert checkpoint.load(saved.path_of(run_dir.checkpoints, 8))["compile"] is used


def test_the_schema_says_the_same_number_of_steps(tmp_path: Path):
    run = tiny.make_run(tmp_path, "baseline")
    assert f"{WORTH_STEPS} steps or more" in type(run.train).model_fields["compile"].description
    assert run.train.compile == "auto"


@pytest.mark.parametrize(
    ("lacks", "steps", "said"),
    [
        ("", 39_000, "train.compile auto: true; 39,000 steps are left, and 30,000 earn it back"),
        ("", 390, "train.compile auto: false; 390 steps are left, and 30,000 earn it back"),
        ("C compiler", 39_000, "train.compile auto: false; there is no C compiler"),
    ],
)
def test_the_log_says_how_it_was_decided(tmp_path: Path, monkeypatch, caplog, lacks, steps, said):
    monkeypatch.setattr(speed, "_lacks", lambda: lacks)
    with caplog.at_level(logging.INFO):
        speed.decided(tiny.make_run(tmp_path, "baseline"), GPU, steps)
        speed.decided(tiny.make_run(tmp_path, "baseline"), World(1, 2, GPU.device), steps)
        speed.decided(tiny.make_run(tmp_path, "baseline"), CPU, steps)
    assert caplog.messages == [said]


def test_without_triton_or_a_c_compiler_auto_stays_eager(monkeypatch):
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: None)
    assert speed._lacks() == "triton"
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert speed._lacks() == "C compiler"
    monkeypatch.setenv("CC", "cc")
    assert speed._lacks() == ""


@pytest.mark.parametrize(
    ("world", "pieces", "mode"),
    [
        (GPU, 1, "reduce-overhead"),
        (GPU, 2, None),
        (World(0, 2, GPU.device), 1, None),
        (CPU, 1, None),
    ],
)
def test_cuda_graphs_are_for_one_process_and_one_backward(tmp_path: Path, monkeypatch, world, pieces, mode):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda net, **options: asked.update(options) or net)
    net = torch.nn.Linear(1, 1)
    run = speed.decided(tiny.make_run(tmp_path, "baseline", {"train.compile": True}), world, 1)
    assert speed.compiled(net, run, world, pieces) is net
    assert asked == {"dynamic": False, "mode": mode}
    asked.clear()
    assert speed.compiled(net, tiny.make_run(tmp_path, "baseline"), world, pieces) is net  # nobody has decided
    assert asked == {}


@pytest.mark.parametrize(
    ("name", "searches"),
    [("test_vit", True), ("resnet18", True), ("resnext50_32x4d", True), ("tf_efficientnet_lite0", False)],
)
def test_cudnn_does_not_search_for_depthwise_convolutions(name, searches):
    with torch.device("meta"):
        net = timm.create_model(name)
    assert speed.worth_searching(net, None) is searches
    assert speed.worth_searching(torch.nn.Conv2d(1, 8, 3), net) is searches
