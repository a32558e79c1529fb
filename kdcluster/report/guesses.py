"""What runs say of single test images: whom distillation fixed and broke, who agrees with whom, who knows what it does
not know. From the logits that runs keep, of the evaluation that the table has; without torch.

Letters: N test images, C classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcluster import predictions
from kdcluster.errors import Damaged
from kdcluster.plan import Role, Run
from kdcluster.predictions import Predictions
from kdcluster.results import scores
from kdcluster.run import TRAINED
from kdcluster.runs import RunDir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINS = 15
"""Of the calibration, as is usual (Guo et al. 2017)."""

MOST_CONFUSED = 8
"""Pairs of classes that are told."""


@dataclass(frozen=True)
class Guesses:
    """One run."""

    run: Run
    guess: NDArray[np.intp]
    """(N,) the class that it says."""
    sure: NDArray[np.float64]
    """(N,) the probability that it gives the image's own class."""
    bins: tuple[tuple[int, float, float], ...]
    """(images, mean confidence, accuracy) of each, as `scores.calibration` has them."""
    ece: float
    """A share of 1."""
    agreement: float | None
    """Of how many images it says what its teacher says, a share of 1; None without a teacher's logits."""
    kl: float | None
    """KL(teacher ‖ run) at temperature 1, in nats, mean over the images."""


@dataclass(frozen=True)
class ClassChange:
    """One class, means over the seeds."""

    name: str
    images: int
    baseline: float
    """Percent of its images that are right."""
    distilled: float

    @property
    def change(self) -> float:
        """In percentage points."""
        return self.distilled - self.baseline


@dataclass(frozen=True)
class Confused:
    """Images of one class that are taken for another, means over the seeds."""

    label: str
    guess: str
    baseline: float
    distilled: float


@dataclass(frozen=True)
class Calibration:
    """A role's runs."""

    role: Role
    n: int
    ece: float
    """Percentage points, mean over the runs."""
    ece_sd: float | None
    eces: Mapping[int, float]
    """Seed -> ECE of its run."""
    agreement: float | None
    """Percent."""
    kl: float | None
    """Nats."""
    bins: tuple[tuple[int, float, float], ...]
    """(images, mean confidence, accuracy) of each over all runs together; shares of 1."""


@dataclass(frozen=True)
class OfImages:
    """All of it."""

    images: int = 0
    pairs: int = 0
    """Seeds of which both students are known."""
    classes: tuple[ClassChange, ...] = ()
    confused: tuple[Confused, ...] = ()
    """Those that change most, first; of the off-diagonal of the confusion matrices."""
    calibration: tuple[Calibration, ...] = ()
    without: tuple[str, ...] = ()
    """Runs that are done and keep no predictions, or none that can be used, and why."""


def read(runs: Sequence[Run], done: set[str], root: Path) -> tuple[dict[str, Guesses], Any, list[str]]:
    """Of each run that is done, its guesses; the labels (N,) of the images; and which runs have none, and why.

    The teacher's logits are held while the students' are read one after the other: at most two of (N, C).
    """
    found: dict[str, Guesses] = {}
    without: list[str] = []
    labels, of_teacher = None, None
    for run in sorted((run for run in runs if run.id in done), key=lambda run: TRAINED.index(run.role)):
        loaded = _loaded(RunDir(root, run.id))
        if isinstance(loaded, str):
            without.append(f"{run.id}: {loaded}")
        elif labels is not None and (labels.shape != loaded.labels.shape or (labels != loaded.labels).any()):
            without.append(f"{run.id}: it was tested on other images")
        else:
            labels = loaded.labels
            found.setdefault(run.id, _guesses(run, loaded, of_teacher))
            of_teacher = loaded.logits if run.role == "teacher" else of_teacher
    return found, labels, without


def _loaded(run_dir: RunDir) -> Predictions | str:
    """Its predictions of the test images, or why there are none."""
    result = run_dir.result()
    if not result:
        return "it has no result"
    try:
        return predictions.load(predictions.path_of(run_dir.path, result["best"]["step"]))["test"]
    except FileNotFoundError:
        return "it keeps no predictions: an earlier version made it"
    except OSError as error:
        return f"its predictions cannot be read: {error.strerror}"
    except Damaged as error:
        return f"its predictions are damaged: {error.why}"


