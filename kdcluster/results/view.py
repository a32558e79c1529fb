"""What of a results table is shown: which columns, in which order, and whether several experiments stand in one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from kdcluster.errors import ConfigError
from kdcluster.results.paper import Paper
from kdcluster.results.seeds import SeedRow
from kdcluster.results.table import ExperimentTable, Problem, Row, Table
from kdcluster.results.words import MISSING, parameters, percent, points, ratio
from kdcluster.wording import one_line, size

One = TypeVar("One")


@dataclass(frozen=True)
class View:
    """What `--columns`, `--sort` and `--together` ask for."""

    columns: tuple[str, ...] = ()
    """Names, in order; none: the usual ones."""
    sort: str | None = None
    """A name, or `-name` for the largest first; what is missing comes last. None: by role."""
    together: bool = False
    """All experiments in one table."""


@dataclass(frozen=True)
class Line:
    """A row, and the names of the experiments that it is of."""

    experiment: str
    row: Row


@dataclass(frozen=True)
class Block:
    """What stands in one table, and what is said below it."""

    name: str
    lines: tuple[Line, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    seeds: tuple[SeedRow, ...]
    paper: Paper


@dataclass(frozen=True)
class Column:
    """One of the table for people."""

    name: str
    heading: str
    """`{protocol}` is filled in."""
    show: Callable[[Line], str]
    fields: tuple[str, ...]
    """What it is made of, by the names of `--format json`."""
    is_text: bool = False
    on_paper: str = ""
    """Its heading in a paper, which has less room, where that is another one."""
    shown: Literal["always", "where known", "where asked"] = "where asked"
    """In which tables: all, those that have a figure of it, or those of which `--columns` wants it."""


def names_in(text: str) -> tuple[str, ...]:
    """The names of `--columns a,b`."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def known_name(name: str, known: Iterable[str], option: str) -> str:
    """The name, where it is one of these.

    Raises:
        ConfigError: it is none; with all of them, and what was probably meant.
    """
    names = list(dict.fromkeys(known))
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    meant = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"{option}: there is no column {name!r}; {meant}there are {', '.join(names)}")


def blocks(table: Table, view: View) -> list[Block]:
    """One for each experiment, or one for all."""
    found = [_block(one) for one in table.experiments]
    if view.together and len(found) > 1:
        found = [_joined(found)]
    return [replace(one, lines=tuple(ordered(one.lines, view.sort, _key, _SORTABLE))) for one in found]


def _block(one: ExperimentTable) -> Block:
    name = one_line(one.name)
    return Block(name, tuple(Line(name, row) for row in one.rows), one.problems, one.notes, one.seeds, one.paper)


def _joined(found: Sequence[Block]) -> Block:
    """All in one: what they share once, and the experiments of each row and note named."""
    rows: dict[Row, list[str]] = {}
    numbers = 0
    for block in found:
        for line in block.lines:
            row = replace(line.row, note=None if line.row.note is None else line.row.note + numbers)
            rows.setdefault(row, []).append(block.name)
        numbers += sum(note.startswith("[") for note in block.notes)
    return Block(
        ", ".join(block.name for block in found),
        tuple(Line(", ".join(names), row) for row, names in rows.items()),
        tuple(dict.fromkeys(problem for block in found for problem in block.problems)),
        _joined_notes([(block.name, block.notes) for block in found]),
        tuple(dict.fromkeys(seed for block in found for seed in block.seeds)),
        Paper(
            " ".join(dict.fromkeys(block.paper.caption for block in found)),
            _joined_notes([(block.name, block.paper.notes) for block in found]),
        ),
    )


def _joined_notes(found: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, ...]:
    """Those of each experiment by name, the numbered ones first and numbered anew."""
    notes: dict[str, list[str]] = {}
    numbers = 0
    for name, ours in found:
        for note in ours:
            digits, _, text = note.partition("] ")
            own = f"[{int(digits[1:]) + numbers}] {name}: {text}" if note.startswith("[") else note
            notes.setdefault(own, []).append(name)
        numbers += sum(note.startswith("[") for note in ours)

    def said(note: str, names: Sequence[str]) -> str:
        return note if note.startswith("[") or len(names) == len(found) else f"{', '.join(names)}: {note}"

    return tuple(sorted((said(*one) for one in notes.items()), key=lambda note: not note.startswith("[")))


def ordered(lines: Sequence[One], sort: str | None, key: Callable[[One, str], Any], known: Iterable[str]) -> list[One]:
    """As `--sort` has it; what has no value is last either way."""
    if sort is None:
        return list(lines)
    name = known_name(sort.removeprefix("-"), known, "--sort")
    values = [(key(line, name), line) for line in lines]
    there = sorted(((v, line) for v, line in values if v is not None), key=lambda one: one[0], reverse=sort[0] == "-")
    return [line for _, line in there] + [line for v, line in values if v is None]


