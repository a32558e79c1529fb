"""One optimizer step: exact remainders, no wait for the device, the teacher untouched; and what the loop says of it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcluster.errors import KdclusterError
from kdcluster.results import events
from kdcluster.runs import RunDir
from kdcluster.train import data, distributed, evaluate, feed, models, step, teacher_logits, tracking, trainer, worker
from kdcluster.train.distributed import World
from kdcluster.train.losses import Labels, distillation_loss, round_logits
from kdcluster.train.metrics import Lagged
from kdcluster.train.step import Shard, Training
from kdcluster.train.teacher_logits import Targets, load_teacher
from kdcluster.train.trainer import Progress
from tests import golden_loss, tiny
from tests.fabricated import NO_WEIGHTS
from tests.standin import PLACE, StandIn, cuda_refuses_to_wait

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
CNN_TEACHER = {"teacher": tiny.CNN}
CNN_STUDENT = {"student": tiny.CNN}
BATCH = 10


def set_up(
    tmp_path: Path, role: str = "distilled", changes: dict[str, Any] | None = None, device: Any = CPU
) -> Training:
    """A training as trainer.train makes it, its teacher with random weights from a file."""
    changes = {"train.batch_size": BATCH, **(changes or {})}
    run = tiny.make_run(tmp_path, role, changes)
    tiny.prepare(tmp_path / "runs", run)
    if run.teacher is not None:
        torch.manual_seed(5)
        teacher = models.build(run.teacher.model, run.num_classes, run.channels)
        folder = RunDir(tmp_path / "runs", run.teacher.id)
        folder.path.mkdir(exist_ok=True)
        save_file(teacher.net.state_dict(), folder.weights("best"))
    world = World(0, 1, device)
    targets = Targets(run, tmp_path / "runs", world, 64) if run.teacher else None
    if targets:
        _ = targets.forward  # as `begin` builds it, and not in the middle of a step
    return step.set_up(run, world, 5, targets)


def shards_of(training: Training, images: Tensor, labels: Tensor) -> list[Shard]:
    """A batch cut into the micro-batches that the run asks for, as `epoch_batches` cuts it."""
    pieces = step.micro_batches(len(labels), 1, training.run.train.micro_batch)
    parts = [feed.share(len(labels), piece, pieces) for piece in range(pieces)]
    return [Shard(images[p.start : p.stop], Labels(labels[p.start : p.stop]), 1.0) for p in parts]


def one(images: Tensor, labels: Tensor) -> Shard:
    """A whole batch as one micro-batch."""
    return Shard(images, Labels(labels), 1.0)


def batch(count: int = BATCH, device: Any = CPU) -> tuple[Tensor, Tensor]:
    images, labels = tiny.images(count, seed=3)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def gradient(training: Training, shards: list[Shard]) -> tuple[Tensor, Tensor]:
    """What the optimizer is given in one step, as one vector, and the step's sums."""
    caught: list[Tensor] = []

    def catch(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        caught.append(torch.cat([p.grad.flatten() for p in training.student.parameters()]))

    with_hook = training.optimizer.register_step_pre_hook(catch)
    training.model.train()
    sums = step.train_step(training, shards)
    with_hook.remove()
    return caught[0].clone(), sums


def flat(net: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


# --- no host sync ---


@pytest.mark.parametrize(
    "wait",
    [
        lambda x, on: on[0].item(),
        lambda x, on: bool(on[1]),
        lambda x, on: on.nonzero(),
        lambda x, on: on[on > 1],
        lambda x, on: torch.equal(on, on),
        lambda x, on: on.tolist(),
        lambda x, on: on.to("cpu"),
        lambda x, on: x.to(PLACE, non_blocking=True),  # the host's memory is not pinned
        lambda x, on: x.pin_memory().to(PLACE),
        lambda x, on: on.copy_(x, non_blocking=True),
        lambda x, on: torch.tensor(1.0, device=PLACE),
        lambda x, on: on[x.long()],
        lambda x, on: on + x,
    ],
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_the_guard_sees_a_host_sync(wait, mode):
    x = torch.arange(3.0)
    with StandIn() as device, mode():
        on = x.to(PLACE)
        device.watching = True
        x.pin_memory().to(PLACE, non_blocking=True).mul_(on + 1).to(torch.int64)
        with pytest.raises(AssertionError, match="a host sync"):
            wait(x, on)


class Unread(Lagged):
    """Takes the numbers of a step, and never asks for them: this one read is meant."""

    def push(self, step: int, values: Tensor) -> None:
        pass


DRAWN = {"crop": {}, "color": {"contrast": 0.4, "hue": 0.1}, "policy": "rand", "erase": {}, "mixup": {}, "cutmix": {}}


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("baseline", {}),
        ("distilled", {"train.optimizer": "sgd", "train.weight_decay": 0.1}),
        ("distilled", {"train.grad_clip": 0.1, "train.ema_decay": 0.9, "train.label_smoothing": 0.1}),
        ("distilled", {**CNN_STUDENT, **CNN_TEACHER, "train.ema_decay": 0.9, "train.micro_batch": 4}),
        ("distilled", {"train.amp": "bf16", "train.optimizer": "sgd", "train.grad_clip": 0.1}),
        ("distilled", {"distill": {"loss": "dkd", "standardise": True}, "train.label_loss": "bce"}),
        ("distilled", {"distill.loss": "dist"}),
        ("distilled", {"distill.loss": "hard"}),
        ("distilled", {"data.augment": DRAWN, "teacher.image_size": 24, "train.micro_batch": 6}),
    ],
    ids=[
        *["adamw", "sgd", "clip, EMA, smoothing", "BatchNorm, micro-batches", "bf16", "dkd and bce", "dist", "hard"],
        "drawn views",
    ],
)
@pytest.mark.parametrize("budget", [10**9, 0], ids=["images on the device", "on the host"])
def test_an_epoch_and_its_evaluation_never_wait_for_the_device(tmp_path, data_dir, monkeypatch, role, changes, budget):
    monkeypatch.setattr(evaluate, "Lagged", Unread)
    monkeypatch.setattr(evaluate, "BATCH", 20)
    with StandIn() as device:
        training = set_up(tmp_path, role, changes, PLACE)
        arrays = data.open_arrays(training.run, data_dir)
        images = feed.to_device(arrays, "train", PLACE, budget_bytes=budget)
        index = torch.from_numpy(np.arange(64))  # of the host, whatever the guard may think of an arange
        training.model.train()
        [*step.epoch_batches(training.run, images, index[:16], 0, training.world)]  # what is drawn keeps its tables
        device.watching = True
        for number, shards in enumerate(step.epoch_batches(training.run, images, index, 0, training.world)):
            step.seed_step(0, number, 0)
            sums = step.train_step(training, shards)
        found, rows = evaluate.sums_over(training.evaluated, training.run, images, index, training.world, lambda: None)
        assert device.where(rows) == "device"
        assert device.where(sums) == device.where(found) == "device"
    assert found[0] == 64


class AtOnce:
    """In the place of the thread that reads ahead, into which the guard cannot see."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work, *given):
        done = Future()
        done.set_result(work(*given))
        return done


@pytest.mark.parametrize("is_far", [False, True], ids=["a view on the device", "a large one on the host"])
def test_stored_logits_come_without_a_wait(tmp_path, data_dir, monkeypatch, is_far):
    monkeypatch.setattr(teacher_logits, "ThreadPoolExecutor", AtOnce)
    with StandIn() as device:
        training = set_up(tmp_path, "distilled", {}, PLACE)
        images = feed.to_device(data.open_arrays(training.run, data_dir), "train", PLACE)
        view, targets = torch.randn(64, 10).half(), training.targets
        targets._view, targets._is_far = view if is_far else view.to(PLACE), is_far
        vars(targets)["forward"] = None  # nobody calls the teacher
        training.model.train()
        device.watching = True
        batches = step.epoch_batches(training.run, images, torch.arange(64), 0, training.world, targets=targets)
        for shards in batches:
            sums = step.train_step(training, shards)
        assert device.where(sums) == "device"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: CUDA itself reports syncs")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_never_waits_for_the_gpu(tmp_path, data_dir, optimizer):
    device = torch.device("cuda")
    changes = {**CNN_STUDENT, "train.grad_clip": 0.1, "train.ema_decay": 0.9, "train.optimizer": optimizer}
    training = set_up(tmp_path, "distilled", {**changes, "train.amp": "bf16", "train.micro_batch": 4}, device)
    images = feed.to_device(data.open_arrays(training.run, data_dir), "train", device)
    assert images.images.is_cuda  # resident: no copy in the loop
    training.model.train()
    batches = step.epoch_batches(training.run, images, torch.arange(64), 0, training.world)
    step.train_step(training, next(batches))  # cuDNN looks for its algorithms, the optimizer makes its state
    with cuda_refuses_to_wait():
        for shards in batches:
            sums = step.train_step(training, shards)
        found, _ = evaluate.sums_over(
            training.evaluated, training.run, images, torch.arange(64), training.world, lambda: None
        )
    assert sums.isfinite().all()
    assert found[0] == 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: a split too big for it")
def test_batches_from_the_host_are_those_from_the_device(tmp_path, data_dir):
    run = tiny.make_run(tmp_path, "baseline", {"train.batch_size": BATCH})
    arrays = data.open_arrays(run, data_dir)
    world = World(0, 1, torch.device("cuda"))
    found = []
    for budget in (None, 0):
        images = feed.to_device(arrays, "train", world.device, budget_bytes=budget)
        assert images.images.is_cuda == (budget is None)
        found.append(list(step.epoch_batches(run, images, torch.arange(64), 0, world)))
    for resident, streamed in zip(*found, strict=True):
        assert streamed[0].images.is_cuda
        assert torch.equal(resident[0].images, streamed[0].images)
        assert torch.equal(resident[0].labels, streamed[0].labels)


# --- the gradient ---


def expected_gradient(training: Training, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the mean loss, and the summed terms, in float64 and without any of the trainer's code."""
    run = training.run
    student, teacher = training.student.double(), training.targets.forward.net.double()

    def logits(net: nn.Module) -> Tensor:
        x = (images.double() / 255 - net.mean) / net.std  # images already have the models' size
        return net.net(x)

    soft = round_logits(logits(teacher).detach()).double()
    out = logits(student)
    temperature, alpha = run.distill.temperature, run.distill.alpha
    ce = nn.functional.cross_entropy(out, labels, reduction="none", label_smoothing=run.train.label_smoothing)
    p, q = soft.div(temperature).log_softmax(-1), out.div(temperature).log_softmax(-1)
    kd = temperature**2 * (p.exp() * (p - q)).sum(-1)
    total = (1 - alpha) * ce + alpha * kd
    grads = torch.autograd.grad(total.mean(), list(student.parameters()))
    return torch.cat([g.flatten() for g in grads]), torch.stack(
        [total.sum(), ce.sum(), kd.sum(), torch.ones_like(ce).sum()]
    ).detach()


@pytest.mark.parametrize("micro_batch", [None, 10, 4, 3, 1])
def test_micro_batches_leave_the_gradient_as_it_is(tmp_path, micro_batch):
    changes = {"train.micro_batch": micro_batch, "train.label_smoothing": 0.1, "distill.alpha": 0.7}
    training = set_up(tmp_path, "distilled", changes)
    images, labels = batch()
    shards = shards_of(training, images, labels)
    assert max(len(s.labels.first) for s in shards) <= (micro_batch or BATCH)
    found, sums = gradient(training, shards)
    expected, expected_sums = expected_gradient(set_up(tmp_path, "distilled", changes), images, labels)
    assert difference(found.double(), expected) < 1e-5
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=1e-5)


