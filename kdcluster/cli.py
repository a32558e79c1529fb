"""The command line: parse, call, print, exit. What each command does stands in the module that it calls."""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kdcluster import __version__
from kdcluster.errors import ConfigError, KdclusterError, explain_disk

if TYPE_CHECKING:
    from kdcluster.launch.local import Local
    from kdcluster.launch.slurm import Slurm
    from kdcluster.launch.status import Status
    from kdcluster.launch.torchrun import Layout
    from kdcluster.plan import Plan, Run


class _Group(click.Group):
    """Turns our errors into a message and an exit code, and a misspelt command into a suggestion."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KdclusterError as error:
            if ctx.find_root().obj["verbose"]:
                click.echo(traceback.format_exc(), err=True)
            _leave(str(error), error.exit_code)
        except KeyboardInterrupt:  # click would leave with 1
            _leave("interrupted", 130)
        except BrokenPipeError:  # `kdcluster logs | head`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            sys.exit(0)
        except OSError as error:
            message = explain_disk(error, "type the command again")
            if message is None or ctx.find_root().obj["verbose"]:
                raise
            _leave(message, 1)


def _leave(message: str, code: int) -> NoReturn:
    click.echo(message, file=sys.stderr)
    sys.exit(code)


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, **settings)


def _stacked(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_runs_dir = _option(
    "--runs-dir",
    envvar="KDCLUSTER_RUNS_DIR",
    default="runs",
    show_default="./runs",
    type=click.Path(path_type=Path),
    help="Where runs lie.",
)
_data_dir = _option(
    "--data-dir",
    envvar="KDCLUSTER_DATA_DIR",
    default=None,
    type=click.Path(path_type=Path),
    help="Data sets and decoded arrays.  [default: data, beside the runs directory]",
)
_json = _option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_experiments = click.argument("experiments", nargs=-1, required=True, metavar="EXP...")
_settings = _stacked(
    _option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the file; repeatable.",
    ),
    _option("--seeds", default=None, metavar="0,1,2", help="The students' seeds."),
)
_resources = _stacked(
    _option("--gpus", type=click.IntRange(1), default=None, help="GPUs of each run, one process each."),
    _option("--procs", type=click.IntRange(1), default=None, help="CPU processes of each run instead."),
)
_role = _option("--role", "roles", default=None, metavar="ROLE,...", help="These roles, and what they need.")


_place = _stacked(
    _option(
        "--backend",
        type=click.Choice(["auto", "local", "slurm"]),
        default="auto",
        envvar="KDCLUSTER_BACKEND",
        show_default=True,
        help="Where the runs run; auto is SLURM where sbatch is on the PATH (not inside a job), else this machine.",
    ),
    _option(
        "--cluster",
        default=None,
        envvar="KDCLUSTER_CLUSTER",
        metavar="NAME|FILE",
        help="Cluster profile.  [default: your only one, else SLURM's own defaults]",
    ),
    _option("--nodes", type=click.IntRange(1), default=None, help="Nodes of each run.  [default: as few as hold it]"),
)


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


def _print(text: str, *, nl: bool = True) -> None:
    """Data, on stdout; named, because click sends UTF-8 to a stdout of its own choice where this one is ASCII."""
    click.echo(text, file=sys.stdout, nl=nl)


def _say(message: str) -> None:
    """Talk, on stderr."""
    if not click.get_current_context().find_root().obj["quiet"]:
        click.echo(message, file=sys.stderr)


def _plan(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...] = (),
    seeds: str | None = None,
    gpus: int | None = None,
    procs: int | None = None,
    roles: str | None = None,
) -> Plan:
    """The plan of the named experiments with the command line on top of their files."""
    from kdcluster import configfile
    from kdcluster.plan import ROLES, plan

    short: dict[str, str] = {}  # --set KEY=VALUE -> the shorter option that stands for it
    if seeds is not None:
        short[f"seeds=[{seeds}]"] = f"--seeds {seeds}"
    if gpus is not None and procs is not None:
        raise ConfigError("--gpus and --procs exclude each other; give one of them")
    if gpus is not None:
        resources = ("resources.device=cuda", "resources.procs=null", f"resources.gpus={gpus}")
        short |= dict.fromkeys(resources, f"--gpus {gpus}")
    if procs is not None:
        resources = ("resources.device=cpu", "resources.gpus=null", f"resources.procs={procs}")
        short |= dict.fromkeys(resources, f"--procs {procs}")
    loaded = []
    problems: list[str] = []
    for name in experiments:
        try:
            loaded.append(configfile.load(name, [*overrides, *short]))
        except ConfigError as error:
            problems += error.problems
    for text, option in short.items():
        problems = [problem.replace(f"--set {text}:", f"{option}:", 1) for problem in problems]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))  # a wrong --set is wrong in every experiment
    made = plan(loaded)
    if roles is None:
        return made
    wanted = [role.strip() for role in roles.split(",")]
    if unknown := [role for role in wanted if role not in ROLES]:
        raise ConfigError(f"--role {roles}: {unknown[0]!r} is no role; there are {', '.join(ROLES)}")
    return made.only(wanted)


def _backend(
    backend: str, cluster: str | None, nodes: int | None = None, max_gpu_hours: float | None = None
) -> Local | Slurm:
    """Where runs run; what `auto` chose is said."""
    from kdcluster.launch import scheduler
    from kdcluster.launch.local import Local
    from kdcluster.launch.profile import choose
    from kdcluster.launch.slurm import Slurm

    inside = scheduler.is_inside_job()
    chosen = backend
    if backend == "auto":
        chosen = "slurm" if not inside and (scheduler.is_here() or cluster is not None) else "local"
    if chosen == "local":
        if nodes is not None and nodes > 1:
            raise ConfigError(f"--nodes {nodes}: this machine is one node; --backend slurm has more")
        if backend == "auto" and inside:
            _say("running on this machine: this is inside a job; --backend slurm submits from here")
        return Local()
    name, profile = choose(cluster)
    if backend == "auto":
        _say(f"running in SLURM, {f'cluster profile {name!r}' if name else 'with its own defaults'}")
    return Slurm(profile, name, nodes, max_gpu_hours)


def _places(runs_dir: Path, data_dir: Path | None) -> tuple[Path, Path]:
    root = runs_dir.absolute()
    return root, (data_dir or root.parent / "data").absolute()


@main.command("list")
@_json
def list_(as_json: bool) -> None:
    """The experiments that can be named here, one line each."""
    from kdcluster import configfile

    found = []
    for name, path in configfile.experiments().items():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        about = next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
        found.append({"name": name, "path": str(path), "about": about})
    if as_json:
        return _print_json({"schema": "kdcluster.list/1", "experiments": found})
    width = max((len(item["name"]) for item in found), default=0)
    for item in found:
        _print(f"{item['name']:<{width}}  {item['about']}  ({item['path']})")


@main.command()
@_experiments
@_settings
@_resources
@_role
@_runs_dir
@_data_dir
@_place
@_option("--check", is_flag=True, help="Also build the models, look for data and weights, and ask the scheduler.")
@_json
def plan(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: str | None,
    gpus: int | None,
    procs: int | None,
    roles: str | None,
    runs_dir: Path,
    data_dir: Path | None,
    backend: str,
    cluster: str | None,
    nodes: int | None,
    check: bool,
    as_json: bool,
) -> None:
    """The DAG of runs: state, needs, command and batch script of each."""
    from kdcluster.launch.status import statuses

    made = _plan(experiments, overrides, seeds, gpus, procs, roles)
    root, data = _places(runs_dir, data_dir)
    there = _backend(backend, cluster, nodes)
    found, where, scripts = statuses(made, root), there.layouts(made), there.scripts(made, root)
    checked = _check(made, data, there, root) if check else None
    rows = [_planned(made, run, root, data, found[run.id], where[run.id], scripts.get(run.id)) for run in made.runs]
    for row in rows if checked else ():
        row["params"] = checked["models"][row["id"]]["params"]  # type: ignore[index]
    if as_json:
        notes = {"notes": checked["notes"]} if checked else {}
        return _print_json({"schema": "kdcluster.plan/1", "runs": rows, **notes})
    _print_plan(made, rows, where)
    for note in checked["notes"] if checked else ():
        _print(f"note: {note}")


def _check(made: Plan, data: Path, backend: Local | Slurm, root: Path) -> dict[str, Any]:
    from kdcluster.launch.preflight import preflight

    found = preflight(made.runs, data, fetch=False)
    try:
        backend.check(made, [run.id for run in made.runs], root)
    except KdclusterError as error:
        found["notes"].append(f"it cannot run {'in SLURM' if backend.name == 'slurm' else 'on this machine'}: {error}")
    return found


def _planned(
    made: Plan, run: Run, root: Path, data: Path, status: Status, where: Layout, script: str | None
) -> dict[str, Any]:
    from kdcluster.launch.torchrun import command

    return {
        "id": run.id,
        "role": run.role,
        "seed": run.seed,
        "experiments": made.experiments_of(run.id),
        "state": status.state,
        "reason": status.reason,
        "needs": run.needs,
        "command": command(root / run.id, data, where),
        "sbatch": script,
        "dir": str(root / run.id),
        "hash": run.hash,
    }


def _print_plan(made: Plan, rows: list[dict[str, Any]], where: dict[str, Layout]) -> None:
    teacher_params = {row["id"]: row.get("params") for row in rows if row["role"] == "teacher"}
    for row in rows:
        run = made[row["id"]]
        _print(f"{row['id']}  {row['state']}" + (f"  ({row['reason']})" if row["reason"] else ""))
        _print(f"  for      {', '.join(row['experiments'])}; on {where[run.id]}")
        if row.get("params"):
            of = [teacher_params[need] for need in row["needs"] if teacher_params.get(need)]
            smaller = f", {of[0] / row['params']:.1f}× smaller than its teacher" if of else ""
            _print(f"  params   {row['params']:,} ({row['params'] / 1e6:.1f} M{smaller})")
        if row["needs"]:
            _print(f"  needs    {', '.join(row['needs'])}")
        _print(f"  command  {shlex.join(row['command'])}")
        if row["sbatch"]:
            _print(f"  sbatch\n{textwrap.indent(row['sbatch'].rstrip(), '    ')}")


@main.command()
@_experiments
@_settings
@_resources
@_role
@_runs_dir
@_data_dir
@_place
@_option(
    "--max-gpu-hours", type=click.FloatRange(0), default=None, help="In SLURM: refuse more than this in the worst case."
)
@_option("--retry", is_flag=True, help="Start failed and cancelled runs again, too.")
@_option("--dry-run", is_flag=True, help="Print what would be written and started; write nothing.")
@_option("--wait", is_flag=True, help="Stay until every run has ended, and show progress.")
@_option("--timeout", type=click.FloatRange(0), default=None, metavar="MIN", help="With --wait: give up after MIN.")
def submit(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: str | None,
    gpus: int | None,
    procs: int | None,
    roles: str | None,
    runs_dir: Path,
    data_dir: Path | None,
    backend: str,
    cluster: str | None,
    nodes: int | None,
    max_gpu_hours: float | None,
    retry: bool,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
) -> None:
    """Start what is missing. A second call starts nothing twice."""
    from kdcluster.launch import submission
    from kdcluster.launch.preflight import preflight
    from kdcluster.launch.status import statuses

    if timeout is not None and not wait:
        raise ConfigError("--timeout needs --wait")
    made = _plan(experiments, overrides, seeds, gpus, procs, roles)
    root, data = _places(runs_dir, data_dir)
    there = _backend(backend, cluster, nodes, max_gpu_hours)
    chosen = submission.to_start(made, statuses(made, root), retry=retry)
    if chosen:
        _say_worst_case(there, made, chosen)
    if dry_run:
        return _print_dry_run(made, chosen, root, data, there)
    if chosen:
        there.check(made, chosen, root)  # before data is fetched
    done = submission.submit(made, root, data, there, lambda runs: preflight(runs, data, fetch=True), retry=retry)
    again = _again(experiments, overrides, seeds)
    _say_submission(made, done, again, root)
    if wait:
        given = {"--role": roles, "--gpus": gpus, "--procs": procs, "--data-dir": data_dir}
        given |= {"--backend": backend, "--cluster": cluster, "--nodes": nodes}
        known = ("auto", os.environ.get("KDCLUSTER_BACKEND"), os.environ.get("KDCLUSTER_CLUSTER"))
        given = {option: value for option, value in given.items() if value not in known}
        words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
        _wait(made, root, again, " ".join([again, *map(shlex.quote, words)]), timeout)


def _again(experiments: tuple[str, ...], overrides: tuple[str, ...], seeds: str | None) -> str:
    """The arguments that name the same runs in another command."""
    sets = [word for override in overrides for word in ("--set", override)]
    return shlex.join([*experiments, *sets, *(["--seeds", seeds] if seeds is not None else [])])


def _where(root: Path) -> str:
    return "" if root == Path("runs").absolute() else f" --runs-dir {shlex.quote(str(root))}"


def _say_next_steps(found: Mapping[str, Status], again: str, root: Path) -> None:
    from kdcluster.launch.status import next_steps

    for step in next_steps(found, again, _where(root)):
        _say(f"next: {step}")


def _say_worst_case(backend: Local | Slurm, made: Plan, chosen: list[str]) -> None:
    """What the runs could cost, before anything is queued."""
    if backend.name == "slurm":
        hours = backend.gpu_hours(made, chosen)
        cost = "not known: there is no time limit" if hours is None else f"{hours:g} GPU-hours"
        _say(f"worst case of {len(chosen)} runs: {cost}")


def _print_dry_run(made: Plan, chosen: list[str], root: Path, data: Path, backend: Local | Slurm) -> None:
    from kdcluster.launch.torchrun import command

    where, scripts = backend.layouts(made), backend.scripts(made, root)
    for run_id in chosen:
        _print(f"# {root / run_id / 'config.yaml'}\n{made[run_id].to_yaml()}")
        _print(f"# started on {where[run_id]} as\n{shlex.join(command(root / run_id, data, where[run_id]))}\n")
        if run_id in scripts:
            _print(f"# sent to sbatch\n{scripts[run_id]}")
    _print(f"# {len(chosen)} of {len(made.runs)} runs would be started; nothing was written")


def _say_submission(made: Plan, submission: Any, again: str, root: Path) -> None:
    from kdcluster.files import trainer_code
    from kdcluster.runs import RunDir

    for run_id, status in submission.left.items():
        why = f" ({status.reason})" if status.reason else ""
        how = "; --retry starts it again" if status.state in ("failed", "cancelled") else ""
        _say(f"  {run_id}  {status.state}{why}{how}")
    for run_id in submission.started:
        _say(f"  {run_id}  started")
    done = [RunDir(root, run_id).newest() for run_id, status in submission.left.items() if status.state == "done"]
    codes = [attempt.read("trainer").get("trainer_code") for attempt in done if attempt]
    if other := sum(code not in (None, trainer_code()) for code in codes):
        _say(f"{other} of the done runs were made by other trainer code than today's")
    if not submission.started:
        return _say(f"nothing to start: all {len(made.runs)} runs are as shown")
    where = _where(root)
    _say(f"{len(submission.started)} of {len(made.runs)} runs {submission.where}")
    _say(f"next: kdcluster status {again} --watch{where}   then: kdcluster results {again}{where}")


def _wait(made: Plan, root: Path, named: str, again: str, timeout: float | None) -> None:
    """Until every run has ended; `named`: arguments that name the runs, `again`: those that submit them again."""
    from kdcluster.launch.progress import follow

    try:
        found = follow(made, root, sys.stderr, timeout_min=timeout)
    except KeyboardInterrupt:
        from kdcluster.launch.status import ENDED, statuses

        going = [i for i, status in statuses(made, root).items() if status.state not in (*ENDED, "planned")]
        look = (
            f"\nnext: kdcluster status {named} --watch{_where(root)}, or kdcluster cancel to stop them" if going else ""
        )
        _leave(f"\ndetached; still going: {', '.join(going) or 'nothing'}{look}", 130)
    if any(status.state != "done" for status in found.values()):
        _say_next_steps(found, again, root)
        _leave("not every run is done", 1)


@main.command()
@click.argument("experiment", metavar="EXP")
@_settings
@_resources
@_option(
    "--role",
    type=click.Choice(["teacher", "baseline", "distilled"]),
    default="distilled",
    show_default=True,
    help="Which of its runs.",
)
@_option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Optimizer steps.")
@_runs_dir
@_data_dir
def debug(
    experiment: str,
    overrides: tuple[str, ...],
    seeds: str | None,
    gpus: int | None,
    procs: int | None,
    role: str,
    steps: int,
    runs_dir: Path,
    data_dir: Path | None,
) -> None:
    """A few steps in one foreground process: breakpoint() works.

    On one device, in runs/debug.
    """
    from kdcluster.launch import local
    from kdcluster.launch.preflight import preflight

    made = _plan((experiment,), overrides, seeds, gpus, procs, role)
    root, data = _places(runs_dir, data_dir)
    run = made[next(iter(made.wanted.values()))[role][0]]  # type: ignore[index]
    preflight([made[need] for need in run.needs] + [run], data, fetch=True)
    sys.exit(local.debug(run, root, data, steps))


@main.command()
@click.argument("experiments", nargs=-1, metavar="[EXP...]")
@_settings
@_runs_dir
@_option("--watch", is_flag=True, help="Stay until every run has ended.")
@_json
def status(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: str | None,
    runs_dir: Path,
    watch: bool,
    as_json: bool,
) -> None:
    """One row a run: state, progress, attempts, why it waits. Without names: every experiment that is known here."""
    from kdcluster.launch.progress import follow
    from kdcluster.launch.status import statuses

    root = runs_dir.absolute()
    made = _plan(experiments or _started_here(root), overrides, seeds)
    if watch:
        follow(made, root, sys.stderr)
    found = statuses(made, root)
    rows = [_status_row(made, run, found[run.id], root) for run in made.runs]
    if as_json:
        return _print_json({"schema": "kdcluster.status/1", "runs": rows})
    for row in rows:
        done = f"{row['epoch']}/{row['epochs']}" if row["epochs"] else "-"
        best = f"{row['best_top1']:.2f} %" if row["best_top1"] is not None else "-"
        _print(f"{row['id']:<48} {row['state']:<9} {done:>7} {best:>8}  {row['reason']}".rstrip())
    counts = {state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(r["state"] for r in rows)}
    _print(f"{len(rows)} runs{': ' if rows else ''}" + ", ".join(f"{n} {state}" for state, n in counts.items()))
    _say_next_steps(found, _again(experiments or tuple(made.wanted), overrides, seeds), root)


def _started_here(root: Path) -> tuple[str, ...]:
    """Names of the experiments of which a run lies in this runs directory."""
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
    if not names:
        _say(f"no experiment that is known here has a run in {root}; name one")
    return tuple(names)


def _status_row(made: Plan, run: Run, status: Status, root: Path) -> dict[str, Any]:
    beat = status.heartbeat
    return {
        "id": run.id,
        "experiments": made.experiments_of(run.id),
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
    }


@main.command()
@click.argument("run")
@_runs_dir
@_option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@_option("--rank", type=click.IntRange(0), default=None, help="This rank alone.")
@_json
def logs(run: str, runs_dir: Path, follow: bool, rank: int | None, as_json: bool) -> None:
    """The run's log, all ranks labelled. RUN is any unique beginning of an id."""
    from kdcluster.launch.logs import lines
    from kdcluster.launch.status import run_status
    from kdcluster.runs import find_run

    run_dir = find_run(runs_dir.absolute(), run)
    if not run_dir.attempts():
        status = run_status(run_dir)
        _say(f"no attempt yet: {status.state}{f', {status.reason}' if status.reason else ''}")
    try:
        found = lines(run_dir, follow=follow, rank=rank)
        if as_json:
            return _print_json({"schema": "kdcluster.logs/1", "run": run_dir.id, "lines": list(found)})
        for line in found:
            _print(line)
    except KeyboardInterrupt:
        sys.exit(130)


