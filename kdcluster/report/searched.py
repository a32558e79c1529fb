"""The pictures of a sweep: its points on a map, by all their keys, and how each rose until it ended or was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdcluster.differing import SIGNS, label, short
from kdcluster.report.draw import Look, axes, brief, whole_numbers
from kdcluster.states import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdcluster.report.facts import Facts
    from kdcluster.report.trials import Trials
    from kdcluster.sweep.scored import Tried

MAP = ("distill.alpha", "distill.temperature")
ENDS = {State.DONE: ("o", str(State.DONE)), State.STOPPED: ("X", "stopped early")}
"""Mark and word of how a trial ended; any other is FAILED."""
FAILED = ("v", f"not {State.DONE}")


def has_chart(facts: Facts) -> bool:
    """Whether two numbers were searched, α and T before others."""
    return bool(facts.trials and len(facts.trials.known) > 1 and len(_axes(facts.trials)) == 2)


def _axes(trials: Trials) -> list[str]:
    numbers = [key for key in trials.keys if len(set(_numbers(trials, key))) > 1]
    return sorted(numbers, key=lambda key: MAP.index(key) if key in MAP else len(MAP))[:2]


def _numbers(trials: Trials, key: str) -> list[float]:
    """The values of a key, where all trials have a number for it."""
    found = trials.numbers(key)
    whole = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return [float(value) for value in found] if whole else []


def _shares(trials: Trials) -> list[float]:
    """How good each trial is, from 0, the worst, to 1."""
    values = [one.value or 0.0 for one in trials.known]
    low, high = min(values), max(values)
    shares = [(value - low) / (high - low) if high > low else 1.0 for value in values]
    return [1 - share for share in shares] if trials.lower_is_better else shares


def named(key: str, trials: Trials) -> str:
    """A key on an axis."""
    return brief(label(key, trials.keys, SIGNS))


def chart(figure: Figure, facts: Facts, look: Look) -> None:
    """Each trial where its two numbers put it; the fuller the mark, the better, and its value beside it."""
    trials = facts.trials
    assert trials
    x, y = _axes(trials)
    plot = axes(figure, named(x, trials), named(y, trials))
    for name, key in (("x", x), ("y", y)):
        numbers = _numbers(trials, key)
        if min(numbers) > 0 and max(numbers) / min(numbers) > 8:
            plot.set(**{f"{name}scale": "log"})
    points = zip(_numbers(trials, x), _numbers(trials, y), _shares(trials), trials.known, strict=True)
    for at, (right, up, share, one) in enumerate(points):
        style = {"color": look.colour["distilled"], "mec": look.colour["ink"], "alpha": 0.15 + 0.85 * share}
        plot.plot([right], [up], ls="none", marker=_end(one)[0], ms=11, **style)  # type: ignore[arg-type]
        weight = "bold" if at == 0 else "normal"
        told = f"{one.value:.1f}" if at == 0 or len(trials.known) <= 16 else ""
        plot.annotate(told, (right, up), xytext=(8, 4), textcoords="offset points", weight=weight)
    plot.margins(0.15)


def _end(one: Tried) -> tuple[str, str]:
    """Mark and word of how a trial ended."""
    return ENDS.get(one.states[0], FAILED) if len(set(one.states)) == 1 else FAILED


def has_parallel(facts: Facts) -> bool:
    """Whether there is more than one key to compare."""
    return bool(facts.trials and len(facts.trials.known) > 1 and facts.trials.keys)


def parallel(figure: Figure, facts: Facts, look: Look) -> None:
    """A line for each trial through its value of each key, and on the right its metric; the better, the stronger."""
    trials = facts.trials
    assert trials
    plot = figure.subplots()
    metric = [one.value or 0.0 for one in trials.known]
    columns = [*((named(key, trials), trials.numbers(key)) for key in trials.keys), (brief(trials.metric), metric)]
    places = [_scaled(values) for _, values in columns]
    for at, share in enumerate(_shares(trials)):
        style = {"color": look.colour["ink"], "lw": 2.6} if at == 0 else {"color": look.colour["distilled"], "lw": 1.4}
        plot.plot([place[at] for place, _ in places], alpha=1.0 if at == 0 else 0.15 + 0.75 * share, **style)  # type: ignore[arg-type]
    for at, (_, ticks) in enumerate(places):
        plot.axvline(at, color=look.colour["soft"], lw=1)
        for height, told in ticks:
            ground = {"facecolor": look.colour["paper"], "edgecolor": "none", "alpha": 0.8, "pad": 1}
            where = {"xytext": (5, 3), "textcoords": "offset points"}
            plot.annotate(told, (at, height), color=look.colour["soft"], bbox=ground, **where)  # type: ignore[arg-type]
    plot.set_xticks(range(len(columns)), [name for name, _ in columns])
    plot.set(yticks=[], xlim=(-0.15, len(columns) - 0.55), ylim=(-0.05, 1.1))
    plot.spines[["left", "bottom"]].set_visible(False)
    plot.grid(visible=False)


def _scaled(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 of the values of a key, and what stands at some of them; words stand in their order."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        import math

        lowest, highest = min(values), max(values)
        logs = lowest > 0 and highest / lowest > 8
        places = [math.log(value) if logs else float(value) for value in values]
        low, high = min(places), max(places)
        spread = (high - low) or 1.0
        ends = {0.0: lowest, 1.0: highest} if high > low else {0.0: lowest}
        return [(place - low) / spread for place in places], [(at, short(value, 3)) for at, value in ends.items()]
    kinds = sorted({short(value) for value in values})
    last = max(1, len(kinds) - 1)
    return [kinds.index(short(value)) / last for value in values], [(n / last, brief(k)) for n, k in enumerate(kinds)]


def has_courses(facts: Facts) -> bool:
    """Whether a trial was evaluated."""
    return bool(facts.trials and any(facts.trials.courses.values()))


def courses(figure: Figure, facts: Facts, look: Look) -> None:
    """The metric of each trial after each evaluation, and at its end how it ended."""
    trials = facts.trials
    assert trials
    length = "tenth of the training" if trials.unit == "tenths" else "epoch"
    plot = axes(figure, length, brief(trials.metric))
    used: dict[str, tuple[str, Any]] = {}
    for at, one in enumerate(trials.tried):
        if values := trials.courses.get(one.point.ids):
            mark, word = _end(one)
            stays = mark == "o"
            colour = look.colour["distilled" if stays else "baseline" if mark == "X" else "teacher"]
            steps = range(1, len(values) + 1)
            plot.plot(steps, values, color=colour, lw=2.2 if at == 0 else 1, ls="solid" if stays else (0, (4, 2)))
            (end,) = plot.plot([len(values)], values[-1:], color=colour, marker=mark, ms=7, ls="none")
            used.setdefault(word, (mark, end))
    plot.legend([end for _, end in used.values()], list(used), loc="best")
    whole_numbers(plot)
