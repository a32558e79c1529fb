"""What the reader of a paper has to know of a table, in a paper's words: its caption, and the sentences below it.

All else that can be said of the rows is in notes.py, for who made the runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from kdcluster.experiment.config import Experiment
from kdcluster.experiment.images import Data
from kdcluster.inputs import in_both
from kdcluster.results.conditions import more_steps, odd, unlabelled
from kdcluster.results.measured import TOP1, Measured, Protocol, selected_by
from kdcluster.run import ARMS, TRAINED, Arm

_DATA = {"cifar100": "CIFAR-100", "cifar10": "CIFAR-10", "mnist5k": "MNIST digits"}
WHO: Mapping[Arm, str] = {
    "teacher": "the teacher",
    "baseline": "the student trained alone (baseline)",
    "tuned": "the student trained alone with settings that were searched for it",
    "control": "the student trained with label smoothing",
    "distilled": "the student distilled from the teacher",
}


@dataclass(frozen=True)
class Paper:
    """Of one experiment."""

    caption: str = ""
    notes: tuple[str, ...] = ()
    """Sentences, the numbered one first."""
    data: str = ""
    """The data set, by the name that readers know."""


def paper(
    runs: Mapping[Arm, Sequence[Measured]],
    unique: Sequence[Measured],
    paired: Sequence[int],
    config: Experiment,
    protocol: Protocol,
    of_prices: Sequence[str],
) -> Paper:
    """Of the runs by role; `paired`: the seeds that the gain is over; `of_prices`: what size and latency are."""
    data = _data(config.data)
    tested = sorted({n for m in unique if m.done and (n := m.trainer.get("images", {}).get("test"))})
    data += f" ({' or '.join(f'{n:,}' for n in tested)} test images)" * bool(tested)
    caption = f"Top-1 test accuracy on {data}: {listed([WHO[arm] for arm in ARMS if runs.get(arm)])}."
    return Paper(caption, (*_notes(runs, unique, paired, config, protocol), *map(_sentence, of_prices)), data)


def _notes(
    runs: Mapping[Arm, Sequence[Measured]],
    unique: Sequence[Measured],
    paired: Sequence[int],
    config: Experiment,
    protocol: Protocol,
) -> Iterator[str]:
    if unlike := odd(runs):
        yield f"[1] {_sentence(unlike)}"
    at = "evaluation" if config.train.steps else "epoch"
    if protocol == "last":
        yield f"Test accuracy of the last {at}."
    elif selected_by(config.data) == TOP1:
        yield f"Best test accuracy over the {at}s: the {at} is selected on the test set."
    else:
        yield f"Test accuracy of the {at} that is best on held-out training images."
    distilled = [m for m in runs["distilled"] if config.distill.alpha]
    if config.data.labelled is not None:
        alone = listed([role for role in TRAINED if runs[role] and (role != "distilled" or not distilled)])
        parts = [f"{alone or 'students'} learn from {config.data.labelled:,} images with labels"]
        if distilled:
            without = " or ".join(f"{n:,}" for n in unlabelled(distilled)) or "images"
            parts.append(f"the distilled student also sees {without} without")
        yield _sentence("; ".join(parts))
    if distilled and more_steps(runs, config):
        yield "The distilled student took more steps than the baseline, whose epochs have fewer images."
    if runs["distilled"] and not distilled:
        yield "With α = 0 the distilled student is the baseline."
    elif 0 < len(paired) < max(len(runs["distilled"]), len(runs["baseline"])):
        yield f"The gain is over the seeds that both students have: {listed(list(map(str, paired)))}."
    if same := max((m.trainer.get("images_in_both", 0) for m in unique if m.done), default=0):
        yield _sentence(in_both(same))


def _data(data: Data) -> str:
    return PurePath(data.path).name if data.path else _DATA.get(data.name, data.name)


def listed(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
