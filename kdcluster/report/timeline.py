"""The picture of where the time went: each attempt of each run, from its start to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcluster.history import Record
from kdcluster.report.draw import Look, axes
from kdcluster.states import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdcluster.report.facts import Facts

UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
MOST = 40
"""Runs that one picture has room for."""


def has(facts: Facts) -> bool:
    """Whether a run took time that is known."""
    return any(one.wall_s > 0 for one in _timed(facts))


def height(facts: Facts) -> float:
    """As `draw.figure` has it."""
    return max(0.55, (min(MOST, len(facts.origin.records)) + 3) / 15)


def _timed(facts: Facts) -> list[Record]:
    return [one for found in facts.origin.records.values() for one in found if one.started is not None]


def lost(one: Record) -> bool:
    """Whether an attempt did not end well."""
    return one.state not in (None, State.DONE)


def has_lost(facts: Facts) -> bool:
    """Whether one of those shown did not, and is hatched."""
    return any(map(lost, _timed(facts)))


def attempts(figure: Figure, facts: Facts, look: Look) -> None:
    """A bar for each attempt; what did not end well, or was done again, is hatched."""
    timed = _timed(facts)
    first = min(one.started or 0.0 for one in timed)
    whole = max((one.started or 0.0) + one.wall_s for one in timed) - first
    unit, seconds = next((pair for pair in UNITS if whole > 2 * pair[1]), UNITS[-1])
    plot = axes(figure, f"{unit} since the first start", "")
    plot.set_xlim(0, 1.03 * whole / seconds)
    runs = list(facts.origin.records.items())[:MOST]
    for row, (run_id, found) in enumerate(runs):
        role = facts.roles.get(run_id, "teacher")
        colour = look.colour[role if role in look.colour else "teacher"]
        for one in found:
            if one.started is not None:
                bar = {"facecolor": "none", "hatch": "////"} if lost(one) else {"facecolor": colour}
                begin, long = (one.started - first) / seconds, one.wall_s / seconds
                plot.barh([-row], [long], left=[begin], height=0.7, edgecolor=colour, **bar)  # type: ignore[arg-type]
    plot.set_yticks([-row for row in range(len(runs))], [_short(run_id) for run_id, _ in runs])
    plot.set_ylim(-len(runs) + 0.3, 0.7)
    plot.grid(visible=False, axis="y")


def _short(run_id: str) -> str:
    """`distilled s0`: an id without its model and its hash."""
    role, _, rest = run_id.partition("-")
    if rest.startswith("logits-"):
        return "teacher's logits"
    return f"{role} {run_id.rsplit('-', 2)[-2]}" if run_id.count("-") > 2 else run_id