def test_a_shard_that_only_fills_a_gap_adds_nothing(tmp_path):
    images, labels = batch()
    plain, plain_sums = gradient(set_up(tmp_path), [one(images, labels)])
    filled, filled_sums = gradient(set_up(tmp_path), [one(images, labels), Shard(images[:1], Labels(labels[:1]), 0.0)])
    assert torch.equal(plain, filled)
    assert torch.equal(plain_sums, filled_sums)


def test_the_layout_in_memory_does_not_move_the_gradient(tmp_path):
    grads = {}
    for channels_last in (False, True):
        training = set_up(tmp_path, "distilled", {**CNN_STUDENT, **CNN_TEACHER, "train.channels_last": channels_last})
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert training.student.net.conv1[0].weight.is_contiguous(memory_format=layout)
        teacher = training.targets.forward.net.net  # as in its store, which has students of both kinds
        assert teacher.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
        grads[channels_last], _ = gradient(training, [one(*batch())])
    assert difference(grads[True], grads[False]) < 1e-4


def test_gradient_clipping(tmp_path):
    free, _ = gradient(set_up(tmp_path), [one(*batch())])
    assert free.norm() > 0.1
    clipped, _ = gradient(set_up(tmp_path, changes={"train.grad_clip": 0.1}), [one(*batch())])
    torch.testing.assert_close(clipped, free * 0.1 / free.norm(), rtol=1e-4, atol=1e-7)
    loose, _ = gradient(set_up(tmp_path, changes={"train.grad_clip": 1e6}), [one(*batch())])
    assert torch.equal(loose, free)


