"""`kdcluster results --compare A B`: experiments as two runs directories have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcluster.commands.arguments import Chosen
from kdcluster.errors import ConfigError, NotFound
from kdcluster.experiment import configfile
from kdcluster.plan import plan
from kdcluster.results import comparison
from kdcluster.results.index import Index
from kdcluster.results.measured import Measured, Protocol, measure
from kdcluster.run import ARMS, TRAINED, Arm, Run
from kdcluster.runs import RunDir, run_dirs
from kdcluster.terminal import say

Found = dict[tuple[Arm, int], list[tuple[RunDir, Run]]]
"""By arm and seed."""


def compared(
    chosen: Chosen, directories: tuple[Path, Path], style: Any, protocol: Protocol, *, ascii: bool, width: int | None
) -> str:
    """The text. Of each role and seed, the run that an experiment has today, else the one that was started last for it:
    runs of its earlier settings are what is compared.

    Raises:
        ConfigError: the format does not show this, or both are one directory.
        NotFound: neither has a run of a named experiment, or of any.
    """
    if style not in comparison.FORMATS:
        raise ConfigError(f"--compare --format {style}: it is shown as {', '.join(comparison.FORMATS)}")
    a, b = (directory.resolve() for directory in directories)
    if a == b:
        raise ConfigError(f"--compare {a} {b}: both are one directory")
    names = chosen.experiments or tuple(dict.fromkeys(name for root in (a, b) for name in _started(root)))
    found, missing = [], []
    for name in names:
        experiment, its_own = _todays(chosen, name)
        sides = [_measured(root, experiment, its_own, protocol, chosen.roles) for root in (a, b)]
        if any(runs for side in sides for runs in side.values()):
            found.append(comparison.compare(experiment, *sides))
        else:
            missing.append(name)
    if not found:
        raise NotFound(f"no run of {', '.join(missing) or 'any experiment'} in {a} and in {b}")
    for name in missing:
        say(f"neither has a run of {name}")
    shown = (str(directories[0]), str(directories[1]))
    return comparison.render(found, shown, protocol, style, ascii=ascii, width=width)


def _started(root: Path) -> list[str]:
    """The experiments that runs there were started for."""
    return sorted({name for one in run_dirs(root) for name in one.experiments()})


def _todays(chosen: Chosen, name: str) -> tuple[str, dict[str, Arm]]:
    """The name that runs know an experiment by, and its runs as its file and the command line set it; none
    where there is no such file any more, or a broken one."""
    try:
        loaded = configfile.load(name, chosen.settings)
    except NotFound:
        return name, {}
    return loaded.name, {run_id: arm for arm, ids in plan([loaded]).wanted[loaded.name].items() for run_id in ids}


def _measured(
    root: Path, name: str, its_own: Mapping[str, Arm], protocol: Protocol, roles: str | None
) -> dict[Arm, list[Measured]]:
    """The runs of an experiment in a directory, one for each arm and seed."""
    candidates: Found = {}
    for one in run_dirs(root):
        if one.id in its_own or (name in one.experiments() and not one.trials_of(name)):
            run, wrong = one.known()
            if wrong:
                say(f"{one.path} is left out: {wrong}")
            elif run.role in TRAINED and (roles is None or run.role in roles.split(",")):
                candidates.setdefault((its_own.get(run.id, run.role), run.seed), []).append((one, run))
    index = Index(root)
    found: dict[Arm, list[Measured]] = {arm: [] for arm in ARMS}
    others = 0
    for (arm, _), those in sorted(candidates.items(), key=lambda one: one[0][1]):
        run_dir, run = max(those, key=lambda one: (one[0].id in its_own, _began(one[0])))
        others += len(those) - 1
        found[arm].append(measure(run, run_dir, protocol, index))
    index.save()
    if others:
        say(f"{others} more of {name} in {root} with other settings: left out; --set says which are meant")
    return found


def _began(run_dir: RunDir) -> float:
    newest = run_dir.newest()
    return float((newest.read("start").get("started") if newest else None) or 0.0)
