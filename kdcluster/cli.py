"""The command line: parse, call, print, exit. What each command does stands in the module that it calls."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kdcluster import __version__
from kdcluster.columns import fitted
from kdcluster.commands import arguments, completion
from kdcluster.commands.arguments import Chosen, takes
from kdcluster.errors import ConfigError, KdclusterError, NotFound, explain_disk
from kdcluster.experiment import recipes
from kdcluster.experiment.recipes import RECIPES
from kdcluster.imagefolder import looked_at_once
from kdcluster.terminal import Warnings, leave, say, show, show_json, show_wrapped, width
from kdcluster.wording import count, one_line, printable, wrapped

PICTURES = (
    *("curves", "gains", "sizes", "latencies", "classes", "calibration"),
    *("sweep-map", "sweep-keys", "sweep-courses", "time"),
)
"""Of kdcluster.report.pictures, whose modules are not needed to offer them."""


class _Group(click.Group):
    """Turns our errors into a message and an exit code, and a misspelt command into a suggestion."""

    def main(self, *args: Any, **extra: Any) -> Any:
        completion.register()
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with looked_at_once():
                return super().invoke(ctx)
        except KdclusterError as error:
            if ctx.find_root().obj["verbose"]:
                click.echo(printable(traceback.format_exc()), err=True)
            leave("\n".join(map(one_line, _lines(error))), error.exit_code)
        except KeyboardInterrupt:  # click would leave with 1
            leave("interrupted", 130)
        except BrokenPipeError:  # `kdcluster logs | head`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            sys.exit(0)
        except OSError as error:
            message = explain_disk(error, "type the command again")
            if message is None or ctx.find_root().obj["verbose"]:
                raise
            leave(message, 1)


def _lines(error: KdclusterError) -> Sequence[str]:
    """What an error says; only SLURM's own words and logs bring line breaks of their own."""
    if isinstance(error, ConfigError):
        return error.problems
    return [str(error)] if isinstance(error, NotFound) else str(error).split("\n")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kdcluster")
