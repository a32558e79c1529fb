"""What to type next where runs have ended without being done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kdcluster.commands.arguments import Chosen
from kdcluster.launch.status import Status
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, INTERRUPTED, State
from kdcluster.terminal import say
from kdcluster.wording import quoted


def next_steps(found: Mapping[str, Status], again: Mapping[str, str], where: str) -> list[str]:
    """First what says why, then what goes on with them; nothing for a run of which it is unknown whether it is alive.

    Args:
        found: the runs' states.
        again: of each run, the arguments of `kdcluster submit` that start it.
        where: arguments that name their runs directory, or nothing.
    """
    failed = next((run_id for run_id, status in found.items() if status.state == State.FAILED), None)
    steps = [f"kdcluster logs {quoted(failed)}{where}"] if failed else []
    states: dict[str, set[State]] = {}
    for run_id, status in found.items():
        if not status.unknown:
            states.setdefault(again[run_id], set()).add(status.state)
    for words, seen in states.items():
        if seen & set(GIVEN_UP):
            steps.append(f"kdcluster submit {words}{where} --retry")
        elif seen & {*INTERRUPTED, State.PLANNED}:  # what a search has stopped early needs nobody
            steps.append(f"kdcluster submit {words}{where}")
    return steps


def left_out(found: Iterable[Status]) -> str:
    """`1 failed, 2 cancelled are left out (--retry)` of runs that a submit does not start, or nothing."""
    states = [status.state for status in found]
    counts = {state: states.count(state) for state in GIVEN_UP if state in states}
    what = ", ".join(f"{number} {state}" for state, number in counts.items())
    return f"{what} {'is' if sum(counts.values()) == 1 else 'are'} left out (--retry)" if what else ""


def say_next_steps(found: Mapping[str, Status], again: str, chosen: Chosen) -> None:
    """`again`: arguments of submit for runs that were never submitted."""
    words = {run_id: RunDir(chosen.root, run_id).submitted() or again for run_id in found}
    for step in next_steps(found, words, chosen.where):
        say(f"next: {step}")
