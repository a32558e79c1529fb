"""The gain of each seed, beside the paired test over images; accuracy against size and latency."""

from __future__ import annotations

from kdcluster.report import words
from kdcluster.report.facts import Facts
from kdcluster.report.guesses import Pair
from kdcluster.report.markup import element, folded, listed, paragraphs, table, together
from kdcluster.report.pictures import latency_device
from kdcluster.report.sections.parts import Section, picture
from kdcluster.wording import count

LEVEL = 0.05
"""Below it a p is called small; it is no proof above it of anything."""


def gains(facts: Facts) -> Section | None:
    """Seed by seed; nothing where none has a gain."""
    found = facts.gains
    if not found:
        return None
    tested = {one.seed: one for one in facts.images.pairs}
    top1 = {(one.role, one.seed): one.top1 for one in facts.results.seeds}
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
    both = element("div", drawn, element("div", paragraphs(_said(facts))), class_="pair")
    return Section("Gain of each seed", together(both, numbers))


def _tested(one: Pair | None) -> list[str]:
    if one is None:
        return [words.MISSING] * 3
    return [f"{one.fixed:,}", f"{one.broken:,}", words.chance(one.p)]


def _said(facts: Facts) -> list[str]:
    better = sum(gain > 0 for gain in facts.gains.values())
    said = [f"The distilled student is better in {better} of {count(len(facts.gains), 'seed')}."]
    pairs = facts.images.pairs
    if pairs:
        small = sum(one.p < LEVEL for one in pairs)
        said.append(
            "The interval of the gain is over seeds: what other seeds would give. McNemar's exact test is over the "
            f"{facts.images.images:,} test images, one test for each seed: whether these two networks differ on such "
            "images by more than chance. It counts the images that only one of them has right: fixed are those of the "
            "distilled one, broken those of the baseline. "
            f"p is below {LEVEL:g} in {small} of {count(len(pairs), 'pair')}."
        )
    return said


def sizes(facts: Facts) -> Section | None:
    """Accuracy against parameters, and against latency where that was measured; nothing without two sizes."""
    rows = [row for row in facts.results.rows if row.params and row.top1_mean is not None]
    label = "; ".join(f"{row.role}: {words.parameters(row.params)}, {words.percent(row.top1_mean)} %" for row in rows)
    drawn = picture("sizes", facts, f"Accuracy against parameters. {label}.", "Bars are one standard deviation.")
    if not drawn:
        return None
    if not facts.latencies:
        return Section("Accuracy and size", drawn)
    told = [
        f"{one.role}: {one.p50:.3g} ms ({one.p10:.3g} to {one.p90:.3g}) on {one.on}, {one.date}"
        for one in facts.latencies
    ]
    on = latency_device(facts)
    dates = dict.fromkeys(one.date for one in facts.latencies if one.on == on and one.date)
    where = f"Median latency of one image: {', '.join([on, *dates])}."
    timed = picture("latencies", facts, f"Accuracy against latency. {'; '.join(told)}.", where)
    both = element("div", drawn, timed, class_="pair")
    return Section(
        "Accuracy and size",
        together(both, folded("Measured latencies: median, and 10th to 90th percentile", listed(told))),
    )