@click.option("-v", "--verbose", is_flag=True, help="Say where in the code an error arose.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.pass_context
def main(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Distil vision models on a cluster: from one experiment file to the results table."""
    gc.set_threshold(100_000)  # few of the many objects of a command are in cycles: 4 % of `status` of 1,000 runs
    ctx.obj = {"verbose": verbose, "quiet": quiet}
    logging.lastResort = Warnings(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII-only stdout gets "?", never a traceback


@main.command("list")
@arguments.as_json
def list_(as_json: bool) -> None:
    """The experiments that can be named here, one line each."""
    from kdcluster.experiment import configfile

    found = []
    for name, path in configfile.experiments().items():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        about = next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
        found.append({"name": name, "path": str(path), "about": about})
    if as_json:
        return show_json({"schema": "kdcluster.list/1", "experiments": found})
    table = [["", ""], *([item["name"], f"{item['about']}  ({item['path']})"] for item in found)]
    for row in fitted(table, width=width(), wraps={1: 20}).rows[1:]:
        for line in row:
            show(line)


@main.command()
@takes(
    *(arguments.experiments, arguments.settings, arguments.resources, arguments.role),
    *(arguments.runs_dir, arguments.data_dir, arguments.place),
)
@click.option("--check", is_flag=True, help="Also try the models, look for data and weights, and ask the scheduler.")
@click.option("--commands", is_flag=True, help="Each run's own command and batch script, also on a terminal.")
@arguments.as_json
def plan(chosen: Chosen, **options: bool) -> None:
    """The DAG of runs: state, needs, command, batch script.

    A terminal gets the command once, with RUN for the id of a run; a pipe gets everything.
    """
    from kdcluster.commands import plan as command

    command.plan(chosen, **options)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXP|RUN...", shell_complete=completion.experiments_and_runs)
@takes(
    *(arguments.settings, arguments.resources, arguments.role),
    *(arguments.runs_dir, arguments.data_dir, arguments.place),
)
@click.option(
    "--max-gpu-hours",
    type=arguments.Amount("GPU-hours", 0),
    default=None,
    metavar="HOURS",
    help="In SLURM: refuse more than this in the worst case.",
)
@click.option("--retry", is_flag=True, help="Start failed and cancelled runs again, too.")
@click.option("--dry-run", is_flag=True, help="Print what would be written and started; write nothing.")
@click.option("--wait", is_flag=True, help="Stay until every run has ended, and show progress.")
@click.option(
    "--timeout",
    type=arguments.Amount("minutes", 0),
    default=None,
    metavar="MIN",
    help="With --wait: give up after MIN.",
)
@arguments.notify
def submit(chosen: Chosen, **options: Any) -> None:
    """Start what is missing, or go on with a RUN. A second call starts nothing twice."""
    from kdcluster.commands import submit as command

    command.submit(chosen, **options)


@main.command()
@click.argument("experiment", metavar="EXP", shell_complete=completion.experiments)
@takes(arguments.settings, arguments.resources, arguments.runs_dir, arguments.data_dir)
@click.option(
    "--role",
    type=arguments.OneOf(["teacher", "baseline", "distilled"]),
    default="distilled",
    show_default=True,
    help="Which of its runs.",
)
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Optimizer steps.")
@click.option("--profile", is_flag=True, help="Write a torch profiler trace, and print the five dearest operations.")
def debug(chosen: Chosen, experiment: str, role: str, steps: int, profile: bool) -> None:
    """A few steps in one foreground process: breakpoint() works.

    On one device, in runs/debug.
    """
    from kdcluster.launch.local.backend import debug as run_here
    from kdcluster.launch.preflight import preflight

    made = chosen.plan(experiment).only([role])
    run = made[next(iter(made.wanted.values()))[role][0]]  # type: ignore[index]
    preflight([made[need] for need in run.needs] + [run], chosen.data, fetch=True)
    sys.exit(run_here(run, chosen.root, chosen.data, steps, profile))


@main.command()
@click.argument("experiment", metavar="EXP", shell_complete=completion.experiments)
@takes(
    *(arguments.overrides, arguments.resources_of_a_sweep, arguments.runs_dir, arguments.data_dir),
    arguments.place_of_a_sweep,
)
@click.option("--trials", type=click.IntRange(1), default=None, help="Points to try.  [default: sweep.trials]")
@click.option(
    "--gpus-per-trial",
    type=arguments.Amount("GPUs", 0, min_open=True),
    default=None,
    metavar="GPUS",
    help="GPUs of each trial, or a share of one.",
)
@click.option("--ray-address", default=None, metavar="HOST:PORT|auto", help="A Ray cluster that is there already.")
@click.option("--dashboard", is_flag=True, help="Show Ray's dashboard, on this machine alone.")
@click.option("--allow-teacher", is_flag=True, help="Also search what changes the teacher; each is trained first.")
@click.option(
    "--confirm",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Fresh seeds for the winner, the file's own settings and the baseline on the whole training set; 0: none.",
)
@click.option("--both", is_flag=True, help="Search the baseline, too, over the keys that concern it: as many trials.")
@click.option("--write-best", is_flag=True, help="Write configs/EXP-best.yaml.")
@click.option("--dry-run", is_flag=True, help="Print the points, their runs and how long all takes; start nothing.")
@arguments.notify
def sweep(chosen: Chosen, experiment: str, notify: str | None, **options: Any) -> None:
    """Search the best alpha and temperature with Ray Tune.

    Or other keys: the space stands in the experiment's `sweep` block. Every trial is an ordinary run, and the same
    command goes on after whatever stopped it. In SLURM the search is one job of --nodes and --gpus in all.
    """
    from kdcluster.commands import notify as notices
    from kdcluster.commands import sweep as command

    notify = "" if options["dry_run"] else notify
    notices.of_sweep(chosen, experiment, notify, lambda: command.sweep(chosen, experiment, command.Wanted(**options)))


@main.command()
@click.argument("names", nargs=-1, metavar="[EXP|RUN...]", shell_complete=completion.experiments_and_runs)
@takes(arguments.settings, arguments.runs_dir)
@click.option("--watch", is_flag=True, help="Stay until every run has ended.")
@arguments.as_json
def status(chosen: Chosen, watch: bool, as_json: bool) -> None:
    """Runs by experiment and sweep: state, progress, why one waits.

    Without names: every run in the runs directory, and what else its experiments want. A terminal that is too short
    for all of them gets those that run; a pipe gets everything. `show RUN` says all of one.
    """
    from kdcluster.commands import status as command

    command.status(chosen, watch=watch, as_json=as_json)


@main.command("show")
@click.argument("run", shell_complete=completion.runs)
@takes(arguments.runs_dir)
@arguments.as_json
def show_(chosen: Chosen, run: str, as_json: bool) -> None:
    """One run: settings, needs, attempts, result, files.

    The settings that are not the default come first; what needs it stands beside what it needs, and each attempt with
    how it ended, the traceback of the rank that failed first, and what it cost.
    """
    from kdcluster.commands import show as command

    command.show(chosen, run, as_json=as_json)


@main.command()
@click.argument("a", shell_complete=completion.experiments_and_runs)
@click.argument("b", required=False, shell_complete=completion.experiments_and_runs)
@takes(arguments.settings, arguments.runs_dir)
@arguments.as_json
def diff(chosen: Chosen, a: str, b: str | None, as_json: bool) -> None:
    """The keys in which two runs, or two experiments, differ.

    Of a run and an experiment: the run, and the one that the experiment has of its role and seed today. --set
    and --seeds hold for every experiment that is named; without B, A is compared with itself as they set it, and
    without them with the defaults: what its file and its recipe say.
    """
    from kdcluster.commands import diff as command

    command.diff(chosen, a, b, as_json=as_json)


@main.command()
@click.argument("name", metavar="RUN|EXP", shell_complete=completion.experiments_and_runs)
@takes(arguments.runs_dir)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("-n", "--lines", "last", type=click.IntRange(0), default=None, help="The last so many lines alone.")
@click.option("--rank", type=click.IntRange(0), default=None, help="This rank alone.")
@arguments.as_json
def logs(chosen: Chosen, name: str, **options: Any) -> None:
    """The run's log, all ranks labelled. RUN is any unique beginning of an id.

    Of an EXP: all of its runs that are running, each line with its run (with -f also those that wait for their turn);
    else the one that failed last, else the last one.
    """
    from kdcluster.commands import logs as command

    command.logs(chosen, name, **options)


@main.command()
@takes(arguments.experiments, arguments.settings, arguments.role, arguments.runs_dir, arguments.data_dir)
def prefetch(chosen: Chosen) -> None:
    """Fetch data and weights now, on the machine that has internet."""
    from kdcluster.commands.plan import say_inputs
    from kdcluster.launch.preflight import preflight

    runs = chosen.plan().runs
    preflight(runs, chosen.data, fetch=True)
    say_inputs(runs, chosen.data)
    say(f"data and weights of {', '.join(chosen.experiments)} are here: {chosen.data}")


@main.command()
@click.argument("experiment", metavar="EXP", shell_complete=completion.experiments)
@takes(arguments.overrides, arguments.runs_dir, arguments.data_dir)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE.png",
    help="Where to.",
)
def views(chosen: Chosen, experiment: str, output: Path) -> None:
    """Draw what the models will see.

    A contact sheet of eight training images and six views of each, of the students, and of the teacher where it is
    trained on others. The images must be here, as `prefetch` puts them.
    """
    from kdcluster.commands import views as command

    command.views(chosen, experiment, output)


@main.command()
@takes(arguments.experiments, arguments.overrides, arguments.runs_dir, arguments.data_dir)
@click.option("--images", type=click.IntRange(1), default=1000, show_default=True, help="How many to compute again.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which images.")
@arguments.as_json
def verify(chosen: Chosen, images: int, seed: int, as_json: bool) -> None:
    """Hold the stored logits against the teacher of today.

    All check sums, a sample of images computed again, and whether the logits stand in the order of the labels. A view
    that is wrong is read by nobody any more, and the next submit makes it again.
    """
    from kdcluster.commands import verify as command

    command.verify(chosen, images=images, seed=seed, as_json=as_json)


@main.command()
@click.argument("experiments", nargs=-1, metavar="[EXP...]", shell_complete=completion.experiments)
@takes(arguments.settings, arguments.role, arguments.runs_dir)
@click.option(
    "--format",
    "style",
    type=arguments.OneOf(["table", "md", "latex", "html", "csv", "json", "jsonl"]),
    default=None,
    help="What to print.  [default: what the end of --output says, else table]",
)
@click.option(
    "--protocol",
    type=arguments.OneOf(["best", "last"]),
    default="best",
    show_default=True,
    help="Accuracy of the best epoch or of the last.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write to a file instead."
)
@click.option("--strict", is_flag=True, help="Leave with 1 where a run is missing or failed.")
@click.option("--per-seed", is_flag=True, help="Also each run: accuracy, gain, test over images, time; in JSON always.")
@click.option(
    "--columns",
    metavar="NAME,...",
    default="",
    help="These columns; a wrong name says which there are.",
    shell_complete=completion.columns,
)
@click.option(
    "--sort",
    metavar="[-]NAME",
    default=None,
    help="Rows by a column, with - the largest first.",
    shell_complete=completion.columns,
)
@click.option("--together", is_flag=True, help="Several experiments in one table, with what they share once.")
@click.option(
    "--compare",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    nargs=2,
    metavar="DIR_A DIR_B",
    help="What changed from one runs directory to another, with intervals.",
)
@click.option("--sweep", "of_sweep", is_flag=True, help="The trials of the experiment's sweep instead.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def results(chosen: Chosen, **options: Any) -> None:
    """The results table, and what is missing from it.

    Accuracy, gain over the baseline, parameters, reduction and retention of each configuration. Without names: of every
    experiment that has a run in the runs directory.
    """
    from kdcluster.commands import results as command

    command.results(chosen, **options)


@main.command()
@click.argument("experiments", nargs=-1, metavar="[EXP...]", shell_complete=completion.experiments)
@takes(arguments.runs_dir)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=None, help="Its port.  [default: 6006, else the next one free]"
)
def tensorboard(chosen: Chosen, port: int | None) -> None:
    """TensorBoard on the runs, with names to read.

    Without names: on every run in the runs directory. It listens on this machine alone.
    """
    from kdcluster.commands import tensorboard as command

    command.tensorboard(chosen, port)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXP|RUN...", shell_complete=completion.experiments_and_runs)
@takes(arguments.settings, arguments.runs_dir)
@click.option("--shared", is_flag=True, help="Also runs that other live experiments need.")
def cancel(chosen: Chosen, shared: bool) -> None:
    """Stop runs, keep what they have."""
    from kdcluster.commands.next_steps import say_how_to_go_on
    from kdcluster.launch import cancel as cancelling

    root, ids = chosen.root, [run_dir.id for run_dir in chosen.single]
    if chosen.named:
        made = chosen.plan()
        others = {} if shared else cancelling.shared(made, root)
        for run_id, wanted in others.items():
            say(f"  {run_id}  goes on: started for {', '.join(wanted)}, too; --shared stops it")
        ids += [run.id for run in made.runs if run.id not in others]
        if left := set(cancelling.going_on(made, root)) - set(ids):
            who = f"{count(len(left), 'run')} of other settings, or of a sweep, {'goes' if len(left) == 1 else 'go'} on"
            say(f"  {who}; give the same --set and --seeds, or name what to stop")
    stopped = cancelling.cancel(dict.fromkeys(ids), root)
    for run_id, state in stopped.items():
        say(f"  {run_id}  {state}")
    say(
        f"{count(len(stopped), 'run')} stopped"
        if stopped
        else "nothing to stop: none of these runs is queued or running"
    )
    say_how_to_go_on(stopped, chosen)


@main.command()
@click.argument("names", nargs=-1, metavar="[RUN|EXP...]", shell_complete=completion.experiments_and_runs)
@takes(arguments.runs_dir)
@click.option(
    "--checkpoints", is_flag=True, help="Of runs that are done only the checkpoint; without names, of all your own."
)
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would be deleted.")
def rm(chosen: Chosen, checkpoints: bool, yes: bool) -> None:
    """Delete runs. Shows what it would delete unless --yes; refuses what another run needs.

    Of an EXP: every run that was started for it, with whatever settings and by its sweep, but for those that were
    started for another experiment, too, or that another run needs.
    """
    from kdcluster.commands import rm as command

    if checkpoints:
        return command.rm_checkpoints(chosen, yes=yes)
    if not chosen.names:
        raise click.UsageError("Missing argument 'RUN|EXP...'.")
    command.rm(chosen, yes=yes)


@main.command()
@click.argument("experiments", nargs=-1, metavar="[EXP...]", shell_complete=completion.experiments)
@takes(
    *(arguments.settings, arguments.resources, arguments.role),
    *(arguments.runs_dir, arguments.data_dir, arguments.place),
)
@click.option("--with-job", is_flag=True, help="In SLURM: look from a compute node, too, by a job of a few seconds.")
@arguments.as_json
def doctor(chosen: Chosen, with_job: bool, as_json: bool) -> None:
    """Check what a submission needs and would do, line by line."""
    from kdcluster.commands import doctor as command

    command.doctor(chosen, with_job=with_job, as_json=as_json)


@main.command()
@click.option("--recipe", type=click.Choice(list(RECIPES)), help="The keys that `recipe: NAME` stands for, as a file.")
@arguments.as_json
def schema(recipe: recipes.Name | None, as_json: bool) -> None:
    """The experiment file's fields: type, unit, default, meaning."""
    from kdcluster.experiment.schema import fields, json_schema, recipe_file

    if recipe:
        named = {"schema": "kdcluster.recipe/1", "recipe": recipe, "source": RECIPES[recipe].source}
        if as_json:
            return show_json({**named, "keys": recipes.keys(recipe)})
        for line in recipe_file(recipe):
            show(line)
        return None
    if as_json:
        return show_json(json_schema())
    for doc in fields():
        default = f", default {doc.default}" if doc.default not in ("", "required") else ""
        where = "" if doc.hashed else "  (not in the id)"
        show_wrapped("", f"{doc.key}: {doc.kind}{', required' if doc.default == 'required' else default}{where}")
        for line in wrapped(f"    {doc.meaning}", width() or 80, "    "):
            show(line)


@main.command()
@takes(arguments.experiments, arguments.settings, arguments.runs_dir, arguments.data_dir)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE.html",
    help="Where to.  [default: EXP-report.html]",
)
@click.option(
    "--internal",
    is_flag=True,
    help="Also host names, folders and uncommitted changes, for yourself and your group.",
)
def report(chosen: Chosen, output: Path | None, internal: bool) -> None:
    """One HTML page with all that came of experiments.

    It needs no network: table, curves, gain of each seed, what distillation fixed and broke, calibration, sweeps, cost,
    and how to make it again.
    """
    from kdcluster.commands import report as command

    command.report(chosen, output, internal=internal)


@main.command()
@click.argument("experiment", metavar="EXP", shell_complete=completion.experiments)
@takes(arguments.settings, arguments.runs_dir, arguments.data_dir)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FIG.pdf",
    help="Where to: .pdf, .png or .svg.",
)
@click.option("--picture", type=arguments.OneOf(PICTURES), default="curves", show_default=True, help="Of what.")
@click.option(
    "--width-mm",
    type=arguments.Amount("millimetres", 20, 1000),
    default=80,
    metavar="MM",
    show_default=True,
    help="How wide; a column has 80 in article, 84 in ACM's, 88 in IEEE's two, the text of one 121.",
)
@click.option(
    "--y-min",
    type=arguments.Amount("percent", 0, 100, max_open=True),
    default=None,
    metavar="PERCENT",
    help="Lowest accuracy that curves show.  [default: all points]",
)
def plot(chosen: Chosen, experiment: str, **options: Any) -> None:
    """A picture of the report as a file for a paper.

    With letters of 8 pt at its width, and a caption for it on stderr.
    """
    from kdcluster.commands import report as command

    command.plot(chosen, experiment, **options)


