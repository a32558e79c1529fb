"""One experiment as two runs directories have it, A and B: what changed, with what that shows, and why it may have.

Accuracies are test/top1 in percent, differences B - A in percentage points, over the seeds that both have.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdcluster.columns import as_csv, as_json, escaped, fitted, in_ascii, markdown
from kdcluster.differing import differing, short
from kdcluster.results.conditions import where
from kdcluster.results.measured import TOP1, Measured, Protocol
from kdcluster.results.notes import gains
from kdcluster.results.spread import interval95
from kdcluster.results.view import gain_text
from kdcluster.results.words import MISSING
from kdcluster.run import ARMS, Arm
from kdcluster.wording import count, one_line, wrapped

Format = Literal["table", "md", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "md", "csv", "json")
SCHEMA = "kdcluster.compare/1"
Runs = Mapping[Arm, Sequence[Measured]]
"""Of one directory."""


@dataclass(frozen=True)
class Change:
    """A role, or the gain of distillation, in both. The field names are those of `--format json`."""

    what: str
    n_a: int
    n_b: int
    """Runs with a number; of the gain, seeds that have both."""
    n: int
    """Seeds that A and B have."""
    mean_a: float | None
    mean_b: float | None
    """Over all that each has."""
    sd_a: float | None
    sd_b: float | None
    difference: float | None
    difference_ci95: tuple[float, float] | None
    """95 % t interval over the seeds; None below 2."""
    shows: str
    """In words."""


@dataclass(frozen=True)
class Setting:
    """A key in which runs of a role differ; None where one has no such key."""

    role: Arm
    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """One experiment in both."""

    name: str
    rows: tuple[Change, ...]
    settings: tuple[Setting, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    """Done runs whose role and seed the other has not, or has not done."""
    notes: tuple[str, ...]


def compare(name: str, a: Runs, b: Runs) -> Comparison:
    """The runs of an experiment in A and in B; those that are not done count as not there."""
    rows = [_change(role, *({m.run.seed: m.top1 for m in side[role] if m.top1 is not None} for side in (a, b)))
            for role in ARMS if a[role] or b[role]]  # fmt: skip
    if (gain_a := gains(a)) or gains(b):
        rows.append(_change("gain", gain_a, gains(b)))
    pairs = [(role, *both) for role in ARMS for both in _pairs(a[role], b[role])]
    return Comparison(
        name,
        tuple(rows),
        tuple(_settings(pairs)),
        tuple(_alone(a, b)),
        tuple(_alone(b, a)),
        (*_notes(pairs), *_troubles("A", a), *_troubles("B", b)),
    )


def _pairs(ours: Sequence[Measured], others: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    known = {m.run.seed: m for m in others if m.done}
    return [(m, known[m.run.seed]) for m in ours if m.done and m.run.seed in known]


def _alone(ours: Runs, others: Runs) -> Iterator[str]:
    for role in ARMS:
        known = {m.run.seed for m in others[role] if m.done}
        yield from (m.run.id for m in ours[role] if m.done and m.run.seed not in known)


def _change(what: str, a: Mapping[int, float], b: Mapping[int, float]) -> Change:
    changes = [b[seed] - a[seed] for seed in a if seed in b]
    interval = interval95(changes)
    mean_a, mean_b = (statistics.fmean(side.values()) if side else None for side in (a, b))
    sd_a, sd_b = (statistics.stdev(side.values()) if len(side) > 1 else None for side in (a, b))
    mean = statistics.fmean(changes) if changes else None
    return Change(what, len(a), len(b), len(changes), mean_a, mean_b, sd_a, sd_b, mean, interval, _shows(what, changes))


def _shows(of: str, changes: Sequence[float]) -> str:
    """What differences by seed show."""
    interval = interval95(changes)
    if not changes:
        return "no seed is in both"
    if not any(changes):
        return "the same numbers"
    if interval is None:
        return "one seed: nothing is shown of others"
    if interval[0] <= 0 <= interval[1]:
        return "the interval includes zero: no difference is shown"
    side, better, larger = ("above", "better", "larger") if interval[0] > 0 else ("below", "worse", "smaller")
    return f"the interval lies {side} zero: " + (f"the gain is {larger} in B" if of == "gain" else f"B is {better}")


def _settings(pairs: Sequence[tuple[Arm, Measured, Measured]]) -> Iterator[Setting]:
    """The keys in which the runs of a role differ that have the same seed, each once."""
    found: dict[str, Setting] = {}
    for role, ours, others in pairs:
        if ours.run.id != others.run.id:
            values = differing((ours.run, others.run))
            for key, value in values[ours.run.id].items():
                one = Setting(role, key, value, values[others.run.id][key])
                found.setdefault(repr(one), one)
    yield from found.values()


def _notes(pairs: Sequence[tuple[Arm, Measured, Measured]]) -> Iterator[str]:
    """What else of two runs differs that can move a number."""
    for role in ARMS:
        both = [(ours, others) for its, ours, others in pairs if its == role]
        if same := sum(ours.run.id == others.run.id for ours, others in both):
            yield f"{role}: the same settings in A and B in {same} of {count(len(both), 'run')}"
        codes = {(ours.trainer.get("trainer_code"), others.trainer.get("trainer_code")) for ours, others in both}
        if any(None not in one and one[0] != one[1] for one in codes):
            yield f"{role}: made by other trainer code in A than in B"
        for a, b in sorted({(where(ours), where(others)) for ours, others in both}):
            if a != b and a and b:
                yield f"{role}: trained on {a} in A, on {b} in B"


def _troubles(side: str, runs: Runs) -> Iterator[str]:
    """Runs of a directory that are not done, and what contradicts itself in those that are."""
    every = [m for role in ARMS for m in runs[role]]
    if undone := [m.run.id for m in every if not m.done]:
        yield f"{side}: not done, and in no mean: {', '.join(undone)}"
    yield from (f"{side}: {m.run.id}: {what}" for m in every for what in (*m.problems, *m.damage))


def render(
    found: Sequence[Comparison],
    directories: tuple[str, str],
    protocol: Protocol,
    format: Format,
    *,
    ascii: bool = False,
    width: int | None = None,
) -> str:
    """All comparisons as one text that ends with a line break; `ascii` and `width` as in render.py."""
    if format == "json":
        a, b = directories
        about = {"schema": SCHEMA, "a": a, "b": b, "protocol": protocol, "metric": TOP1}
        return as_json({**about, "experiments": [asdict(one) for one in found]})
    if format == "csv":
        return _csv(found, directories, protocol)
    spell = in_ascii if ascii else str

    def below(texts: Sequence[str]) -> list[str]:
        if format == "md":
            return [f"- {escaped(text)}" for text in texts]
        return [line for text in texts for line in wrapped(spell(text), width, "  ")]

    shown = [[*below([f"{side}: {directory}" for side, directory in zip("AB", directories, strict=True)])]]
    for one in found:
        title = f"{one_line(one.name)}: {protocol} {TOP1} in percent, and B - A in points"
        rows = _cells(one, protocol)
        right = range(1, len(rows[0]) - 1)
        if format == "md":
            shown.append([f"### {escaped(title)}", "", *markdown(rows, right), "", *below(_said(one))])
        else:
            spelt = [[spell(cell) for cell in row] for row in rows]
            fit = fitted(spelt, right, width=width, ranks={1: 1, 2: 1}, wraps={len(rows[0]) - 1: 16})
            lines = [line for row in fit.rows for line in row]
            if fit.left_out:
                lines += [
                    "",
                    *below([f"no room here for {', '.join(fit.left_out)}: widen the terminal, or --format md"]),
                ]
            shown.append([*below([title]), "", *lines, "", *below(_said(one))])
    legend = "the interval is the 95 % t interval of the difference, paired by seed, over the seeds that both have"
    return spell("\n\n".join("\n".join(lines).rstrip("\n") for lines in [*shown, below([legend])]) + "\n")


def _cells(one: Comparison, protocol: Protocol) -> list[list[str]]:
    def mean(value: float | None, sd: float | None, form: str) -> str:
        return MISSING if value is None else form.format(value) + ("" if sd is None else f" ± {sd:.2f}")

    rows = [["role", "n A", "n B", f"A, {protocol} test", f"B, {protocol} test", "B - A", "what it shows"]]
    for row in one.rows:
        form = "{:+z.2f}" if row.what == "gain" else "{:.2f}"
        means = [mean(row.mean_a, row.sd_a, form), mean(row.mean_b, row.sd_b, form)]
        change = gain_text(row.difference, row.difference_ci95)
        rows.append([row.what, str(row.n_a), str(row.n_b), *means, change, row.shows])
    return rows


def _said(one: Comparison) -> list[str]:
    """Settings, runs that only one has, and notes, as sentences."""
    said = [f"{s.role}: {s.key} is {short(s.a)} in A, {short(s.b)} in B" for s in one.settings]
    for side, ids in (("A", one.only_a), ("B", one.only_b)):
        said += [f"only {side} has, of the seeds: {', '.join(ids)}"] if ids else []
    return [*said, *one.notes]


def _csv(found: Sequence[Comparison], directories: tuple[str, str], protocol: Protocol) -> str:
    names = [name for name in Change.__dataclass_fields__ if name != "difference_ci95"]
    names[-1:] = ["difference_ci95_low", "difference_ci95_high", names[-1]]
    rows: list[list[Any]] = [["experiment", "a", "b", "protocol", "metric", *names]]
    for one in found:
        for row in one.rows:
            low, high = row.difference_ci95 or (None, None)
            values = {**asdict(row), "difference_ci95_low": low, "difference_ci95_high": high}
            rows.append([one.name, *directories, protocol, TOP1, *(values[name] for name in names)])
    return as_csv(rows)
