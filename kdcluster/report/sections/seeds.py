"""The gain of each seed, beside the paired test over images; accuracy against size and latency."""

from __future__ import annotations

from collections.abc import Iterator

from kdcluster.report import words
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, element, folded, listed, paragraphs, table, together
from kdcluster.report.pictures import latency_device
from kdcluster.report.sections.parts import Section, picture
from kdcluster.results.paired import LEVEL
from kdcluster.results.seeds import SeedRow
from kdcluster.wording import count, quoted, size


def gains(facts: Facts) -> Section | None:
    """Seed by seed; nothing where none has a gain."""
    found = facts.gains
    if not found:
        return None
    seeds = facts.results.seeds
    tested = {one.seed: one for one in seeds if one.p is not None}
    top1 = {(one.role, one.seed): one.top1 for one in seeds}
    head = ["seed", "baseline (%)", "distilled (%)", "gain (points)", "fixed", "broken", "McNemar p"]
    rows = [
        [
            f"seed {seed}",
            *(words.percent(top1.get((role, seed))) for role in ("baseline", "distilled")),
            words.points(gain),
            *_tested(tested.get(seed)),
        ]
        for seed, gain in found.items()
    ]
    label = f"Gain by seed: {', '.join(f'seed {seed} {words.points(gain)}' for seed, gain in found.items())}."
    with_interval = " with its 95 % t interval over the seeds" if len(found) > 1 else ""
    drawn = picture("gains", facts, label, f"Each seed, and the mean{with_interval}.")
    numbers = table("Accuracy, gain and paired test of each seed", head, rows, right=range(1, len(head)))
    return Section("Gain of each seed", together(_beside(drawn, paragraphs(_said(facts))), numbers))


def _tested(one: SeedRow | None) -> list[str]:
    return [f"{one.fixed:,}", f"{one.broken:,}", words.chance(one.p)] if one else [words.MISSING] * 3


def _said(facts: Facts) -> list[str]:
    better = sum(gain > 0 for gain in facts.gains.values())
    said = [f"The distilled student is better in {better} of {count(len(facts.gains), 'seed')}."]
    chances = [one.p for one in facts.results.seeds if one.p is not None]
    if chances:
        small = sum(p < LEVEL for p in chances)
        said.append(
            "The interval of the gain is over seeds: what other seeds would give. McNemar's exact test is over the "
            f"{facts.images.images:,} test images, one test for each seed: whether these two networks differ on such "
            "images by more than chance. It counts the images that only one of them has right: fixed are those of the "
            "distilled one, broken those of the baseline. "
            f"p is below {LEVEL:g} in {small} of {count(len(chances), 'seed')}."
        )
    return said


def sizes(facts: Facts) -> Section | None:
    """Accuracy against parameters, and against latency where that was measured; nothing without two sizes."""
    rows = [row for row in facts.results.rows if row.params and row.top1_mean is not None]
    label = "; ".join(f"{row.role}: {words.parameters(row.params)}, {words.percent(row.top1_mean)} %" for row in rows)
    drawn = picture("sizes", facts, f"Accuracy against parameters. {label}.", "Bars are one standard deviation.")
    if not drawn:
        return None
    on_disk = any(row.size_bytes for row in rows)
    head = ["role", "parameters", *["on disk"] * on_disk, "accuracy (%)", "retention"]
    cells = [
        [
            row.role,
            words.parameters(row.params),
            *[size(row.size_bytes) if row.size_bytes else words.MISSING] * on_disk,
            words.percent(row.top1_mean, row.top1_sd),
            words.ratio(row.retention, " %"),
        ]
        for row in rows
    ]
    numbers = table("Size and accuracy by role", head, cells, right=range(1, len(head)))
    if not facts.latencies:
        said = [*_kept(facts), f"Latency was not measured: kdcluster export {quoted(facts.name)} --benchmark does."]
        return Section("Accuracy and size", _beside(drawn, paragraphs(said), numbers))
    told = [
        f"{one.role}: {one.p50:.3g} ms ({one.p10:.3g} to {one.p90:.3g}) on {one.on}, {one.date}"
        for one in facts.latencies
    ]
    on = latency_device(facts)
    dates = dict.fromkeys(one.date for one in facts.latencies if one.on == on and one.date)
    where = f"Median latency of one image: {', '.join([on, *dates])}."
    timed = picture("latencies", facts, f"Accuracy against latency. {'; '.join(told)}.", where)
    every = folded("Measured latencies: median, and 10th to 90th percentile", listed(told))
    below = _beside(numbers, paragraphs(_kept(facts)), every)
    return Section("Accuracy and size", together(_beside(drawn, timed), below))


def _beside(left: Html, *right: Html) -> Html:
    return element("div", left, element("div", *right), class_="pair")


def _kept(facts: Facts) -> Iterator[str]:
    """What the student is to its teacher."""
    baseline, distilled = facts.row("baseline"), facts.row("distilled")
    if distilled and distilled.reduction and distilled.retention is not None:
        alone = f", without distillation {baseline.retention:.1f} %" if baseline and baseline.retention else ""
        yield (
            f"The student has {words.parameters(distilled.params)} parameters, {distilled.reduction:.1f} times fewer "
            f"than its teacher. Distilled it reaches {distilled.retention:.1f} % of the teacher's accuracy{alone}."
        )
