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
from kdcluster.wording import count


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
    lead = element("p", _in_words(facts), class_="lead")
    about = element("div", paragraphs([f"Data set {facts.data}.", *_caveats(facts)]))
    return together(element("div", lead, about, class_="pair"), element("dl", *made, class_="tiles"))


def _in_words(facts: Facts) -> str:
    baseline, distilled = facts.row("baseline"), facts.row("distilled")
    if not (baseline and distilled) or distilled.gain is None:
        if facts.trials and facts.trials.words:
            return words.sentence(facts.trials.words[0])
        return "No gain can be told yet: no seed has both a baseline and a distilled run that are done."
    gain, ends = distilled.gain, distilled.gain_ci95
    raised = "raises" if gain > 0 else "lowers"
    told = f"Distillation {raised} the test accuracy by {abs(gain):.2f} percentage points"
    if ends is None:
        return f"{told} in one seed: whether that is chance, one seed cannot say."
    interval = f"95 % interval over {count(len(facts.gains), 'seed')}: {words.interval(ends)}"
    if ends[0] <= 0 <= ends[1]:
        return (
            f"Distilled students differ from baselines by {words.points(gain)} percentage points of test accuracy "
            f"({interval}): it includes zero: no gain is shown."
        )
    return f"{told} ({interval})."


def _caveats(facts: Facts) -> Iterator[str]:
    """What has to be known with the figures, not below them."""
    said = []
    if facts.on_test:
        said.append(
            "Of each run the evaluation with the best test accuracy counts: chosen on the test images, it flatters "
            "teacher, baseline and distilled alike."
        )
    if facts.unlabelled:
        said.append(
            f"Distilled students also learn from {facts.unlabelled:,} images without labels that baselines never see."
        )
    if said:
        yield " ".join(said)


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
        *("configuration", f"{facts.table.protocol} test accuracy (%)", "gain (points)", "95 % interval"),
        *("n", "parameters", "reduction", "retention"),
        *["published"] * published,
    ]
    rows = [
        [
            words.configuration(row),
            words.percent(row.top1_mean, row.top1_sd),
            words.points(row.gain),
            words.interval(row.gain_ci95),
            words.counted(row),
            words.parameters(row.params),
            words.ratio(row.reduction, "×"),
            words.ratio(row.retention, " %"),
            *([words.percent(row.reference)] if published else []),
        ]
        for row in found.rows
    ]
    strong = [at for at, row in enumerate(found.rows) if row.role == "distilled"]
    shown = table("Results by configuration", head, rows, right=range(1, len(head)), strong=strong)
    notes = listed([*found.notes, *facts.table.notes], class_="notes")
    return Section("Results", together(shown, *_problems(found.problems), notes))


def _problems(found: tuple[Problem, ...]) -> Iterator[Html]:
    unfinished = [one for one in found if one.state != State.DONE]
    odd = [one for one in found if one.state == State.DONE]
    for title, ours in (("Not in the means", unfinished), ("Records that contradict each other, or are lost", odd)):
        if ours:
            why, logs = any(one.reason for one in ours), any(one.log for one in ours)
            head = ["run", "state", *["why"] * why, *["log"] * logs]
            rows = [[one.run, one.state, *[one.reason] * why, *[one.log or ""] * logs] for one in ours]
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
    said[1:1] = _other_means(facts)
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


def _other_means(facts: Facts) -> Iterator[str]:
    """Why the best of a curve is not the number of the table."""
    both = [(facts.top1(role), curve) for role, curve in facts.curves.of.items() if role != "teacher" and curve.n > 1]
    differ = [(top1, curve) for top1, curve in both if top1 is not None and abs(top1 - curve.best[1]) >= 0.005]
    if differ:
        numbers = (f"{top1:.2f} instead of {curve.best[1]:.2f} % ({curve.role})" for top1, curve in differ)
        chosen = "best" if facts.on_test else "chosen"
        yield (
            f"The table has {' and '.join(numbers)}: there each seed counts at its own {chosen} {facts.curves.unit}, "
            "in a curve all seeds at the same one."
        )


def _at(curve: Curve, at: int) -> str:
    if at not in curve.at:
        return words.MISSING
    place = curve.at.index(at)
    return words.percent(curve.mean[place], curve.sd[place] if curve.sd else None)
