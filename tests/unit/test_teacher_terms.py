"""The teacher's terms beside plain distillation: each held against its paper's formula in float64, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcluster.experiment.distilling import USED, Distill
from kdcluster.train.losses import UNLABELLED, Labels, distillation_loss
from kdcluster.train.teacher_terms import (
    Whole,
    correlation,
    decoupled_loss,
    hard_target_loss,
    relational_loss,
    soft_target_loss,
    standardised,
    teacher_term,
)

seeds = st.integers(0, 2**31 - 1)
shapes = st.tuples(st.integers(2, 7), st.integers(2, 12))  # (B, C)
temperatures = st.floats(0.5, 8.0)
quick = settings(deadline=None, max_examples=25)
WAYS: list[dict[str, Any]] = [
    {"loss": "kd", "standardise": True},
    {"loss": "dkd"},
    {"loss": "dkd", "standardise": True},
    {"loss": "dist"},
    {"loss": "hard"},
]


def name(way: dict[str, Any]) -> str:
    return "-".join(map(str, way.values()))


def triple(shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits (B, C), labels (B,)."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(shape, generator=random, dtype=dtype) for _ in range(2))
    return student, teacher, torch.randint(shape[1], shape[:1], generator=random)


def whole_of(student: Tensor, teacher: Tensor) -> Whole:
    return Whole(student.detach(), teacher, range(len(student)))


def term(student: Tensor, teacher: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return teacher_term(student, teacher, labels, Distill(**options))


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


# --- decoupled


@given(shape=shapes, seed=seeds, temperature=temperatures, alpha=st.floats(0, 4), beta=st.floats(0, 8))
@quick
def test_decoupled_is_the_papers_formula(shape, seed, temperature, alpha, beta):
    student, teacher, labels = triple(shape, seed, torch.float64)
    expected = []
    for z, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(z, temperature)
        target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest = [[x[c] / (1 - x[label]) for c in range(len(x)) if c != label] for x in (p, q)]
        expected.append(temperature**2 * (alpha * target + beta * kl(*rest)))
    found = decoupled_loss(student, teacher, labels, temperature, alpha, beta)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@given(shape=shapes, seed=seeds, temperature=temperatures)
@quick
def test_its_parts_make_plain_distillation(shape, seed, temperature):
    """Equation 7 of the paper: KD = TCKD + (1 - p_t) · NCKD."""
    student, teacher, labels = triple(shape, seed)
    target = decoupled_loss(student, teacher, labels, temperature, 1.0, 0.0)
    others = decoupled_loss(student, teacher, labels, temperature, 0.0, 1.0)
    p = (teacher / temperature).softmax(-1).gather(1, labels[:, None])[:, 0]
    plain = soft_target_loss(student, teacher, temperature)
    torch.testing.assert_close(target + (1 - p) * others, plain, rtol=1e-4, atol=1e-4)


def test_decoupled_without_a_label_sets_the_teachers_first_choice_apart():
    student, teacher, labels = triple((6, 5), 1)
    known = torch.tensor([True, False] * 3)
    found = term(student, teacher, torch.where(known, labels, UNLABELLED), loss="dkd")
    assert torch.equal(found, term(student, teacher, torch.where(known, labels, teacher.argmax(-1)), loss="dkd"))


def test_decoupled_of_a_mixed_image_sets_the_larger_part_apart():
    student, teacher, first = triple((4, 5), 2)
    second, share = (first + 1) % 5, torch.tensor([0.7, 0.5, 0.49, 0.0])
    mixed = distillation_loss(student, Labels(first, second, share), teacher, Distill(loss="dkd"))
    main = torch.stack([first[0], first[1], second[2], second[3]])
    assert torch.equal(mixed.kd, term(student, teacher, main, loss="dkd"))


# --- relational


@given(shape=shapes, seed=seeds, temperature=temperatures, beta=st.floats(0, 4), gamma=st.floats(0, 4))
@quick
def test_relational_is_the_papers_formula(shape, seed, temperature, beta, gamma):
    student, teacher, _ = triple(shape, seed, torch.float64)
    q, p = ([softmax(row, temperature) for row in logits.tolist()] for logits in (student, teacher))
    inside = [1 - pearson(a, b) for a, b in zip(q, p, strict=True)]
    columns = zip(zip(*q, strict=True), zip(*p, strict=True), strict=True)
    between = sum(1 - pearson(list(a), list(b)) for a, b in columns) / shape[1]
    expected = torch.tensor([temperature**2 * (beta * one + gamma * between) for one in inside], dtype=torch.float64)
    whole = Whole(student.float(), teacher, range(len(student)))._replace(student=student)
    found = relational_loss(student, teacher.double(), whole, temperature, beta, gamma)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # 1e-8 beside small norms


@pytest.mark.parametrize("parts", [[5, 4], [3, 3, 3], [8, 1, 0]])
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(parts):
    student, teacher, _ = triple((9, 6), 3, torch.float64)
    student.requires_grad_()
    arguments = (2.0, 1.5, 0.7)
    alone = relational_loss(student, teacher, whole_of(student, teacher), *arguments)
    (expected,) = torch.autograd.grad(alone.sum(), student)
    ends = [sum(parts[: at + 1]) for at in range(len(parts))]
    summed, values = torch.zeros_like(expected), []
    for end, count in zip(ends, parts, strict=True):
        own = range(end - count, end)
        some = slice(own.start, own.stop) if count else slice(1)  # a rank without images has one, of weight 0
        whole = Whole(student.detach(), teacher, own)
        found = relational_loss(student[some], teacher[some], whole, *arguments) * float(count > 0)
        summed += torch.autograd.grad(found.sum(), student)[0]
        values += [found.detach()] * (count > 0)
    torch.testing.assert_close(summed, expected)
    torch.testing.assert_close(torch.cat(values), alone.detach())


def test_correlation_where_nothing_varies_is_0_and_has_a_gradient():
    flat = torch.ones(2, 4, requires_grad=True)
    found = correlation(flat, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert found.tolist() == [0.0, 0.0]
    found.sum().backward()
    assert flat.grad.isfinite().all()


# --- hard


def test_hard_is_cross_entropy_with_the_first_of_equal_choices():
    student, teacher, _ = triple((3, 4), 4)
    teacher = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0]]).half()
    log_q = [[math.log(q) for q in softmax(row, 1.0)] for row in student.tolist()]
    expected = [-log_q[0][1], -log_q[1][0], -log_q[2][3]]
    assert hard_target_loss(student, teacher).tolist() == pytest.approx(expected, rel=1e-5)


# --- standardised


def test_standardised_logits_by_hand():
    found = standardised(torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64))
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert found.tolist()[0] == pytest.approx([-2 / deviation, -1 / deviation, 0.0, 3 / deviation])


@given(shape=shapes, seed=seeds, scale=st.floats(0.2, 20), shift=st.floats(-50, 50))
@quick
def test_standardised_logits_know_no_size(shape, seed, scale, shift):
    student, teacher, labels = triple(shape, seed)
    for loss in ("kd", "dkd"):
        options = {"loss": loss, "standardise": True, "temperature": 2.0}
        before = term(student, teacher, labels, **options)
        after = term(student * scale + shift, teacher / scale - shift, labels, **options)
        torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-3)


def test_all_logits_equal_have_a_gradient():
    flat = torch.zeros(2, 5, requires_grad=True)
    teacher = triple((2, 5), 5)[1]
    term(flat, teacher, torch.tensor([0, 1]), standardise=True).sum().backward()
    assert flat.grad.isfinite().all()


# --- all of them


@pytest.mark.parametrize("way", WAYS, ids=name)
@given(seed=seeds, shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
@quick
def test_does_not_move_when_all_logits_of_an_image_move(way, seed, shifts):
    student, teacher, labels = triple((5, 6), seed)
    before = term(student, teacher, labels, **way)
    after = term(student + shifts[0], teacher + shifts[1], labels, **way)
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("way", WAYS[:-1], ids=name)
@given(shape=st.tuples(st.integers(4, 9), st.integers(2, 12)), seed=seeds)
@quick
def test_zero_for_identical_logits_and_never_below(way, shape, seed):
    student, teacher, labels = triple(shape, seed)
    same, other = (term(logits / 3, teacher / 3, labels, temperature=1.0, **way) for logits in (teacher, student))
    assert same.abs().max() < 1e-3
    assert other.min() > -1e-4
    if shape[1] > 2:  # of two classes whichever logits, standardised, are the same two numbers
        assert other.sum() > same.sum()


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_gradients(way):
    student, teacher, labels = triple((4, 5), 6, torch.float64)
    distill = Distill(**way)

    def f(logits: Tensor) -> Tensor:
        if way["loss"] == "dist":
            return relational_loss(logits, teacher, whole_of(logits, teacher), 4.0, 2.0, 2.0)
        if way["loss"] == "hard":
            return hard_target_loss(logits, teacher)
        z, t = (standardised(x) if distill.standardise else x for x in (logits, teacher))
        return decoupled_loss(z, t, labels, 4.0, 1.0, 8.0) if way["loss"] == "dkd" else soft_target_loss(z, t, 4.0)

    if way["loss"] == "kd":  # float32 inside
        torch.autograd.gradcheck(f, student.requires_grad_(), eps=1e-2, atol=1e-2, rtol=1e-2)
    else:
        torch.autograd.gradcheck(f, student.requires_grad_())


@pytest.mark.parametrize("way", WAYS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_at_a_margin_of_100(way, dtype, autocast):
    labels = torch.tensor([0, 1, UNLABELLED])
    student = (torch.eye(3, 10) * 100).to(dtype).requires_grad_()
    teacher = (torch.eye(3, 10).flip(0) * 100).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = distillation_loss(student, Labels(labels), teacher, Distill(temperature=1.0, **way))
    assert all(one.dtype == torch.float32 and one.shape == (3,) and one.isfinite().all() for one in terms)
    terms.total.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_half_precision_and_inference_tensors_are_computed_in_float32(way):
    student, teacher, labels = triple((8, 10), 7)
    with torch.inference_mode():
        half = teacher.half()
    student.requires_grad_()
    found = distillation_loss(student, Labels(labels), half, Distill(**way))
    assert torch.equal(found.kd, distillation_loss(student, Labels(labels), teacher.half().float(), Distill(**way)).kd)
    found.total.sum().backward()
    assert student.grad.abs().sum() > 0


def test_the_mixture_is_by_alpha_whatever_the_term():
    student, teacher, labels = triple((5, 6), 8)
    for loss in USED:
        found = distillation_loss(student, Labels(labels), teacher, Distill(loss=loss, alpha=0.3))
        assert torch.equal(found.ce, F.cross_entropy(student, labels, reduction="none"))
        torch.testing.assert_close(found.total, 0.7 * found.ce + 0.3 * found.kd)
