"""Evaluation counts exactly and adds up whatever the split; numbers come one step late and in order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcluster.train.metrics import Lagged, accuracies, evaluation_sums

quick = settings(deadline=None, max_examples=30)


def batch(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, classes, generator=generator), labels


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    classes=st.integers(2, 12),
    seed=st.integers(0, 2**31 - 1),
)
@quick
def test_any_split_adds_up_to_the_whole(sizes, classes, seed):
    logits, labels = batch(sum(sizes), classes, seed)
    whole = evaluation_sums(logits, labels)
    parts = sum(evaluation_sums(*pair) for pair in zip(logits.split(sizes), labels.split(sizes), strict=True))
    assert whole.dtype == torch.float64
    assert torch.equal(whole[:3], parts[:3])
    torch.testing.assert_close(whole[3], parts[3], rtol=1e-6, atol=1e-6)


@given(count=st.integers(1, 40), classes=st.integers(2, 12), seed=st.integers(0, 2**31 - 1))
@quick
def test_counts_agree_with_counting_by_hand(count, classes, seed):
    logits, labels = batch(count, classes, seed)
    ranks = [
        sorted(row, reverse=True).index(row[label]) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    images, top1, top5, loss = evaluation_sums(logits, labels).tolist()
    assert (images, top1, top5) == (count, sum(r < 1 for r in ranks), sum(r < 5 for r in ranks))
    assert loss == pytest.approx(F.cross_entropy(logits.double(), labels, reduction="sum").item(), rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_with_fewer_than_five_classes_every_image_is_among_the_five(classes):
    logits, labels = batch(20, classes, 0)
    images, top1, top5, _ = evaluation_sums(logits, labels).tolist()
    assert images == top5 == 20
    assert top1 == (logits.argmax(1) == labels).sum()


def test_an_empty_batch_adds_nothing():
    assert evaluation_sums(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0, 0, 0]


def test_half_precision_logits_are_counted_in_float32():
    logits, labels = batch(64, 10, 1)
    found = evaluation_sums(logits.bfloat16(), labels)
    assert torch.equal(found, evaluation_sums(logits.bfloat16().float(), labels))


def test_accuracies_are_percentages_and_a_mean():
    assert accuracies([8.0, 2.0, 6.0, 4.0]) == {"top1": 25.0, "top5": 75.0, "loss": 0.5}


def test_counts_stay_exact_where_float32_would_not():
    sums = torch.tensor([2.0**25, 2.0**25, 2.0**25, 0.0], dtype=torch.float64)
    one = evaluation_sums(torch.eye(1, 3), torch.tensor([0]))
    assert (sums + one)[:3].tolist() == [2**25 + 1] * 3


def test_lagged_gives_back_the_step_before():
    lagged = Lagged()
    assert lagged.flush() is None
    assert lagged.push(1, torch.tensor([1.0, 10.0])) is None
    assert lagged.push(2, torch.tensor([2.0, 20.0])) == (1, [1.0, 10.0])
    assert lagged.push(3, torch.tensor([3.0, 30.0])) == (2, [2.0, 20.0])
    assert lagged.flush() == (3, [3.0, 30.0])
    assert lagged.flush() is None
    assert lagged.push(4, torch.tensor([4.0])) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: pinned copies and events")
def test_lagged_on_a_gpu_does_not_wait_for_what_was_queued_since():
    device = torch.device("cuda")
    lagged = Lagged()
    values = torch.arange(3.0, device=device)
    assert lagged.push(1, values) is None
    values.add_(100)  # after the push: must not be seen
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # about a second of clock cycles
    busy.record()
    assert lagged.flush() == (1, [0.0, 1.0, 2.0])
    assert not busy.query()
    torch.cuda.synchronize()
