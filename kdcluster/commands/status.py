"""`kdcluster status`: one row a run; what there is to know of a single one says `kdcluster show`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from kdcluster.columns import in_ascii
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.curves import Curves
from kdcluster.commands.next_steps import say_next_steps, say_others, say_table
from kdcluster.commands.overview import rows, screen, sweeps_of, total
from kdcluster.commands.progress import Shown, follow
from kdcluster.commands.remaining import in_words, until_done
from kdcluster.history import Record, cost, history, spent
from kdcluster.launch.status import Status, statuses
from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir, run_dirs
from kdcluster.terminal import can_show, has_colour, leave, say, show, show_json, show_screen, size, width
from kdcluster.wording import wrapped

ROOM_BELOW = 5
"""Lines of a terminal that are left for what follows the runs: the sum, what to type next, the prompt."""


def status(chosen: Chosen, *, watch: bool, as_json: bool) -> None:
    """Print the runs; with `watch`, once every run has ended."""
    desk = _Desk(chosen)
    shown = desk.look(None)
    if watch:
        try:
            follow(shown, desk.root, sys.stderr, look=desk.look, keep=not sys.stdout.isatty())
        except KeyboardInterrupt:
            leave("interrupted; the runs go on", 130)
        shown = desk.look(None)
    found = statuses(shown.plan, desk.root)
    for run_id, (_, wrong) in desk.known.items():
        found[run_id] = replace(found[run_id], reason="; ".join(filter(None, (found[run_id].reason, wrong))))
    found = shown.of(found)
    records = {run_id: history(RunDir(desk.root, run_id)) for run_id in found}
    left = until_done([run for group in shown.groups for run in group.runs], found, shown.at_once)
    if as_json:
        order = [run for run in shown.plan.runs if run.id in found]
        made = [_status_row(shown, run, found[run.id], records[run.id]) for run in order]
        seconds = left.seconds if left and left.whole else None
        return show_json({"schema": "kdcluster.status/1", "runs": made, "seconds_left": seconds})
    _show(shown, found)
    if chosen.names:
        chosen.say_where_no_runs_are()
    if not chosen.names and not found:
        say(f"nothing was started yet in {desk.root}; name an experiment")
    held = spent(cost(record for one in records.values() for record in one))
    for line in wrapped(total(found.values(), in_words(left), held), width()):
        show(line)
    if chosen.names:
        say_others(desk.base, chosen, "status")
    wanted = {run.id: chosen.again(*desk.named) for run in desk.base.runs}
    say_table(found, chosen)
    say_next_steps(found, {**dict.fromkeys(found, ""), **wanted}, chosen)


class _Desk:
    """The runs that were asked for, as their directories come and go."""

    def __init__(self, chosen: Chosen) -> None:
        self.root, self.names = chosen.root, chosen.names
        self.single = {run_dir.id: run_dir for run_dir in chosen.single}
        self.named = chosen.named if chosen.names else chosen.started()
        self.base = chosen.plan(*self.named) if self.named else Plan((), {}, {})
        self.known: dict[str, tuple[Run, str]] = {}
        """Of directories: the run, and what is wrong with its config.yaml; each is read once."""

    def look(self, before: Shown | None) -> Shown:
        """What there is now; `before`, where no run has come or gone."""
        here = self._here()
        known = {run_id: self.known.get(run_id) or run_dir.known() for run_id, run_dir in here.items()}
        if before is not None and known.keys() == self.known.keys():
            return before
        self.known = known
        made = self.base.joined(self._with_needs())
        wanted = {run.id for run in self.base.runs} | known.keys()
        unread = frozenset(run_id for run_id, (_, wrong) in known.items() if wrong)
        return Shown(made, self.root, tuple(run.id for run in made.runs if run.id in wanted), unread)

    def _with_needs(self) -> Iterator[Run]:
        """The runs of directories, each after what it waits for; what has none any more is known by its name."""
        runs = sorted((run for run, _ in self.known.values()), key=lambda run: len([*run.needs, *run.after]))
        there = {*self.known, *(run.id for run in self.base.runs)}
        for need in dict.fromkeys(need for run in runs for need in run.needs if need not in there):
            yield RunDir(self.root, need).known()[0]
        yield from runs

    def _here(self) -> Mapping[str, RunDir]:
        there = run_dirs(self.root)
        if not self.names:
            return {run_dir.id: run_dir for run_dir in there}
        planned = {run.id for run in self.base.runs}
        trials = {one.id: one for one in there if one.id not in planned and self.base.wanted.keys() & sweeps_of(one)}
        return {**{run_id: one for run_id, one in self.single.items() if one.path.exists()}, **trials}


def _show(shown: Shown, found: Mapping[str, Status]) -> None:
    """The runs as stdout takes them."""
    there = size(sys.stdout)
    spell: Callable[[str], str] = str if can_show("α━") else in_ascii
    if there is None:
        for line in rows(shown.groups, found, spell=spell):
            show(line)
    else:
        room = type(there)((there.columns, max(1, there.lines - ROOM_BELOW)))
        curves = Curves(shown.root)
        show_screen(screen(shown.groups, found, room, spell=spell, colour=has_colour(), curve_of=curves.of))


def _status_row(shown: Shown, run: Run, found: Status, records: list[Record]) -> dict[str, Any]:
    beat, run_dir = found.heartbeat, RunDir(shown.root, run.id)
    return {
        "id": run.id,
        "experiments": shown.plan.experiments_of(run.id) or run_dir.experiments(),
        "trial_of": sweeps_of(run_dir),
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
        "dir": str(run_dir.path),
        **asdict(cost(records)),
        "history": [asdict(record) for record in records],
    }
