"""`kdcluster status`: one row a run; what there is to know of a single one says `kdcluster show`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdcluster.columns import aligned
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import say_next_steps
from kdcluster.commands.progress import follow
from kdcluster.errors import ConfigError
from kdcluster.experiment import configfile
from kdcluster.history import Record, cost, history, spent
from kdcluster.launch.status import Status, statuses
from kdcluster.plan import Plan, Run, plan
from kdcluster.runs import RunDir, run_dirs
from kdcluster.terminal import say, show, show_json
from kdcluster.wording import count


def status(chosen: Chosen, *, watch: bool, as_json: bool) -> None:
    """Print the rows; with `watch`, once every run has ended."""
    root = chosen.root
    named, single = chosen.named, {run_dir.id: run_dir for run_dir in chosen.single}
    if not chosen.names:
        named = _started_here(root)
    here = single if chosen.names else {run_dir.id: run_dir for run_dir in run_dirs(root)}
    known = {run_id: run_dir.known() for run_id, run_dir in here.items()}
    made = (chosen.plan(*named) if named else Plan((), {}, {})).joined(_with_needs(root, known))
    if watch:
        follow(made, root, sys.stderr)
    found = statuses(made, root)
    shown = [run for run in made.runs if run.id in here or made.experiments_of(run.id)]
    for run_id, (_, wrong) in known.items():
        found[run_id] = replace(found[run_id], reason="; ".join(filter(None, (found[run_id].reason, wrong))))
    records = {run.id: history(RunDir(root, run.id)) for run in shown}
    rows = [_status_row(made, run, found[run.id], root, records[run.id]) for run in shown]
    if as_json:
        return show_json({"schema": "kdcluster.status/1", "runs": rows})
    for line in aligned(map(_cells, rows), right=(2, 3)):
        show(line)
    counts = {state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(r["state"] for r in rows)}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    if not chosen.names and not rows:
        say(f"nothing was started yet in {root}; name an experiment")
    total = spent(cost(record for one in records.values() for record in one))
    show(f"{count(len(rows), 'run')}{f': {states}' if rows else ''}{f'; {total}' if total else ''}")
    wanted = named or tuple(sorted({name for run_dir in here.values() for name in run_dir.experiments()}))
    say_next_steps({run.id: found[run.id] for run in shown}, chosen.again(*wanted), chosen)


def _started_here(root: Path) -> tuple[str, ...]:
    """Names of the experiments that are known here and have a run in this runs directory."""
    names = []
    for name in configfile.experiments():
        try:
            made = plan([configfile.load(name)])
        except ConfigError:
            continue  # a broken file says so when it is named
        if any((root / run.id).is_dir() for run in made.runs):
            names.append(name)
    return tuple(names)


def _with_needs(root: Path, known: Mapping[str, tuple[Run, str]]) -> Iterator[Run]:
    """The runs of directories, each after what it needs; what has no directory any more is known by its name alone."""
    for run, _ in known.values():
        yield from (RunDir(root, need).known()[0] for need in run.needs if need not in known)
    yield from sorted((run for run, _ in known.values()), key=lambda run: len(run.needs))


def _cells(row: Mapping[str, Any]) -> list[str]:
    done = f"{row['epoch']}/{row['epochs']}" if row["epochs"] else "-"
    best = f"{row['best_top1']:.2f} %" if row["best_top1"] is not None else "-"
    return [row["id"], row["state"], done, best, row["reason"]]


def _status_row(made: Plan, run: Run, found: Status, root: Path, records: list[Record]) -> dict[str, Any]:
    beat = found.heartbeat
    return {
        "id": run.id,
        "experiments": made.experiments_of(run.id) or RunDir(root, run.id).experiments(),
        "role": run.role,
        "seed": run.seed,
        "state": found.state,
        "epoch": beat.get("epoch"),
        "epochs": beat.get("epochs"),
        "step": beat.get("step"),
        "steps": beat.get("steps"),
        "images_per_s": beat.get("images_per_s"),
        "best_top1": found.top1 if found.top1 is not None else beat.get("best_top1"),
        "job_id": found.job_id,
        "attempts": found.attempts,
        "reason": found.reason,
        "failure": found.failure,
        "log": str(found.log) if found.log else None,
        "dir": str(root / run.id),
        **asdict(cost(records)),
        "history": [asdict(record) for record in records],
    }
