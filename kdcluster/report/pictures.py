"""The pictures of a report, each of a `Facts`; lines differ in their dashes and marks, too, for who prints them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from kdcluster.report import searched, timeline, words
from kdcluster.report.draw import Draw, Look, area, axes, brief, whole_numbers
from kdcluster.report.facts import Facts
from kdcluster.report.guesses import ClassChange
from kdcluster.run import TRAINED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHES: dict[str, Any] = {"teacher": (0, (1, 1.5)), "baseline": (0, (5, 2)), "distilled": "solid"}
MARKS = {"teacher": "s", "baseline": "o", "distilled": "^"}
MOST_CLASSES = 24
"""Bars that one picture has room for; of more classes those that change most."""
MOST_SEEDS = 40
FEW = 0.01
"""Share of the images below which a bin of the calibration is not drawn: its accuracy is noise."""


class Picture(NamedTuple):
    """One that can be drawn."""

    draw: Draw
    has: Callable[[Facts], bool]
    """Whether there is something to draw."""
    height: Callable[[Facts], float] = lambda _: 1.0
    """As `draw.figure` has it."""
    highest: Callable[[Facts], float] | None = None
    """The highest accuracy that is drawn, in percent, of one that heeds `Look.y_min`."""


def curves(figure: Figure, facts: Facts, look: Look) -> None:
    """Test accuracy over epochs or steps, all of it or from `look.y_min` on: means, bands of one standard deviation."""
    found = facts.curves
    plot = axes(figure, found.unit, "test accuracy (%)")
    for role, curve in found.of.items():
        colour = look.colour[role]
        label = f"{role} ({curve.n} seeds)" if curve.n > 1 else role
        step = max(1, len(curve.at) // 12)
        plot.plot(curve.at, curve.mean, color=colour, ls=DASHES[role], marker=MARKS[role], markevery=step, label=label)
        if curve.sd:
            low, high = zip(*((m - sd, m + sd) for m, sd in zip(curve.mean, curve.sd, strict=True)), strict=True)
            plot.fill_between(curve.at, low, high, color=colour, alpha=0.2, lw=0)
    if (level := facts.top1("teacher")) is not None and "teacher" not in found.of:
        plot.axhline(level, color=look.colour["teacher"], ls=DASHES["teacher"], label="teacher")
    lowest = max(0.0, plot.get_ylim()[0]) if look.y_min is None else look.y_min
    plot.set_ylim(lowest, min(101.0, plot.get_ylim()[1]))
    whole_numbers(plot)
    shown = plot.get_legend_handles_labels()[0]
    if any(curve.sd for curve in found.of.values()):
        shown.append(area(look.colour["soft"], "± 1 std. dev."))
    figure.legend(handles=shown, loc="outside upper center", ncols=2)  # inside it would lie on lines


def _highest(facts: Facts) -> float:
    """Of the means of the curves, in percent."""
    return max(curve.best[1] for curve in facts.curves.of.values())


def gains(figure: Figure, facts: Facts, look: Look) -> None:
    """The gain of each seed, and the mean with its interval."""
    found = dict(list(facts.gains.items())[:MOST_SEEDS])
    row = facts.row("distilled")
    assert row
    mean = row.gain or 0.0
    plot = axes(figure, "gain (percentage points)", "")
    rows = list(range(len(found), 0, -1))
    colour = look.colour["distilled"]
    plot.axvline(0, color=look.colour["soft"], lw=1)
    plot.hlines(rows, 0, list(found.values()), color=look.colour["line"], lw=1.5)
    plot.plot(list(found.values()), rows, color=colour, ls="none", marker=MARKS["distilled"], ms=6)
    low, high = row.gain_ci95 or (mean, mean)
    plot.hlines([0], low, high, color=look.colour["ink"], lw=2)
    plot.plot([low, high], [0, 0], color=look.colour["ink"], ls="none", marker="|", ms=9)
    plot.plot([mean], [0], color=look.colour["ink"], ls="none", marker="D", ms=6)
    plot.set_yticks([*rows, 0], [*(f"seed {seed}" for seed in found), "mean, 95 %" if row.gain_ci95 else "mean"])
    plot.set_ylim(-0.6, len(found) + 0.6)
    plot.grid(visible=False, axis="y")


def sizes(figure: Figure, facts: Facts, look: Look) -> None:
    """Accuracy against parameters."""
    _against(figure, _sized(facts), "parameters", facts, look)


def _sized(facts: Facts) -> list[tuple[float, Any]]:
    """Parameters and role of the rows that have a number."""
    return [(float(row.params), role) for role in TRAINED if (row := facts.row(role)) and row.params]


def latencies(figure: Figure, facts: Facts, look: Look) -> None:
    """Accuracy against measured latency, on the device on which most was measured."""
    _against(figure, _timed(facts), "latency of one image (ms)", facts, look)


def _timed(facts: Facts) -> list[tuple[float, Any]]:
    """Milliseconds and role, of the rows that have a number."""
    known = [one for one in facts.latencies if facts.row(one.role)]
    return [(one.p50, one.role) for one in known if one.on == latency_device(facts)]


def latency_device(facts: Facts) -> str:
    """The one on which most roles were measured."""
    devices = [one.on for one in facts.latencies]
    return max(devices, key=devices.count)


def _against(figure: Figure, found: list[tuple[float, Any]], what: str, facts: Facts, look: Look) -> None:
    plot = axes(figure, what, "test accuracy (%)")
    ends = [x for x, _ in found]
    plot.set(xscale="log", xlim=(min(ends) / 2.5, max(ends) * 4))
    plot.xaxis.set_major_formatter(lambda value, _: words.brief_number(value))
    plot.xaxis.set_minor_formatter(lambda *_: "")
    for at, (x, role) in enumerate(sorted(found, key=lambda pair: facts.top1(pair[1]) or 0.0)):
        row, mean, colour = facts.row(role), facts.top1(role) or 0.0, look.colour[role]
        sd = row.top1_sd if row else None
        bar = {"yerr": [sd] if sd else None, "ecolor": look.colour["ink"], "elinewidth": 1.2, "capsize": 6}
        plot.errorbar([x], [mean], color=colour, marker=MARKS[role], ms=5, **bar)  # type: ignore[arg-type]
        told = f"{role} {words.percent(mean, sd)}"  # also where a bar is too short to be seen
        plot.annotate(told, (x, mean), xytext=(9, -12 if at == 0 else 5), textcoords="offset points")
    plot.margins(y=0.2)
    plot.set_ylim(top=min(102.0, plot.get_ylim()[1]))


def classes(figure: Figure, facts: Facts, look: Look) -> None:
    """The change of each class's accuracy, the largest gain on top; losses are hatched."""
    found = _classes(facts)
    plot = axes(figure, "distilled − baseline (percentage points)", "class")
    rows = list(range(len(found), 0, -1))
    worse = {"facecolor": "none", "edgecolor": look.colour["baseline"], "hatch": "////"}
    styles: dict[str, dict[str, Any]] = {"better": {"facecolor": look.colour["distilled"]}, "worse": worse}
    for word, style in styles.items():
        ours = [
            (row, one.change) for row, one in zip(rows, found, strict=True) if (one.change < 0) == (word == "worse")
        ]
        if ours:
            at, changes = zip(*ours, strict=True)
            plot.barh(at, changes, height=0.7, label=word, **style)
    figure.legend(loc="outside upper right", ncols=2)
    plot.axvline(0, color=look.colour["soft"], lw=1)
    plot.set_yticks(rows, [brief(one.name, 16) for one in found])
    plot.set_ylim(0.3, len(found) + 0.7)
    plot.grid(visible=False, axis="y")