@pytest.mark.parametrize("role", ["baseline", "distilled"])
def test_bf16_is_for_the_forward_passes_alone(tmp_path, monkeypatch, role):
    seen = []

    def spy(logits: Tensor, labels: Labels, soft: Tensor | None, *others: Any, **options: Any) -> Any:
        seen.append((logits.dtype, None if soft is None else soft.dtype))
        return distillation_loss(logits, labels, soft, *others, **options)

    monkeypatch.setattr(step, "distillation_loss", spy)
    for amp, dtype in (("none", torch.float32), ("bf16", torch.bfloat16)):
        training = set_up(tmp_path, role, {"train.amp": amp})
        _, sums = gradient(training, [one(*batch())])
        assert seen.pop() == (dtype, torch.float16 if role == "distilled" else None)
        assert sums.dtype == torch.float32
        assert sums.isfinite().all()
        assert {p.dtype for p in training.student.parameters()} == {torch.float32}


# --- teacher, optimizer, average ---


def test_the_teacher_is_in_eval_mode_and_stays_as_it_is(tmp_path):
    """With BatchNorm: in train mode its running statistics would move."""
    training = set_up(tmp_path, "distilled", CNN_TEACHER)
    teacher = training.targets.forward.net
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for _ in range(3):
        training.model.train()
        step.train_step(training, [one(*batch())])
    assert training.student.training
    assert not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_the_optimizer_holds_the_students_parameters_alone(tmp_path):
    training = set_up(tmp_path, "distilled", {**CNN_TEACHER, "train.ema_decay": 0.9})
    held = [id(p) for group in training.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in training.student.parameters())
    trainer.train_step(training, [one(*batch())])
    assert all(p.grad is None for p in training.student.parameters())  # nothing is carried over to the next step


