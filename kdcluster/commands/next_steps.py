"""What to type next where runs have ended without being done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from kdcluster.commands.arguments import Chosen
from kdcluster.errors import NotFound
from kdcluster.experiment import configfile
from kdcluster.launch.status import Status, statuses_of
from kdcluster.plan import Plan
from kdcluster.runs import RunDir, run_dirs
from kdcluster.states import GIVEN_UP, INTERRUPTED, State
from kdcluster.terminal import say
from kdcluster.wording import SUBMIT_OPTIONS, command, count, quoted

MOST = 4
"""Runs that are named one by one in one command."""


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
    by_id: dict[str, list[str]] = {"": [], " --retry": []}
    for words, seen in states.items():
        retry = " --retry" if seen & set(GIVEN_UP) else ""
        if not retry and not seen & {*INTERRUPTED, State.PLANNED}:  # what a search has stopped early needs nobody
            continue
        if words in found:  # what is named one by one goes on where it was cancelled
            by_id[" --retry" if State.FAILED in seen else ""].append(words)
        else:
            steps.append(f"kdcluster submit {words}{where}{retry}")
    for retry, ids in by_id.items():
        if ids:
            steps.append(f"kdcluster submit {' '.join(map(quoted, ids[:MOST]))}{where}{retry}")
        if len(ids) > MOST:
            steps.append(f"the same for {count(len(ids) - MOST, 'other')}")
    return steps


def left_out(found: Iterable[Status]) -> str:
    """`1 failed, 2 cancelled are left out (--retry)` of runs that a submit does not start, or nothing."""
    states = [status.state for status in found]
    counts = {state: states.count(state) for state in GIVEN_UP if state in states}
    what = ", ".join(f"{number} {state}" for state, number in counts.items())
    return f"{what} {'is' if sum(counts.values()) == 1 else 'are'} left out (--retry)" if what else ""


def say_next_steps(found: Mapping[str, Status], again: Mapping[str, str] | str, chosen: Chosen) -> None:
    """`again`: arguments of submit for runs that were never submitted; of those without any, their ids are."""
    fresh = dict.fromkeys(found, again) if isinstance(again, str) else again
    is_found = cache(_is_found)
    words = {run_id: _submitted(RunDir(chosen.root, run_id), is_found) or fresh[run_id] or run_id for run_id in found}
    for step in next_steps(found, words, chosen.where):
        say(f"next: {step}")


def table(chosen: Chosen) -> str:
    """The command that shows what has come of the experiments; nothing where none is named."""
    return f"kdcluster results {chosen.again(*chosen.named)}{chosen.where}" if chosen.named else ""


def say_table(found: Mapping[str, Status], chosen: Chosen) -> None:
    """Once every run is done."""
    if found and table(chosen) and all(status.state == State.DONE for status in found.values()):
        say(f"next: {table(chosen)}")


def say_how_to_go_on(stopped: Mapping[str, State], chosen: Chosen) -> None:
    """After a cancel, of runs and the states that they have now: those named one by one go on one by one."""
    found = {run_id: Status(state) for run_id, state in stopped.items()}
    single = {one.id: found.pop(one.id) for one in chosen.single if one.id in found}
    for step in next_steps(single, dict(zip(single, single, strict=True)), chosen.where):
        say(f"next: {step}")
    say_next_steps(found, chosen.again(*chosen.named), chosen)


def say_others(made: Plan, chosen: Chosen, look: str) -> None:
    """Runs that were started for these experiments and are not theirs as they are set here, and how to see them.

    Args:
        made: the experiments as the file and the command line set them.
        chosen: the command line.
        look: the command that was typed, as status.
    """
    ours = {run_id for roles in made.wanted.values() for ids in roles.values() for run_id in ids}
    is_found = cache(_is_found)
    groups: dict[tuple[str, str], list[RunDir]] = {}
    for one in run_dirs(chosen.root):
        for name in sorted(made.wanted.keys() & set(one.experiments())) if one.id not in ours else ():
            if one.submitted() and not one.trials_of(name):  # a sweep's are shown as such
                groups.setdefault((name, _submitted(one, is_found, ("--set", "--seeds"))), []).append(one)
    for (name, words), runs in list(groups.items())[:MOST]:
        states = [status.state for status in statuses_of(runs).values()]
        running = f", {going} running" if (going := states.count(State.RUNNING)) else ""
        same = words in ("", chosen.again(*chosen.named))  # its file was another one then
        how = f"{'status' if words == runs[0].id else look} {words}" if not same else "status"
        what = count(len(runs), "more run")
        say(f"{what} of {name} with other settings or seeds{running}: kdcluster {how}{chosen.where}")
    if more := sum(map(len, list(groups.values())[MOST:])):
        say(f"and {count(more, 'other')}: kdcluster status{chosen.where}")


def _submitted(run_dir: RunDir, is_found: Callable[[str], bool], options: Sequence[str] = SUBMIT_OPTIONS) -> str:
    """The arguments that started a run, naming its experiments so that they are found from here; empty: they are not.

    A file may have been given from another folder: it is looked for beside the runs directory, too.
    """
    told: list[str] = []
    left = iter(run_dir.submitted())
    for word in left:
        if word in SUBMIT_OPTIONS:
            pair = (word, next(left))
            told += pair if word in options else ()
            continue
        told.append(word)
        if word != run_dir.id and not is_found(word):
            beside = run_dir.root.parent / word
            if not beside.is_file():
                return ""
            told[-1] = os.path.relpath(beside)
    return command(told)


def _is_found(name: str) -> bool:
    try:
        configfile.find(name)
    except NotFound:
        return False
    return True
