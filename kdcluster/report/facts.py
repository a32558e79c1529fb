"""What a report says of an experiment, gathered once from the runs directory; nothing is drawn or spelt here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcluster import inputs
from kdcluster.errors import ConfigError
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.plan import Role, Run, plan
from kdcluster.report import curves, examples, guesses, latency, origin, trials
from kdcluster.results.index import Index
from kdcluster.results.measured import TOP1, is_done, selected_by
from kdcluster.results.table import ExperimentTable, Row, Table
from kdcluster.run import TRAINED
from kdcluster.runs import RunDir
from kdcluster.tabled import tabled
from kdcluster.wording import count


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
    data: str
    """The data set in a line: classes, images, and at what size each model sees them."""
    unlabelled: int
    """Training images that only distilled students learn from, without their labels."""
    on_test: bool
    """Whether the epoch that counts was chosen on the test images."""
    again: tuple[str, ...]
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


def gather(
    loaded: LoadedExperiment, settings: Sequence[str], root: Path, data_dir: Path, again: Sequence[str] = ()
) -> Facts:
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
        trials.read(loaded, tuple(settings), {run.id for run in made.runs}, root, index),
        latency.read(runs, root),
        origin.read(loaded, made.runs, root, data_dir),
        {run.id: run.role for run in made.runs},
        *_data(loaded, runs, data_dir),
        tuple(again),
    )
    index.save()
    return found


def _data(loaded: LoadedExperiment, runs: Mapping[Role, Sequence[Run]], data_dir: Path) -> tuple[str, int, bool]:
    """`Facts.data`, `unlabelled` and `on_test`."""
    config, (first, *_) = loaded.config.data, [run for ours in runs.values() for run in ours]
    name = config.name if config.path is None else f"the image folder {Path(config.path).name}"
    on_test = selected_by(config) == TOP1
    try:
        told, train = inputs.told([first, *runs["distilled"]], data_dir), inputs.images(first, data_dir).counts["train"]
    except ConfigError:  # a folder that is gone, and was never decoded here
        return f"{name}: {count(loaded.num_classes, 'class')}", 0, on_test
    unlabelled = train - config.labelled if config.labelled is not None and runs["distilled"] else 0
    return f"{name}: {told[0].line}", unlabelled, on_test