def _key(line: Line, name: str) -> Any:
    field = next((column.fields[0] for column in COLUMNS if column.name == name), name)
    value = line.experiment if field == "experiment" else getattr(line.row, field)
    return value


def columns_of(table: Table, block: Block, view: View) -> list[Column]:
    """The columns of a table, in order."""
    known = {column.name: column for column in COLUMNS}
    if found := [known[known_name(name, known, "--columns")] for name in view.columns]:
        return found
    together = [known["experiment"]] * (view.together and len(table.experiments) > 1)
    return [*together, *(column for column in COLUMNS if _is_usual(column, block.lines))]


def cells(table: Table, block: Block, view: View, *, on_paper: bool = False) -> tuple[list[list[str]], list[int]]:
    """Headings and rows, and which columns hold numbers."""
    columns = columns_of(table, block, view)
    marked = next((at for at, column in enumerate(columns) if column.name == "configuration"), 0)
    heads = [(on_paper and column.on_paper) or column.heading for column in columns]
    found = [[head.format(protocol=table.protocol) for head in heads]]
    for line in block.lines:
        row = [column.show(line) for column in columns]
        row[marked] += "" if line.row.note is None else f" [{line.row.note}]"
        found.append(row)
    return found, [at for at, column in enumerate(columns) if not column.is_text]


def _is_usual(column: Column, lines: Iterable[Line]) -> bool:
    if column.shown == "where known":
        return any(getattr(line.row, column.fields[0]) is not None for line in lines)
    return column.shown == "always"


def _of(field: str, form: str) -> Callable[[Line], str]:
    """A figure, or the sign for none."""

    def show(line: Line) -> str:
        value = getattr(line.row, field)
        return MISSING if value is None else form.format(value)

    return show


def _count(line: Line) -> str:
    row = line.row
    return str(row.n) if row.n == row.n_expected else f"{row.n}/{row.n_expected}"


def _gain(line: Line) -> str:
    return gain_text(line.row.gain, line.row.gain_ci95)


def gain_text(gain: float | None, interval: tuple[float, float] | None) -> str:
    """`+6.47 [5.91, 7.03]`: as many decimals as the accuracies have."""
    return points(gain) + ("" if gain is None or interval is None else f" [{interval[0]:z.2f}, {interval[1]:z.2f}]")


def _size(line: Line) -> str:
    return MISSING if line.row.size_bytes is None else size(line.row.size_bytes)


COLUMNS = (
    Column("experiment", "experiment", lambda line: line.experiment, ("experiment",), is_text=True),
    Column("role", "role", lambda line: line.row.role, ("role",), is_text=True),
    Column(
        *("configuration", "model configuration", lambda line: line.row.configuration, ("configuration",)),
        is_text=True,
        on_paper="model",
        shown="always",
    ),
    Column("n", "n", _count, ("n", "n_expected"), shown="always"),
    Column(
        *("top1", "{protocol} test accuracy", lambda line: percent(line.row.top1_mean, line.row.top1_sd)),
        ("top1_mean", "top1_sd"),
        on_paper="top-1 (%)",
        shown="always",
    ),
    Column("gain", "gain", _gain, ("gain", "gain_ci95"), shown="always"),
    Column("params", "params", lambda line: parameters(line.row.params), ("params",), shown="always"),
    Column("reduction", "reduction", lambda line: ratio(line.row.reduction, "×"), ("reduction",), shown="always"),
    Column("retention", "retention", lambda line: ratio(line.row.retention, " %"), ("retention",), shown="always"),
    Column("size", "size", _size, ("size_bytes",), shown="where known"),
    Column("latency", "latency", _of("latency_ms", "{:.3g} ms"), ("latency_ms",), shown="where known"),
    Column("published", "published", _of("reference", "{:.2f}"), ("reference",), shown="where known"),
    Column("runs", "runs", lambda line: " ".join(line.row.runs), ("runs",), is_text=True),
)
_SORTABLE = [column.name for column in COLUMNS]


def legend(block: Block, columns: Iterable[Column]) -> Iterator[str]:
    """What the figures of these columns mean, in a paper's words."""
    names = {column.name for column in columns}
    rows = [line.row for line in block.lines]
    seeds = sorted({row.n for row in rows if row.top1_sd is not None})
    if "top1" in names and seeds:
        over = " to ".join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))
        yield f"±: sample standard deviation over {over} seeds; the students share one teacher."
    if "gain" in names and any(row.gain is not None for row in rows):
        known = any(row.gain_ci95 is not None for row in rows)
        interval = ", with its 95% confidence interval over the seeds (Student's t)" if known else ", of one seed"
        yield f"Gain: distilled minus baseline of the same seed, in percentage points{interval}."
    if "reduction" in names and any(row.reduction is not None for row in rows):
        yield "Reduction: the teacher's parameters divided by the student's."
    if "retention" in names and any(row.retention is not None for row in rows):
        yield "Retention: the student's accuracy divided by the teacher's."
