"""Where time went, and how to make it all again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from kdcluster.history import Cost, cost, span, spent
from kdcluster.report import words
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, block, breakable, element, folded, joined, named, paragraphs, table, together
from kdcluster.report.origin import LONGEST_DIFF, Commit, Origin
from kdcluster.report.sections.parts import Section, picture
from kdcluster.report.timeline import has_lost
from kdcluster.settings import Setting
from kdcluster.wording import command, count


def costs(facts: Facts) -> Section | None:
    """Attempts, hours, and what of them was lost; nothing before a run has begun."""
    records = facts.origin.records
    roles = dict.fromkeys(facts.roles[run_id] for run_id in records)
    each = {role: [found for run_id, found in records.items() if facts.roles[run_id] == role] for role in roles}
    spent_on: dict[str, tuple[int, int, Cost]] = {
        role: (len(found), sum(map(len, found)), cost(cost(one) for one in found)) for role, found in each.items()
    }
    spent_on |= facts.trials.spent if facts.trials else {}
    if not spent_on:
        return None
    total = cost(one for *_, one in spent_on.values())
    runs, attempts = sum(one[0] for one in spent_on.values()), sum(one[1] for one in spent_on.values())
    whole = f"{count(attempts, 'attempt')} of {count(runs, 'run')}"
    hours = f"; GPUs were held for {spent(total)}" if total.gpu_hours else " on CPUs"
    said = [f"{whole} took {span(total.wall_s)} together{hours}."]
    own = " Trials and confirmation are left out." if facts.trials and facts.trials.spent else ""
    caption = f"{'Hatched: an attempt that did not end well.' * has_lost(facts)}{own}".strip()
    drawn = picture("time", facts, f"When each attempt ran: {whole}.", caption)
    head = ["role", "runs", "attempts", "time", *["GPU-hours", "of them lost"] * bool(total.gpu_hours)]
    rows = [[what, runs, n, *_cost(one)][: len(head)] for what, (runs, n, one) in spent_on.items()]
    by_role = table("Time by role", head, rows, right=range(1, 6))
    every = folded("Every attempt", _attempts(facts)) if records else Html()
    beside = element("div", paragraphs(said), by_role)
    title = "Time and GPU-hours" if total.gpu_hours else "Compute time"
    return Section(title, together(element("div", drawn, beside, class_="pair"), every))


def _cost(total: Cost) -> list[object]:
    return [span(total.wall_s), f"{total.gpu_hours:.3g}", f"{total.lost_gpu_hours:.3g}"]


def _attempts(facts: Facts) -> Html:
    every = [(run_id, one) for run_id, found in facts.origin.records.items() for one in found]
    with_gpus, with_hosts = any(one.gpu_hours for _, one in every), any(one.where for _, one in every)
    head = ["run", "attempt", "time", "steps", *["GPU-hours", "of them lost"] * with_gpus, "started"]
    right = range(1, len(head))
    head += [*["where"] * with_hosts, "end"]
    rows = [
        [
            run_id,
            one.attempt,
            span(one.wall_s),
            f"{one.from_step:,} to {one.to_step:,}",
            *[f"{one.gpu_hours:.3g}", f"{one.lost_gpu_hours:.3g}"] * with_gpus,
            words.MISSING if one.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started)),
            *[one.where] * with_hosts,
            ": ".join(filter(None, (one.state, one.reason))) or "no end is written down",
        ]
        for run_id, one in every
    ]
    return table("Attempts, oldest first", head, rows, right=right, names=True)


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
    states = {tuple((folder, commit) for folder, commit, _ in made.of) for made in facts.origin.commits}
    if len(states) == 1:
        for folder, commit in states.pop():
            yield command(["git", *(["-C", folder] if folder else []), "checkout", commit])
    if len(facts.origin.commits) == 1:
        (made,) = facts.origin.commits
        if made.diff and len(made.of) == 1:
            yield command(["git", "-C", made.of[0][0], "apply", str(made.diff_file)])
    for given in facts.origin.submitted or (facts.again,):
        yield command(["kdcluster", "submit", *given])
    if facts.trials:
        yield command(["kdcluster", "sweep", *facts.again])
    yield command(["kdcluster", "report", *facts.again])


def _settings(settings: Mapping[str, Setting], file: str) -> Html:
    settings = {key: one for key, one in settings.items() if not _is_idle(key, settings)}
    changed = [[key, one.text] for key, one in settings.items() if not one.is_default]
    rest = [[key, one.text] for key, one in settings.items() if one.is_default]
    head = ["key", "value"]
    return element(
        "div",
        table(together("Settings of ", named(file), " that are not the default"), head, changed),
        folded("Settings at their default", table("Settings at their default", head, rest)),
    )


def _is_idle(key: str, settings: Mapping[str, Setting]) -> bool:
    """Whether a setting decides nothing here: the length in epochs where it is in steps."""
    return key in ("train.epochs", "train.warmup_epochs") and settings["train.steps"].value is not None


def _made(found: Origin) -> Iterator[Html]:
    def of(runs: Sequence[str]) -> object:
        if len(runs) == len(found.records):
            return f"all {len(runs)} runs" if len(runs) > 1 else "the run"
        return joined(map(named, runs)) if len(runs) < 3 else f"{len(runs)} of {count(len(found.records), 'run')}"

    for made in found.made:
        where = [["trained on", made.where]] if made.where else []
        rows = [*map(list, made.versions), *where]
        yield table(together("Versions of ", of(made.runs)), ["what", "version"], rows) if rows else Html()
    states: dict[tuple[str, str], list[tuple[Commit, bool]]] = {}
    for one in found.commits:
        for folder, commit, dirty in one.of:
            states.setdefault((folder, commit), []).append((one, dirty))
    rows = []
    for (folder, commit), ours in states.items():
        runs = [run for one, _ in ours for run in one.runs]
        rows.append([together(of(runs), _uncommitted(ours, len(runs))), commit[:12], breakable(folder)])
    head = ["runs", "commit", "folder"] if any(folder for folder, _ in states) else ["runs", "commit"]
    shown = [row[: len(head)] for row in rows]
    yield table("Commits from which runs were started", head, shown) if rows else Html()
    for one in found.commits:
        if one.diff:
            cut = f"\n… and more in {one.diff_file}" if len(one.diff) == LONGEST_DIFF else ""
            yield folded(together("What was not committed: ", of(one.runs)), block(one.diff + cut))


def _uncommitted(ours: Sequence[tuple[Commit, bool]], runs: int) -> str:
    """How much of a folder was not committed when its runs were started."""
    dirty = [one for one, changed in ours if changed]
    if not dirty:
        return ""
    of_them = sum(len(one.runs) for one in dirty)
    which = "" if of_them == runs else f" {of_them} of them"
    alone = all(
        sum(changed for *_, changed in one.of) == 1 for one in dirty
    )  # else the diff is of all folders together
    if not alone or not any(one.changed[0] for one in dirty):
        return f",{which} with uncommitted changes"
    lines, files = (sorted({one.changed[at] for one in dirty}) for at in (0, 1))
    hidden = "" if any(one.diff for one in dirty) else ", not shown"
    return f",{which} with {_between(lines, 'uncommitted line')} in {_between(files, 'file')}{hidden}"


def _between(numbers: Sequence[int], what: str) -> str:
    """`2 files`, `2 to 8 files`."""
    return f"{numbers[0]:,} to " * (len(numbers) > 1) + count(numbers[-1], what)
