"""Training against a bare loop with timm's own optimizer and scheduler: the same parameters after 20 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from kdcluster.runs import RunDir
from kdcluster.train import data, feed, models, step, views
from kdcluster.train.distributed import World
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, WARMUP, BATCH, LR, DECAY = 20, 4, 16, 2e-3, 0.05
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    tiny.put_images(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", LR), ("lamb", LR), ("sgd", 0.05)])
def test_parameters_after_20_steps_are_timms(tmp_path: Path, data_dir: Path, optimizer: str, lr: float) -> None:
    train: dict[str, Any] = {"steps": STEPS, "warmup_steps": WARMUP, "batch_size": BATCH, "optimizer": optimizer}
    train |= {"lr": lr, "weight_decay": DECAY, "label_smoothing": 0.1, "schedule": "cosine", "amp": "none"}
    run = tiny.make_run(tmp_path, "baseline", {"train": train, "data.augment": {"pad": 0, "flip": False}})
    ours = trained(run, data_dir, RunDir(tmp_path / "runs", run.id))
    torch.manual_seed(run.seed)
    net = timm.create_model(tiny.VIT["model"], img_size=16, num_classes=10, **tiny.VIT["model_args"])
    start = [p.detach().clone() for p in net.parameters()]
    bare = create_optimizer_v2(net, opt=optimizer, lr=lr, weight_decay=DECAY, momentum=0.9)
    schedule = CosineLRScheduler(
        bare, t_initial=STEPS - WARMUP, warmup_t=WARMUP, warmup_lr_init=0.0, warmup_prefix=True, t_in_epochs=False
    )
    images, labels = tiny.images(64)
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    net.train()
    for number in range(STEPS):
        epoch, at = divmod(number, 64 // BATCH)
        some = views.epoch_order(64, seed=run.seed, epoch=epoch)[at * BATCH : (at + 1) * BATCH]
        schedule.step_update(number + 0.5)  # in the middle of the step, where timm's own script has its end
        x = (torch.from_numpy(images)[some] / 255 - mean) / std
        loss = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(labels)[some], label_smoothing=0.1)
        loss.backward()
        bare.step()
        bare.zero_grad()
    for one, other, before in zip(ours, net.parameters(), start, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-5)
        assert not torch.equal(one, before)


def trained(run: Any, data_dir: Path, run_dir: RunDir) -> list[torch.Tensor]:
    """The parameters after the run's own steps."""
    run_dir.prepare(run)
    images = feed.to_device(data.open_arrays(run, data_dir), "train", ALONE.device)
    training = step.set_up(run, ALONE, 64 // BATCH)
    training.model.train()
    number = 0
    for epoch in range(STEPS * BATCH // 64):
        for shards in step.epoch_batches(run, images, torch.arange(64), epoch, ALONE):
            step.seed_step(run.seed, number, 0)
            step.optim.set_learning_rate(training.schedule, number)
            step.train_step(training, shards)
            number += 1
    assert number == STEPS
    assert isinstance(training.student, models.Classifier)
    return [p.detach() for p in training.student.net.parameters()]
