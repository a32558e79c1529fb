"""The optimizer decays what should be decayed; the learning rate is a function of the step."""

from __future__ import annotations

import copy
import io
import math
import typing

import pytest
import timm.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcluster.experiment.config import Model
from kdcluster.experiment.optimizers import BETAS, MOMENTUM, Optimizer
from kdcluster.experiment.training import Train
from kdcluster.train import models, optim
from tests import tiny

steps_and_epochs = st.tuples(st.integers(1, 20), st.integers(1, 8))


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return models.build(Model(**tiny.VIT), 10, 3).net


def rates(train: Train, steps_per_epoch: int, order: list[int] | None = None) -> list[float]:
    """The rate of every step of a training, asked for in some order."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=train.lr)
    schedule = optim.build_schedule(optimizer, train, steps_per_epoch)
    steps = range(train.epochs * steps_per_epoch)
    found = {step: optim.set_learning_rate(schedule, step) for step in order or steps}
    return [found[step] for step in steps]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_norms_and_embeddings_are_not_decayed(net, name):
    optimizer = optim.build_optimizer(net, Train(optimizer=name, weight_decay=0.3, lr=0.01))
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert set(groups) == {0.0, 0.3}
    assert groups[0.0] | groups[0.3] == set(names.values())
    assert all(p.endswith(".bias") or "norm" in p or p in ("pos_embed", "cls_token") for p in groups[0.0])
    assert {"pos_embed", "cls_token"} < groups[0.0]
    assert all(p.endswith(".weight") and "norm" not in p for p in groups[0.3])


def test_adamw_is_fused_and_torchs(net):
    optimizer = optim.build_optimizer(net, Train(optimizer="adamw", lr=0.02))
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert {key: group[key] for key in ("fused", "lr", "betas", "eps")} == {
            "fused": True,
            "lr": 0.02,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
        }


def test_sgd_is_fused_with_nesterov_momentum(net):
    optimizer = optim.build_optimizer(net, Train(optimizer="sgd", lr=0.02))
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert {key: group[key] for key in ("fused", "momentum", "nesterov", "dampening")} == {
            "fused": True,
            "momentum": 0.9,
            "nesterov": True,
            "dampening": 0,
        }


def test_adamw_decays_beside_the_gradient():
    """Decoupled: without a gradient a step takes lr · weight_decay off, and Adam's own step is zero."""
    net = torch.nn.Linear(4, 4)
    before = net.weight.detach().clone()
    optimizer = optim.build_optimizer(net, Train(lr=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), before * (1 - 0.1 * 0.5))


def test_constant_without_warmup():
    assert rates(Train(epochs=3, lr=0.3), 4) == [0.3] * 12


def test_constant_after_a_linear_warmup():
    found = rates(Train(epochs=3, lr=0.4, warmup_epochs=1), 4)
    assert found == pytest.approx([0.05, 0.15, 0.25, 0.35] + [0.4] * 8)


def test_a_part_of_an_epoch_of_warmup():
    found = rates(Train(epochs=2, lr=0.4, warmup_epochs=0.5), 4)
    assert found == pytest.approx([0.1, 0.3] + [0.4] * 6)


def test_cosine_to_zero():
    found = rates(Train(epochs=2, lr=0.2, schedule="cosine"), 5)
    assert found == pytest.approx([0.1 * (1 + math.cos(math.pi * (step + 0.5) / 10)) for step in range(10)])


def test_cosine_after_a_warmup():
    found = rates(Train(epochs=3, lr=0.2, schedule="cosine", warmup_epochs=1), 4)
    cosine = [0.1 * (1 + math.cos(math.pi * (step + 0.5) / 8)) for step in range(8)]
    assert found == pytest.approx([0.025, 0.075, 0.125, 0.175, *cosine])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warmup_that_rounds_up_to_everything_leaves_a_step(schedule):
    found = rates(Train(epochs=2, lr=0.2, schedule=schedule, warmup_epochs=1.9), 3)
    assert found[:5] == pytest.approx([0.02, 0.06, 0.1, 0.14, 0.18])
    assert found[5] == pytest.approx(0.2 if schedule == "constant" else 0.1)


@given(
    shape=steps_and_epochs,
    schedule=st.sampled_from(["constant", "cosine"]),
    warmup=st.floats(0, 0.9),
    seed=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=30)
def test_the_rate_is_a_function_of_the_step(shape, schedule, warmup, seed):
    """A run that resumes at any step goes on with the same rate; and no step is wasted at rate 0."""
    steps_per_epoch, epochs = shape
    train = Train(epochs=epochs, lr=0.5, schedule=schedule, warmup_epochs=warmup * epochs)
    found = rates(train, steps_per_epoch)
    order = list(range(len(found)))
    seed.shuffle(order)
    assert rates(train, steps_per_epoch, order) == found
    assert all(0 < rate <= 0.5 for rate in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_every_group_gets_the_rate(net):
    optimizer = optim.build_optimizer(net, Train(lr=0.2))
    schedule = optim.build_schedule(optimizer, Train(lr=0.2, epochs=2, schedule="cosine"), 5)
    rate = optim.set_learning_rate(schedule, 7)
    assert 0 < rate < 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]