def _guesses(run: Run, its: Predictions, teacher: Any) -> Guesses:
    import numpy as np

    chances = scores.log_softmax(its.logits)
    return Guesses(
        run,
        scores.predicted(its.logits),
        np.exp(chances[np.arange(len(its.labels)), its.labels]),
        tuple(scores.calibration(its.logits, its.labels, BINS)),
        scores.ece(its.logits, its.labels, BINS),
        None if teacher is None else scores.agreement(teacher, its.logits),
        None if teacher is None else scores.kl(teacher, its.logits),
    )


def compare(
    runs: Mapping[Role, Sequence[Run]], found: Mapping[str, Guesses], labels: Any, names: Sequence[str]
) -> OfImages:
    """What they say together; `names`: of the classes."""
    by_role = {role: {run.seed: found[run.id] for run in runs[role] if run.id in found} for role in TRAINED}
    both = list(pairs(runs, found))
    return OfImages(
        0 if labels is None else len(labels),
        len(both),
        tuple(_classes(both, labels, names)),
        tuple(_confused(both, labels, names)),
        tuple(_calibration(role, ours) for role, ours in by_role.items() if ours),
    )


def pairs(runs: Mapping[Role, Sequence[Run]], found: Mapping[str, Guesses]) -> Iterator[tuple[Guesses, Guesses]]:
    """The baseline and the distilled run of each seed that has both; α = 0 makes them one run, and no pair."""
    alone = {run.seed: run.id for run in runs["baseline"] if run.id in found}
    for run in runs["distilled"]:
        if run.id in found and alone.get(run.seed, run.id) != run.id:
            yield found[alone[run.seed]], found[run.id]


def _mean_confusion(guesses: Sequence[Guesses], labels: Any, classes: int) -> Any:
    """(C, C) images by label and guess, mean over runs."""
    return sum(scores.confusion(labels, one.guess, classes) for one in guesses) / len(guesses)


def _confusions(both: Sequence[tuple[Guesses, Guesses]], labels: Any, classes: int) -> tuple[Any, Any]:
    alone, taught = zip(*both, strict=True)
    return _mean_confusion(alone, labels, classes), _mean_confusion(taught, labels, classes)


def _classes(both: Sequence[tuple[Guesses, Guesses]], labels: Any, names: Sequence[str]) -> Iterator[ClassChange]:
    if not both:
        return
    before, after = _confusions(both, labels, len(names))
    for at, images in enumerate(before.sum(axis=1)):
        if images:
            share = (100 * float(matrix[at, at]) / float(images) for matrix in (before, after))
            yield ClassChange(names[at], round(float(images)), *share)


def _confused(both: Sequence[tuple[Guesses, Guesses]], labels: Any, names: Sequence[str]) -> Iterator[Confused]:
    import numpy as np

    if not both:
        return
    before, after = _confusions(both, labels, len(names))
    change = np.abs(after - before)
    np.fill_diagonal(change, 0)
    for place in np.argsort(-change, axis=None, kind="stable")[:MOST_CONFUSED]:
        label, guess = np.unravel_index(place, change.shape)
        if change[label, guess]:
            yield Confused(names[label], names[guess], float(before[label, guess]), float(after[label, guess]))


def _calibration(role: Role, by_seed: Mapping[int, Guesses]) -> Calibration:
    ours = list(by_seed.values())

    def mean(values: Sequence[float | None], times: float = 1.0) -> float | None:
        known = [value for value in values if value is not None]
        return times * statistics.fmean(known) if known else None

    bins = []
    for each in zip(*(one.bins for one in ours), strict=True):
        n = sum(count for count, _, _ in each)
        sums = (sum(one[0] * one[at] for one in each) for at in (1, 2))
        bins.append((n, *(total / n if n else 0.0 for total in sums)))
    errors = [100 * one.ece for one in ours]
    return Calibration(
        role,
        len(ours),
        statistics.fmean(errors),
        statistics.stdev(errors) if len(errors) > 1 else None,
        dict(zip(by_seed, errors, strict=True)),
        mean([one.agreement for one in ours], 100) if role != "teacher" else None,
        mean([one.kl for one in ours]) if role != "teacher" else None,
        tuple(bins),
    )
