"""The pictures of a report, each of a `Facts`; lines differ in their dashes and marks, too, for who prints them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kdcluster.report.draw import Draw, Look
from kdcluster.report.facts import Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = {"teacher": (0, (1, 1.5)), "baseline": (0, (5, 2)), "distilled": "solid"}
MARKS = {"teacher": "s", "baseline": "o", "distilled": "^"}


class Picture(NamedTuple):
    """One that can be drawn."""

    draw: Draw
    has: Callable[[Facts], bool]
    """Whether there is something to draw."""
    about: str
    height: Callable[[Facts], float] = lambda _: 1.0
    """As `draw.figure` has it."""


def axes(figure: Figure, x: str, y: str) -> Axes:
    """The only ones of a figure."""
    made = figure.subplots()
    made.set_xlabel(x)
    made.set_ylabel(y)
    made.tick_params(length=3)
    return made


def curves(figure: Figure, facts: Facts, look: Look) -> None:
    """Test accuracy over epochs or steps: means, and bands of one standard deviation."""
    found = facts.curves
    plot = axes(figure, found.unit, "test accuracy (%)")
    for role, curve in found.of.items():
        colour = look.colour[role]
        label = f"{role}, n = {curve.n}" if curve.n > 1 else role
        step = max(1, len(curve.at) // 12)
        plot.plot(curve.at, curve.mean, color=colour, ls=DASHES[role], marker=MARKS[role], markevery=step, label=label)
        if curve.sd:
            low, high = zip(*((m - sd, m + sd) for m, sd in zip(curve.mean, curve.sd, strict=True)), strict=True)
            plot.fill_between(curve.at, low, high, color=colour, alpha=0.2, lw=0)
    if (level := facts.top1("teacher")) is not None and "teacher" not in found.of:
        plot.axhline(level, color=look.colour["teacher"], ls=DASHES["teacher"], label="teacher")
    plot.set_ylim(top=min(100.0, plot.get_ylim()[1]))
    plot.legend(loc="lower right")


PICTURES = {
    "curves": Picture(curves, lambda facts: bool(facts.curves.of), "test accuracy over training"),
}
"""By the name that `kdcluster plot --picture` takes."""
