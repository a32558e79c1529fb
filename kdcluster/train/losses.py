"""The distillation loss: pure functions of logits, one value per example, always in float32.

B batch, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -1
"""Label of an image that has none: of the loss it has the teacher's term alone."""


class LossTerms(NamedTuple):
    """Loss per example, each (B,): total = (1 - alpha) · ce + alpha · kd."""

    total: Tensor
    ce: Tensor
    """0 without a label."""
    kd: Tensor
    labelled: Tensor
    """1 with a label, 0 without."""


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), (B,), in nats times T².

    Zero where the two agree. T² keeps the gradient's size while T changes, so alpha need not be tuned with it.
    Computed from log-softmax, so a margin of 100 between logits stays finite.

    Args:
        student_logits: (B, C), any float type.
        teacher_logits: (B, C), without gradient.
        temperature: T > 0, without unit.

    Source: Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network", section 2.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1) * temperature**2


def distillation_loss(
    student_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    alpha: float = 0.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """Cross-entropy with the hard labels, and the teacher's soft targets where there is a teacher.

    Args:
        student_logits: (B, C).
        labels: (B,) int64, UNLABELLED where there is none.
        teacher_logits: (B, C), or None for a teacher or a baseline: then kd is zero and total is ce.
        alpha: weight of the teacher's term, 0 to 1.
        temperature: T > 0.
        label_smoothing: of the cross-entropy, 0 to 1.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        ce = F.cross_entropy(
            student_logits.float(),
            labels,
            reduction="none",
            label_smoothing=label_smoothing,
            ignore_index=UNLABELLED,
        )
        labelled = (labels != UNLABELLED).float()
        if teacher_logits is None:
            return LossTerms(ce, ce, torch.zeros_like(ce), labelled)
        kd = soft_target_loss(student_logits, teacher_logits, temperature)
        return LossTerms((1 - alpha) * ce + alpha * kd, ce, kd, labelled)


def round_logits(logits: Tensor) -> Tensor:
    """Teacher logits as they are stored: float16, so that stored and computed ones give the same bits."""
    return logits.to(torch.float16)
