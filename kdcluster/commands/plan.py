"""`kdcluster plan`: what would run, as rows, as scripts and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from kdcluster import inputs, records
from kdcluster.commands import stores, verify
from kdcluster.commands.arguments import Chosen
from kdcluster.continued import begins_from
from kdcluster.errors import KdclusterError, SchedulerError
from kdcluster.launch.backend import Backend, Options, find
from kdcluster.launch.preflight import preflight
from kdcluster.launch.status import Status, statuses
from kdcluster.launch.submission import to_start
from kdcluster.launch.torchrun import Layout, Meeting, command
from kdcluster.plan import Plan, Run
from kdcluster.states import State
from kdcluster.terminal import leave, say, show, show_json, show_text, show_wrapped, width
from kdcluster.wording import command as typed
from kdcluster.wording import count, quoted, wide


def plan(chosen: Chosen, *, check: bool, as_json: bool) -> None:
    """Print the DAG; with `check`, also what stands in its way."""
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
    wanted = to_start(made, found)
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
        _show_plan(made, rows, where)
        for line in (*(line for one in seen for line in one.lines), *stored):
            show_wrapped("", line)
        for note in notes:
            show_wrapped("", f"note: {note}")
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


def _show_plan(made: Plan, rows: list[dict[str, Any]], where: dict[str, Layout]) -> None:
    teacher_params = {row["id"]: row.get("params") for row in rows if row["role"] == "teacher"}
    for row in rows:
        run = made[row["id"]]
        show_wrapped("", f"{row['id']}  {row['state']}" + (f"  ({row['reason']})" if row["reason"] else ""))
        show_wrapped("  for      ", f"{', '.join(row['experiments'])}; on {where[run.id]}")
        if row.get("params"):
            of = [teacher_params[need] for need in row["needs"] if teacher_params.get(need)]
            smaller = f", {of[0] / row['params']:.1f}× smaller than its teacher" if of else ""
            show_wrapped("  params   ", f"{row['params']:,} ({row['params'] / 1e6:.1f} M{smaller})")
        if row["needs"]:
            show_wrapped("  needs    ", ", ".join(row["needs"]))
        if row["state"] == State.DONE:
            continue
        if begins := row["begins"]:
            at = f"at the end of {begins['run']}"
            why_not = f"from scratch, and not {at}: {begins['why_not']}"
            show_wrapped(
                "  begins   ", why_not if begins["why_not"] else f"{at}, with the same numbers as from scratch"
            )
        for line in _typed(row["command"], "  command  ", width()):
            show(line)
        if row["sbatch"]:
            show_text(f"  sbatch\n{textwrap.indent(row['sbatch'].rstrip(), '    ')}")


def say_inputs(runs: Iterable[Run], data: Path) -> None:
    """What the models of these runs will see."""
    for one in inputs.told(runs, data):
        for line in one.lines:
            say(line)


def _typed(argv: list[str], before: str, width: int | None) -> list[str]:
    """A command to type; on a terminal in lines that end in a backslash, which a shell takes as one."""
    words = list(map(quoted, argv))
    if width is None:
        return [before + " ".join(words)]
    lines = [before]
    for word in words:
        if lines[-1].strip() and wide(f"{lines[-1]}{word} ") + 1 > width:
            lines.append(" " * len(before))
        lines[-1] += f"{word} "
    return [f"{line}\\" for line in lines[:-1]] + [lines[-1].rstrip()]


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
        show_text(f"{typed(_command(root / run_id, data, where[run_id]))}\n\n")
        if run_id in scripts:
            show_text(f"# sent to sbatch\n{scripts[run_id]}\n")
    show(f"# {len(chosen)} of {count(len(made.runs), 'run')} would be started; nothing was written")
