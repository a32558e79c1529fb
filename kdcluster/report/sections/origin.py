"""Where time went, and how to make it all again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from kdcluster.history import Cost, Record, cost, span, spent
from kdcluster.report import words
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, block, element, folded, joined, named, paragraphs, table, together
from kdcluster.report.origin import LONGEST_DIFF, Origin
from kdcluster.report.sections.parts import Section, picture
from kdcluster.settings import Setting
from kdcluster.wording import command, count, quoted


def costs(facts: Facts) -> Section | None:
    """Attempts, hours, and what of them was lost; nothing before a run has begun."""
    records = facts.origin.records
    if not records:
        return None
    total = cost(cost(found) for found in records.values())
    attempts = sum(map(len, records.values()))
    whole = f"{count(attempts, 'attempt')} of {count(len(records), 'run')}"
    hours = f"GPUs were held for {spent(total)}." if total.gpu_hours else "No GPU was held."
    said = [f"{whole} took {span(total.wall_s)}, summed. {hours}"]
    drawn = picture("time", facts, f"When each attempt ran: {whole}.", "Hatched: an attempt that did not end well.")
    head = ["role", "runs", "attempts", "time", *["GPU-hours", "of them lost"] * bool(total.gpu_hours)]
    roles = dict.fromkeys(facts.roles[run_id] for run_id in records)
    rows = [_sum(role, [found for run_id, found in records.items() if facts.roles[run_id] == role]) for role in roles]
    by_role = table("Time by role", head, [row[: len(head)] for row in rows], right=range(1, 6))
    every = folded("Every attempt", _attempts(facts))
    beside = element("div", paragraphs(said), by_role, every)
    return Section("Time and GPU-hours", element("div", drawn, beside, class_="pair"))


def _sum(role: str, found: Sequence[Sequence[Record]]) -> list[object]:
    total = cost(cost(one) for one in found)
    return [role, len(found), sum(map(len, found)), *_cost(total)]


def _cost(total: Cost) -> list[object]:
    return [span(total.wall_s), f"{total.gpu_hours:.3g}", f"{total.lost_gpu_hours:.3g}"]


def _attempts(facts: Facts) -> Html:
    head = ["run", "attempt", "where", "started", "time", "steps", "GPU-hours", "of them lost", "end"]
    rows = [
        [
            run_id,
            one.attempt,
            one.where,
            words.MISSING if one.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started)),
            span(one.wall_s),
            f"{one.from_step:,} to {one.to_step:,}",
            f"{one.gpu_hours:.3g}",
            f"{one.lost_gpu_hours:.3g}",
            ": ".join(filter(None, (one.state, one.reason))) or "no end is written down",
        ]
        for run_id, found in facts.origin.records.items()
        for one in found
    ]
    return table("Attempts, oldest first", head, rows, right=(1, 4, 6, 7), names=True)


def reproduce(facts: Facts) -> Section:
    """Commands, settings, code and versions."""
    found = facts.origin
    parts = [paragraphs(["These commands start the runs of this page again, or say that they are done:"])]
    parts.append(block("\n".join(_commands(facts))))
    made = element("div", *_made(found))
    parts.append(element("div", _settings(found.settings, found.file), made, class_="pair"))
    shown = "\n".join(f"{run_id}\n  {command(argv)}" for run_id, argv in found.commands.items() if argv)
    parts += [folded("The command of each run", block(shown))] if shown else []
    return Section("How to make it again", together(*parts))


def _commands(facts: Facts) -> Iterator[str]:
    if len(facts.origin.commits) == 1:
        (made,) = facts.origin.commits
        for folder, commit, _ in made.of:
            yield f"git -C {quoted(folder)} checkout {commit}"
        if made.diff and len(made.of) == 1:
            yield f"git -C {quoted(made.of[0][0])} apply {quoted(str(made.diff_file))}"
    for given in facts.origin.submitted or (facts.again,):
        yield f"kdcluster submit {given}"
    yield f"kdcluster report {facts.again}"


def _settings(settings: Mapping[str, Setting], file: str) -> Html:
    changed = [[key, one.text] for key, one in settings.items() if not one.is_default]
    rest = [[key, one.text] for key, one in settings.items() if one.is_default]
    head = ["key", "value"]
    return element(
        "div",
        table(together("Settings of ", named(file), " that are not the default"), head, changed),
        folded("Settings at their default", table("Settings at their default", head, rest)),
    )


def _made(found: Origin) -> Iterator[Html]:
    def of(runs: Sequence[str]) -> object:
        return joined(map(named, runs)) if len(runs) < 3 else f"{len(runs)} of {count(len(found.commands), 'run')}"

    for made in found.made:
        where = [["trained on", made.where]] if made.where else []
        rows = [*map(list, made.versions), *where]
        yield table(together("Versions of ", of(made.runs)), ["what", "version"], rows) if rows else Html()
    states = [
        [folder, f"{commit}{', with uncommitted changes' * changed}", of(one.runs)]
        for one in found.commits
        for folder, commit, changed in one.of
    ]
    yield table("Commits from which runs were started", ["folder", "commit", "runs"], states) if states else Html()
    for one in found.commits:
        if one.diff:
            cut = f"\n… and more in {one.diff_file}" if len(one.diff) == LONGEST_DIFF else ""
            yield folded(together("What was not committed: ", of(one.runs)), block(one.diff + cut))
