"""The runs that a name stands for, as their directories tell: that run, or all that were started for an experiment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kdcluster.errors import NotFound
from kdcluster.experiment import configfile
from kdcluster.runs import RunDir, find_run, run_dirs


def of_name(root: Path, name: str) -> tuple[str, list[RunDir]]:
    """The experiment that a name stands for, and every run here that was started for it; or "", and the run.

    Those are runs of all settings and seeds that it was submitted with, and of its sweep; its file may be gone.

    Raises:
        NotFound: it is the name of neither, or nothing was started for the experiment.
        ConfigError: several runs have ids that begin so.
    """
    unknown = f"nothing was started for {name} in {root}"
    try:
        experiment = configfile.find(name).stem
    except NotFound as no_file:
        experiment, unknown = name, f"no run {name!r} in {root}, and {no_file}"
        with suppress(NotFound):
            return "", [find_run(root, name)]
    if found := [run_dir for run_dir in run_dirs(root) if experiment in run_dir.experiments()]:
        return experiment, found
    raise NotFound(unknown)
