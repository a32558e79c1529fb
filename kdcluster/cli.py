"""The command line: parse, call, print, exit. What each command does stands in the module that it calls."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcluster import __version__, arguments
from kdcluster.arguments import Chosen, takes
from kdcluster.errors import ConfigError, KdclusterError, explain_disk
from kdcluster.terminal import can_show, count, leave, say, show, show_json

if TYPE_CHECKING:
    from kdcluster.history import Record
    from kdcluster.launch.local import Local
    from kdcluster.launch.slurm import Slurm
    from kdcluster.launch.status import Status
    from kdcluster.launch.torchrun import Layout
    from kdcluster.plan import Plan, Run
    from kdcluster.runs import RunDir


class _Group(click.Group):
    """Turns our errors into a message and an exit code, and a misspelt command into a suggestion."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KdclusterError as error:
            if ctx.find_root().obj["verbose"]:
                click.echo(traceback.format_exc(), err=True)
            leave(str(error), error.exit_code)
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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kdcluster")
@click.option("-v", "--verbose", is_flag=True, help="Say where in the code an error arose.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.pass_context
def main(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Distil vision models on a cluster: from one experiment file to the results table."""
    ctx.obj = {"verbose": verbose, "quiet": quiet}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII-only stdout gets "?", never a traceback


@main.command("list")
@arguments.as_json
def list_(as_json: bool) -> None:
    """The experiments that can be named here, one line each."""
    from kdcluster import configfile

    found = []
    for name, path in configfile.experiments().items():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        about = next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
        found.append({"name": name, "path": str(path), "about": about})
    if as_json:
        return show_json({"schema": "kdcluster.list/1", "experiments": found})
    width = max((len(item["name"]) for item in found), default=0)
    for item in found:
        show(f"{item['name']:<{width}}  {item['about']}  ({item['path']})")


@main.command()
@takes(
    *(arguments.experiments, arguments.settings, arguments.resources, arguments.role),
    *(arguments.runs_dir, arguments.data_dir, arguments.place),
)
@click.option("--check", is_flag=True, help="Also build the models, look for data and weights, and ask the scheduler.")
@arguments.as_json
def plan(chosen: Chosen, check: bool, as_json: bool) -> None:
    """The DAG of runs: state, needs, command and batch script of each."""
    from kdcluster.launch.status import statuses
    from kdcluster.launch.submission import to_start

    made, root, data = chosen.plan(), chosen.root, chosen.data
    there = chosen.place()
    found, where, scripts = statuses(made, root), there.layouts(made), there.scripts(made, root)
    checked = _check(made, data, there, root) if check else None
    notes = [*there.notes(), *(checked["notes"] if checked else ())]
    rows = [_planned(made, run, root, data, found[run.id], where[run.id], scripts.get(run.id)) for run in made.runs]
    for row in rows if checked else ():
        row["params"] = checked["models"][row["id"]]["params"]  # type: ignore[index]
    if as_json:
        show_json({"schema": "kdcluster.plan/1", "runs": rows, "notes": notes})
    else:
        _show_plan(made, rows, where)
        for note in notes:
            show(f"note: {note}")
        _say_worst_case(there, made, to_start(made, found))
    if checked and checked.get("refused"):
        leave("these runs could not run there", 1)


def _check(made: Plan, data: Path, backend: Local | Slurm, root: Path) -> dict[str, Any]:
    from kdcluster.launch.preflight import preflight

    found = preflight(made.runs, data, fetch=False)
    try:
        backend.check(made, [run.id for run in made.runs], root)
        if backend.name == "slurm":
            found["notes"].append("SLURM would run these jobs (sbatch --test-only)")
    except KdclusterError as error:
        found["notes"].append(str(error))
        found["refused"] = True
    return found


def _planned(
    made: Plan, run: Run, root: Path, data: Path, status: Status, where: Layout, script: str | None
) -> dict[str, Any]:
    return {
        "id": run.id,
        "role": run.role,
        "seed": run.seed,
        "experiments": made.experiments_of(run.id),
        "state": status.state,
        "reason": status.reason,
        "needs": run.needs,
        "command": _command(root / run.id, data, where),
        "sbatch": script,
        "dir": str(root / run.id),
        "hash": run.hash,
    }


def _command(run_dir: Path, data: Path, where: Layout) -> list[str]:
    """argv of torchrun; on several nodes with stand-ins for what only the job knows."""
    from kdcluster.launch.torchrun import Rendezvous, command

    several = Rendezvous("<first node>:<port>", "<job>", True, "<this node>") if where.nodes > 1 else None
    return command(run_dir, data, where, several)


def _show_plan(made: Plan, rows: list[dict[str, Any]], where: dict[str, Layout]) -> None:
    teacher_params = {row["id"]: row.get("params") for row in rows if row["role"] == "teacher"}
    for row in rows:
        run = made[row["id"]]
        show(f"{row['id']}  {row['state']}" + (f"  ({row['reason']})" if row["reason"] else ""))
        show(f"  for      {', '.join(row['experiments'])}; on {where[run.id]}")
        if row.get("params"):
            of = [teacher_params[need] for need in row["needs"] if teacher_params.get(need)]
            smaller = f", {of[0] / row['params']:.1f}× smaller than its teacher" if of else ""
            show(f"  params   {row['params']:,} ({row['params'] / 1e6:.1f} M{smaller})")
        if row["needs"]:
            show(f"  needs    {', '.join(row['needs'])}")
        if row["state"] == "done":
            continue
        show(f"  command  {shlex.join(row['command'])}")
        if row["sbatch"]:
            show(f"  sbatch\n{textwrap.indent(row['sbatch'].rstrip(), '    ')}")


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXP|RUN...")
@takes(
    *(arguments.settings, arguments.resources, arguments.role),
    *(arguments.runs_dir, arguments.data_dir, arguments.place),
)
@click.option(
    "--max-gpu-hours", type=click.FloatRange(0), default=None, help="In SLURM: refuse more than this in the worst case."
)
@click.option("--retry", is_flag=True, help="Start failed and cancelled runs again, too.")
@click.option("--dry-run", is_flag=True, help="Print what would be written and started; write nothing.")
@click.option("--wait", is_flag=True, help="Stay until every run has ended, and show progress.")
@click.option(
    "--timeout", type=click.FloatRange(0), default=None, metavar="MIN", help="With --wait: give up after MIN."
)
def submit(
    chosen: Chosen, max_gpu_hours: float | None, retry: bool, dry_run: bool, wait: bool, timeout: float | None
) -> None:
    """Start what is missing, or go on with a RUN. A second call starts nothing twice."""
    from kdcluster.launch import submission
    from kdcluster.launch.preflight import preflight
    from kdcluster.launch.status import statuses

    if timeout is not None and not wait:
        raise ConfigError("--timeout needs --wait")
    made, root, data = chosen.plan_with_runs(), chosen.root, chosen.data
    there = chosen.place(max_gpu_hours)
    wanted = submission.to_start(made, statuses(made, root), retry=retry)
    if wanted:
        _say_worst_case(there, made, wanted)
    if dry_run:
        return _show_dry_run(made, wanted, root, data, there)
    words = chosen.submit_again()
    prepare = partial(preflight, data_dir=data, fetch=True)
    done = submission.submit(made, root, data, there, prepare, retry=retry, words=words)
    _say_submission(made, done, chosen)
    if wait:
        _wait(made, chosen, timeout)


def _say_next_steps(found: Mapping[str, Status], again: str, chosen: Chosen) -> None:
    """`again`: arguments of submit for runs that were never submitted."""
    from kdcluster.launch.status import next_steps
    from kdcluster.runs import RunDir

    words = {run_id: RunDir(chosen.root, run_id).submitted() or again for run_id in found}
    for step in next_steps(found, words, chosen.where):
        say(f"next: {step}")


def _say_worst_case(backend: Local | Slurm, made: Plan, chosen: list[str]) -> None:
    """What the runs could cost, before anything is queued."""
    from kdcluster.launch.slurm import Slurm

    if isinstance(backend, Slurm):
        hours = backend.gpu_hours(made, chosen)
        once = "" if hours is None else f" ({hours / backend.attempts:.4g} without restarts and requeues)"
        cost = "not known: there is no time limit" if hours is None else f"{hours:.4g} GPU-hours{once}"
        say(f"worst case of {count(len(chosen), 'run')}: {cost}")
    for note in backend.notes():
        say(f"note: {note}")


def _show_dry_run(made: Plan, chosen: list[str], root: Path, data: Path, backend: Local | Slurm) -> None:
    where, scripts = backend.layouts(made), backend.scripts(made, root)
    for run_id in chosen:
        show(f"# {root / run_id / 'config.yaml'}\n{made[run_id].to_yaml()}")
        show(f"# started on {where[run_id]} as\n{shlex.join(_command(root / run_id, data, where[run_id]))}\n")
        if run_id in scripts:
            show(f"# sent to sbatch\n{scripts[run_id]}")
    show(f"# {len(chosen)} of {len(made.runs)} runs would be started; nothing was written")


def _say_submission(made: Plan, submission: Any, chosen: Chosen) -> None:
    from kdcluster.files import trainer_code
    from kdcluster.runs import RunDir

    for run_id, status in submission.left.items():
        why = f" ({status.reason})" if status.reason else ""
        how = "; --retry starts it again" if status.state in ("failed", "cancelled") else ""
        say(f"  {run_id}  {status.state}{why}{how}")
    for run_id in submission.started:
        say(f"  {run_id}  {submission.word}")
    done = [RunDir(chosen.root, i).newest() for i, status in submission.left.items() if status.state == "done"]
    codes = [attempt.read("trainer").get("trainer_code") for attempt in done if attempt]
    if other := sum(code not in (None, trainer_code()) for code in codes):
        say(f"{other} of the done runs were made by other trainer code than today's")
    if not submission.started:
        return say(
            f"nothing to start: {'the run is' if len(made.runs) == 1 else f'all {len(made.runs)} runs are'} as shown"
        )
    again, where = chosen.again(), chosen.where
    say(f"{len(submission.started)} of {count(len(made.runs), 'run')} {submission.where}")
    say(f"next: kdcluster status {again} --watch{where}   then: kdcluster results {again}{where}")


def _wait(made: Plan, chosen: Chosen, timeout: float | None) -> None:
    """Until every run has ended."""
    from kdcluster.launch.progress import follow

    try:
        found = follow(made, chosen.root, sys.stderr, timeout_min=timeout)
    except KeyboardInterrupt:
        from kdcluster.launch.status import ENDED, statuses

        going = [i for i, status in statuses(made, chosen.root).items() if status.state not in (*ENDED, "planned")]
        look = f"kdcluster status {chosen.again()} --watch{chosen.where}, or kdcluster cancel to stop them"
        leave(f"\ndetached; still going: {', '.join(going) or 'nothing'}" + (f"\nnext: {look}" if going else ""), 130)
    if any(status.state != "done" for status in found.values()):
        _say_next_steps(found, chosen.submit_again(), chosen)
        leave("not every run is done", 1)


@main.command()
@click.argument("experiment", metavar="EXP")
@takes(arguments.settings, arguments.resources, arguments.runs_dir, arguments.data_dir)
@click.option(
    "--role",
    type=click.Choice(["teacher", "baseline", "distilled"]),
    default="distilled",
    show_default=True,
    help="Which of its runs.",
)
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Optimizer steps.")
def debug(chosen: Chosen, experiment: str, role: str, steps: int) -> None:
    """A few steps in one foreground process: breakpoint() works.

    On one device, in runs/debug.
    """
    from kdcluster.launch import local
    from kdcluster.launch.preflight import preflight

    made = chosen.plan(experiment).only([role])
    run = made[next(iter(made.wanted.values()))[role][0]]  # type: ignore[index]
    preflight([made[need] for need in run.needs] + [run], chosen.data, fetch=True)
    sys.exit(local.debug(run, chosen.root, chosen.data, steps))


@main.command()
@click.argument("experiment", metavar="EXP")
@takes(arguments.settings, arguments.resources, arguments.runs_dir, arguments.data_dir, arguments.place)
@click.option("--trials", type=click.IntRange(1), default=None, help="Points to try.  [default: sweep.trials]")
@click.option(
    "--gpus-per-trial",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="GPUs of each trial, or a share of one; --gpus is of the whole sweep then.",
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
@click.option("--write-best", is_flag=True, help="Write configs/EXP-best.yaml.")
@click.option("--dry-run", is_flag=True, help="Print the points and their runs; start nothing.")
def sweep(chosen: Chosen, experiment: str, **options: Any) -> None:
    """Search the best alpha and temperature with Ray Tune.

    Or other keys: the space stands in the experiment's `sweep` block. Every trial is an ordinary run, and the same
    command goes on after whatever stopped it. In SLURM the search is one job of --nodes and --gpus in all.
    """
    from kdcluster import sweep_command

    sweep_command.sweep(chosen, experiment, sweep_command.Wanted(**options))


@main.command()
@click.argument("names", nargs=-1, metavar="[EXP|RUN...]")
@takes(arguments.settings, arguments.runs_dir)
@click.option("--watch", is_flag=True, help="Stay until every run has ended.")
@arguments.as_json
def status(chosen: Chosen, watch: bool, as_json: bool) -> None:
    """One row a run: state, progress, why it waits. Of a RUN: each attempt, and what it cost.

    Without names: every run in the runs directory, and what else its experiments want.
    """
    from kdcluster.history import cost, history, post_mortem, spent
    from kdcluster.launch.progress import follow
    from kdcluster.launch.status import statuses
    from kdcluster.plan import Plan
    from kdcluster.runs import RunDir, run_dirs

    root = chosen.root
    named, single = chosen.named, {run_dir.id: run_dir for run_dir in chosen.single}
    if not chosen.names:
        named = _started_here(root)
    here = single if chosen.names else {run_dir.id: run_dir for run_dir in run_dirs(root)}
    made = (chosen.plan(*named) if named else Plan((), {}, {})).joined(_with_needs(here.values()))
    if watch:
        follow(made, root, sys.stderr)
    found = statuses(made, root)
    shown = [run for run in made.runs if run.id in here or made.experiments_of(run.id)]
    records = {run.id: history(RunDir(root, run.id)) for run in shown}
    rows = [_status_row(made, run, found[run.id], root, records[run.id]) for run in shown]
    if as_json:
        return show_json({"schema": "kdcluster.status/1", "runs": rows})
    for row in rows:
        done = f"{row['epoch']}/{row['epochs']}" if row["epochs"] else "-"
        best = f"{row['best_top1']:.2f} %" if row["best_top1"] is not None else "-"
        show(f"{row['id']:<48} {row['state']:<9} {done:>7} {best:>8}  {row['reason']}".rstrip())
        for line in post_mortem(records[row["id"]]) if row["id"] in single else ():
            show(f"  {line}")
    counts = {state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(r["state"] for r in rows)}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    if not chosen.names and not rows:
        say(f"nothing was started yet in {root}; name an experiment")
    total = spent(cost(record for one in records.values() for record in one))
    show(f"{count(len(rows), 'run')}{f': {states}' if rows else ''}{f'; {total}' if total else ''}")
    known = named or tuple(sorted({name for run_dir in here.values() for name in run_dir.experiments()}))
    _say_next_steps({run.id: found[run.id] for run in shown}, chosen.again(*known), chosen)


def _started_here(root: Path) -> tuple[str, ...]:
    """Names of the experiments that are known here and have a run in this runs directory."""
    from kdcluster import configfile
    from kdcluster.plan import plan

    names = []
    for name in configfile.experiments():
        try:
            made = plan([configfile.load(name)])
        except ConfigError:
            continue  # a broken file says so when it is named
        if any((root / run.id).is_dir() for run in made.runs):
            names.append(name)
    return tuple(names)


def _with_needs(run_dirs: Iterable[RunDir]) -> Iterator[Run]:
    """The runs of directories and what they need; one that this version cannot read is said and left out."""
    for run_dir in run_dirs:
        try:
            yield from run_dir.with_needs()
        except KdclusterError as error:
            say(str(error))


def _status_row(made: Plan, run: Run, status: Status, root: Path, records: list[Record]) -> dict[str, Any]:
    from dataclasses import asdict

    from kdcluster.history import cost
    from kdcluster.runs import RunDir

    beat = status.heartbeat
    return {
        "id": run.id,
        "experiments": made.experiments_of(run.id) or RunDir(root, run.id).experiments(),
        "role": run.role,
        "seed": run.seed,
        "state": status.state,
        "epoch": beat.get("epoch"),
        "epochs": beat.get("epochs"),
        "step": beat.get("step"),
        "steps": beat.get("steps"),
        "images_per_s": beat.get("images_per_s"),
        "best_top1": status.top1 if status.top1 is not None else beat.get("best_top1"),
        "job_id": status.job_id,
        "attempts": status.attempts,
        "reason": status.reason,
        "failure": status.failure,
        "log": str(status.log) if status.log else None,
        "dir": str(root / run.id),
        **asdict(cost(records)),
        "history": [asdict(record) for record in records],
    }


@main.command()
@click.argument("run")
@takes(arguments.runs_dir)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("--rank", type=click.IntRange(0), default=None, help="This rank alone.")
@arguments.as_json
def logs(chosen: Chosen, run: str, follow: bool, rank: int | None, as_json: bool) -> None:
    """The run's log, all ranks labelled. RUN is any unique beginning of an id."""
    from kdcluster.launch.logs import lines
    from kdcluster.launch.status import run_status
    from kdcluster.runs import find_run

    run_dir = find_run(chosen.root, run)
    if not run_dir.attempts():
        status = run_status(run_dir)
        say(f"no attempt yet: {status.state}{f', {status.reason}' if status.reason else ''}")
    try:
        found = lines(run_dir, follow=follow, rank=rank)
        if as_json:
            return show_json({"schema": "kdcluster.logs/1", "run": run_dir.id, "lines": list(found)})
        for line in found:
            show(line)
    except KeyboardInterrupt:
        sys.exit(130)


@main.command()
@takes(arguments.experiments, arguments.settings, arguments.role, arguments.runs_dir, arguments.data_dir)
def prefetch(chosen: Chosen) -> None:
    """Fetch data and weights now, on the machine that has internet."""
    from kdcluster.launch.preflight import preflight

    preflight(chosen.plan().runs, chosen.data, fetch=True)
    say(f"data and weights of {', '.join(chosen.experiments)} are here: {chosen.data}")


@main.command()
@takes(arguments.experiments, arguments.settings, arguments.role, arguments.runs_dir)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "md", "csv", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option(
    "--protocol",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Accuracy of the best epoch or of the last.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write to a file instead."
)
@click.option("--strict", is_flag=True, help="Leave with 1 where a run is missing or failed.")
@click.option("--sweep", "of_sweep", is_flag=True, help="The trials of the experiment's sweep instead.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def results(
    chosen: Chosen, style: str, protocol: str, output: Path | None, strict: bool, of_sweep: bool, as_json: bool
) -> None:
    """The results table, and what is missing from it.

    Accuracy, gain over the baseline, parameters, reduction and retention of each configuration.
    """
    from kdcluster.files import trainer_code, write_aside
    from kdcluster.launch.status import statuses
    from kdcluster.results import render, table

    style = "json" if as_json else style
    in_ascii = output is None and not can_show("±×αΔ–")
    complete = True
    if of_sweep:
        from kdcluster.sweep_command import results_of

        text, complete = results_of(chosen, style, ascii=in_ascii)
    else:
        made, root = chosen.plan(), chosen.root
        states = {
            run_id: (status.state, status.reason, str(status.log) if status.log else None)
            for run_id, status in statuses(made, root).items()
        }
        built = table.build(made, root, protocol, states=states, trainer_code=trainer_code())  # type: ignore[arg-type]
        text, complete = render.render(built, style, ascii=in_ascii), built.complete  # type: ignore[arg-type]
    if output is not None:
        try:
            write_aside(output, text)
        except OSError as error:
            raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
    else:
        show(text, nl=False)
    if strict and not complete:
        sys.exit(1)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXP|RUN...")
@takes(arguments.settings, arguments.runs_dir)
@click.option("--shared", is_flag=True, help="Also runs that other live experiments need.")
def cancel(chosen: Chosen, shared: bool) -> None:
    """Stop runs, keep what they have."""
    from kdcluster.launch import cancel as cancelling

    root, ids = chosen.root, [run_dir.id for run_dir in chosen.single]
    if chosen.named:
        made = chosen.plan()
        others = {} if shared else cancelling.shared(made, root)
        for run_id, wanted in others.items():
            say(f"  {run_id}  goes on: {', '.join(wanted)} needs it too; --shared stops it")
        ids += [run.id for run in made.runs if run.id not in others]
    stopped = cancelling.cancel(dict.fromkeys(ids), root)
    for run_id, state in stopped.items():
        say(f"  {run_id}  {state}")
    say(
        f"{count(len(stopped), 'run')} stopped"
        if stopped
        else "nothing to stop: none of these runs is queued or running"
    )


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@takes(arguments.runs_dir)
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would be deleted.")
def rm(chosen: Chosen, runs: tuple[str, ...], yes: bool) -> None:
    """Delete runs. Shows what it would delete unless --yes; refuses what another run needs."""
    from kdcluster.launch import remove
    from kdcluster.runs import find_run

    root = chosen.root
    wanted = list({run.id: run for run in (find_run(root, name) for name in runs)}.values())
    remove.check(wanted, root)
    for run_dir in wanted:
        show(f"{run_dir.path}  {remove.size(run_dir) / 2**20:.1f} MiB")
    if not yes:
        return say("nothing was deleted; --yes deletes this")
    remove.remove(wanted)
    say(f"{count(len(wanted), 'run')} deleted")


@main.command()
@click.argument("experiments", nargs=-1, metavar="[EXP...]")
@takes(arguments.settings, arguments.runs_dir, arguments.data_dir)
@click.option(
    "--cluster",
    envvar="KDCLUSTER_CLUSTER",
    metavar="NAME|FILE",
    help="Also check this cluster, with its profile.  [default: your only one]",
)
@click.option(
    "--with-job", is_flag=True, help="With --cluster: look from a compute node, too, by a job of a few seconds."
)
@arguments.as_json
def doctor(chosen: Chosen, with_job: bool, as_json: bool) -> None:
    """Check what a submission needs, line by line."""
    from dataclasses import asdict
    from itertools import chain

    from kdcluster.launch.doctor import examine, examine_cluster
    from kdcluster.launch.profile import choose
    from kdcluster.launch.slurm import Slurm

    root, data = chosen.root, chosen.data
    made = chosen.plan() if chosen.experiments else None
    checks = examine(made, root, data)
    name, profile = choose(chosen.cluster)
    if name is None and with_job:
        raise ConfigError("--with-job needs a cluster profile: --cluster NAME")
    if name is not None:
        checks = chain(checks, examine_cluster(Slurm(profile, name), made, root, with_job=with_job))
    findings = []
    for finding in checks:
        findings.append(finding)
        if not as_json:
            todo = "" if finding.ok else f"\n      do: {finding.todo}"
            show(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.found}{todo}")
    if as_json:
        show_json({"schema": "kdcluster.doctor/1", "findings": [asdict(finding) for finding in findings]})
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@arguments.as_json
def schema(as_json: bool) -> None:
    """The experiment file's fields: type, unit, default, meaning."""
    from kdcluster.schema import fields, json_schema

    if as_json:
        return show_json(json_schema())
    for doc in fields():
        kind = " ".join(filter(None, [doc.type, f"[{doc.unit}]" if doc.unit else ""]))
        default = f", default {doc.default}" if doc.default not in ("", "required") else ""
        where = "" if doc.hashed else "  (not in the id)"
        show(f"{doc.key}: {kind}{', required' if doc.default == 'required' else default}{where}")
        show(textwrap.fill(doc.meaning, 100, initial_indent="    ", subsequent_indent="    "))


if __name__ == "__main__":
    main()