def test_baseline_and_distilled_start_alike_and_seeds_do_not(tmp_path):
    runs = (("baseline", 0), ("distilled", 0), ("baseline", 1))
    baseline, distilled, other = (flat(set_up(tmp_path, role, {"seeds": [seed]}).student) for role, seed in runs)
    assert torch.equal(baseline, distilled)
    assert not torch.equal(baseline, other)


def test_the_moving_average_is_what_counts(tmp_path):
    training = set_up(tmp_path, "distilled", {**CNN_STUDENT, "train.ema_decay": 0.75})
    average = flat(training.student)
    for _ in range(3):
        step.train_step(training, [one(*batch())])
        average = 0.75 * average + 0.25 * flat(training.student)
    assert training.evaluated is not training.student
    torch.testing.assert_close(flat(training.evaluated), average)
    plain = set_up(tmp_path, "distilled")
    assert plain.evaluated is plain.student


def test_a_moving_average_that_warms_up(tmp_path):
    """timm's: the first step copies the weights, step n forgets all but 1 - n^(-2/3) of what was before."""
    training = set_up(tmp_path, "distilled", {"train.ema_decay": 0.6, "train.ema_warmup": True})
    average = flat(training.student)
    for number in range(1, 6):
        step.train_step(training, [one(*batch())])
        decay = 0.0 if number == 1 else min(0.6, 1 - number ** (-2 / 3))
        average = decay * average + (1 - decay) * flat(training.student)
        torch.testing.assert_close(flat(training.evaluated), average)


