"""`kdcluster show`: all that a run's directory tells of it, and which runs need it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from kdcluster import teacherlogits
from kdcluster.columns import aligned
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import say_next_steps
from kdcluster.errors import ConfigError
from kdcluster.history import cost, history, post_mortem
from kdcluster.launch.cancel import files, needing
from kdcluster.launch.status import Status, run_status, statuses
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.runs import RunDir, find_run
from kdcluster.settings import NOT_IN_THE_ID, REQUIRED, Setting, of_run
from kdcluster.teacherlogits import held
from kdcluster.terminal import by_depth, show_json, width
from kdcluster.terminal import show as show_line
from kdcluster.wording import command, count, one_line, quoted, size, wrapped

MOST_NAMED = 6
"""So many runs that need it are named; a teacher of a sweep has dozens."""
IN_ITS_NAME = ("role", "seed", "teacher")
"""Settings that stand in its id, or among its needs."""
RECORDS = "records"
"""All small files beside the others, as ticket.json and an empty lock."""
JOINED = "\u00a0"
"""A blank at which no line is broken."""
WIDTH = 100
"""Of text that is wrapped and goes to no terminal."""


def show(chosen: Chosen, name: str, *, as_json: bool) -> None:
    """Print it."""
    run_dir = _named(replace(chosen, names=(name,)))
    run, wrong = run_dir.known()
    needs = [RunDir(run_dir.root, need).known()[0] for need in run.needs]
    found = statuses(Plan((*needs, run), {}, {}), run_dir.root)
    found |= {store: run_status(RunDir(run_dir.root, store)) for store in run.after}  # its own: others read it, too
    uses = attrgetter("after" if run.role == STORE else "needs")
    users = needing([run_dir], run_dir.root, uses)[run_dir.id]
    sizes = files(run_dir)
    if as_json:
        return show_json(_document(run_dir, run, wrong, found, [user.id for user in users], sizes))
    for line in (
        *_about(run_dir, run, wrong, found, users),
        *_attempts(run_dir),
        *_settings({key: one for key, one in of_run(run).items() if key not in IN_ITS_NAME}),
        *_files(sizes),
    ):
        show_line(line)
    say_next_steps({run.id: found[run.id]}, chosen.again(*run_dir.experiments()), chosen)


def _named(chosen: Chosen) -> RunDir:
    """The run that was named.

    Raises:
        ConfigError: an experiment was.
        NotFound: neither was.
    """
    if chosen.named:
        name = chosen.named[0]
        raise ConfigError(f"{name} is an experiment; show takes one of its runs: kdcluster status {quoted(name)}")
    return find_run(chosen.root, chosen.names[0])


def _about(run_dir: RunDir, run: Run, wrong: str, found: Mapping[str, Status], users: list[RunDir]) -> Iterator[str]:
    status = found[run.id]
    submitted = command(run_dir.submitted())
    named = [user.id for user in users[:MOST_NAMED]]
    more = [f"and {count(len(users) - MOST_NAMED, 'more run')}"] if len(users) > MOST_NAMED else []
    rows = {
        "state": ": ".join(filter(None, (status.state, status.reason))),
        "wrong": wrong,
        "result": _result(run_dir, run, status),
        **_logits(run_dir, run, found),
        "experiment": ", ".join(run_dir.experiments()) or "no experiment",
        "needs": ", ".join(f"{need} ({_state(found[need])})" for need in run.needs) or "no other run",
        "read by" if run.role == STORE else "needed by": ", ".join([*named, *more]) or "no run that is here",
        "started by": f"kdcluster submit {submitted}" if submitted else "",
        "folder": str(run_dir.path),
    }
    yield run.id
    for name, text in rows.items():
        yield from _wrapped(text, f"  {name:<{max(map(len, rows))}}  ") if text else ()


def _wrapped(text: str, before: str = "  ") -> list[str]:
    """Text as lines that fit the terminal, each below the beginning of the first."""
    wrapper = textwrap.TextWrapper(max(width() or WIDTH, 40), before, " " * len(before))
    wrapper.break_on_hyphens = wrapper.break_long_words = False  # an id or a path stays whole
    return wrapper.wrap(one_line(text))


def _state(status: Status) -> str:
    return f"{status.state}, {status.top1:.2f} %" if status.top1 is not None else status.state


def _result(run_dir: RunDir, run: Run, status: Status) -> str:
    """How good it is, or how far; empty before it has begun."""
    if (result := run_dir.result()) and "best" not in result:
        return f"{count(held(run_dir.path), 'view')} stored; {result['params']:,} parameters"
    if result:
        best, last = result["best"], result["last"]
        rule = f", selected on {result['selected_on']}" if "selected_on" in result else ""
        in_epochs = "epoch" in best and not (run.train and run.train.steps)
        at = f"after epoch {best['epoch']}{rule}" if in_epochs else f"at step {best['step']}{rule}"
        return (
            f"best test/top1 {best['test/top1']:.2f} % ({at}), last {last['test/top1']:.2f} %; "
            f"{result['params']:,} parameters"
        )
    beat = status.heartbeat
    if not beat.get("steps"):
        return ""
    best_top1 = f"; best test/top1 so far {beat['best_top1']:.2f} %" if beat.get("best_top1") is not None else ""
    done = (f"{what} {beat.get(what, 0)} of {beat.get(f'{what}s', 0)}" for what in ("epoch", "step"))
    return f"none yet: {', '.join(done)}{best_top1}"


def _logits(run_dir: RunDir, run: Run, found: Mapping[str, Status]) -> dict[str, str]:
    """What a store holds; of a distilled run, where it takes the teacher's logits from."""
    if run.role == STORE:
        return {"holds": _held(teacherlogits.about(run_dir.path), run)}
    if run.role != "distilled":
        return {}
    counts = (run_dir.result() or {}).get("views")
    known = [(how, counts.get(how)) for how in ("read", "computed")] if isinstance(counts, dict) else []
    origin = ", ".join(f"{how} in {count(number, 'epoch')}" for how, number in known if number)
    where = f"{run.store} ({_state(found[run.store])})" if run.store else "computed in each epoch"
    return {"logits": "; ".join(filter(None, (where, origin if run.store else "")))}