def _classes(facts: Facts) -> list[ClassChange]:
    """Those that change most, the largest gain first."""
    found = sorted(facts.images.classes, key=lambda one: -abs(one.change))[:MOST_CLASSES]
    return sorted(found, key=lambda one: -one.change)


def calibration(figure: Figure, facts: Facts, look: Look) -> None:
    """Accuracy by confidence; on the diagonal a model knows what it does not know."""
    plot = axes(figure, "confidence (%)", "accuracy (%)")
    plot.plot([0, 100], [0, 100], color=look.colour["soft"], lw=1)
    for one in facts.images.calibration:
        few = FEW * sum(n for n, _, _ in one.bins)
        points = [(100 * confidence, 100 * share) for n, confidence, share in one.bins if n and n >= few]
        x, y = zip(*points, strict=True)
        label = f"{one.role}, ECE {one.ece:.2f}"
        plot.plot(x, y, color=look.colour[one.role], ls=DASHES[one.role], marker=MARKS[one.role], label=label)
    plot.set(xlim=(0, 102), ylim=(0, 102))
    plot.legend(loc="best")


def _rows(number: int) -> float:
    """Height of a picture with so many rows of text."""
    return max(0.55, (number + 3) / 15)


PICTURES = {
    "curves": Picture(curves, lambda facts: bool(facts.curves.of), highest=_highest),
    "gains": Picture(gains, lambda facts: bool(facts.gains), lambda facts: _rows(min(MOST_SEEDS, len(facts.gains)))),
    "sizes": Picture(sizes, lambda facts: len({size for size, _ in _sized(facts)}) > 1),
    "latencies": Picture(latencies, lambda facts: len(_timed(facts)) > 1),
    "classes": Picture(classes, lambda facts: bool(facts.images.classes), lambda facts: _rows(len(_classes(facts)))),
    "calibration": Picture(calibration, lambda facts: bool(facts.images.calibration)),
    "sweep-map": Picture(searched.chart, searched.has_chart),
    "sweep-keys": Picture(searched.parallel, searched.has_parallel),
    "sweep-courses": Picture(searched.courses, searched.has_courses),
    "time": Picture(timeline.attempts, timeline.has, timeline.height),
}
"""By the name that `kdcluster plot --picture` takes."""
