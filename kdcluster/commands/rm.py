"""`kdcluster rm`: which runs go, what they take, and then without them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdcluster.commands.arguments import Chosen
from kdcluster.commands.named import of_name
from kdcluster.launch import cancel as cancelling
from kdcluster.runs import RunDir
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
    every = list(dict.fromkeys(run_dir for _, found in named for run_dir in found))
    stay = _staying(every, asked, experiments, root)
    for run_dir, why in stay.items():
        say(f"{run_dir.id} stays: {why}")
    wanted = [run_dir for run_dir in every if run_dir not in stay]
    cancelling.check(wanted, root)
    sizes = [sum(cancelling.files(run_dir).values()) for run_dir in wanted]
    for run_dir, bytes_ in zip(wanted, sizes, strict=True):
        show(f"{run_dir.path}  {size(bytes_)}")
    what = f"{count(len(wanted), 'run')}, {size(sum(sizes))}"
    if not yes:
        return say(f"nothing was deleted; --yes deletes {what}" if wanted else "nothing to delete")
    cancelling.remove(wanted, root, experiments)
    say(f"deleted: {what}")


def _staying(
    every: Iterable[RunDir], asked: Iterable[RunDir], experiments: Iterable[str], root: Path
) -> dict[RunDir, str]:
    """The runs of experiments that others have a use for, and whose; not those that were named themselves."""
    stay: dict[RunDir, str] = {}
    going = [run_dir for run_dir in every if run_dir not in asked]
    for run_dir in list(going):
        if others := sorted(set(run_dir.experiments()) - set(experiments)):
            stay[run_dir] = f"{', '.join(others)} {'wants' if len(others) == 1 else 'want'} it too"
    users = cancelling.needing(going, root)
    for run_dir in going:
        outside = [user.id for user in users[run_dir.id] if user not in every or user in stay]
        if run_dir not in stay and outside:
            stay[run_dir] = f"{outside[0]} needs it"
    return stay