def _held(held: Mapping[str, Any], run: Run) -> str:
    """`16 of 16 views of 4,000 images and 10 classes, 1.2 MiB, 97.1 to 97.9 % as labelled; precision none, …`."""
    if not held["views"]:
        return f"none of {count(run.views or 0, 'view')} yet"
    of = f"{held['views']} of {count(run.views or 0, 'view')} of {held['images']:,} images, {held['classes']} classes"
    parts = [f"{of}, {size(held['bytes'])}"]
    if held["top1"][0] is not None:
        share = " to ".join(dict.fromkeys(f"{top1:.2f}" for top1 in held["top1"]))
        parts.append(f"{share} % of the images as labelled")
    if held["tolerance"] is not None:
        made = " and ".join(held["devices"])
        parts.append(f"made on {made}, precision {held['precision']}, tolerance {held['tolerance']:.2g}")
    return "; ".join(parts)


def _settings(settings: Mapping[str, Setting]) -> Iterator[str]:
    """What is not the default, a line each; the rest, which nobody has chosen, in one paragraph."""
    changed = {key: one for key, one in settings.items() if not one.is_default}
    yield from ("", "settings that are not the default")
    rows = ([key, one.text, "" if one.hashed else NOT_IN_THE_ID] for key, one in changed.items())
    for line in aligned(rows):
        yield from wrapped(f"  {line}", width(), "      ")
    yield "settings at their default"
    rest = (f"{key}{JOINED}{one.text}" for key, one in settings.items() if one.is_default)
    yield from (line.replace(JOINED, " ") for line in _wrapped(", ".join(rest)))


def _attempts(run_dir: RunDir) -> Iterator[str]:
    records = history(run_dir)
    yield from ("", "attempts" if records else "no attempt yet")
    for line in post_mortem(records):
        yield from by_depth(f"  {line}", width())


def _files(sizes: Mapping[Path, int]) -> Iterator[str]:
    """The files: each checkpoint and each of weights, which may be large, those of a folder, and the small records."""
    groups: dict[str, list[int]] = {}
    for path, bytes_ in sizes.items():
        each = path.suffix in (".ckpt", ".safetensors") or path.name == "config.yaml"
        name = str(path) if each else f"{path.parts[0]}/" if len(path.parts) > 1 else RECORDS
        groups.setdefault(name, []).append(bytes_)
    yield from ("", f"files, {size(sum(sizes.values()))}")
    named = sorted(groups.items(), key=lambda group: -sum(group[1]))
    counts = [f"  {count(len(each), 'file')}" if name[-1] == "/" or name == RECORDS else "" for name, each in named]
    rows = [[size(sum(each)), name + number] for (name, each), number in zip(named, counts, strict=True)]
    yield from (f"  {line}" for line in aligned(rows, right=(0,)))


def _document(
    run_dir: RunDir, run: Run, wrong: str, found: Mapping[str, Status], users: list[str], sizes: Mapping[Path, int]
) -> dict[str, Any]:
    status, records = found[run.id], history(run_dir)
    return {
        "schema": "kdcluster.show/1",
        "id": run.id,
        "hash": run.hash,
        "role": run.role,
        "seed": run.seed,
        "state": status.state,
        "reason": "; ".join(filter(None, (status.reason, wrong))),
        "experiments": run_dir.experiments(),
        "settings": {key: _setting(one) for key, one in of_run(run).items()},
        "needs": [{"id": need, "state": found[need].state, "best_top1": found[need].top1} for need in run.needs],
        "after": [{"id": store, "state": found[store].state} for store in run.after],
        "needed_by": users,
        "logits": teacherlogits.about(run_dir.path) if run.role == STORE else None,
        "submitted": command(run_dir.submitted()) or None,
        "attempts": [asdict(record) for record in records],
        **asdict(cost(records)),
        "result": _finite(run_dir.result()),
        "files": [{"path": str(path), "bytes": bytes_} for path, bytes_ in sizes.items()],
        "dir": str(run_dir.path),
    }


def _setting(one: Setting) -> dict[str, Any]:
    """A setting in JSON; a key that has to be set has null as its default."""
    default = None if one.default is REQUIRED else one.default
    return {"value": one.plain, "default": default, "is_default": one.is_default, "hashed": one.hashed}


def _finite(value: Any) -> Any:
    """A document whose losses may not be finite, for JSON, which has no such numbers: null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