def test_warmup_in_steps_of_a_length_in_epochs():
    found = rates(Train(epochs=3, lr=0.4, warmup_steps=6), 4)
    assert found == pytest.approx([0.4 * (step + 0.5) / 6 for step in range(6)] + [0.4] * 6)


@pytest.mark.parametrize("warmup", [0, 4])
def test_cosine_to_a_floor(warmup):
    found = rates(Train(epochs=3, lr=0.2, min_lr=0.05, schedule="cosine", warmup_steps=warmup), 4)
    count = 12 - warmup
    cosine = [0.05 + 0.075 * (1 + math.cos(math.pi * (step + 0.5) / count)) for step in range(count)]
    assert found[warmup:] == pytest.approx(cosine)


# --- timm's optimizers

NAMES = typing.get_args(Optimizer)
ELSEWHERE = ("bnb*", "fused*", "adahessian", "kron*")
"""They need another package, a second derivative, or torch.compile and random numbers."""


def test_the_names_are_timms():
    assert list(NAMES) == timm.optim.list_optimizers(exclude_filters=list(ELSEWHERE))
    timms = {name: timm.optim.get_optimizer_info(name) for name in NAMES}
    assert {name: info.num_betas for name, info in timms.items() if info.has_betas} == BETAS
    assert {name for name, info in timms.items() if info.has_momentum} == MOMENTUM


def small_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(Model(**tiny.VIT), 10, 3).net


def some_steps(net: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    images, labels = tiny.images(8)
    x, y = torch.from_numpy(images) / 255, torch.from_numpy(labels)
    for step in range(first, last):
        torch.manual_seed(step)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_goes_on_bit_for_bit_from_what_a_checkpoint_holds(name):
    """Its step count and its averages are all in its state, which torch reads without unpickling code."""
    train = Train(optimizer=name, lr=1e-3, weight_decay=0.05, betas=(0.8,) * BETAS[name] if name in BETAS else None)
    net = small_net()
    optimizer = optim.build_optimizer(net, train)
    some_steps(net, optimizer, 0, 3)
    kept = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, kept)
    kept.seek(0)
    state, before = torch.load(kept, weights_only=True), copy.deepcopy(net.state_dict())
    some_steps(net, optimizer, 3, 6)
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    again = small_net()
    again.load_state_dict(state["net"])
    other = optim.build_optimizer(again, train)
    other.load_state_dict(state["optimizer"])
    some_steps(again, other, 3, 6)
    for key, value in net.state_dict().items():
        assert value.isfinite().all()
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (Train(optimizer="adan", betas=(0.9, 0.8, 0.7)), {"betas": (0.9, 0.8, 0.7)}),
        (Train(optimizer="adan"), {"betas": (0.98, 0.92, 0.99)}),
        (Train(betas=(0.9, 0.95)), {"betas": (0.9, 0.95)}),
        (Train(optimizer="lars", momentum=0.8), {"momentum": 0.8}),
        (Train(optimizer="sgd", momentum=0.8), {"momentum": 0.8, "nesterov": True, "fused": True}),
        (Train(optimizer="momentum"), {"momentum": 0.9, "nesterov": False, "fused": True}),
    ],
)
def test_momentum_and_betas_reach_the_optimizer(net, train, expected):
    for group in optim.build_optimizer(net, train).param_groups:
        assert {key: tuple(group[key]) if key == "betas" else group[key] for key in expected} == expected


def test_layer_decay_is_by_depth_and_under_the_schedule(net):
    """The embedding below one block: decay squared; the norm and the head: the whole rate."""
    train = Train(lr=0.2, layer_decay=0.5, schedule="cosine", epochs=2)
    optimizer = optim.build_optimizer(net, train)
    schedule = optim.build_schedule(optimizer, train, 5)
    rate = optim.set_learning_rate(schedule, 7)
    plain = optim.build_optimizer(net, Train(lr=0.2))
    assert rate == optim.set_learning_rate(optim.build_schedule(plain, train, 5), 7)  # what the events have
    of = {id(p): group["lr"] / rate for group in optimizer.param_groups for p in group["params"]}
    found = {name: of[id(p)] for name, p in net.named_parameters()}
    assert found["head.weight"] == pytest.approx(1.0)
    assert found["blocks.0.attn.qkv.weight"] == pytest.approx(0.5)
    assert found["patch_embed.proj.weight"] == pytest.approx(0.25)
