"""`kdcluster diff`: the keys in which two runs, or two experiments, differ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kdcluster.columns import aligned, fitted
from kdcluster.commands.arguments import Chosen
from kdcluster.errors import ConfigError
from kdcluster.experiment.config import Experiment
from kdcluster.launch.status import run_status
from kdcluster.plan import Run, plan
from kdcluster.run import TRAINED
from kdcluster.runs import RunDir
from kdcluster.settings import NOT_IN_THE_ID, Setting, of_experiment, of_run
from kdcluster.terminal import show, show_json, show_wrapped, width
from kdcluster.wording import count, quoted, wide, wrapped

ABSENT = "–"
SURROUNDINGS = (
    *("params", "batchnorm_batch", "procs", "threads", "device", "device_name", "compiled", "python"),
    "trainer_code",
)
"""What a trainer notes that can move a number though no setting differs."""


@dataclass(frozen=True)
class Side:
    """One of the two: what it is called, what it is set to, and what came of it."""

    name: str
    settings: Mapping[str, Setting]
    runs: frozenset[str]
    """Ids: of the run, or of those that the experiment wants."""
    run: Run | None = None
    teachers: tuple[Run, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Difference(NamedTuple):
    """A key in which they differ; None where one of them has no such key."""

    key: str
    a: Setting | None
    b: Setting | None

    @property
    def hashed(self) -> bool:
        """Whether it makes other runs of them."""
        return any(one is not None and one.hashed for one in (self.a, self.b))


def diff(chosen: Chosen, a_name: str, b_name: str | None, *, as_json: bool) -> None:
    """Print what differs; without a second one, what the command line sets, or the file and its recipe.

    Raises:
        ConfigError: it sets something, and no experiment is named; or there is nothing to compare with.
    """
    both = [replace(chosen, names=(a_name,)), replace(chosen, names=(b_name or a_name,))]
    if chosen.settings and not any(one.named for one in both):
        raise ConfigError("--set and --seeds are of an experiment; a run has its settings: name one of the two")
    if b_name is None:
        both[0] = replace(both[0], overrides=(), seeds=None)
    if b_name is None and not chosen.settings:
        if not both[0].named:
            raise ConfigError(f"{a_name} is a run: name what it is to be compared with, another run or an experiment")
        sides = [_experiment(both[0]), _defaults(both[0])]
    else:
        sides = [_experiment(one) if one.named else _run_of(one.single[0]) for one in both]
    known = [side.run for side in sides if side.run]
    if len(known) == 1:
        sides = [side if side.run else _counterpart(one, known[0]) for side, one in zip(sides, both, strict=True)]
    a, b = sides
    found = sorted(_differences(a, b), key=lambda one: not one.hashed)
    facts = [(key, a.facts.get(key), b.facts.get(key)) for key in {**a.facts, **b.facts}]
    facts = [fact for fact in facts if fact[1] != fact[2]]
    if as_json:
        return show_json(_document(a, b, found, facts))
    for name, side in (("A", a), ("B", b)):
        show_wrapped(f"{name}  ", side.name)
    show("")
    rows = [[one.key, _text(one.a), _text(one.b), "" if one.hashed else NOT_IN_THE_ID] for one in found]
    rows += [[key, *(ABSENT if value is None else str(value) for value in values), ""] for key, *values in facts]
    for line in _table(rows, width()) if rows else ():
        show(line)
    same = len({**a.settings, **b.settings}) - sum(one.key in a.settings or one.key in b.settings for one in found)
    show(f"{count(same, 'key')} of both {'is' if same == 1 else 'are'} the same" if rows else "no key differs")
    if not known and rows and (shared := sorted(a.runs & b.runs)):
        show_wrapped("", f"both want {', '.join(shared)}")


def _experiment(one: Chosen) -> Side:
    loaded = one.load(one.named[0])
    made = plan([loaded])
    sets = "".join(f" --set {quoted(text)}" for text in one.settings)
    facts = {}
    for role in TRAINED:
        ids = made.wanted[loaded.name][role]
        if done := [result["best"]["test/top1"] for i in ids if (result := RunDir(one.root, i).result())]:
            facts[f"{role}, best test/top1"] = f"{statistics.fmean(done):.2f} % ({len(done)} of {len(ids)})"
    name = f"{loaded.name} ({loaded.path}){sets}"
    return Side(name, of_experiment(loaded), frozenset(run.id for run in made.runs), facts=facts)


def _defaults(one: Chosen) -> Side:
    """An experiment that names its data and models alone."""
    loaded = one.load(one.named[0])
    data, teacher, student = loaded.config.data, loaded.config.teacher, loaded.config.student
    least = {"data": {"name": data.name, "path": data.path}, "teacher": {"model": teacher.model}}
    config = Experiment.model_validate({**least, "student": {"model": student.model}})
    return Side("the defaults", of_experiment(replace(loaded, config=config)), frozenset())


def _run_of(run_dir: RunDir) -> Side:
    """A run with what is known of its teacher and of its outcome."""
    run, wrong = run_dir.known()
    newest, result = run_dir.newest(), run_dir.result()
    trainer = newest.read("trainer") if newest else {}
    status = run_status(run_dir)
    facts = {"state": str(status.state), "what is wrong": wrong or None}
    best_and_last = {which: (result or {}).get(which) for which in ("best", "last")}
    facts |= {f"{which} test/top1": f"{found['test/top1']:.2f} %" for which, found in best_and_last.items() if found}
    if not result and (best := status.heartbeat.get("best_top1")) is not None:
        facts["best test/top1"] = f"{best:.2f} % so far"
    facts |= {key: trainer.get(key) for key in SURROUNDINGS}
    facts |= {f"version of {name}": version for name, version in dict(trainer.get("versions") or {}).items()}
    needs = (RunDir(run_dir.root, need) for need in run.needs)
    teachers = tuple(need.known()[0] for need in needs if need.config.exists())
    return Side(run.id, of_run(run), frozenset([run.id]), run, teachers, facts)


def _counterpart(one: Chosen, known: Run) -> Side:
    """The run that an experiment has of a known one's role and seed, else the first of its role."""
    made = one.plan()
    alike = [run for run in made.runs if run.role == known.role]
    if not alike:
        raise ConfigError(f"{one.again()} has no run of the role {known.role}, as {known.id} is one; name another run")
    run = next((run for run in alike if run.seed == known.seed), alike[0])
    facts = _run_of(RunDir(one.root, run.id)).facts
    name = f"{run.id}, the {run.role} run of {one.again()} with seed {run.seed}"
    return Side(name, of_run(run), frozenset([run.id]), run, tuple(made[need] for need in run.needs), facts)


