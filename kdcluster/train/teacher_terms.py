"""What a student can be told to learn from a teacher's logits: pure functions, one value per example, in float32.

B batch (global), b images of one rank, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcluster.experiment.distilling import Distill


class Whole(NamedTuple):
    """A global batch as every rank knows it, and which part of it is this rank's."""

    student: Tensor
    """Logits (B, C), without gradient."""
    teacher: Tensor
    """Logits (B, C)."""
    own: range
    """Neighbouring rows; of a rank without images none."""


def teacher_term(
    student: Tensor, teacher: Tensor, target: Tensor, distill: Distill, whole: Whole | None = None
) -> Tensor:
    """The term that `distill.loss` names, (b,).

    Args:
        student: logits (b, C).
        teacher: logits (b, C), without gradient.
        target: int64 (b,), the class that dkd sets apart; -1: the teacher's first choice.
        distill: which term, and its weights.
        whole: for dist, the batch that these are a part of; None: they are all of it.
    """
    student, teacher = student.float(), teacher.float()
    if distill.loss == "hard":
        return hard_target_loss(student, teacher)
    if distill.loss == "dist":
        whole = whole or Whole(student.detach(), teacher, range(len(student)))
        return relational_loss(student, teacher, whole, distill.temperature, distill.dist_beta, distill.dist_gamma)
    if distill.standardise:
        student, teacher = standardised(student), standardised(teacher)
    if distill.loss == "dkd":
        target = torch.where(target < 0, teacher.argmax(-1), target)
        return decoupled_loss(student, teacher, target, distill.temperature, distill.dkd_alpha, distill.dkd_beta)
    return soft_target_loss(student, teacher, distill.temperature)


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), (b,), in nats times T².

    Zero where the two agree. T² keeps the gradient's size while T changes, so alpha need not be tuned with it.
    Computed from log-softmax, so a margin of 100 between logits stays finite.

    Args:
        student_logits: (b, C), any float type.
        teacher_logits: (b, C), without gradient.
        temperature: T > 0, without unit.

    Source: Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network", section 2.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return _kl(teacher, student) * temperature**2


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of log-probabilities over the last dimension."""
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)


def decoupled_loss(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """T² · (alpha · TCKD + beta · NCKD), (b,): KL taken apart at the target class.

    With p the teacher's probabilities at T, q the student's, t the target: TCKD is KL between (p_t, 1 - p_t) and
    (q_t, 1 - q_t); NCKD is KL between p and q over the other classes alone, each summing to 1 without t. Plain
    distillation is TCKD + (1 - p_t) · NCKD: of a teacher that is sure it learns little about the other classes.

    From sums in log space; the authors' log(softmax) is not finite from a margin of 105 on. They raise the weight of
    the whole term over the first 20 epochs (1 on ImageNet); here it is the same from the first step on, so that a
    step's loss does not depend on how long the run is.

    Source: Zhao et al. (2022), "Decoupled Knowledge Distillation", equations 4 to 7;
    github.com/megvii-research/mdistiller.

    Args:
        student: logits (b, C).
        teacher: logits (b, C), without gradient.
        target: int64 (b,).
        temperature: T > 0.
        alpha: weight of TCKD.
        beta: weight of NCKD.
    """
    classes = torch.arange(student.shape[-1] - 1, device=student.device)
    others = classes + (classes >= target[:, None])  # (b, C - 1); no mask, whose selection waits for a GPU

    def apart(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of target and all others together, (b, 2), and of the others among themselves."""
        one, rest = (logits.gather(-1, at) / temperature for at in (target[:, None], others))
        both = torch.cat([one, rest.logsumexp(-1, keepdim=True)], dim=-1)
        return both.log_softmax(-1), rest.log_softmax(-1)

    (student_two, student_rest), (teacher_two, teacher_rest) = apart(student), apart(teacher)
    return (alpha * _kl(teacher_two, student_two) + beta * _kl(teacher_rest, student_rest)) * temperature**2


def relational_loss(
    student: Tensor, teacher: Tensor, whole: Whole, temperature: float, beta: float, gamma: float
) -> Tensor:
    """T² · (beta · (1 - ρ of an image's classes) + gamma · (1 - ρ of a class's images, mean over classes)), (b,).

    ρ is Pearson's correlation of the teacher's and the student's probabilities at T. The second term is one number for
    the global batch: each of its images has it as its own, and its gradient is shared out so that the sum over the
    images of a rank is that rank's part of the whole gradient, as it is of the losses of single images.

    A class whose probability hardly varies in the batch (norms below 1e-4) correlates little, as in the authors' code.
    T² is in their code and not in the paper, which has T = 1 on ImageNet.

    Source: Huang et al. (2022), "Knowledge Distillation from A Stronger Teacher", equations 6 to 10;
    github.com/hunto/DIST_KD.

    Args:
        student: logits (b, C) of this rank's images.
        teacher: logits (b, C), without gradient.
        whole: the global batch.
        temperature: T > 0.
        beta: weight of the relation between classes.
        gamma: weight of the relation between images.
    """
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    loss = beta * (1 - correlation(q, p))
    before, after = whole.student[: whole.own.start], whole.student[whole.own.stop :]
    own = student[: len(whole.own)]
    every, taught = (
        (logits / temperature).softmax(-1) for logits in (torch.cat([before, own, after]), whole.teacher.float())
    )
    between = (1 - correlation(every.T, taught.T)).mean()
    parts = len(every) / max(1, len(own))
    loss = loss + gamma * (between.detach() + (between - between.detach()) * parts)
    return loss * temperature**2


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, over the last dimension; 0 where one of the two does not vary."""
    one, other = (values - values.mean(-1, keepdim=True) for values in (one, other))
    norms: Tensor = torch.linalg.vector_norm(one, dim=-1) * torch.linalg.vector_norm(other, dim=-1)
    return (one * other).sum(-1) / (norms + 1e-8)


def hard_target_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the class of the teacher's largest logit, of equal ones the first, (b,).

    Without label smoothing, which is for labels. DeiT has a token and a head of their own for it; here one head learns
    both.

    Source: Touvron et al. (2021), "Training data-efficient image transformers & distillation through attention",
    equation 3.

    Args:
        student: logits (b, C).
        teacher: logits (b, C).
    """
    return F.cross_entropy(student, teacher.argmax(-1), reduction="none")


def standardised(logits: Tensor) -> Tensor:
    """Each image's logits less their mean, divided by their standard deviation (over C - 1), (b, C).

    Source: Sun et al. (2024), "Logit Standardization in Knowledge Distillation", algorithm 1;
    github.com/sunshangquan/logit-standardization-KD, which adds 1e-7 to the deviation, as this does.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    deviation = norm / math.sqrt(logits.shape[-1] - 1)  # torch.std has no gradient where all are equal
    return centred / (deviation + 1e-7)
