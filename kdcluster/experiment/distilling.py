"""The experiment file's `distill`: how much of the loss is the teacher's term, and which term that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from kdcluster.experiment.fields import Block, field

Loss = Literal["kd", "dkd", "dist", "hard"]

USED: dict[Loss, tuple[str, ...]] = {
    "kd": ("temperature", "standardise"),
    "dkd": ("temperature", "standardise", "dkd_alpha", "dkd_beta"),
    "dist": ("temperature", "dist_beta", "dist_gamma"),
    "hard": (),
}
"""Of the keys that are not for every loss: those that it uses."""
NOT_FOR_ALL = tuple(dict.fromkeys(key for keys in USED.values() for key in keys))


class Distill(Block):
    """loss = (1 - alpha) · CE + alpha · the teacher's term: T² · KL(teacher ‖ student) unless `loss` says another."""

    alpha: float = field("Weight of the teacher's term; 0 is the baseline.", 0.5, ge=0.0, le=1.0)
    loss: Loss = field(
        "The teacher's term. kd: T² · KL (Hinton 2015). dkd: KL taken apart into that of the target class and that of "
        "the others (Zhao 2022). dist: 1 - Pearson's correlation, over the classes of an image and over the images of "
        "the batch (Huang 2022). hard: cross-entropy with the teacher's first choice (DeiT, Touvron 2021).",
        "kd",
    )
    temperature: float = field(
        "T: softens both distributions. With `standardise`, of logits whose standard deviation is 1: 2 there. "
        "Not for loss hard.",
        4.0,
        gt=0.0,
    )
    standardise: bool = field(
        "Of each image's logits, teacher's and student's, take off the mean and divide by the standard deviation, so "
        "that their size need not be matched (Sun 2024). For loss kd and dkd.",
        False,
    )
    dkd_alpha: float = field("Weight of the target class against all others. For loss dkd.", 1.0, ge=0.0)
    dkd_beta: float = field(
        "Weight of the other classes among themselves; 0.5 to 2 where the teacher is unsure, up to 8 where it is sure. "
        "For loss dkd.",
        8.0,
        ge=0.0,
    )
    dist_beta: float = field("Weight of the correlation over an image's classes. For loss dist.", 2.0, ge=0.0)
    dist_gamma: float = field("Weight of the correlation over the images of the batch. For loss dist.", 2.0, ge=0.0)
    logits: Literal["stored", "computed"] = field(
        "Where the teacher's logits come from: a store that is made once and shared by all students, seeds and trials "
        "(what it lacks is computed), or its forward pass in every student's run. The numbers are the same.",
        "stored",
        hashed=False,
    )

    @property
    def used(self) -> tuple[str, ...]:
        """The keys that this loss has beside those that all have."""
        return USED[self.loss]

    def in_words(self) -> str:
        """`α 0.5, T 4`, and what differs from plain distillation: `α 0.5, dkd 1 + 8, T 4, standardised`."""
        found = [f"α {self.alpha:g}"]
        weights = [f"{getattr(self, key):g}" for key in self.used if key.startswith(self.loss)]
        if self.loss != "kd":
            found.append(" ".join([self.loss, *[" + ".join(weights)] * bool(weights)]))
        if "temperature" in self.used:
            found.append(f"T {self.temperature:g}")
        return ", ".join(found + ["standardised"] * self.standardise)

    def formula(self) -> str:
        """Of the loss."""
        term = {"kd": "T²·KL(teacher‖student)", "dkd": "DKD", "dist": "DIST", "hard": "CE(teacher's first choice)"}
        return f"loss = (1-α)·CE + α·{term[self.loss]}"


def contradictions(distill: Distill) -> Iterator[tuple[str, str]]:
    """Keys of other losses: they would be written there, and do nothing; and weights that leave nothing of the loss."""
    for key in NOT_FOR_ALL:
        if key in distill.model_fields_set and key not in distill.used:
            users = " or ".join(loss for loss, keys in USED.items() if key in keys)
            yield key, f"is for loss {users}, and loss is {distill.loss}; leave it out"
    weights = [key for key in distill.used if key.startswith(f"{distill.loss}_")]
    if weights and not any(getattr(distill, key) for key in weights):
        yield weights[-1], f"is 0, and so is {weights[0]}: nothing is left of the teacher's term; raise one of them"
