"""The label's term, of plain and mixed images, held against timm's own losses and targets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

from kdcluster.experiment.distilling import Distill
from kdcluster.train.losses import UNLABELLED, Labels, binary_cross_entropy, cross_entropy, distillation_loss

seeds = st.integers(0, 2**31 - 1)
shapes = st.tuples(st.integers(1, 7), st.integers(2, 12))  # (B, C)
smoothings = st.sampled_from((0.0, 0.1, 0.4))
quick = settings(deadline=None, max_examples=25)


def pair(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=random), torch.randint(shape[1], shape[:1], generator=random)


@given(shape=shapes, seed=seeds, smoothing=smoothings)
@quick
def test_cross_entropy_is_timms(shape, seed, smoothing):
    logits, labels = pair(shape, seed)
    found = cross_entropy(logits, labels, smoothing)
    torch.testing.assert_close(found.mean(), LabelSmoothingCrossEntropy(smoothing)(logits, labels))


@given(shape=shapes, seed=seeds, smoothing=smoothings)
@quick
def test_binary_cross_entropy_is_timms_summed_over_the_classes(shape, seed, smoothing):
    logits, labels = pair(shape, seed)
    found = binary_cross_entropy(logits, labels, smoothing)
    assert found.shape == shape[:1]
    timms = BinaryCrossEntropy(smoothing, target_threshold=None, sum_classes=True)(logits, labels)
    torch.testing.assert_close(found.mean(), timms)
    by_default = BinaryCrossEntropy(smoothing)(logits, labels)  # over classes and images
    torch.testing.assert_close(found.mean() / shape[1], by_default)


def test_binary_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    yes, no = 0.95, 0.05  # two classes, smoothing 0.1
    p = 1 / (1 + torch.e**-1)
    expected = -torch.tensor(0.5).double().log() - (yes * torch.tensor(p).log() + no * torch.tensor(1 - p).log())
    found = binary_cross_entropy(logits, torch.tensor([1]), 0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@given(shape=shapes, seed=seeds, smoothing=smoothings, share=st.floats(0, 1), loss=st.sampled_from(("ce", "bce")))
@quick
def test_mixed_labels_are_timms_mixup_target(shape, seed, smoothing, share, loss):
    """timm mixes a batch with itself, turned round."""
    logits, labels = pair(shape, seed)
    target = mixup_target(labels, shape[1], share, smoothing)
    timms = SoftTargetCrossEntropy() if loss == "ce" else BinaryCrossEntropy(target_threshold=None, sum_classes=True)
    mixed = Labels(labels, labels.flip(0), torch.full(shape[:1], share))
    found = distillation_loss(logits, mixed, label_loss=loss, label_smoothing=smoothing)
    torch.testing.assert_close(found.ce.mean(), timms(logits, target), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.total, found.ce)
    torch.testing.assert_close(found.labelled, torch.ones(shape[0]))


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_an_image_mixed_with_itself_is_that_image(loss):
    logits, labels = pair((5, 4), 0)
    plain = distillation_loss(logits, Labels(labels), label_loss=loss, label_smoothing=0.1)
    mixed = distillation_loss(
        logits, Labels(labels, labels, torch.linspace(0, 1, 5)), label_loss=loss, label_smoothing=0.1
    )
    torch.testing.assert_close(mixed.ce, plain.ce)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_of_an_image_mixed_with_one_without_a_label_the_known_share_counts(loss):
    logits, labels = pair((4, 3), 1)
    none, share = torch.full_like(labels, UNLABELLED), torch.tensor([0.0, 0.25, 0.75, 1.0])
    whole = distillation_loss(logits, Labels(labels), label_loss=loss).ce
    for first, second, known in ((labels, none, share), (none, labels, 1 - share)):
        found = distillation_loss(logits, Labels(first, second, share), label_loss=loss)
        torch.testing.assert_close(found.ce, known * whole)
        torch.testing.assert_close(found.labelled, known)
    nothing = distillation_loss(logits, Labels(none), label_loss=loss)
    assert not nothing.ce.any()
    assert not nothing.labelled.any()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.51, 1.0])
def test_the_main_label_has_the_larger_share(share):
    mixed = Labels(torch.tensor([3]), torch.tensor([5]), torch.tensor([share]))
    assert mixed.main.item() == (3 if share >= 0.5 else 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_binary_cross_entropy_is_finite_at_a_margin_of_100(dtype):
    logits = (torch.eye(2, 10) * 200 - 100).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation_loss(logits, Labels(torch.tensor([5, UNLABELLED])), label_loss="bce", label_smoothing=0.1)
    assert found.ce.dtype == torch.float32
    assert found.ce.isfinite().all()
    found.total.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_gradient_has_the_size_of_cross_entropys(classes):
    """Not divided by the classes, so that alpha means the same beside the teacher's term with any number of them."""
    logits, labels = pair((8, classes), 4)
    target = torch.nn.functional.one_hot(labels, classes)
    for loss, answer in (("ce", logits.softmax(-1)), ("bce", logits.sigmoid())):
        at = logits.clone().requires_grad_()
        distillation_loss(at, Labels(labels), label_loss=loss).total.sum().backward()
        torch.testing.assert_close(at.grad, answer - target)


def test_bce_mixes_with_the_teacher_by_alpha():
    logits, labels = pair((6, 5), 2)
    teacher, _ = pair((6, 5), 3)
    found = distillation_loss(logits, Labels(labels), teacher, Distill(alpha=0.25), label_loss="bce")
    assert torch.equal(found.ce, binary_cross_entropy(logits, labels, 0.0))
    torch.testing.assert_close(found.total, 0.75 * found.ce + 0.25 * found.kd)
