"""The results table as text: `table` for people, `md` for documents, `csv` and `json` (full precision) for scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from kdcluster.columns import as_csv, as_json, escaped, fitted, in_ascii, markdown
from kdcluster.results import seeds
from kdcluster.results.table import ExperimentTable, Problem, Row, Table
from kdcluster.states import State
from kdcluster.wording import count, one_line, size, wide, wrapped

Format = Literal["table", "md", "csv", "json"]
SCHEMA = "kdcluster.results/1"
MISSING = "–"


def render(
    table: Table, format: Format = "table", *, ascii: bool = False, width: int | None = None, per_seed: bool = False
) -> str:
    """A table as one text that ends with a line break; `ascii` for a stream that can take nothing else.

    Args:
        table: what is shown.
        format: `md`, `csv` and `json` are whole always.
        ascii: in ASCII alone.
        width: of a terminal, in columns, which `table` then fits: text wraps at words, columns give way by rank.
        per_seed: with the runs behind the means below it, in CSV in its place; in JSON they always are.
    """
    if format == "json":
        return as_json(document(table))
    if format == "table":
        return _plain(table, in_ascii if ascii else str, width, per_seed)
    text = _markdown(table, per_seed) if format == "md" else _csv(table, per_seed)
    return in_ascii(text) if ascii else text


def document(table: Table) -> dict[str, Any]:
    """What `--format json` prints: percent, percentage points, None where a number cannot be had."""
    experiments = [asdict(experiment) for experiment in table.experiments]
    return {
        "schema": SCHEMA,
        "protocol": table.protocol,
        "metric": table.metric,
        "experiments": experiments,
        "notes": list(table.notes),
    }


def _csv(table: Table, per_seed: bool) -> str:
    if per_seed:
        each = ((experiment.name, experiment.seeds) for experiment in table.experiments)
        return as_csv(seeds.table(each, protocol=table.protocol, metric=table.metric))
    names = ["experiment", "protocol", "metric", *(name for name in Row.__dataclass_fields__ if name != "note")]
    at = names.index("gain_ci95")
    names[at : at + 1] = ["gain_ci95_low", "gain_ci95_high"]
    rows: list[list[Any]] = [names]
    for experiment in table.experiments:
        about = {"experiment": experiment.name, "protocol": table.protocol, "metric": table.metric}
        for row in experiment.rows:
            low, high = row.gain_ci95 or (None, None)
            values = {**about, **asdict(row), "gain_ci95_low": low, "gain_ci95_high": high, "runs": " ".join(row.runs)}
            rows.append([values[name] for name in names])
    return as_csv(rows)


def _plain(table: Table, spell: Callable[[str], str], width: int | None, per_seed: bool) -> str:
    def below(notes: Iterable[str]) -> list[str]:
        return [line for note in notes for line in wrapped(spell(note), width, "  ")]

    blocks = []
    for experiment in table.experiments:
        cells = [[spell(cell) for cell in row] for row in _cells(table, experiment)]  # before their width is taken
        for row in cells[1:]:
            row[0] = re.sub(r"\(.*?\)", lambda found: found[0].replace(" ", "\xa0"), row[0])  # α and T stay together
        right = range(1, len(cells[0]))
        ranks = {at: _RANKS[name] for at, name in enumerate(cells[0]) if name in _RANKS}
        fit = fitted(cells, right, width=width, ranks=ranks, wraps={0: WRAPS_TO})
        head, *rows = fit.rows
        rule = "─" * max(len(line) for row in fit.rows for line in row)
        lines = [*below([_title(table, experiment)]), "", *head, rule, *(line for row in rows for line in row)]
        if fit.left_out:
            lines += ["", *below([f"no room here for {', '.join(fit.left_out)}: widen the terminal, or --format md"])]
        if per_seed:
            each = [[spell(cell) for cell in row] for row in seeds.cells(experiment.seeds, table.protocol)]
            fit = fitted(each, range(1, len(each[0])), width=width)
            lines += ["", *(line for row in fit.rows for line in row)]
        for title, problems in _by_kind(experiment.problems):
            told = [["", "", ""], *([who, p.state, spell(p.reason)] for who, p in _alike(problems))]
            room = width and width - 2
            shown = fitted(told, width=room, wraps={2: room or 0}).rows[1:]
            if room and any(wide(line) > room for row in shown for line in row):
                shown = [wrapped("  ".join(cells), room, "  ") for cells in told[1:]]
            more = " (kdcluster logs RUN says more)" * any(p.log for p in problems)
            lines += ["", f"{title}{more}:", *(f"  {line}" for row in shown for line in row)]
        blocks.append("\n".join([*lines, "", *below(experiment.notes)]))
    return spell("\n\n".join(filter(None, [*blocks, "\n".join(below(table.notes))])) + "\n")


def _markdown(table: Table, per_seed: bool) -> str:
    blocks = []
    for experiment in table.experiments:
        cells = _cells(table, experiment)
        lines = [f"### {escaped(_title(table, experiment))}", "", *markdown(cells, right=range(1, len(cells[0])))]
        if per_seed:
            each = seeds.cells(experiment.seeds, table.protocol)
            lines += ["", *markdown(each, right=range(1, len(each[0])))]
        for title, problems in _by_kind(experiment.problems):
            lines += ["", f"**{title}**", ""]
            lines += [f"- {escaped(f'{who}: {p.state}: {_why(p)}')}" for who, p in _alike(problems)]
        blocks.append("\n".join([*lines, "", *(f"- {escaped(note)}" for note in experiment.notes)]))
    return "\n\n".join(filter(None, [*blocks, "\n".join(f"- {escaped(note)}" for note in table.notes)])) + "\n"


def _title(table: Table, experiment: ExperimentTable) -> str:
    return f"{one_line(experiment.name)}: {table.protocol} {table.metric} in percent"


def _cells(table: Table, experiment: ExperimentTable) -> list[list[str]]:
    """Headings and rows; some columns only where there is a figure."""
    absent = {name for name, key in _OPTIONAL.items() if all(getattr(row, key) is None for row in experiment.rows)}
    columns = [column for column in _COLUMNS if column[0] not in absent]
    heading = [heading.format(protocol=table.protocol) for heading, _ in columns]
    return [heading, *([show(row) for _, show in columns] for row in experiment.rows)]


def _by_kind(problems: Sequence[Problem]) -> list[tuple[str, list[Problem]]]:
    unfinished = [p for p in problems if p.state != State.DONE]
    odd = [p for p in problems if p.state == State.DONE]
    kinds = [("not in the means", unfinished), ("finished runs with contradicting or lost records", odd)]
    return [(title, found) for title, found in kinds if found]


def _alike(problems: Iterable[Problem]) -> list[tuple[str, Problem]]:
    """Each problem once, with its run, or with how many of those that are not done have the same."""
    runs: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        same = (problem.run, problem.reason) if problem.state == State.DONE else (problem.state, _why(problem))
        runs.setdefault(same, []).append(problem)
    return [(ours[0].run if len(ours) == 1 else count(len(ours), "run"), ours[0]) for ours in runs.values()]


def _why(problem: Problem) -> str:
    return f"{problem.reason} (log: {problem.log})" if problem.log else problem.reason


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def _count(row: Row) -> str:
    return str(row.n) if row.n == row.n_expected else f"{row.n}/{row.n_expected}"


def _top1(row: Row) -> str:
    spread = "" if row.top1_sd is None else f" ± {row.top1_sd:.2f}"
    return MISSING if row.top1_mean is None else f"{row.top1_mean:.2f}{spread}"


def _gain(row: Row) -> str:
    if row.gain is None:
        return MISSING
    interval = "" if row.gain_ci95 is None else f" [{row.gain_ci95[0]:z.1f}, {row.gain_ci95[1]:z.1f}]"
    return f"{row.gain:+z.2f}{interval}"


def _params(row: Row) -> str:
    if row.params is None:
        return MISSING
    return f"{row.params / 1e6:.1f} M" if row.params >= 1e6 else f"{row.params / 1e3:.1f} k"


def _configuration(row: Row) -> str:
    return row.configuration if row.note is None else f"{row.configuration} [{row.note}]"


_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("model configuration", _configuration),
    ("n", _count),
    ("{protocol} test accuracy", _top1),
    ("gain", _gain),
    ("params", _params),
    ("reduction", lambda row: _number(row.reduction, "{:.1f}×")),
    ("retention", lambda row: _number(row.retention, "{:.1f} %")),
    ("size", lambda row: MISSING if row.size_bytes is None else size(row.size_bytes)),
    ("latency", lambda row: _number(row.latency_ms, "{:.3g} ms")),
    ("published", lambda row: _number(row.reference, "{:.2f}")),
]
_OPTIONAL = {"size": "size_bytes", "latency": "latency_ms", "published": "reference"}
"""Columns that are there only where a row has the field."""
_RANKS = {"size": 5, "latency": 4, "params": 3, "reduction": 2, "retention": 1}
"""Columns that give way on a narrow terminal, the highest first."""
WRAPS_TO = 20
"""Columns to which the configuration wraps before another column gives way."""
