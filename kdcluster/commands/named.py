"""The runs that a name stands for, as their directories tell: that run, or all that were started for an experiment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kdcluster.errors import ConfigError, KdclusterError, NotFound
from kdcluster.experiment import configfile
from kdcluster.plan import plan
from kdcluster.runs import RunDir, find_run, run_dirs


def of_name(root: Path, name: str) -> tuple[str, list[RunDir]]:
    """The experiment that a name stands for, and every run here that was started for it; or "", and the run.

    Those are runs of all settings and seeds that it was submitted with, and of its sweep; its file may be gone. Where
    it is there, also those of its settings that were started under another name.

    Raises:
        NotFound: it is the name of neither, or nothing was started for the experiment.
        ConfigError: several runs have ids that begin so; nothing was started for it, and its file is broken.
    """
    unknown: KdclusterError = NotFound(f"nothing was started for {name} in {root}")
    its_own: set[str] = set()
    try:
        experiment = configfile.find(name).stem
        its_own = {run.id for run in plan([configfile.load(name)]).runs}
    except ConfigError as broken:  # what its file has started is to be read, and deleted, all the same
        unknown = broken
    except NotFound as no_file:
        experiment, unknown = name, NotFound(f"no run {name!r} in {root}, and {no_file}")
        with suppress(NotFound):
            return "", [find_run(root, name)]
    if found := [one for one in run_dirs(root) if one.id in its_own or experiment in one.experiments()]:
        return experiment, found
    raise unknown
