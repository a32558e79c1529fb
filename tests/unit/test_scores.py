"""What is said of single images, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from kdcluster.results import scores

LOGITS = np.array([[2, 1, 0], [0, 1, 1], [0, 0, 3], [1, 1, 1]], np.float16)
LABELS = np.array([0, 2, 1, 0], np.int32)
VALUES = st.floats(-30, 30, width=32)


def test_equal_logits_leave_open_what_was_right():
    assert scores.right(LOGITS, LABELS) == (1, 3)
    assert scores.predicted(LOGITS).tolist() == [0, 1, 2, 0]
    assert scores.top_k(LOGITS, LABELS, 1).tolist() == [True, False, False, True]
    assert scores.top_k(LOGITS, LABELS, 2).tolist() == [True, True, False, True]


@given(
    some.arrays(np.float32, (7, 4), elements=st.floats(-30, 30, width=32)),
    some.arrays(np.int32, 7, elements=st.integers(0, 3)),
)
def test_what_float32_has_right_lies_between(logits, labels):
    low, high = scores.right(logits.astype(np.float16), labels)
    assert low <= (logits.argmax(1) == labels).sum() <= high


@given(
    some.arrays(np.float32, (5, 6), elements=st.floats(-30, 30, width=32)),
    some.arrays(np.int64, 5, elements=st.integers(0, 5)),
)
def test_probabilities_are_torchs(logits, labels):
    ours = scores.log_softmax(logits)
    np.testing.assert_allclose(ours, F.log_softmax(torch.tensor(logits).double(), dim=1).numpy(), atol=1e-12)
    other = logits[::-1].copy()
    theirs = F.kl_div(
        F.log_softmax(torch.tensor(other).double(), 1),
        F.log_softmax(torch.tensor(logits).double(), 1),
        reduction="batchmean",
        log_target=True,
    )
    assert scores.kl(logits, other) == pytest.approx(theirs.item(), abs=1e-12)
    assert scores.kl(logits, logits) == pytest.approx(0, abs=1e-12)


def test_confusion_by_label_and_prediction():
    found = scores.confusion(LABELS, scores.predicted(LOGITS), 3)
    assert found.tolist() == [[2, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_calibration_error_by_hand():
    """Two images of 0.9, one of them right, and two of 0.65, both right: 0.5 · 0.4 + 0.5 · 0.35."""
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.65, 0.35], [0.35, 0.65]]))
    labels = np.array([0, 1, 0, 1])
    assert scores.ece(logits, labels) == pytest.approx(0.375)
    filled = {number: one for number, one in enumerate(scores.calibration(logits, labels)) if one[0]}
    assert filled == {9: (2, pytest.approx(0.65), 1.0), 13: (2, pytest.approx(0.9), 0.5)}


@pytest.mark.parametrize(("fixed", "broken", "p"), [(0, 0, 1), (5, 5, 1), (10, 0, 2 / 1024), (1, 3, 0.625), (0, 1, 1)])
def test_mcnemar_by_hand(fixed, broken, p):
    assert scores.mcnemar(fixed, broken) == scores.mcnemar(broken, fixed) == p


def test_mcnemar_of_many_images():
    """Against the normal approximation with its continuity correction."""
    z = (abs(600 - 500) - 1) / math.sqrt(1100)
    assert scores.mcnemar(600, 500) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert 0 < scores.mcnemar(5000, 4000) < 1e-20


def test_agreement():
    assert scores.agreement(LOGITS, LOGITS[::-1]) == 0.5
