"""What to type next where runs have ended without being done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from kdcluster import records
from kdcluster.commands.arguments import Chosen
from kdcluster.errors import NotFound
from kdcluster.experiment import configfile
from kdcluster.launch.status import Status
from kdcluster.runs import RunDir
from kdcluster.states import GIVEN_UP, INTERRUPTED, State
from kdcluster.terminal import say
from kdcluster.wording import SUBMIT_OPTIONS, command, count, quoted, submit_words

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


def say_how_to_go_on(stopped: Mapping[str, State], chosen: Chosen) -> None:
    """After a cancel, of runs and the states that they have now: those named one by one go on one by one."""
    found = {run_id: Status(state) for run_id, state in stopped.items()}
    single = {one.id: found.pop(one.id) for one in chosen.single if one.id in found}
    for step in next_steps(single, dict(zip(single, single, strict=True)), chosen.where):
        say(f"next: {step}")
    say_next_steps(found, chosen.again(*chosen.named), chosen)


def _submitted(run_dir: RunDir, is_found: Callable[[str], bool]) -> str:
    """The arguments that started a run, naming its experiments so that they are found from here; empty: they are not.

    A file may have been given from another folder: it is looked for beside the runs directory, too.
    """
    words, told = submit_words((records.found(run_dir.path / "submit.json") or {}).get("words")), []
    left = iter(words)
    for word in left:
        told.append(word)
        if word in SUBMIT_OPTIONS:
            told.append(next(left))
        elif word != run_dir.id and not is_found(word):
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
