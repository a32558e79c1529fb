"""What distillation changed image by image: classes, confusions, examples, agreement with the teacher, calibration."""

from __future__ import annotations

from collections.abc import Sequence

from kdcluster.report import words
from kdcluster.report.examples import SIDE, Example
from kdcluster.report.facts import Facts
from kdcluster.report.guesses import BINS, Calibration
from kdcluster.report.markup import Html, element, folded, listed, named, paragraphs, table, together
from kdcluster.report.pictures import MOST_CLASSES
from kdcluster.report.sections.parts import Section, picture
from kdcluster.results.spread import interval95
from kdcluster.wording import count


def classes(facts: Facts) -> Section | None:
    """The change of each class, and the confusions that change most; nothing where no pair has predictions."""
    found = sorted(facts.images.classes, key=lambda one: -one.change)
    if not found:
        return None
    pairs = count(facts.images.pairs, "seed")
    label = f"Change by class, the best {found[0].name} {words.points(found[0].change)}, the worst {found[-1].name} "
    shown = f" The {MOST_CLASSES} that change most." if len(found) > MOST_CLASSES else ""
    caption = f"Mean over {pairs}.{shown}"
    drawn = picture("classes", facts, f"{label}{words.points(found[-1].change)} points.", caption)
    head = ["class", "images", "baseline (%)", "distilled (%)", "change (points)"]
    rows = [
        [one.name, f"{one.images:,}", *map(words.percent, (one.baseline, one.distilled)), words.points(one.change)]
        for one in found
    ]
    every = table(f"Accuracy of each class, mean over {pairs}", head, rows, right=range(1, len(head)))
    up, down = (sum((one.change > 0) if sign > 0 else (one.change < 0) for one in found) for sign in (1, -1))
    said = f"{count(up, 'class')} better, {down} worse, {len(found) - up - down} as before."
    beside = element("div", paragraphs([said]), _confused(facts), folded("Every class in numbers", every))
    return Section("Classes", element("div", drawn, beside, class_="pair"))


def _confused(facts: Facts) -> Html:
    head = ["class", "taken for", "baseline", "distilled", "change"]
    rows = [
        [
            one.label,
            one.guess,
            f"{one.baseline:.1f}",
            f"{one.distilled:.1f}",
            f"{one.distilled - one.baseline:+.1f}".replace("-", "−"),
        ]
        for one in facts.images.confused
    ]
    caption = "Confusions that change most: number of test images, mean over the seeds"
    return table(caption, head, rows, right=(2, 3, 4)) if rows else Html()


def examples(facts: Facts) -> Section | None:
    """The images that were fixed and broken; nothing where no pair has predictions."""
    found = facts.examples
    if not facts.images.pairs:
        return None
    said = ["Those on which most seeds agree come first, then those whose class gained or lost most probability."]
    said += [f"No pixels: {found.no_pixels}."] if found.no_pixels else []
    title = "Images that distillation fixed and broke"
    lists = []
    kinds = {"Fixed: the baseline is wrong": found.fixed, "Broken: the baseline is right": found.broken}
    for what, ours in kinds.items():
        shown = element("ol", *map(_example, ours), class_="images") if ours else paragraphs(["None."])
        lists.append(element("div", element("p", element("strong", what), class_="label"), shown))
    return Section(title, together(paragraphs(said), *lists))


def _example(one: Example) -> Html:
    alt = f"Test image {one.index}, {one.label}"
    shown = element("img", src=one.png, alt=alt, width=SIDE, height=SIDE) if one.png else Html()
    return element(
        "li",
        shown,
        element("div", "label: ", named(one.label), element("span", f" (image {one.index})", class_="soft")),
        element("div", "baseline: ", named(one.baseline)),
        element("div", "distilled: ", named(one.distilled)),
        element("div", f"in {one.seeds} of {count(one.of, 'seed')}", class_="soft"),
    )


def calibration(facts: Facts) -> Section | None:
    """Agreement with the teacher, and whether confidence can be believed; nothing without predictions."""
    found = facts.images.calibration
    if not found:
        return None
    head = ["role", "n", "ECE (points)", "agreement (%)", "KL (nats)"]
    rows = [
        [
            one.role,
            one.n,
            words.percent(one.ece, one.ece_sd),
            words.percent(one.agreement),
            words.MISSING if one.kl is None else f"{one.kl:.3f}",
        ]
        for one in found
    ]
    numbers = table("Mean over the seeds of each role", head, rows, right=range(1, 5))
    label = "; ".join(f"{one.role}: ECE {one.ece:.2f} points" for one in found)
    caption = (
        f"{BINS} equal bins of confidence, all runs of a role together; those of under 1 % of the images are left out. "
        "On the diagonal a network is right as often as it is sure."
    )
    drawn = picture("calibration", facts, f"Accuracy by confidence. {label}.", caption)
    beside = element("div", numbers, paragraphs(_said(found)))
    return Section("Agreement and calibration", element("div", drawn, beside, class_="pair"))


def _said(found: Sequence[Calibration]) -> list[str]:
    said = [
        "Agreement: on how many test images a student says what its teacher says. KL: from the teacher's probabilities "
        "to the student's, at temperature 1, mean over the images.",
        "ECE, the expected calibration error, is how far confidence and accuracy are apart, by bin of confidence, "
        f"weighted by images ({BINS} bins, temperature 1; Guo et al. 2017).",
    ]
    by_role = {one.role: one for one in found}
    alone, taught = by_role.get("baseline"), by_role.get("distilled")
    if alone and taught and alone.agreement is not None and taught.agreement is not None:
        closer = "closer to" if (taught.kl or 0) < (alone.kl or 0) else "no closer to"
        said.append(
            f"Distilled students agree with their teacher on {taught.agreement:.1f} % of the test images, baselines on "
            f"{alone.agreement:.1f} %; by KL they are {closer} its probabilities."
        )
    if alone and taught:
        said.append(_calibrated(alone, taught))
    return said


def _calibrated(alone: Calibration, taught: Calibration) -> str:
    """Whether distillation makes confidence worth more, or less."""
    over = sum(n * (confidence - share) for n, confidence, share in taught.bins)
    mean = "surer than they are right" if over > 0 else "less sure than they are right"
    told = f"ECE is {taught.ece:.2f} points with distillation and {alone.ece:.2f} without"
    changes = [taught.eces[seed] - alone.eces[seed] for seed in taught.eces if seed in alone.eces]
    if interval := interval95(changes):
        low, high = interval
        shows = "worsens it" if low > 0 else "improves it" if high < 0 else "changes it is not shown"
        that = f"that distillation {shows}" if low <= 0 <= high else f"distillation {shows}"
        told += f"; the 95 % interval of the difference over the seeds is {low:z.2f} to {high:z.2f}: {that}"
    return f"{told}. On average distilled students are {mean}."


def without(facts: Facts) -> Section | None:
    """Which runs the sections above are without; nothing where they are complete."""
    if not facts.images.without:
        return None
    said = "What is said of single images is without these runs:"
    return Section("Runs without predictions", together(paragraphs([said]), listed(facts.images.without)))
