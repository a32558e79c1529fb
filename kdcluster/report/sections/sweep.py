"""What the sweep found: map, keys, courses, and the confirmation."""

from __future__ import annotations

from collections import Counter

from kdcluster.differing import SIGNS, label, short
from kdcluster.report import words
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, element, folded, listed, paragraphs, table, together
from kdcluster.report.sections.parts import Section, picture
from kdcluster.report.trials import Trials
from kdcluster.wording import count


def sweep(facts: Facts) -> Section | None:
    """All of it; nothing without trials."""
    trials = facts.trials
    if not trials:
        return None
    states = Counter(one.state for one in trials.tried)
    said = [f"{count(len(trials.tried), 'trial')}: {', '.join(f'{n} {state}' for state, n in states.items())}."]
    if trials.known:
        best = trials.known[0]
        at = ", ".join(f"{label(key, trials.keys, SIGNS)} {short(value)}" for key, value in best.point.values.items())
        said.append(f"Best: {trials.metric} {best.shown} at {at}.")
    best_is, ends = (
        "The fuller a mark, the better; bold: the best.",
        "Thick: the best. A mark: where it ended, and how.",
    )
    lines = "A line is a trial, and the strongest line the best."
    drawn = (
        picture("sweep-map", facts, f"Where the trials lie. {said[-1]}", best_is),
        picture("sweep-keys", facts, f"Trials by all keys. {said[-1]}", lines),
        picture("sweep-courses", facts, f"How each trial rose. {said[0]}", ends),
    )
    body = together(
        paragraphs(said),
        element("div", *drawn, class_="pair"),
        _confirmed(trials),
        folded("Every trial in numbers", _numbers(trials)),
        listed(trials.notes, class_="notes"),
    )
    return Section("Sweep", body)


def _numbers(trials: Trials) -> Html:
    head = [*trials.keys, trials.metric, trials.unit, "state", "why", "runs"]
    rows = [
        [
            *(short(one.point.values[key]) if key in one.point.values else "" for key in trials.keys),
            one.shown or words.MISSING,
            one.epochs,
            one.state,
            one.reason,
            " ".join(one.point.ids),
        ]
        for one in trials.tried
    ]
    return table("Trials, the best first", head, rows, right=range(len(trials.keys) + 2))


def _confirmed(trials: Trials) -> Html:
    if not trials.confirmation:
        return Html()
    rows = [
        [f"{one.name}, {row.configuration}", words.counted(row), words.percent(row.top1_mean, row.top1_sd)]
        for one in trials.confirmation.experiments
        for row in one.rows
        if row.role != "teacher"
    ]
    told = table(
        "The confirmation on fresh seeds, test accuracy in percent",
        ["configuration", "n", "accuracy"],
        rows,
        right=(1, 2),
    )
    return together(told, paragraphs(trials.words or ["Not every run of the confirmation is done."]))