def test_its_warm_up_goes_on_where_it_was(tmp_path):
    changes = {"train.ema_decay": 0.9, "train.ema_warmup": True}
    whole, first = (set_up(tmp_path, "distilled", changes) for _ in range(2))
    for _ in range(4):
        step.train_step(whole, [one(*batch())])
    for _ in range(2):
        step.train_step(first, [one(*batch())])
    second = set_up(tmp_path, "distilled", changes)
    second.restore(first.state())
    for _ in range(2):
        step.train_step(second, [one(*batch())])
    assert torch.equal(flat(whole.evaluated), flat(second.evaluated))


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_gradient_checkpointing_moves_no_bit(tmp_path, amp):
    """With dropout: the second forward pass draws the same numbers."""
    shapes = {**tiny.VIT["model_args"], "depth": 3, "proj_drop_rate": 0.2, "drop_path_rate": 0.3}
    changes = {"student": {**tiny.VIT, "model_args": shapes}, "train.amp": amp}
    found = {}
    for on in (False, True):
        training = set_up(tmp_path, "distilled", {**changes, "train.grad_checkpointing": on})
        assert training.student.net.grad_checkpointing is on
        step.seed_step(0, 3, 0)
        found[on], _ = gradient(training, [one(*batch())])
    assert torch.equal(found[True], found[False])
    torch.manual_seed(0)


def test_gradient_checkpointing_that_moves_a_number_or_is_not_there_is_refused(tmp_path):
    with pytest.raises(KdclusterError, match="test_resnet has BatchNorm, which would count each batch twice; leave"):
        set_up(tmp_path, "distilled", {**CNN_STUDENT, "train.grad_checkpointing": True})
    student = {"student": {"model": "tiny_net", "image_size": 16}, "imports": [tiny.TINY_MODELS]}
    models.import_files((tiny.TINY_MODELS,))
    with pytest.raises(KdclusterError, match="tiny_net has no gradient checkpointing in timm; leave"):
        set_up(tmp_path, "distilled", {**student, "train.grad_checkpointing": True})


# --- the epoch's batches ---


class Counting(feed.Split):
    """Images whose first pixel is their index."""

    @classmethod
    def of(cls, count: int) -> feed.Split:
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        return cls(images, torch.arange(count) % 10, CPU)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Callable[..., Any]:
    base = tiny.make_run(tmp_path_factory.mktemp("run"), "baseline", {"data.augment": {"pad": 0, "flip": False}})

    def with_train(**train: Any) -> Any:
        return base.model_copy(update={"train": base.train.model_copy(update=train)})

    return with_train


