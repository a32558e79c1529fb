"""The loss of a step: the label's term, and the teacher's (teacher_terms.py); pure, per example, always in float32.

B batch, C classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcluster.experiment.distilling import Distill
from kdcluster.train.teacher_terms import Whole, teacher_term

UNLABELLED = -1
"""Label of an image that has none: of the loss it has the teacher's term alone."""


class Labels(NamedTuple):
    """What the images of a batch show; of mixed images, of what they are mixed."""

    first: Tensor
    """int64 (B,), UNLABELLED where there is none."""
    second: Tensor | None = None
    """The same of the other image; None: nothing is mixed."""
    share: Tensor | None = None
    """float32 (B,): of `first`, 0 to 1."""

    def of(self, some: slice) -> Labels:
        """Those of some images."""
        first, *mixed = (None if one is None else one[some] for one in self)
        assert first is not None
        return Labels(first, *mixed)

    @property
    def main(self) -> Tensor:
        """The label with the larger share, of equal ones the first."""
        if self.second is None or self.share is None:
            return self.first
        return torch.where(self.share >= 0.5, self.first, self.second)


class LossTerms(NamedTuple):
    """Loss per example, each (B,): total = (1 - alpha) · ce + alpha · kd."""

    total: Tensor
    ce: Tensor
    """The label's term; 0 without a label."""
    kd: Tensor
    """The teacher's term."""
    labelled: Tensor
    """1 with a label, 0 without; of a mixed image the share that has one."""


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Of softmax(logits) with labels of which a share is spread over all classes, (B,); 0 without a label."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing, ignore_index=UNLABELLED)


def binary_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Each class is a question of its own, answered by sigmoid(logit); (B,), the sum over the classes.

    The target is 1 - s + s / C for the label and s / C for the others. Summed, its gradient is sigmoid(logit) - target,
    of the size of cross-entropy's softmax(logit) - target: alpha keeps its meaning beside the teacher's term, and the
    learning rate its size (timm's --bce-sum; its default divides by C).

    Source: Wightman, Touvron, Jégou (2021), "ResNet strikes back", section 2.1; timm.loss.BinaryCrossEntropy.
    """
    off = smoothing / logits.shape[-1]
    target = torch.full_like(logits, off)
    target = target.scatter(-1, labels.clamp(min=0)[:, None], 1 - smoothing + off)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
    return torch.where(labels == UNLABELLED, 0.0, loss)


def distillation_loss(
    student_logits: Tensor,
    labels: Labels,
    teacher_logits: Tensor | None = None,
    distill: Distill | None = None,
    *,
    label_loss: Literal["ce", "bce"] = "ce",
    label_smoothing: float = 0.0,
    whole: Whole | None = None,
) -> LossTerms:
    """The label's term, and the teacher's where there is a teacher.

    Both losses of labels are linear in the target, so that of a mixed image is that of its parts by their shares.

    Args:
        student_logits: (B, C).
        labels: of the images.
        teacher_logits: (B, C), or None for a teacher or a baseline: then kd is zero and total is ce.
        distill: which teacher's term and its weight alpha; None without a teacher.
        label_loss: which label's term.
        label_smoothing: of the label's term, 0 to 1.
        whole: for dist, the global batch where this is a part of it.
    """
    loss = cross_entropy if label_loss == "ce" else binary_cross_entropy
    with torch.autocast(student_logits.device.type, enabled=False):
        student = student_logits.float()
        ce, labelled = loss(student, labels.first, label_smoothing), (labels.first != UNLABELLED).float()
        if labels.second is not None and labels.share is not None:
            rest, share = loss(student, labels.second, label_smoothing), labels.share
            ce = share * ce + (1 - share) * rest
            labelled = share * labelled + (1 - share) * (labels.second != UNLABELLED)
        if teacher_logits is None or distill is None:
            return LossTerms(ce, ce, torch.zeros_like(ce), labelled)
        kd = teacher_term(student, teacher_logits, labels.main, distill, whole)
        return LossTerms((1 - distill.alpha) * ce + distill.alpha * kd, ce, kd, labelled)


def round_logits(logits: Tensor) -> Tensor:
    """Teacher logits as they are stored: float16, so that stored and computed ones give the same bits."""
    return logits.to(torch.float16)
