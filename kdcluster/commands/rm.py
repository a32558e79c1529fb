"""`kdcluster rm`: which runs, or checkpoints of finished ones, go, and what they take; with --yes they are gone."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from kdcluster.commands.arguments import Chosen
from kdcluster.commands.named import of_name
from kdcluster.launch import cancel as cancelling
from kdcluster.runs import RunDir, run_dirs
from kdcluster.terminal import say, show
from kdcluster.wording import count, size


def rm(chosen: Chosen, *, yes: bool) -> None:
    """Show the runs that were named, with what they take on disk; delete them with `yes`.

    Raises:
        ConfigError: one is going on, or another run needs it.
    """
    root = chosen.root
    named = [of_name(root, name) for name in chosen.names]
    experiments = {experiment for experiment, _ in named if experiment}
    asked = {run_dir for experiment, found in named if not experiment for run_dir in found}
    every = dict.fromkeys(run_dir for _, found in named for run_dir in found)
    stay = _staying(every, asked, experiments, root)
    for why in dict.fromkeys(stay.values()):
        ids = [run_dir.id for run_dir in stay if stay[run_dir] == why]
        say(f"{ids[0]} stays: {why}" if len(ids) == 1 else f"{len(ids)} runs stay: {why}")
    wanted = [run_dir for run_dir in every if run_dir not in stay]
    cancelling.check(wanted, root)
    sizes = [sum(cancelling.files(run_dir).values()) for run_dir in wanted]
    for run_dir, bytes_ in zip(wanted, sizes, strict=True):
        show(f"{run_dir.path}  {size(bytes_)}")
    for store, readers in cancelling.needing(wanted, root, lambda run: run.after).items():
        undone = [one.id for one in readers if one not in wanted and not one.result()]
        if undone:
            say(f"{store} is read by {count(len(undone), 'run')} not done: without it they run the teacher themselves")
    what, total = count(len(wanted), "run"), size(sum(sizes))
    if not wanted:
        return say("nothing to delete")
    if not yes:
        return say(f"nothing was deleted; --yes deletes {what}, {total}")
    cancelling.remove(wanted, root, experiments)
    say(f"{what} deleted, {total}")


def _staying(
    every: Collection[RunDir], asked: Collection[RunDir], experiments: Collection[str], root: Path
) -> dict[RunDir, str]:
    """The runs of experiments that others have a use for, and whose; not those that were named themselves."""
    stay: dict[RunDir, str] = {}
    going = [run_dir for run_dir in every if run_dir not in asked]
    for run_dir in going:
        started_for = set(run_dir.experiments())
        if others := sorted(started_for - set(experiments)):
            stay[run_dir] = f"started for {', '.join(others)}{', too' if len(started_for) > len(others) else ''}"
    users = cancelling.needing(going, root)
    for run_dir in going:
        outside = [user.id for user in users[run_dir.id] if user not in every or user in stay]
        if run_dir not in stay and outside:
            stay[run_dir] = f"needed by {outside[0]}"
    return stay


def rm_checkpoints(chosen: Chosen, *, yes: bool) -> None:
    """Show the last checkpoints of runs that are done, with what they take; delete them with `yes`.

    Raises:
        ConfigError: one that was named may not be changed by this user.
    """
    root = chosen.root
    named = [of_name(root, name) for name in chosen.names]
    asked = {run_dir for experiment, found in named if not experiment for run_dir in found}
    every = [run_dir for _, found in named for run_dir in found] if named else run_dirs(root)
    sizes = {run_dir: sum(cancelling.checkpoints(run_dir).values()) for run_dir in dict.fromkeys(every)}
    sizes = {run_dir: bytes_ for run_dir, bytes_ in sizes.items() if bytes_}
    needed = cancelling.needing_checkpoints(sizes)
    needed |= {run_dir: why for run_dir in sizes if run_dir not in asked and (why := _not_ours(run_dir))}
    for why in dict.fromkeys(needed.values()):
        ids = [run_dir.id for run_dir in needed if needed[run_dir] == why]
        say(f"{ids[0] if len(ids) == 1 else count(len(ids), 'run')} {'keeps' if len(ids) == 1 else 'keep'} them: {why}")
    wanted = {run_dir: bytes_ for run_dir, bytes_ in sizes.items() if run_dir not in needed}
    for run_dir, bytes_ in wanted.items():
        show(f"{run_dir.checkpoints}  {size(bytes_)}")
    what, total = f"the checkpoints of {count(len(wanted), 'run')}", size(sum(wanted.values()))
    if not wanted:
        return say("no checkpoint to delete")
    if not yes:
        say("weights, events and results stay, but with more train.epochs such a run starts from scratch")
        return say(f"nothing was deleted; --yes deletes {what}, {total}")
    cancelling.remove_checkpoints(list(wanted), root)
    say(f"{what} deleted, {total}")


def _not_ours(run_dir: RunDir) -> str:
    """Why a run is left alone that was not named itself; empty where it is not."""
    if run_dir.path.stat().st_uid != os.geteuid():
        return "another user's, so it has to be named itself"
    return f"{wrong}, so it has to be named itself" if (wrong := run_dir.known()[1]) else ""
