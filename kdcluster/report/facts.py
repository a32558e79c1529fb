"""What a report says of an experiment, gathered once from the runs directory; nothing is drawn or spelt here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.plan import Role, Run, plan
from kdcluster.report import curves, examples, guesses, latency, origin, trials
from kdcluster.results.index import Index
from kdcluster.results.measured import is_done
from kdcluster.results.table import ExperimentTable, Row, Table
from kdcluster.run import TRAINED
from kdcluster.runs import RunDir
from kdcluster.tabled import tabled


@dataclass(frozen=True)
class Facts:
    """Of one experiment."""

    name: str
    table: Table
    """Of this experiment alone."""
    curves: curves.Curves
    images: guesses.OfImages
    examples: examples.Examples
    trials: trials.Trials | None
    latencies: tuple[latency.Latency, ...]
    origin: origin.Origin
    roles: Mapping[str, Role]
    """Of each run."""
    again: str
    """The arguments that name the same runs in another command."""

    @property
    def results(self) -> ExperimentTable:
        """The table's rows, problems and notes."""
        return self.table.experiments[0]

    def row(self, role: Role) -> Row | None:
        """A row of the table, where it has a number."""
        return next((row for row in self.results.rows if row.role == role and row.top1_mean is not None), None)

    def top1(self, role: Role) -> float | None:
        """The mean of a role in the table, in percent."""
        row = self.row(role)
        return row.top1_mean if row else None

    @property
    def gains(self) -> dict[int, float]:
        """Seed -> gain in percentage points."""
        return {one.seed: one.gain for one in self.results.seeds if one.gain is not None}


def gather(loaded: LoadedExperiment, settings: Sequence[str], root: Path, data_dir: Path, again: str = "") -> Facts:
    """All of them.

    Args:
        loaded: the experiment.
        settings: what the command line sets on top of its file.
        root: the runs directory.
        data_dir: where its images lie, if they do.
        again: the arguments that name the same runs in another command.
    """
    made = plan([loaded])
    done = {run.id for run in made.runs if is_done(RunDir(root, run.id))}
    built = tabled(made, root)
    index = Index(root)  # with what the table has just read
    wanted = made.wanted[loaded.name]
    if wanted["distilled"] == wanted["baseline"]:  # α is 0: there is nothing to compare
        wanted = {**wanted, "distilled": ()}
    runs: dict[Role, list[Run]] = {role: [made[run_id] for run_id in wanted[role]] for role in TRAINED}
    trained = list({run.id: run for ours in runs.values() for run in ours}.values())
    unit = "epoch" if loaded.config.train.steps is None else "step"
    each, labels, without = guesses.read(trained, done, root)
    names = examples.class_names(trained, root, data_dir)
    found = Facts(
        loaded.name,
        built,
        curves.read(runs, done, unit, root, index),
        replace(guesses.compare(runs, each, labels, names), without=tuple(without)),
        examples.choose(runs, each, labels, names, data_dir),
        trials.read(loaded, tuple(settings), root, index),
        latency.read(runs, root),
        origin.read(loaded, made.runs, root),
        {run.id: run.role for run in made.runs},
        again,
    )
    index.save()
    return found
