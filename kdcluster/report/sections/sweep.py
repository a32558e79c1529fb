"""What the sweep found: map, keys, courses, and the confirmation."""

from __future__ import annotations

from collections import Counter

from kdcluster.differing import SIGNS, label, short
from kdcluster.report import words
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, element, folded, listed, paragraphs, table, together
from kdcluster.report.sections.parts import Section, picture
from kdcluster.report.trials import Trials
from kdcluster.results.notes import NO_DISTILLATION
from kdcluster.results.table import Row
from kdcluster.states import State
from kdcluster.sweep.confirmation import OWN
from kdcluster.wording import count


def sweep(facts: Facts) -> Section | None:
    """All of it; nothing without trials."""
    trials = facts.trials
    if not trials:
        return None
    states = Counter(one.state for one in trials.tried)
    ended = ", ".join(f"{n} {'stopped early' if state == State.STOPPED else state}" for state, n in states.items())
    said = [f"{count(len(trials.tried), 'trial')}: {ended}."]
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
        element("div", *drawn, _confirmed(trials), class_="pair"),
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
    """The arms of the confirmation, and what they say."""
    if not trials.confirmation:
        return Html()
    own, winner = trials.confirmation.experiments
    arms: dict[tuple[str, ...], tuple[str, Row]] = {}  # by runs: both may have the same
    of_winner = {"baseline": f"{NO_DISTILLATION}, otherwise as the winner", "distilled": "the winner"}
    for names, one in (({"baseline": NO_DISTILLATION, "distilled": OWN}, own), (of_winner, winner)):
        for row in one.rows:
            if row.role in names:
                arms.setdefault(row.runs, (names[row.role], row))
    rows = []
    for name, row in arms.values():
        _, _, how = words.configuration(row).partition(": ")
        rows.append([name, how, words.counted(row), words.percent(row.top1_mean, row.top1_sd)])
    head = ["arm", "configuration", "n", "test accuracy (%)"]
    told = table("The confirmation on fresh seeds", head, rows, right=(2, 3))
    said = map(words.sentence, trials.words) if trials.words else ["Not every run of the confirmation is done."]
    return element("div", told, paragraphs(said))
