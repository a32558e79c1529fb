"""What the table says, and how the accuracy rose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kdcluster.report import words
from kdcluster.report.curves import Curve, convergence
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, element, folded, joined, listed, named, paragraphs, table, together
from kdcluster.report.sections.parts import Section, picture
from kdcluster.results.table import Problem
from kdcluster.run import TRAINED
from kdcluster.states import State


def headline(facts: Facts) -> Html:
    """What came of it, in a sentence and six figures."""
    teacher, baseline, distilled = (facts.row(role) for role in ("teacher", "baseline", "distilled"))
    tiles: list[tuple[str, str, str, str]] = []
    for row in filter(None, (teacher, baseline, distilled)):
        told = f"{words.percent(row.top1_mean)} %"
        more = f"± {row.top1_sd:.2f} over {row.n} seeds" if row.top1_sd is not None else f"n = {row.n}"
        tiles.append((row.role, row.role, told, more))
    if distilled and distilled.gain is not None:
        ends = distilled.gain_ci95
        more = f"points, 95 % interval {words.interval(ends)}" if ends else "points, of one seed: no interval"
        tiles.append(("gain", "", words.points(distilled.gain), more))
    if distilled and distilled.retention is not None:
        tiles.append(("retention", "", words.ratio(distilled.retention, " %"), "of the teacher's accuracy"))
    if distilled and distilled.reduction:
        tiles.append(("size", "", words.ratio(distilled.reduction, "×"), "fewer parameters than the teacher"))
    made = (
        element("div", element("dt", name), element("dd", told), element("dd", more), class_=role or None)
        for name, role, told, more in tiles
    )
    return together(element("p", _in_words(facts), class_="lead"), element("dl", *made, class_="tiles"))


def _in_words(facts: Facts) -> str:
    baseline, distilled = facts.row("baseline"), facts.row("distilled")
    if not (baseline and distilled) or distilled.gain is None:
        return "No gain can be told yet: no seed has both a baseline and a distilled run that are done."
    told = f"Distillation changes the test accuracy by {words.points(distilled.gain)} percentage points"
    if (ends := distilled.gain_ci95) is None:
        return f"{told}, in one seed: whether that is chance, one seed cannot say."
    verdict = "a gain" if ends[0] > 0 else "a loss" if ends[1] < 0 else ""
    if verdict:
        side = "above" if ends[0] > 0 else "below"
        return f"{told}: {verdict}. Its 95 % interval over the seeds, {words.interval(ends)}, lies {side} zero."
    return f"{told}; its 95 % interval over the seeds, {words.interval(ends)}, includes zero: no gain is shown."


def overview(experiments: Sequence[Facts]) -> Html:
    """Several experiments in one table."""
    head = ["experiment", "teacher (%)", "baseline (%)", "distilled (%)", "gain (points)", "95 % interval", "retention"]
    rows = []
    for facts in experiments:
        found = [facts.row(role) for role in TRAINED]
        last = found[-1]
        rows.append(
            [
                facts.name,
                *(words.percent(row.top1_mean, row.top1_sd) if row else words.MISSING for row in found),
                words.points(last.gain if last else None),
                words.interval(last.gain_ci95 if last else None),
                words.ratio(last.retention if last else None, " %"),
            ]
        )
    return table("All experiments of this page", head, rows, right=range(1, len(head)))


def results(facts: Facts) -> Section:
    """The results table, its notes, and every run that is not in it."""
    found = facts.results
    published = any(row.reference is not None for row in found.rows)
    head = [
        *("configuration", "n", f"{facts.table.protocol} test accuracy (%)", "gain (points)", "95 % interval"),
        *("parameters", "reduction", "retention"),
        *["published"] * published,
    ]
    rows = [
        [
            words.configuration(row),
            words.counted(row),
            words.percent(row.top1_mean, row.top1_sd),
            words.points(row.gain),
            words.interval(row.gain_ci95),
            words.parameters(row.params),
            words.ratio(row.reduction, "×"),
            words.ratio(row.retention, " %"),
            *([words.percent(row.reference)] if published else []),
        ]
        for row in found.rows
    ]
    strong = [at for at, row in enumerate(found.rows) if row.role == "distilled"]
    shown = table("Results by configuration", head, rows, right=range(1, len(head)), strong=strong, names=True)
    notes = listed([*found.notes, *facts.table.notes], class_="notes")
    return Section("Results", together(shown, *_problems(found.problems), notes))


def _problems(found: tuple[Problem, ...]) -> Iterator[Html]:
    unfinished = [one for one in found if one.state != State.DONE]
    odd = [one for one in found if one.state == State.DONE]
    for title, ours in (("Not in the means", unfinished), ("Records that contradict each other, or are lost", odd)):
        if ours:
            head = ["run", "state", "why", *["log"] * any(one.log for one in ours)]
            rows = [[one.run, one.state, one.reason, one.log or ""][: len(head)] for one in ours]
            told = table(f"{title}: {len(ours)}", head, rows, names=True)
            yield element("div", told, class_="warning")


def course(facts: Facts) -> Section:
    """The accuracy over epochs, and whether distillation converges faster."""
    found = facts.curves
    if not found.of:
        return Section("Accuracy over training", paragraphs(["No run has been evaluated more than once."]))
    label = "; ".join(f"{c.role}: {c.mean[0]:.1f} % at first, best {c.best[1]:.1f} %" for c in found.of.values())
    bands = "Bands are one standard deviation over the seeds. " if any(c.sd for c in found.of.values()) else ""
    drawn = picture("curves", facts, f"Test accuracy by {found.unit}. {label}.", bands)
    said = [*convergence(found)]
    if found.unfinished:
        said.append(f"No {' or '.join(found.unfinished)} run is done: that curve is of runs that are not.")
    if found.left_out:
        said.append(together("Not done, and not in the curves: ", joined(map(named, found.left_out)), "."))
    head = [found.unit, *(f"{c.role} (%)" for c in found.of.values())]
    every = sorted({at for curve in found.of.values() for at in curve.at})
    rows = [[f"{at:,}", *(_at(curve, at) for curve in found.of.values())] for at in every]
    numbers = table(f"Mean test accuracy by {found.unit}", head, rows, right=range(len(head)))
    body = element(
        "div", drawn, element("div", paragraphs(said), folded("The same in numbers", numbers)), class_="pair"
    )
    return Section("Accuracy over training", body)


def _at(curve: Curve, at: int) -> str:
    if at not in curve.at:
        return words.MISSING
    place = curve.at.index(at)
    return words.percent(curve.mean[place], curve.sd[place] if curve.sd else None)
