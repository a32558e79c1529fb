"""The results table as text: `table` for people, `md`, `latex` and `html` for documents, `csv`, `json` and `jsonl` for
scripts (full precision)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

from kdcluster.columns import as_csv, as_json, escaped, fitted, in_ascii, markdown
from kdcluster.results import fragment, latex, seeds
from kdcluster.results.seeds import SeedRow
from kdcluster.results.table import Problem, Row, Table
from kdcluster.results.view import COLUMNS, Block, View, blocks, cells, columns_of, known_name, legend, ordered
from kdcluster.states import State
from kdcluster.wording import count, wide, wrapped

Format = Literal["table", "md", "latex", "html", "csv", "json", "jsonl"]
FORMATS: tuple[Format, ...] = ("table", "md", "latex", "html", "csv", "json", "jsonl")
DATA: tuple[Format, ...] = ("csv", "json", "jsonl")
"""Those for scripts."""
SCHEMA = "kdcluster.results/1"
USUAL = View()
_ROW = ["experiment", *(field.name for field in fields(Row))]
_SEED = [field.name for field in fields(SeedRow)]


def render(
    table: Table,
    format: Format = "table",
    *,
    ascii: bool = False,
    width: int | None = None,
    per_seed: bool = False,
    view: View = USUAL,
) -> str:
    """A table as one text that ends with a line break; `ascii` for a stream that can take nothing else.

    Args:
        table: what is shown.
        format: all but `table` are whole always.
        ascii: in ASCII alone.
        width: of a terminal, in columns, which `table` then fits: text wraps at words, columns give way by rank.
        per_seed: with the runs behind the means below it, in CSV and JSON lines in its place; in JSON they always are.
        view: which columns, in which order.

    Raises:
        ConfigError: there is no such column.
    """
    if format == "json":
        return as_json(document(table, view))
    if format == "table":
        return _plain(table, in_ascii if ascii else str, width, per_seed, view)
    if format in DATA:
        names, rows = _records(table, per_seed, view)
        if format == "jsonl":
            return "".join(json.dumps(dict(zip(names, row, strict=True)), allow_nan=False) + "\n" for row in rows)
        return _csv(names, rows, in_ascii if ascii else str)
    if format == "html":
        text = _html(table, per_seed, view)
        return text.encode("ascii", "xmlcharrefreplace").decode() if ascii else text
    text = _latex(table, per_seed, view) if format == "latex" else _markdown(table, per_seed, view)
    return in_ascii(text) if ascii else text


def document(table: Table, view: View = USUAL) -> dict[str, Any]:
    """What `--format json` prints: percent, percentage points, None where a number cannot be had."""
    experiments = []
    for experiment in table.experiments:
        rows = [{"experiment": experiment.name, **asdict(row)} for row in experiment.rows]
        names, chosen = _chosen(rows, _ROW, view, ("experiment",))
        experiments.append({**asdict(experiment), "rows": [dict(zip(names, row, strict=True)) for row in chosen]})
    return {
        "schema": SCHEMA,
        "protocol": table.protocol,
        "metric": table.metric,
        "experiments": experiments,
        "notes": list(table.notes),
    }


def _records(table: Table, per_seed: bool, view: View) -> tuple[list[str], list[list[Any]]]:
    """Names, and a row of values for each row of the table, or for each run behind it."""
    about = {"protocol": table.protocol, "metric": table.metric}
    rows = [
        {"experiment": experiment.name, **about, **asdict(row)}
        for experiment in table.experiments
        for row in (experiment.seeds if per_seed else experiment.rows)
    ]
    known = ["experiment", *about, *(_SEED if per_seed else _ROW[1:])]
    return _chosen(rows, known, view, ("note",))


def _chosen(
    rows: Sequence[Mapping[str, Any]], known: Sequence[str], view: View, unasked: Container[str]
) -> tuple[list[str], list[list[Any]]]:
    """Names, and rows of values, as a view has them; `unasked`: what is only there where it is named."""
    parts = {column.name: column.fields for column in COLUMNS if set(column.fields) <= set(known)}

    def made_of(name: str, option: str) -> Sequence[str]:
        return parts.get(known_name(name, [*parts, *known], option), (name,))

    names = [field for name in view.columns for field in made_of(name, "--columns")]
    names = list(dict.fromkeys(names)) or [name for name in known if name not in unasked]
    if view.sort:
        rows = ordered(rows, view.sort, lambda row, name: row[made_of(name, "--sort")[0]], [*parts, *known])
    return names, [[row[name] for name in names] for row in rows]


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]], spell: Callable[[str], str]) -> str:
    """An interval is two columns, a list one."""
    heads: list[Any] = []
    for name in names:
        heads += [f"{name}_low", f"{name}_high"] if name == "gain_ci95" else [name]
    found = [heads]
    for row in rows:
        flat: list[Any] = []
        for name, value in zip(names, row, strict=True):
            flat += (value or (None, None)) if name == "gain_ci95" else [" ".join(value) if name == "runs" else value]
        found.append(flat)
    return spell(as_csv(found))


def _plain(table: Table, spell: Callable[[str], str], width: int | None, per_seed: bool, view: View) -> str:
    def below(notes: Iterable[str]) -> list[str]:
        return [line for note in notes for line in wrapped(spell(note), width, "  ")]

    shown = []
    for block in blocks(table, view):
        found, right = cells(table, block, view)
        spelt = [[spell(cell) for cell in row] for row in found]  # before their width is taken
        texts = [at for at in range(len(spelt[0])) if at not in right]
        for row in spelt[1:]:
            for at in texts:
                row[at] = re.sub(r"\(.*?\)", lambda one: one[0].replace(" ", "\xa0"), row[at])  # α and T stay together
        ranks = {at: _RANKS[name] for at, name in enumerate(spelt[0]) if name in _RANKS}
        fit = fitted(spelt, right, width=width, ranks=ranks, wraps=dict.fromkeys(texts, WRAPS_TO))
        head, *rows = fit.rows
        rule = "─" * max(len(line) for row in fit.rows for line in row)
        lines = [*below([_title(table, block)]), "", *head, rule, *(line for row in rows for line in row)]
        if fit.left_out:
            lines += ["", *below([f"no room here for {', '.join(fit.left_out)}: widen the terminal, or --format md"])]
        if per_seed:
            each = [[spell(cell) for cell in row] for row in seeds.cells(block.seeds, table.protocol)]
            fit = fitted(each, range(1, len(each[0])), width=width)
            lines += ["", *(line for row in fit.rows for line in row)]
        for title, problems in _by_kind(block.problems):
            told = [["", "", ""], *([who, p.state, spell(p.reason)] for who, p in _alike(problems))]
            room = width and width - 2
            listed = fitted(told, width=room, wraps={2: room or 0}).rows[1:]
            if room and any(wide(line) > room for row in listed for line in row):
                listed = [wrapped("  ".join(one), room, "  ") for one in told[1:]]
            hints = ["kdcluster logs RUN says more"] * any(p.log for p in problems)
            hints += ["kdcluster status names them all"] * (len(told) - 1 < len(problems))
            more = f" ({', '.join(hints)})" * bool(hints)
            lines += ["", f"{title}{more}:", *(f"  {line}" for row in listed for line in row)]
        shown.append("\n".join([*lines, "", *below(block.notes)]))
    return spell("\n\n".join(filter(None, [*shown, "\n".join(below(table.notes))])) + "\n")


def _markdown(table: Table, per_seed: bool, view: View) -> str:
    shown = []
    for block in blocks(table, view):
        lines = [f"### {escaped(_title(table, block))}", "", *markdown(*cells(table, block, view))]
        if per_seed:
            each = seeds.cells(block.seeds, table.protocol)
            lines += ["", *markdown(each, right=range(1, len(each[0])))]
        for title, told in _problems(block):
            lines += ["", f"**{title}**", "", *(f"- {escaped(text)}" for text in told)]
        shown.append("\n".join([*lines, "", *(f"- {escaped(note)}" for note in block.notes)]))
    return "\n\n".join(filter(None, [*shown, "\n".join(f"- {escaped(note)}" for note in table.notes)])) + "\n"


def _latex(table: Table, per_seed: bool, view: View) -> str:
    """A float for each block, with what the reader of a paper has to know; all else that is said stands beside it."""
    parts = [latex.PREAMBLE]
    for block in blocks(table, view):
        each = seeds.cells(block.seeds, table.protocol)
        found = [cells(table, block, view, on_paper=True), *([(each, range(1, len(each[0])))] if per_seed else [])]
        notes = [*block.paper.notes, *legend(block, columns_of(table, block, view))]
        notes += [_TEST] * (per_seed and any(seed.p is not None for seed in block.seeds))
        notes += _failures(block)
        comments = [_title(table, block), *block.notes, *table.notes]
        parts.append(latex.float_of(block.name, block.paper.caption or block.name, found, notes, comments))
    return "\n\n".join(parts) + "\n"


_TEST = (
    "Fixed, broken: test images on which only the distilled student, only the baseline is right; "
    "p: McNemar's exact test of these, two-sided."
)


def _failures(block: Block) -> Iterator[str]:
    """Every kind of problem, as a sentence without the paths of logs: archives of papers publish also the source."""
    for title, problems in _by_kind(block.problems):
        each = "; ".join(f"{who} ({_joined(p.state, p.reason)})" for who, p in _alike(problems))
        yield f"{title[:1].upper()}{title[1:]}: {each}."


def _html(table: Table, per_seed: bool, view: View) -> str:
    lines = []
    for block in blocks(table, view):
        lines += fragment.table(*cells(table, block, view), _title(table, block))
        if per_seed:
            each = seeds.cells(block.seeds, table.protocol)
            lines += fragment.table(each, range(1, len(each[0])), f"{block.name}: the runs behind the means")
        for title, told in _problems(block):
            lines += [f"<p>{fragment.escaped(title)}:</p>", *fragment.items(told)]
        lines += fragment.items(block.notes)
    return "\n".join([*lines, *fragment.items(table.notes)]) + "\n"


def _title(table: Table, block: Block) -> str:
    return f"{block.name}: {table.protocol} {table.metric} in percent"


def _problems(block: Block) -> list[tuple[str, list[str]]]:
    """Each kind of problem, and what is said of each."""
    found = _by_kind(block.problems)
    return [(title, [_joined(who, p.state, _why(p)) for who, p in _alike(problems)]) for title, problems in found]


def _by_kind(problems: Sequence[Problem]) -> list[tuple[str, list[Problem]]]:
    unfinished = [p for p in problems if p.state != State.DONE]
    odd = [p for p in problems if p.state == State.DONE]
    kinds = [("not in the means", unfinished), ("finished runs with contradicting or lost records", odd)]
    return [(title, found) for title, found in kinds if found]


def _alike(problems: Iterable[Problem]) -> list[tuple[str, Problem]]:
    """Each problem with its run; where many that are not done have the same one, it stands once, with how many."""
    runs: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        same = (problem.run, problem.reason) if problem.state == State.DONE else (problem.state, _why(problem))
        runs.setdefault(same, []).append(problem)
    many = {same: [(count(len(ours), "run"), ours[0])] for same, ours in runs.items() if len(ours) > MOST_NAMED}
    return [pair for same, ours in runs.items() for pair in many.get(same, [(one.run, one) for one in ours])]


def _joined(*parts: str) -> str:
    return ": ".join(filter(None, parts))


def _why(problem: Problem) -> str:
    return f"{problem.reason} (log: {problem.log})" if problem.log else problem.reason


_RANKS = {"size": 5, "latency": 4, "params": 3, "reduction": 2, "retention": 1}
"""Columns that give way on a narrow terminal, the highest first."""
MOST_NAMED = 6
"""Runs that have the same problem, two roles of three seeds: more of them are counted."""
WRAPS_TO = 18
"""Columns to which the configuration wraps before another column gives way."""