def _differences(a: Side, b: Side) -> list[Difference]:
    found = _differing(a.settings, b.settings)
    for ours, theirs in zip(a.teachers, b.teachers, strict=False):  # why it is another one
        of_teachers = [one for one in _differing(of_run(ours), of_run(theirs)) if one.hashed]
        common = [one for one in found if one.key.startswith(("data.", "train."))]  # of their experiments
        found += [one._replace(key=f"teacher.{one.key}") for one in of_teachers if one not in common]
    return found


def _differing(ours: Mapping[str, Setting], theirs: Mapping[str, Setting]) -> list[Difference]:
    """In the order of the first, and what only the second has behind what it follows there."""
    keys, at = list(ours), 0
    for key in theirs:
        if key not in ours:
            keys.insert(at, key)
        at = keys.index(key) + 1
    found = (Difference(key, ours.get(key), theirs.get(key)) for key in keys)
    return [one for one in found if one.a is None or one.b is None or one.a.value != one.b.value]


def _text(one: Setting | None) -> str:
    return ABSENT if one is None else one.text


def _table(rows: list[list[str]], room: int | None) -> list[str]:
    """Key, both values and what is to be noted side by side; where there is no room, the note below its key, and where
    the values have none, either, they below each other.
    """
    beside = [["", "A", "B"], *([f"{key} {note}".rstrip(), *values] for key, *values, note in rows)]
    narrow = [line for row in fitted(beside, width=room, wraps={0: 0, 1: 0, 2: 0}).rows for line in row]
    for lines in (aligned([["", "A", "B", ""], *rows]), narrow):
        if room is None or max(map(wide, lines)) <= room:
            return lines
    below = ((key, f"  A  {a}", f"  B  {b}") for key, a, b in beside[1:])
    return [part for one in below for line in one for part in wrapped(line, room, "     ")]


def _document(a: Side, b: Side, found: list[Difference], facts: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    def value(one: Setting | None) -> Any:
        return None if one is None else one.plain

    return {
        "schema": "kdcluster.diff/1",
        **{name: {"name": side.name, "runs": sorted(side.runs)} for name, side in (("a", a), ("b", b))},
        "differences": [{"key": one.key, "a": value(one.a), "b": value(one.b), "hashed": one.hashed} for one in found],
        "outcome": [{"key": key, "a": ours, "b": theirs} for key, ours, theirs in facts],
    }