@given(
    batch_size=st.integers(1, 13),
    ranks=st.integers(1, 5),
    micro_batch=st.none() | st.integers(1, 6),
    images=st.integers(13, 40),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_every_image_of_a_batch_is_in_one_shard(plain_run, batch_size, ranks, micro_batch, images, epoch):
    run = plain_run(batch_size=batch_size, micro_batch=micro_batch)
    index = torch.arange(images)[1::2] if images > 26 else torch.arange(images)  # some are held out
    split = Counting.of(images)
    by_rank = [list(step.epoch_batches(run, split, index, epoch, World(r, ranks, CPU))) for r in range(ranks)]
    (alone,) = [list(step.epoch_batches(plain_run(batch_size=batch_size), split, index, epoch, ALONE))]
    assert {len(steps) for steps in by_rank} == {len(index) // batch_size}
    for number, (whole,) in enumerate(alone):
        assert {len(steps[number]) for steps in by_rank} == {len(by_rank[0][0])}  # DDP and SyncBatchNorm count on it
        shards = [shard for steps in by_rank for shard in steps[number]]
        assert all(1 <= len(shard.labels.first) <= (micro_batch or batch_size) for shard in shards)
        counted = [shard for shard in shards if shard.weight]
        assert {shard.weight for shard in counted} == {1.0}
        taken = torch.cat([shard.images[:, 0, 0, 0] for shard in counted])
        assert torch.equal(taken, whole.images[:, 0, 0, 0])
        assert torch.equal(torch.cat([shard.labels.first for shard in counted]), taken % 10)


def test_an_epoch_takes_each_image_once_in_an_order_of_its_own(plain_run):
    run = plain_run(batch_size=8)
    orders = []
    for epoch in range(2):
        batches = step.epoch_batches(run, Counting.of(40), torch.arange(40), epoch, ALONE)
        orders.append(torch.cat([shard.images[:, 0, 0, 0] for (shard,) in batches]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0] != orders[1]


# --- the loop: what it reports, and when ---


def points(run_dir: RunDir, tag: str) -> dict[int, float]:
    return {p.step: p.value for p in events.read_scalars(run_dir.events, ("",)).points.get(tag, [])}


def test_loss_and_checks_come_one_step_late(tmp_path, data_dir, monkeypatch):
    reported: list[tuple[int, int]] = []
    progress = Progress()

    def scalars(self: Any, values: dict[str, float], step: int) -> dict[str, float]:
        if "train/loss" in values:
            reported.append((step, progress.step))
        return values

    monkeypatch.setattr(tracking.Tracker, "scalars", scalars)
    run = tiny.make_run(tmp_path, "baseline", {"train.epochs": 1})
    trainer.train(tiny.prepare(tmp_path, run), None, ALONE, data_dir, progress, max_steps=4)
    assert reported == [(1, 2), (2, 3), (3, 4), (4, 4)]  # (step of the loss, steps taken): the last is flushed


def test_the_rate_in_the_events_is_that_of_the_step(tmp_path, data_dir):
    changes = {"train.schedule": "cosine", "train.lr": 0.01, "train.epochs": 2}
    run_dir = tiny.train_here(tmp_path, tiny.make_run(tmp_path, "baseline", changes), data_dir)
    expected = {step: 0.005 * (1 + math.cos(math.pi * (step - 0.5) / 8)) for step in range(1, 9)}
    assert points(run_dir, "train/lr") == pytest.approx(expected)


def test_the_terms_in_the_events_are_means_over_the_batch(tmp_path, data_dir):
    changes = {"distill.alpha": 0.3, "train.epochs": 1, "train.micro_batch": 5}
    runs = {run.role: run for run in tiny.make_plan(tmp_path, changes).runs}
    tiny.train_here(tmp_path, runs["teacher"], data_dir)
    run_dir = tiny.train_here(tmp_path, runs["distilled"], data_dir)
    loss, ce, kd = (points(run_dir, f"train/{name}") for name in ("loss", "ce", "kd"))
    assert list(loss) == [1, 2, 3, 4]
    assert 1.5 < ce[1] < 4  # ln 10 is 2.3: a mean, no sum
    for number, value in loss.items():
        assert value == pytest.approx(0.7 * ce[number] + 0.3 * kd[number], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data_dir):
    changes = {"train.lr": 1e30, "train.schedule": "cosine", "train.optimizer": "sgd", "train.epochs": 3}
    run = tiny.make_run(tmp_path, "baseline", changes)
    run_dir, progress = tiny.prepare(tmp_path, run), Progress()
    attempt = run_dir.start_attempt({})
    with pytest.raises(KdclusterError) as caught:
        trainer.train(run_dir, attempt, ALONE, data_dir, progress)
    rate = 5e29 * (1 + math.cos(math.pi * 1.5 / 12))
    message = str(caught.value)
    assert message.startswith("the loss is not finite at step 2 (loss ")
    assert f"lr {rate:g}; run {run.id})" in message  # the step's own rate, though step 3 was taken meanwhile
    assert message.endswith("; every gradient before was finite; try a smaller train.lr or train.grad_clip")
    assert progress.step == 3
    assert run_dir.result() is None
    assert list(points(run_dir, "train/loss")) == [1]


def test_a_batch_larger_than_the_data_is_refused(tmp_path, data_dir):
    run = tiny.make_run(tmp_path, "baseline", {"train.batch_size": 65})
    with pytest.raises(KdclusterError, match="batch_size: 65 is more than the 64 images that base"):
        tiny.train_here(tmp_path, run, data_dir)


def test_a_teacher_whose_weights_are_damaged_is_named_with_its_file(tmp_path):
    run = tiny.make_run(tmp_path, "distilled")
    run_dir = tiny.prepare(tmp_path / "runs", run)
    weights = RunDir(tmp_path / "runs", run.teacher.id).weights("best")
    weights.parent.mkdir()
    again = "submit the experiment with --retry, which makes it again"
    for content, said in (
        (b"cut", f"is damaged (no header of safetensors); {again}"),
        (NO_WEIGHTS, f"; delete it and {again}"),  # another model's
    ):
        weights.write_bytes(content)
        with pytest.raises(KdclusterError) as caught:
            load_teacher(run_dir.root, run, ALONE)
        assert str(caught.value).startswith(f"{weights} ")
        assert str(caught.value).endswith(said)


def test_a_student_needs_its_teachers_weights(tmp_path, data_dir, caplog):
    run = tiny.make_run(tmp_path, "distilled")
    with pytest.raises(KdclusterError, match=f"the teacher {run.teacher.id} has no best weights yet"):
        tiny.train_here(tmp_path, run, data_dir)
    with caplog.at_level(logging.WARNING):
        run_dir = tiny.train_here(tmp_path, run, data_dir, max_steps=2)
    assert f"the teacher {run.teacher.id} is not trained yet: debugging with its start weights" in caplog.text
    assert run_dir.result() is None
    assert not run_dir.weights("last").exists()


@pytest.fixture
def eager_compile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without its C++ compiler: the wrapping is what is tested here (integration has the real one)."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


def test_compiled_models_train_the_same(tmp_path, data_dir, eager_compile):
    changes = {
        "imports": [tiny.TINY_MODELS],
        "student": {"model": "tiny_net", "image_size": 16},
        "teacher": {"model": "tiny_net", "image_size": 16, "model_args": {"width": 12}},
        "train.epochs": 1,
    }
    found = {}
    for compiled in (False, True):
        root = tmp_path / str(compiled)
        for run in tiny.make_plan(tmp_path, {**changes, "train.compile": compiled}).runs:
            if run.role in ("teacher", "distilled"):
                run_dir = tiny.train_here(root, run, data_dir)
                found[run.role, compiled] = points(run_dir, "train/loss")
                assert set(load_file(run_dir.weights("best"))) == {
                    "stem.weight",
                    "stem.bias",
                    "head.weight",
                    "head.bias",
                }
    for role in ("teacher", "distilled"):
        assert found[role, True] == pytest.approx(found[role, False], rel=1e-5)


def test_only_the_steps_shape_is_compiled(tmp_path, monkeypatch):
    """Not for the few images that settle DDP's buckets, and not in an evaluation: each would take a minute."""
    compiled: list[tuple[int, ...]] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        compiled.extend(tuple(x.shape) for x in inputs if isinstance(x, Tensor) and x.dtype == torch.uint8)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    training = set_up(tmp_path, "baseline", {**CNN_STUDENT, "train.compile": True})
    images, labels = batch()
    step.settle_buckets(dataclasses.replace(training, world=World(0, 2, CPU)), images[:2])
    assert compiled == []
    for _ in range(2):
        training.model.train()
        step.train_step(training, [one(images, labels)])
        evaluate.evaluate(training.evaluated, training.run, feed.Split(images, labels, CPU), torch.arange(7), ALONE)
    torch._dynamo.reset()
    assert compiled == [tuple(images.shape)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: CUDA graphs")
@pytest.mark.parametrize("micro_batch", [None, 4], ids=["CUDA graphs", "micro-batches"])
@pytest.mark.parametrize("net", [tiny.VIT, tiny.CNN], ids=["ViT", "BatchNorm"])
def test_compiled_on_a_gpu_is_as_eager(tmp_path, net, micro_batch):
    """The eager path is the reference; more steps than CUDA graphs take to be recorded and replayed."""
    device, found = torch.device("cuda"), {}
    held = feed.Split(*batch(device=device), device), torch.arange(BATCH), World(0, 1, device)
    for compiled in (False, True):
        changes = {"student": net, "teacher": net, "train.compile": compiled, "train.micro_batch": micro_batch}
        training = set_up(tmp_path, "distilled", {**changes, "train.ema_decay": 0.9, "train.lr": 1e-3}, device)
        shards = shards_of(training, *batch(device=device))
        training.model.train()
        found[compiled] = [step.train_step(training, shards).tolist() for _ in range(8)]
        found[compiled].append(evaluate.sums_over(training.evaluated, training.run, *held, lambda: None)[0])
    torch._dynamo.reset()
    torch.testing.assert_close(torch.tensor(found[True][:-1]), torch.tensor(found[False][:-1]), rtol=0.02, atol=0.02)
    assert found[True][-1][3].item() == pytest.approx(found[False][-1][3].item(), rel=0.02)


# --- evaluation ---


def test_evaluation_takes_the_held_out_images_as_they_are(tmp_path, data_dir):
    changes = {"data.val_fraction": 0.25, "train.epochs": 2, "train.batch_size": 16, **CNN_STUDENT}
    run_dir = tiny.train_here(tmp_path, tiny.make_run(tmp_path, "baseline", changes), data_dir)
    result = run_dir.result()
    assert result["selected_on"] == "val"
    assert result["steps"] == 2 * (48 // 16)
    arrays = data.open_arrays(run_dir.load(), data_dir)
    net = models.build(run_dir.load().model, 10, 3).eval()
    net.net.load_state_dict(load_file(run_dir.weights("last")))
    held_out = trainer.views.held_out(64, 0.25)[1]
    for tag, (split, index) in {"test": ("test", torch.arange(32)), "val": ("train", held_out)}.items():
        images, labels = (torch.from_numpy(getattr(arrays, what)[split][index]) for what in ("images", "labels"))
        with torch.inference_mode():
            right = (net(images).argmax(1) == labels).double().mean().item()
        assert result["last"][f"{tag}/top1"] == pytest.approx(100 * right)


# --- devices and failures ---


@pytest.mark.parametrize(("found", "local_rank"), [(0, 0), (2, 2)])
def test_a_gpu_that_is_not_there_is_an_error(monkeypatch, found, local_rank):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    message = f"rank 0 was to run on GPU {local_rank} of this machine, but torch sees {found}; .* --gpus, .*--procs"
    with pytest.raises(KdclusterError, match=message), distributed.join("cuda", None):
        pytest.fail("it went on without")


def test_one_process_on_the_cpu_needs_no_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    try:
        with distributed.join("cpu", 1) as world:
            assert world == ALONE
            assert torch.get_num_threads() == 1
            assert not torch.distributed.is_initialized()
            assert world.sum(torch.ones(2)).tolist() == [1, 1]
            world.barrier()
    finally:
        torch.set_num_threads(before)


def test_a_full_host_is_out_of_memory_too():
    """The words are torch's own and may change; test_worker.py has the rest of what a failure says."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert worker.out_of_memory(caught.value)
    assert not worker.out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: BatchNorm stays local on the CPU")
def test_batchnorm_syncs_over_gpu_ranks():
    net = timm.create_model("test_resnet")
    assert distributed.World(0, 1, torch.device("cuda")).sync_batchnorm(net) is net
    synced = distributed.World(0, 2, torch.device("cuda")).sync_batchnorm(net)
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)


def test_batchnorm_stays_local_on_the_cpu():
    net = timm.create_model("test_resnet")
    assert World(0, 2, CPU).sync_batchnorm(net) is net
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in net.modules())
    assert distributed.has_batchnorm(net)
    assert not distributed.has_batchnorm(timm.create_model("test_vit"))


# --- the golden curve ---


@pytest.mark.parametrize("name", golden_loss.CURVES)
def test_golden_loss_curve(name):
    """A refactoring keeps it. Renew it only with `make golden` (or `python -m tests.golden_loss`), and say why."""
    expected = golden_loss.read(golden_loss.path(name))
    assert len(expected) == 20
    assert golden_loss.curve(name) == pytest.approx(expected, rel=1e-4)


def test_a_missing_golden_file_fails(tmp_path):
    with pytest.raises(FileNotFoundError):
        golden_loss.read(tmp_path / "loss.txt")