@main.command()
@_experiments
@_settings
@_role
@_runs_dir
@_data_dir
def prefetch(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: str | None,
    roles: str | None,
    runs_dir: Path,
    data_dir: Path | None,
) -> None:
    """Fetch data and weights now, on the machine that has internet."""
    from kdcluster.launch.preflight import preflight

    made = _plan(experiments, overrides, seeds, roles=roles)
    _, data = _places(runs_dir, data_dir)
    preflight(made.runs, data, fetch=True)
    _say(f"data and weights of {', '.join(experiments)} are here: {data}")


@main.command()
@_experiments
@_settings
@_role
@_runs_dir
@_option(
    "--format",
    "style",
    type=click.Choice(["table", "md", "csv", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@_option(
    "--protocol",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Accuracy of the best epoch or of the last.",
)
@_option("--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write to a file instead.")
@_option("--strict", is_flag=True, help="Leave with 1 where a run is missing or failed.")
@_option("--json", "as_json", is_flag=True, help="The same as --format json.")
def results(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: str | None,
    roles: str | None,
    runs_dir: Path,
    style: str,
    protocol: str,
    output: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """The results table, and what is missing from it.

    Accuracy, gain over the baseline, parameters, reduction and retention of each configuration.
    """
    from kdcluster.files import trainer_code, write_aside
    from kdcluster.launch.status import statuses
    from kdcluster.results import render, table

    root = runs_dir.absolute()
    made = _plan(experiments, overrides, seeds, roles=roles)
    states = {
        run_id: (status.state, status.reason, str(status.log) if status.log else None)
        for run_id, status in statuses(made, root).items()
    }
    built = table.build(made, root, protocol, states=states, trainer_code=trainer_code())  # type: ignore[arg-type]
    style = "json" if as_json else style
    if output is not None:
        try:
            write_aside(output, render.render(built, style))  # type: ignore[arg-type]
        except OSError as error:
            raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
    else:
        _print(render.render(built, style, ascii=not _can_print("±×αΔ–")), nl=False)  # type: ignore[arg-type]
    if strict and not built.complete:
        sys.exit(1)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXP|RUN...")
@_settings
@_runs_dir
@_option("--shared", is_flag=True, help="Also runs that other live experiments need.")
def cancel(names: tuple[str, ...], overrides: tuple[str, ...], seeds: str | None, runs_dir: Path, shared: bool) -> None:
    """Stop runs, keep what they have."""
    from kdcluster.launch import cancel as cancelling
    from kdcluster.runs import find_run

    root = runs_dir.absolute()
    experiments = tuple(name for name in names if _is_experiment(name))
    chosen = [find_run(root, name).id for name in names if name not in experiments]
    if experiments:
        made = _plan(experiments, overrides, seeds)
        others = {} if shared else cancelling.shared(made, root)
        for run_id, wanted in others.items():
            _say(f"  {run_id}  goes on: {', '.join(wanted)} needs it too; --shared stops it")
        chosen += [run.id for run in made.runs if run.id not in others]
    stopped = cancelling.cancel(dict.fromkeys(chosen), root)
    for run_id, state in stopped.items():
        _say(f"  {run_id}  {state}")
    _say(f"{len(stopped)} runs were stopped" if stopped else "nothing to stop: none of these runs is queued or running")


def _is_experiment(name: str) -> bool:
    from kdcluster import configfile
    from kdcluster.errors import NotFound

    try:
        configfile.find(name)
    except NotFound:
        return False
    return True


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@_runs_dir
@_option("--yes", is_flag=True, help="Delete; without it, only say what would be deleted.")
def rm(names: tuple[str, ...], runs_dir: Path, yes: bool) -> None:
    """Delete runs. Shows what it would delete unless --yes; refuses what another run needs."""
    from kdcluster.launch import remove
    from kdcluster.runs import find_run

    root = runs_dir.absolute()
    chosen = list({run.id: run for run in (find_run(root, name) for name in names)}.values())
    remove.check(chosen, root)
    for run_dir in chosen:
        _print(f"{run_dir.path}  {remove.size(run_dir) / 2**20:.1f} MiB")
    if not yes:
        return _say("nothing was deleted; --yes deletes this")
    remove.remove(chosen)
    _say(f"{len(chosen)} runs deleted")


@main.command()
@click.argument("experiments", nargs=-1, metavar="[EXP...]")
@_settings
@_runs_dir
@_data_dir
@_option("--cluster", default=None, metavar="NAME|FILE", help="Also check this cluster, with its profile.")
@_option("--with-job", is_flag=True, help="With --cluster: look from a compute node, too, by a job of a few seconds.")
@_json
def doctor(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: str | None,
    runs_dir: Path,
    data_dir: Path | None,
    cluster: str | None,
    with_job: bool,
    as_json: bool,
) -> None:
    """Check what a submission needs, line by line."""
    from dataclasses import asdict
    from itertools import chain

    from kdcluster.launch.doctor import examine, examine_cluster
    from kdcluster.launch.profile import choose
    from kdcluster.launch.slurm import Slurm

    root, data = _places(runs_dir, data_dir)
    made = _plan(experiments, overrides, seeds) if experiments else None
    checks = examine(made, root, data)
    if cluster is not None:
        name, profile = choose(cluster)
        checks = chain(checks, examine_cluster(Slurm(profile, name), made, root, with_job=with_job))
    findings = []
    for finding in checks:
        findings.append(finding)
        if not as_json:
            todo = "" if finding.ok else f"\n      do: {finding.todo}"
            _print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.found}{todo}")
    if as_json:
        _print_json({"schema": "kdcluster.doctor/1", "findings": [asdict(finding) for finding in findings]})
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@_json
def schema(as_json: bool) -> None:
    """The experiment file's fields: type, unit, default, meaning."""
    from kdcluster.schema import fields, json_schema

    if as_json:
        return _print_json(json_schema())
    for doc in fields():
        kind = " ".join(filter(None, [doc.type, f"[{doc.unit}]" if doc.unit else ""]))
        default = f", default {doc.default}" if doc.default not in ("", "required") else ""
        where = "" if doc.hashed else "  (not in the id)"
        _print(f"{doc.key}: {kind}{', required' if doc.default == 'required' else default}{where}")
        _print(textwrap.fill(doc.meaning, 100, initial_indent="    ", subsequent_indent="    "))


def _print_json(document: Any) -> None:
    _print(json.dumps(document, indent=1, allow_nan=False))  # ASCII, so that no stdout can damage it


if __name__ == "__main__":
    main()
