"""Autocast is what suits the device, is kept by a run that goes on, is recorded, and is named where it goes wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcluster import saved
from kdcluster.errors import KdclusterError
from kdcluster.runs import RunDir
from kdcluster.train import checkpoint, precision, trainer
from kdcluster.train.distributed import World
from kdcluster.train.trainer import Progress, train
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = World(0, 1, torch.device("cpu"))
CUDA = World(0, 1, torch.device("cuda"))
UNSAID: dict[str, Any] = {"train": {"epochs": 2, "batch_size": 16, "lr": 1e-2}, "train.checkpoint_every": "3steps"}
"""Says nothing of precision. 2 epochs of 4 steps."""


def with_bf16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    """Have this machine's device be one to which `auto` gives bf16, or not."""
    monkeypatch.setattr(precision, "_has_bf16", lambda device: has)


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bf16_on_a_gpu_that_has_it(tmp_path, monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    run = tiny.make_run(tmp_path, "baseline", UNSAID)
    assert precision.decided(run, CUDA, None).amp == ("bf16" if has else "none")
    assert precision.decided(run, CPU, None).amp == "none"
    for amp in ("bf16", "none"):
        said = tiny.make_run(tmp_path, "baseline", {**UNSAID, "train.amp": amp})
        assert precision.decided(said, CUDA, None) is precision.decided(said, CPU, {"amp": "other"}) is said


def test_a_model_that_is_only_evaluated_runs_in_float32(tmp_path):
    (tmp_path / "w.safetensors").touch()
    run = tiny.make_run(tmp_path, "teacher", {"teacher.train": "none", "teacher.pretrained": "w.safetensors"})
    assert precision.decided(run, CUDA, None).amp == "none"


def test_files_that_say_nothing_keep_their_ids(tmp_path):
    unsaid, auto, bf16 = (
        [run.id for run in tiny.make_plan(tmp_path, {**UNSAID, **said}).runs]
        for said in ({}, {"train.amp": "auto"}, {"train.amp": "bf16"})
    )
    assert unsaid == auto
    assert not set(unsaid) & set(bf16)


def test_a_run_that_an_earlier_version_wrote_is_read_as_one_that_says_nothing(tmp_path):
    """It wrote its default, bf16, into config.yaml, and did not hash it."""
    for role in ("teacher", "distilled"):
        run = tiny.make_run(tmp_path, role, UNSAID)
        run_dir = tiny.prepare(tmp_path / "runs", run)
        before = run_dir.config.read_text()
        assert "amp: auto" in before
        run_dir.config.write_text(before.replace("amp: auto", "amp: bf16"))
        assert run_dir.load() == run_dir.known()[0] == run
    said = tiny.make_run(tmp_path, "teacher", {**UNSAID, "train.amp": "bf16"})
    assert tiny.prepare(tmp_path / "runs", said).load() == said


def attempt(root: Path, run: Any, data_dir: Path, stop_at: int | None = None) -> RunDir:
    """Train in a new attempt, asked to stop after a step where `stop_at` says one."""
    run_dir, progress = tiny.prepare(root, run), Progress()
    if stop_at is not None:

        class Stopping(Progress):
            @property
            def stop(self) -> bool:
                return self.step >= stop_at

            @stop.setter
            def stop(self, _: bool) -> None: ...

        progress = Stopping()
    train(run_dir, run_dir.start_attempt({}), CPU, data_dir, progress)
    return run_dir


def test_what_was_used_is_recorded(tmp_path, data_dir, monkeypatch):
    for has, amp in ((True, "bf16"), (False, "none")):
        with_bf16(monkeypatch, has)
        run_dir = attempt(tmp_path / amp, tiny.make_run(tmp_path, "baseline", UNSAID), data_dir)
        assert run_dir.newest().read("trainer")["amp"] == run_dir.result()["amp"] == amp
        assert checkpoint.load(saved.path_of(run_dir.checkpoints, 8))["amp"] == amp
        assert run_dir.load().amp == "auto"  # what was asked for stays what it is


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_that_goes_on_keeps_its_precision_and_its_bits(tmp_path, data_dir, monkeypatch, caplog, recorded):
    """Without a record its checkpoint is an earlier version's, which knew bf16 alone."""
    run = tiny.make_run(tmp_path, "baseline", UNSAID)
    with_bf16(monkeypatch, True)
    undisturbed = attempt(tmp_path / "undisturbed", run, data_dir).result()
    run_dir = attempt(tmp_path / "runs", run, data_dir, stop_at=6)
    assert run_dir.result() is None
    if not recorded:
        path = saved.path_of(run_dir.checkpoints, 6)
        state = checkpoint.load(path)
        checkpoint.save(run_dir.checkpoints, 6, {key: value for key, value in state.items() if key != "amp"})
    with_bf16(monkeypatch, False)  # it goes on elsewhere
    attempt(tmp_path / "runs", run, data_dir)
    assert "going on with amp: bf16, in which it began; auto would be none here (cpu)" in caplog.text
    assert run_dir.result()["best"] == undisturbed["best"]
    assert run_dir.result()["last"] == undisturbed["last"]
    in_float32 = attempt(tmp_path / "float32", run, data_dir).result()
    assert in_float32["last"]["test/loss"] != undisturbed["last"]["test/loss"]


# --- a loss that is not finite


def spoilt(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Have the backward pass spoil the gradient of one parameter in step `at`, though its loss is finite."""
    calls: list[int] = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * (float("nan") if len(calls) == at else 1.0)

    set_up = trainer.set_up

    def hooked(*given: Any, **options: Any) -> Any:
        training = set_up(*given, **options)
        dict(training.student.net.named_parameters())[name].register_hook(spoil)
        return training

    monkeypatch.setattr(trainer, "set_up", hooked)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("at", [2, 4], ids=["within an epoch", "its last step"])
def test_the_first_gradient_that_was_not_finite_is_named(tmp_path, data_dir, monkeypatch, clip, at):
    spoilt(monkeypatch, "blocks.0.attn.qkv.weight", at)
    run = tiny.make_run(tmp_path, "baseline", {**UNSAID, "train.amp": "bf16", "train.grad_clip": clip})
    with pytest.raises(KdclusterError) as caught:
        tiny.train_here(tmp_path / "runs", run, data_dir)
    message = str(caught.value)
    assert message.startswith(f"the loss is not finite at step {at + 1} (loss nan, ")
    assert f"; the gradient of blocks.0.attn.qkv.weight was not finite first, at step {at}; " in message
    assert message.endswith("; try amp: none (it was bf16), then a smaller train.lr or train.grad_clip")


def test_amp_is_not_offered_where_it_is_off(tmp_path, data_dir, monkeypatch):
    spoilt(monkeypatch, "head.bias", 1)
    with pytest.raises(KdclusterError) as caught:
        tiny.train_here(tmp_path / "runs", tiny.make_run(tmp_path, "baseline", UNSAID), data_dir)
    assert str(caught.value).endswith("; try a smaller train.lr or train.grad_clip")


def test_of_several_gradients_the_one_nearest_to_the_output_is_named():
    fine, spoilt = torch.tensor(1.0), torch.tensor(float("inf"))
    steps = [(6, {"stem": fine, "head": fine}), (7, {"stem": spoilt, "middle": spoilt, "head": fine})]
    assert precision.first_not_finite(steps) == (7, "middle")
    assert precision.first_not_finite(steps[:1]) is None


# --- the log


def test_the_log_says_where_the_precision_stands(tmp_path, data_dir, caplog):
    caplog.set_level(logging.INFO)
    attempt(tmp_path, tiny.make_run(tmp_path, "baseline", UNSAID), data_dir)
    assert "on cpu: 1 process with 1 thread; precision float32" in caplog.messages
