"""`kdcluster plan`: what would run, as rows, as scripts and in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcluster import inputs, records
from kdcluster.commands import stores, verify
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.planned import counted, show_commands, show_common_commands, show_runs, typed
from kdcluster.continued import begins_from
from kdcluster.errors import KdclusterError, SchedulerError
from kdcluster.launch.backend import Backend, Options, find
from kdcluster.launch.preflight import preflight
from kdcluster.launch.status import Status, statuses
from kdcluster.launch.submission import to_start
from kdcluster.launch.torchrun import Layout, Meeting, command
from kdcluster.plan import Plan, Run
from kdcluster.processes import threads_available
from kdcluster.states import State
from kdcluster.sweep.forecast import took
from kdcluster.terminal import leave, say, show, show_json, show_text, show_wrapped, width
from kdcluster.wording import count, wrapped


def plan(chosen: Chosen, *, check: bool, commands: bool, as_json: bool) -> None:
    """Print the DAG; with `check`, also what stands in its way; with `commands`, each run's own on a terminal, too."""
    made, root, data = chosen.plan(), chosen.root, chosen.data
    there = chosen.place()
    try:
        where, scripts = there.layouts(made), there.scripts(made, root)
    except SchedulerError as error:  # a plan needs no scheduler
        if chosen.backend != "auto":
            raise
        say(f"{error}; this is the plan for this machine")
        there = find("local").of(Options(nodes=chosen.nodes))
        where, scripts = there.layouts(made), there.scripts(made, root)
    found = statuses(made, root)
    checked = _check(made, chosen, there) if check else None
    notes = checked["notes"] if checked else []
    seen, stored = inputs.told(made.runs, data), stores.told(made, root, data)
    wanted = to_start(made, found, root)
    rows = [_planned(made, run, root, data, found[run.id], where[run.id], scripts.get(run.id)) for run in made.runs]
    names = records.entries(root)
    for row in rows:
        row["begins"] = _begins(made[row["id"]], found[row["id"]], root, names, where[row["id"]])
    for row in rows if checked else ():
        row["params"] = checked["models"][row["id"]]["params"]  # type: ignore[index]
    if as_json:
        known = [*(note for one in seen for note in (*one.notes, *one.warnings)), *stored]
        notes = [*known, *there.notes(made, wanted), *notes]
        lines = [one.line for one in seen]
        show_json({"schema": "kdcluster.plan/1", "runs": rows, "inputs": lines, "notes": notes})
    else:
        show_runs(made, rows, found, where)
        (show_commands if commands or width() is None else show_common_commands)(rows, where)
        show("")
        for line in (*(line for one in seen for line in one.lines), *stored):
            show_wrapped("", line)
        for note in notes:
            show_wrapped("", f"note: {note}")
        for line in wrapped(counted(made, found, _takes(made, wanted, root, there, where)), width(), "    "):
            show(line)
        if not commands and width() is not None and any(row["state"] != State.DONE for row in rows):
            more = "batch scripts" if scripts else "all commands"
            say(f"{more}: kdcluster plan {chosen.submit_again()}{chosen.where} --commands")
        say_notes(there, made, wanted)
    if checked and checked["refused"]:
        leave(checked["refused"], 1)


def _check(made: Plan, chosen: Chosen, backend: Backend) -> dict[str, Any]:
    root, found = chosen.root, preflight(made.runs, chosen.data, fetch=False)
    notes, is_wrong = verify.check(made, root, chosen.data, f"kdcluster submit {chosen.submit_again()}{chosen.where}")
    found["notes"] += notes
    found["refused"] = "the stored logits are not right" if is_wrong else ""
    try:
        found["notes"] += backend.check(made, [run.id for run in made.runs], root)
    except KdclusterError as error:
        found["notes"].append(str(error))
        found["refused"] = "these runs could not run there"
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
        "after": run.after,
        **stores.facts(run, data),
    }


def _begins(run: Run, status: Status, root: Path, there: Collection[str], where: Layout) -> dict[str, str] | None:
    """The shorter `run` at whose end one that was never started begins, or `why_not`; None: there is no such run."""
    known = {"device": where.device, "procs": where.procs, **({"threads": where.threads} if where.threads else {})}
    if status.attempts or not (found := begins_from(run, root, there, known)):
        return None
    return {"run": found[0].id, "why_not": found[1]}


def _command(run_dir: Path, data: Path, where: Layout) -> list[str]:
    """argv of torchrun, and on several nodes of the first one's, with a stand-in for what only the job knows."""
    several = Meeting(0, "<first node>") if where.nodes > 1 else None
    return command(run_dir, data, where, several)


def _takes(made: Plan, wanted: list[str], root: Path, there: Backend, where: Mapping[str, Layout]) -> str:
    """How long what a submit would start takes, as such runs took on as much; empty where none was ever done."""
    cores = max((where[run_id].cores for run_id in wanted), default=0)
    on_gpu = any(where[run_id].device != "cpu" for run_id in wanted)
    at_once = threads_available() // cores if there.name == "local" and cores and not on_gpu else 1
    words = took([[made[run_id] for run_id in wanted]], root, max(1, at_once), where)
    return f"{count(len(wanted), 'run')} to start: {words}" if words else ""


def say_inputs(runs: Iterable[Run], data: Path) -> None:
    """What the models of these runs will see."""
    for one in inputs.told(runs, data):
        for line in one.lines:
            say(line)


def say_notes(place: Backend, made: Plan, chosen: list[str]) -> None:
    """What to know of the place before anything is handed over, as what it could cost."""
    for note in place.notes(made, chosen):
        say(note)


def show_dry_run(made: Plan, chosen: list[str], root: Path, data: Path, backend: Backend) -> None:
    """What a submit would write and start."""
    where, scripts = backend.layouts(made), backend.scripts(made, root)
    for run_id in chosen:
        show(f"# {root / run_id / 'config.yaml'}")
        show_text(made[run_id].to_yaml() + "\n")
        show(f"# started on {where[run_id]} as")
        for line in (*typed(_command(root / run_id, data, where[run_id]), "", width()), ""):
            show(line)
        if run_id in scripts:
            show_text(f"# sent to sbatch\n{scripts[run_id]}\n")
    show(f"# {len(chosen)} of {count(len(made.runs), 'run')} would be started; nothing was written")
