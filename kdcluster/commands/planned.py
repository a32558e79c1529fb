"""A plan to read: its runs as a table, what they have in common once, at last how many they are.

A terminal gets the command once, with RUN in the place of a run's id; a pipe, or `--commands`, each run's own command
and batch script.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcluster.columns import fitted
from kdcluster.commands.cells import short_name
from kdcluster.commands.overview import ORDER, reasons
from kdcluster.launch.status import Status
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import ROLES, Plan
from kdcluster.run import NAMED
from kdcluster.states import State
from kdcluster.terminal import show, show_text, show_wrapped, width
from kdcluster.wording import count, quoted, wide

Row = Mapping[str, Any]
"""A run as in `plan --json`."""
SHORTER: tuple[tuple[str, ...], ...] = ((), ("needs",), ("run", "needs"))
"""Columns whose ids give way to short names, as far as the terminal wants it."""


def show_runs(made: Plan, rows: Sequence[Row], found: Mapping[str, Status], where: Mapping[str, Layout]) -> None:
    """The table, and below it what is to be said of single runs and of models."""
    for line in _table(made, rows, where):
        show(line)
    for text in (*reasons(made.runs, found), *_beginnings(rows), *_sizes(made, rows)):
        show_wrapped("", text)


def _table(made: Plan, rows: Sequence[Row], where: Mapping[str, Layout]) -> list[str]:
    layouts = {run_id: str(layout) for run_id, layout in where.items()}
    is_one_place, is_one_experiment = len(set(layouts.values())) == 1, len(made.wanted) == 1
    cells = {
        "run": [[row["id"]] for row in rows],
        "arm": [[name] if (name := _kind(made, row["id"])) != row["role"] else [] for row in rows],
        "state": [[str(row["state"])] for row in rows],
        "needs": [row["needs"] for row in rows],
        "for": [[] if is_one_experiment else row["experiments"] for row in rows],
        "on": [[] if is_one_place else [layouts[row["id"]]] for row in rows],
    }
    used = {name: column for name, column in cells.items() if any(column)}
    room, lines = width(), list[str]()
    for short in SHORTER:
        table = [
            [", ".join(map(short_name, cell) if name in short else cell) for cell in column]
            for name, column in used.items()
        ]
        wraps = {at: 0 for at, name in enumerate(used) if name in ("needs", "for", "on") and short}
        fit = fitted([list(used), *map(list, zip(*table, strict=True))], width=room, wraps=wraps)
        lines = [line for row in fit.rows for line in row]
        if room is None or max(map(wide, lines)) <= room:
            break
    return lines


def _beginnings(rows: Sequence[Row]) -> Iterator[str]:
    """Of runs that have a shorter one to begin at, whether they do, each answer once."""
    said = defaultdict(list)
    for row in rows:
        if row["begins"] and row["state"] != State.DONE:
            at, why_not = f"at the end of {row['begins']['run']}", row["begins"]["why_not"]
            how = (
                f"from scratch, and not {at}: {why_not}" if why_not else f"{at}, with the same numbers as from scratch"
            )
            said[how].append(row["id"])
    for how, ids in said.items():
        yield f"{ids[0]} begins {how}" if len(ids) == 1 else f"{count(len(ids), 'run')} begin {how}"


def _sizes(made: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """The parameters of each model, where it was built."""
    params = {row["id"]: row["params"] for row in rows if row.get("params")}
    models: defaultdict[tuple[str, int], dict[str, None]] = defaultdict(dict)
    for run_id, number in params.items():
        run = made[run_id]
        smaller = {f"{params[need] / number:.1f}×": None for need in run.needs if need in params}
        models[run.model.model, number] |= smaller
    for (name, number), times in models.items():
        smaller_by = f", {' and '.join(times)} smaller than its teacher" if times else ""
        yield f"{name.partition('.')[0]}: {number:,} parameters ({number / 1e6:.1f} M{smaller_by})"


def show_common_commands(rows: Sequence[Row], where: Mapping[str, Layout]) -> None:
    """The commands that differ in more than the run's id."""
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in (row for row in rows if row["state"] != State.DONE):
        words = [str(Path(word).with_name("RUN")) if word == row["dir"] else word for word in row["command"]]
        alike[str(where[row["id"]]), *words].append(row["id"])
    for (on, *argv), ids in alike.items():
        show("")
        who = "each run" if len(ids) == len(rows) > 1 else count(len(ids), "run")
        show_wrapped("", f"{who} on {on}; RUN stands for its id:")
        for line in typed(argv, "  ", width()):
            show(line)


def show_commands(rows: Sequence[Row], where: Mapping[str, Layout]) -> None:
    """Of each run that is not done, its command and its batch script."""
    for row in (row for row in rows if row["state"] != State.DONE):
        show("")
        show_wrapped("", f"{row['id']} on {where[row['id']]}")
        for line in typed(row["command"], "  command  ", width()):
            show(line)
        if row["sbatch"]:
            show_text(f"  sbatch\n{textwrap.indent(row['sbatch'].rstrip(), '    ')}")


def typed(argv: Sequence[str], before: str, width: int | None) -> list[str]:
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


def _kind(made: Plan, run_id: str) -> str:
    """What a run is to its experiments: its role, but of one that is a control alone that."""
    arms = {arm for wanted in made.wanted.values() for arm, ids in wanted.items() if run_id in ids}
    return NAMED["control"] if arms == {"control"} else made[run_id].role


def counted(made: Plan, found: Mapping[str, Status], takes: str) -> str:
    """The last line: `7 runs: 1 teacher, 3 baseline, 3 distilled; 2 done, 1 running; to start: about 4 min`."""
    roles = Counter(_kind(made, run.id) for run in sorted(made.runs, key=lambda run: ROLES.index(run.role)))
    states = Counter(one.state for one in found.values())
    states[State.PLANNED] = 0  # what is neither done nor named
    kinds = [f"{states[State.DONE]}\xa0done", *(f"{states[one]}\xa0{one}" for one in ORDER[:-1] if states[one])]
    parts = (", ".join(f"{n}\xa0{role}" for role, n in roles.items()), ", ".join(kinds), takes)
    return f"{count(len(made.runs), 'run')}: {'; '.join(filter(None, parts))}"
