"""What a caption in a paper has to say of a picture: what its lines, bands and marks are, and of how many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kdcluster.report import timeline
from kdcluster.report.facts import Facts
from kdcluster.report.guesses import BINS
from kdcluster.results.paper import WHO, listed
from kdcluster.wording import count


def caption(picture: str, facts: Facts) -> str:
    """Sentences, for one of PICTURES that has something to draw."""
    return " ".join(_CAPTIONS[picture](facts))


def _curves(facts: Facts) -> Iterator[str]:
    found = facts.curves
    yield f"Test accuracy {_on(facts)} over training: {listed([WHO[role] for role in found.of])}."
    several = [curve for curve in found.of.values() if curve.n > 1]
    alone = listed([f"the {curve.role}" for curve in found.of.values() if curve.n == 1])
    if several:
        seeds = " to ".join(dict.fromkeys(str(end(curve.n for curve in several)) for end in (min, max)))
        single = f"; {alone} {'are single runs' if ' and ' in alone else 'is one run'}" * bool(alone)
        yield f"Lines are means over {seeds} seeds, bands one standard deviation of the seeds to either side{single}."
    else:
        yield "Each line is one run."
    if "teacher" not in found.of and facts.row("teacher"):
        yield "The horizontal line is the teacher."
    if missing := len(found.left_out):
        yield f"{count(missing, 'run')} that {_is(missing)} not finished {_is(missing)} not shown."
    if found.unfinished:
        yield f"Runs of the {listed(found.unfinished)} are not finished."


def _gains(facts: Facts) -> Iterator[str]:
    seeds = len(facts.gains)
    yield f"Gain of the distilled student over the student trained alone {_on(facts)}, in test accuracy, by seed."
    row = facts.row("distilled")
    if row and row.gain_ci95:
        yield f"Below, their mean over {seeds} seeds with its 95% confidence interval (Student's t)."


def _against(what: str) -> Callable[[Facts], Iterator[str]]:
    def said(facts: Facts) -> Iterator[str]:
        yield f"Test accuracy {_on(facts)} against {what}."
        seeds = sorted({row.n for row in facts.results.rows if row.top1_sd is not None})
        if seeds:
            over = " to ".join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))
            yield f"Error bars are one standard deviation over {over} seeds."

    return said


def _classes(facts: Facts) -> Iterator[str]:
    seeds = count(facts.images.pairs, "seed")
    yield f"Test accuracy of each class {_on(facts)}: distilled minus trained alone, mean over {seeds}; hatched: worse."


def _calibration(facts: Facts) -> Iterator[str]:
    yield f"Test accuracy {_on(facts)} by confidence, in {BINS} equal bins, all runs of a role together."
    yield "Bins of under 1% of the images are left out. ECE: expected calibration error, in percentage points."


def _sweep(what: str) -> Callable[[Facts], Iterator[str]]:
    def said(facts: Facts) -> Iterator[str]:
        yield f"{what} {_on(facts)}."

    return said


def _time(facts: Facts) -> Iterator[str]:
    hatched = "; hatched: an attempt that did not end well" * timeline.has_lost(facts)
    yield f"When each run {_on(facts)} was computed{hatched}."


def _on(facts: Facts) -> str:
    return f"on {facts.results.paper.data}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


_CAPTIONS: dict[str, Callable[[Facts], Iterator[str]]] = {
    "curves": _curves,
    "gains": _gains,
    "sizes": _against("the number of parameters"),
    "latencies": _against("the latency of one image"),
    "classes": _classes,
    "calibration": _calibration,
    "sweep-map": _sweep("Accuracy of the trials of the hyperparameter search"),
    "sweep-keys": _sweep("Settings and accuracy of the trials of the hyperparameter search"),
    "sweep-courses": _sweep("Accuracy over training of the trials of the hyperparameter search"),
    "time": _time,
}
