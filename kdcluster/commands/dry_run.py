"""`kdcluster sweep --dry-run`: what a sweep would try, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from kdcluster.launch.status import statuses
from kdcluster.plan import Plan
from kdcluster.states import State
from kdcluster.sweep.adaptive import Adaptive
from kdcluster.sweep.confirmation import arms
from kdcluster.sweep.flow import Sweeping
from kdcluster.sweep.forecast import forecast
from kdcluster.sweep.points import Point, Space
from kdcluster.terminal import show_wrapped
from kdcluster.wording import count


def show(
    swept: Sweeping,
    wishes: int,
    spaces: Sequence[tuple[Space, list[Point]]],
    teachers: Plan,
    confirm: int,
    at_once: int,
) -> None:
    """The points with their runs, what comes before and after them, and how long all that takes.

    Args:
        swept: the sweep.
        wishes: points of each space.
        spaces: of the distilled students, and perhaps of the baseline, with the points that are known.
        teachers: of all points, and the stores of their logits.
        confirm: seeds of the confirmation.
        at_once: trials at the same time.
    """
    root = swept.root
    made = [_first(searched, wishes, points, swept) for searched, points in spaces]
    best, tuned = made[0][0], next((points[-1] for points in made[1:]), None)  # two that are not the same
    confirmation = swept.searched.confirmation(best, confirm, tuned) if confirm else teachers
    students = [point.runs[0] for point in arms(confirmation)] if confirm else []
    of_trials = [run for points in made for point in points for run in point.runs]
    found = statuses(teachers.joined([*confirmation.runs, *of_trials]), root)
    for points in made:
        if points is not made[0]:
            show_wrapped("", "the baseline with the same chance:")
        for number, point in enumerate(points, 1):
            known = [f"{run_id} ({found[run_id].state})" for run_id in point.ids]
            show_wrapped(f"{number:>3}  ", f"{' '.join(point.settings)}  {', '.join(known)}")
        if swept.searched.is_adaptive:
            show_wrapped("     ", f"and {wishes - len(points)} more, which follow from the results of these")
    to_come = [(wishes - len(points)) * list(points[0].runs) for points in made if swept.searched.is_adaptive]
    over = (State.DONE, State.STOPPED) if swept.searched.sweep.scheduler != "none" else (State.DONE,)
    of_teachers = [run for run in teachers.runs if run.role == "teacher"]
    missing = [run for run in teachers.runs if found[run.id].state != State.DONE]
    for run in missing:
        show_wrapped("first ", run.id)
    trials = [run for run in of_trials if found[run.id].state not in over] + [*chain(*to_come)]
    fresh = [run for run in students if found[run.id].state != State.DONE]
    tried = sum(wishes if swept.searched.is_adaptive else len(points) for points in made)
    show_wrapped(
        "",
        f"{count(tried, 'trial')}, {count(len(of_teachers), 'teacher')} "
        f"({sum(run in missing for run in of_teachers)} to be trained), {count(len(students), 'run')} to confirm the "
        f"best; nothing was started",
    )
    if words := forecast([missing, trials, fresh], root, at_once):
        show_wrapped("", words)


def _first(searched: Space, wishes: int, points: list[Point], swept: Sweeping) -> list[Point]:
    """The points that are known before the first has ended: all, or a third where others follow from their results."""
    if not searched.is_adaptive:
        return points
    source = Adaptive(searched, wishes, searched.recorded(swept.root))
    return [point for _ in range(-(-wishes // 3)) if (point := source.next())]
