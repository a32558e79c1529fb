"""The distillation loss has the properties that set a right one apart from well-known wrong ones (FACTS.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcluster.experiment.distilling import Distill
from kdcluster.train.losses import UNLABELLED, Labels, LossTerms, distillation_loss, round_logits
from kdcluster.train.teacher_terms import soft_target_loss

ALPHAS = (0.0, 1e-9, 0.5, 1.0)
seeds = st.integers(0, 2**31 - 1)
shapes = st.tuples(st.integers(1, 7), st.integers(2, 12))  # (B, C)
temperatures = st.floats(0.5, 16.0)
quick = settings(deadline=None, max_examples=25)


def logits(shape: tuple[int, ...], seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def pair(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits (B, C) and labels (B,)."""
    labels = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))
    return logits(shape, seed), logits(shape, seed + 1), labels


def loss(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, label_smoothing: float = 0.0, **options: Any
) -> LossTerms:
    """Of plain labels; `options`: keys of `distill`."""
    return distillation_loss(student, Labels(labels), teacher, Distill(**options), label_smoothing=label_smoothing)


def reference(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · Σ p (log p - log q), written out in float64."""
    p = torch.softmax(teacher.double() / temperature, -1)
    q = torch.softmax(student.double() / temperature, -1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)


@given(shape=shapes, seed=seeds, temperature=temperatures)
@quick
def test_zero_for_identical_logits_and_never_below(shape, seed, temperature):
    student, teacher, _ = pair(shape, seed)
    assert soft_target_loss(student, student, temperature).abs().max() < 1e-5 * temperature**2
    assert soft_target_loss(student, teacher, temperature).min() > -1e-5 * temperature**2


@given(shape=shapes, seed=seeds, temperature=temperatures)
@quick
def test_agrees_with_float64(shape, seed, temperature):
    student, teacher, _ = pair(shape, seed)
    found = soft_target_loss(student, teacher, temperature)
    assert found.shape == shape[:1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), reference(student, teacher, temperature), rtol=1e-4, atol=2e-6 * temperature**2
    )


@given(shape=shapes, seed=seeds, temperature=temperatures, shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
@quick
def test_does_not_move_when_all_logits_of_an_image_move(shape, seed, temperature, shifts):
    student, teacher, _ = pair(shape, seed)
    before = soft_target_loss(student, teacher, temperature)
    after = soft_target_loss(student + shifts[0], teacher + shifts[1], temperature)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * max(1.0, temperature))


@given(shape=shapes, seed=seeds)
@quick
def test_an_examples_loss_depends_on_that_example_alone(shape, seed):
    student, teacher, labels = pair(shape, seed)
    whole = loss(student, labels, teacher, alpha=0.3, temperature=4.0, label_smoothing=0.1)
    for i in range(shape[0]):
        alone = loss(
            student[i : i + 1], labels[i : i + 1], teacher[i : i + 1], alpha=0.3, temperature=4.0, label_smoothing=0.1
        )
        for part, together in zip(alone, whole, strict=True):
            assert together.shape == shape[:1]
            torch.testing.assert_close(part, together[i : i + 1])


@given(shape=shapes, seed=seeds)
@quick
def test_a_certain_teacher_at_t_1_is_cross_entropy(shape, seed):
    student, _, labels = pair(shape, seed)
    certain = F.one_hot(labels, shape[1]).float() * 60  # exp(-60) is nothing beside 1 in float32
    expected = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(soft_target_loss(student, certain, 1.0), expected, rtol=1e-5, atol=1e-5)


@given(shape=shapes, seed=seeds)
@quick
def test_gradient_for_large_t_is_the_difference_of_the_logits(shape, seed):
    """Hinton et al. 2015, equation 4: with T² and centred logits, dL/ds -> (s - t) / C."""
    student, teacher, _ = pair(shape, seed)
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    student.requires_grad_()
    soft_target_loss(student, teacher, 1000.0).sum().backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / shape[1], rtol=0.02, atol=0.02)


def test_gradient_keeps_its_size_when_t_changes():
    student, teacher, _ = pair((64, 10), 0)
    norms = {}
    for temperature in (2.0, 4.0, 8.0, 16.0):
        at = student.clone().requires_grad_()
        soft_target_loss(at, teacher, temperature).sum().backward()
        norms[temperature] = at.grad.norm().item()
    assert max(norms.values()) / min(norms.values()) < 2  # without T² it would fall by 30


@given(seed=seeds, temperature=temperatures)
@quick
def test_t_squared_is_there_at_every_alpha(seed, temperature):
    """Some code drops T² at alpha 0 or 1 alone, so that a sweep jumps there."""
    student, teacher, labels = pair((5, 10), seed)
    expected = soft_target_loss(student, teacher, temperature)
    for alpha in ALPHAS:
        terms = loss(student, labels, teacher, alpha=alpha, temperature=temperature)
        torch.testing.assert_close(terms.kd, expected)
        torch.testing.assert_close(terms.total, (1 - alpha) * terms.ce + alpha * terms.kd)


@given(seed=seeds)
@quick
def test_total_is_continuous_in_alpha(seed):
    student, teacher, labels = pair((5, 10), seed)
    total = {a: loss(student, labels, teacher, alpha=a, temperature=4.0).total for a in (0.0, 1e-9, 1 - 1e-7, 1.0)}
    torch.testing.assert_close(total[0], F.cross_entropy(student, labels, reduction="none"))
    torch.testing.assert_close(total[0], total[1e-9])
    torch.testing.assert_close(total[1], soft_target_loss(student, teacher, 4.0))
    torch.testing.assert_close(total[1], total[1 - 1e-7])


def test_without_a_teacher_it_is_cross_entropy():
    student, _, labels = pair((6, 4), 3)
    terms = loss(student, labels, alpha=0.7, temperature=4.0, label_smoothing=0.1)
    expected = F.cross_entropy(student, labels, reduction="none", label_smoothing=0.1)
    assert torch.equal(terms.total, expected)
    assert torch.equal(terms.ce, expected)
    assert not terms.kd.any()


def test_label_smoothing_moves_the_cross_entropy_alone():
    student, teacher, labels = pair((6, 4), 4)
    plain, smooth = (loss(student, labels, teacher, alpha=0.5, temperature=2.0, label_smoothing=e) for e in (0.0, 0.2))
    q = F.log_softmax(student.double(), -1)
    expected = -(0.8 * q.gather(1, labels[:, None])[:, 0] + 0.2 * q.mean(-1))
    torch.testing.assert_close(smooth.ce.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(plain.kd, smooth.kd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_at_a_margin_of_100(dtype, temperature, autocast):
    """log(softmax) is -inf from a margin of 105 in float32, and from 20 in float16."""
    labels = torch.tensor([0, 1])
    student = (torch.eye(2, 10) * 100).to(dtype).requires_grad_()
    teacher = (torch.eye(2, 10).flip(0) * 100).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = loss(student, labels, teacher, alpha=0.5, temperature=temperature)
    assert all(term.dtype == torch.float32 and term.isfinite().all() for term in terms)
    terms.total.sum().backward()
    assert student.grad.isfinite().all()
    expected = reference(student.detach(), teacher, temperature)
    torch.testing.assert_close(terms.kd.double(), expected, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_move_a_bit():
    student, teacher, labels = pair((8, 10), 5)
    outside = loss(student, labels, teacher, alpha=0.5, temperature=4.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(student, labels, teacher, alpha=0.5, temperature=4.0)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    student, teacher, labels = (x.to(dtype) if x.is_floating_point() else x for x in pair((8, 10), 9))
    found = loss(student, labels, teacher, alpha=0.5, temperature=3.0)
    widened = loss(student.float(), labels, teacher.float(), alpha=0.5, temperature=3.0)
    assert all(torch.equal(a, b) for a, b in zip(found, widened, strict=True))


def test_the_teacher_gets_no_gradient_and_takes_inference_tensors():
    student, _, labels = pair((4, 10), 6)
    student.requires_grad_()
    with torch.inference_mode():
        teacher = logits((4, 10), 7)
    loss(student, labels, round_logits(teacher), alpha=1.0, temperature=2.0).total.sum().backward()
    assert student.grad.abs().sum() > 0


@given(seed=seeds, scale=st.floats(0.1, 300))
@quick
def test_teacher_logits_are_rounded_as_they_are_stored(seed, scale):
    teacher = logits((5, 10), seed, scale)
    rounded = round_logits(teacher)
    assert rounded.dtype == torch.float16
    assert torch.equal(rounded, torch.from_numpy(teacher.numpy().astype("float16")))
    assert torch.equal(round_logits(rounded), rounded)  # stored and computed ones give the same bits
    assert torch.equal(round_logits(teacher.bfloat16().float()), round_logits(teacher.bfloat16()))


def test_rounding_costs_little_at_any_temperature():
    student, teacher, _ = pair((256, 100), 8)
    for temperature in (1.0, 2.0, 4.0, 8.0):
        exact = soft_target_loss(student, teacher, temperature)
        rounded = soft_target_loss(student, round_logits(teacher), temperature)
        torch.testing.assert_close(rounded, exact, rtol=2e-3, atol=2e-3)


# --- images without a label


@given(
    shape=shapes, seed=seeds, temperature=temperatures, alpha=st.floats(0.01, 1), smoothing=st.sampled_from((0.0, 0.1))
)
@quick
def test_without_a_label_there_is_the_teachers_term_alone(shape, seed, temperature, alpha, smoothing):
    student, teacher, labels = pair(shape, seed)
    known = logits(shape[:1], seed + 2) > 0
    options = {"alpha": alpha, "temperature": temperature, "label_smoothing": smoothing}
    student.requires_grad_()
    whole = loss(student, labels, teacher, **options)
    found = loss(student, torch.where(known, labels, UNLABELLED), teacher, **options)
    assert torch.equal(found.labelled, known.float())
    assert torch.equal(whole.labelled, torch.ones(shape[0]))
    for ours, theirs in zip(found[:3], whole[:3], strict=True):
        assert torch.equal(ours[known], theirs[known])  # as without the others beside them
    assert torch.equal(found.kd, whole.kd)
    assert torch.equal(found.ce[~known], torch.zeros_like(found.ce[~known]))
    torch.testing.assert_close(found.total[~known], alpha * whole.kd[~known])
    ours, theirs = (
        torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (found.total, alpha * found.kd)
    )
    torch.testing.assert_close(ours[~known], theirs[~known])
    assert ours.isfinite().all()