@main.command()
@click.argument("name", metavar="RUN|EXP", shell_complete=completion.experiments_and_runs)
@takes(arguments.settings, arguments.runs_dir, arguments.data_dir)
@click.option("--best", is_flag=True, help="Of an EXP the best seed alone.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=None, metavar="DIR", help="A folder that is new, or empty."
)
@click.option("--force", is_flag=True, help="Also a run that is not finished: the best weights that it has.")
@click.option(
    "--benchmark", is_flag=True, help="Measure size, latency and throughput here, once; int8, too. Needs no --output."
)
def export(chosen: Chosen, name: str, **options: Any) -> None:
    """A run's model as files for others, and a model card.

    The best weights of a RUN; of an EXP those of its distilled runs, each in a folder of its own. What an exporter
    cannot write is left out and said, and it leaves with 1.
    """
    from kdcluster.commands import export as command

    command.export(replace(chosen, names=(name,)), **options)


@main.command()
@click.argument("name", metavar="RUN|EXP", shell_complete=completion.experiments_and_runs)
@takes(arguments.settings, arguments.runs_dir, arguments.data_dir)
@click.option("--best", is_flag=True, help="Of an EXP the best of its distilled runs.")
@click.option(
    *("--data", "folder"),
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Other images, a sub-folder for each class.",
)
@click.option(
    "--format",
    "style",
    type=arguments.OneOf(["table", "json", "png"]),
    default=None,
    help="What to print; png is the confusion matrix.  [default: what the end of --output says, else table]",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write to a file instead."
)
@click.option(
    "--device",
    type=arguments.OneOf(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where it is computed; auto is a GPU where there is one.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def evaluate(chosen: Chosen, name: str, style: str | None, as_json: bool, **options: Any) -> None:
    """How good a run is on other images.

    Top-1, top-5, each class and the confusion matrix, of its best weights. The images are read as its own were, and
    classes are matched by their names.
    """
    from kdcluster.commands import evaluate as command

    command.evaluate(replace(chosen, names=(name,)), "json" if as_json else style, **options)


if __name__ == "__main__":
    main()
