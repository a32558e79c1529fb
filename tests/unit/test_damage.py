"""One damaged file is a state of its run alone: every command that reads goes on, and says what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.experiment import configfile, yamlfile
from kdcluster.files import read_json, write_json
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from tests.fabricated import DEAD, LIVE, NO_WEIGHTS, evaluated, publish, rank_failed
from tests.tiny import make_plan, write_experiment

TRIES = 300
STEPS = 10
"""Steps of an epoch."""


@dataclass(frozen=True)
class World:
    """A runs directory with sound runs in several states, and what is said of it."""

    folder: Path
    made: Plan
    finished: tuple[str, ...]
    running: str
    preempted: str
    rows: dict[str, dict[str, Any]]
    """By run: its row of `status --json`."""
    table: list[dict[str, Any]]
    """Its rows of `results --json`."""

    @property
    def root(self) -> Path:
        return self.folder / "runs"


def run(world: World, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--runs-dir", str(world.root)], env={"COLUMNS": "200"})


def attempt(run_dir: RunDir, made: Run, process: dict[str, Any], epochs: int, end: dict[str, Any] | None) -> None:
    """An attempt with all that one leaves, evaluated after each of some epochs."""
    run_dir.write_ticket("local", process)
    ref = {"backend": "local", "ref": process}
    one = run_dir.start_attempt({"supervisor": process, "gpus_held": 2, "from_step": 0, "started": 1e9, **ref})
    one.write("agent", process)
    facts = {"params": 7 if made.role == "teacher" else 3, "batchnorm_batch": None, "trainer_code": "today"}
    where = {"procs": 1, "device": "cpu", "threads": 1}
    one.write("trainer", {"steps_per_epoch": STEPS, "resumed_at_step": 0, **where, **facts})
    found = [{"epoch": n, "step": n * STEPS, "test/top1": 40.0 + n + made.seed} for n in range(1, epochs + 1)]
    evaluated(run_dir, found, one.number)
    at = {"time": time.time() + 1e6 if end is None else 1e9 + 60, "epochs": 2, "steps": 2 * STEPS}
    one.write("heartbeat", {**found[-1], **at, "best_top1": found[-1]["test/top1"]})
    one.log().write_text("torchrun says\n")
    one.log(0).write_text("step 1\nstep 2\n")
    if end is not None:
        one.write("outcome", {"reason": "", "rank": None, "time": 1e9 + 60, **end})
    if epochs == 2:
        publish(run_dir, found[-1]["test/top1"], one.number, best=found[-1], last=found[-1], **facts)
    if epochs == 2 and made.role == "teacher":
        record = {"bytes": len(NO_WEIGHTS), "sha256": hashlib.sha256(NO_WEIGHTS).hexdigest()}
        publish(run_dir, 43.0, one.number, best=found[-1], last=found[-1], **facts, weights={"best": record})
    if made.role == STORE:  # of those weights
        manifest = run_dir.path / "logits" / "manifest.json"
        weights = hashlib.sha256(NO_WEIGHTS).hexdigest()
        write_json(manifest, {**read_json(manifest), "weights": weights, "precision": "none"})


def make_world(folder: Path) -> World:
    changes = {"seeds": [0, 1], "teacher.min_top1": 10.0}
    made, root = make_plan(folder, changes), folder / "runs"
    other = write_experiment(folder, {"data.name": "mnist5k"}, "other")
    assert other.exists()
    ids = {f"{one.role}{one.seed}": one.id for one in made.runs}
    running, preempted = ids["baseline1"], ids["distilled1"]
    for one in made.runs:
        run_dir = RunDir(root, one.id)
        run_dir.prepare(one)
        run_dir.add_experiments(["tiny"])
        run_dir.note_submit("tiny")
        run_dir.note_trial("tiny", {"distill.alpha": 0.5})
        (run_dir.path / "slurm" / "1").mkdir(parents=True)
        (run_dir.path / "slurm" / "1" / "7.log").write_text("SLURM says\n")
        if one.id == running:
            attempt(run_dir, one, LIVE, 1, None)
        elif one.id == preempted:
            attempt(run_dir, one, DEAD, 1, {"state": "preempted", "reason": "stopped at step 10"})
            run_dir.attempt(1).write("preempted", {"step": 10})
            rank_failed(run_dir.attempt(1), 0)
        else:
            attempt(run_dir, one, DEAD, 2, {"state": "done"})
    finished = tuple(one.id for one in made.runs if one.id not in (running, preempted))
    world = World(folder, made, finished, running, preempted, {}, [])
    world.rows.update(rows(run(world, "status", "--json")))
    world.table.extend(table(run(world, "results", str(folder / "tiny.yaml"), "--json"))["rows"])
    states = {run_id: row["state"] for run_id, row in world.rows.items()}
    assert states == {**dict.fromkeys(finished, "done"), running: "running", preempted: "preempted"}
    assert [row["n"] for row in world.table] == [1, 1, 1]
    assert not any(row["reason"] for row in world.rows.values() if row["state"] != "preempted")
    return world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What is read of sound YAML is remembered, and a dry run writes none: YAML is most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yamlfile, "parse", cache(yamlfile.parse))
        patch.setattr(configfile, "load", _remembered(configfile.load))
        made = make_world(tmp_path_factory.mktemp("world"))
        shutil.copytree(made.root, made.folder / "sound")
        patch.setattr(yamlfile, "dump", lambda _: "")
        yield made


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def again(name: str, settings: Iterable[str] = ()) -> Any:
        key = (name, *settings)
        if key not in known:
            known[key] = load(name, key[1:])
        return known[key]

    return again


def rows(said: Result) -> dict[str, dict[str, Any]]:
    assert said.exit_code == 0, said.output
    return {row["id"]: row for row in json.loads(said.stdout)["runs"]}


def table(said: Result) -> dict[str, Any]:
    assert said.exit_code == 0, said.output
    found: dict[str, Any] = json.loads(said.stdout)["experiments"][0]
    return found


# --- What can become of a file


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def noise(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice([chance.randbytes(300), bytes(300), b"[" * 3_000]))


def other_type(path: Path, chance: random.Random) -> None:
    path.write_text(chance.choice(["[]", "7", '"text"', "null", "true", "{}", "[[1]]", "1e999", "NaN", "[null]"]))


def other_values(path: Path, chance: random.Random) -> None:
    """Nulls and wrong types in fields, in a document that keeps no check sum."""
    try:
        document = json.loads(path.read_text())
    except ValueError:
        return empty(path, chance)
    if not isinstance(document, dict):
        return other_type(path, chance)
    document.pop("crc32", None)
    wrong = [None, "text", [], {}, -1, 1e300, float("nan"), "\ud800", 10**30, True]
    for key in chance.sample(sorted(document), min(len(document), chance.choice([1, 1, 2, 99]))):
        document[key] = chance.choice(wrong)
        if chance.random() < 0.2:
            del document[key]
    path.write_text(json.dumps(document))


def gone(path: Path, chance: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder(path: Path, chance: random.Random) -> None:
    gone(path, chance)
    path.mkdir()
    if chance.random() < 0.5:
        (path / "inside").write_text("what is this?")


def link(path: Path, chance: random.Random) -> None:
    gone(path, chance)
    path.symlink_to(chance.choice(["nowhere", path.name, "/proc/self/mem"]))


def beside(path: Path, chance: random.Random) -> None:
    """An odd name, as a backup, an editor or a file manager leaves it."""
    names = ["result.json.bak", "rank0.old.log", "rank.log", "rankx.log", "failure-rankx.json", "failure-rank.json"]
    names += ["torchrun-nodex.log", "node1.json", ".start-x", "1.old", "02", "2", "²", "3 (copy)", "7.old.log", "x.log"]
    names += ["events.out.tfevents.x", "events.out.tfevents.1.x.a0", "cancel.json~", "stop.json", "ticket (1).json"]
    new = path.parent / chance.choice(names)
    if not new.exists():
        new.mkdir() if chance.random() < 0.3 else new.write_bytes(chance.choice([b"", b"{}", b"\0\xff"]))


KINDS: list[Callable[[Path, random.Random], None]] = [
    *(cut, bit, empty, noise, other_type, other_values, other_values, gone, folder, link, beside)
]


def damage(world: World, chance: random.Random) -> tuple[str, Path, str]:
    """Change one file of one run; returns the run, the file and what was done."""
    target = chance.choice([world.finished[chance.randrange(len(world.finished))], world.running, world.preempted])
    inside = world.root / target
    files = [path for path in sorted(inside.rglob("*")) if path.name not in ("reserve", "best.safetensors")]
    files += [path for path in files if path.suffix == ".json"]  # the records, twice as often
    path = chance.choice([one for one in files if one.is_file()] * 4 + [one for one in files if one.is_dir()])
    kind = chance.choice([gone, folder, link, beside] if path.is_dir() else KINDS)
    kind(path, chance)
    return target, path, kind.__name__


# --- What must hold


def check(world: World, target: str, chance: random.Random) -> list[str]:
    """All that is wrong with what the commands say of a world with one damaged file."""
    wrong = []
    exp, sound = str(world.folder / "tiny.yaml"), next(one for one in world.finished[::-1] if one != target)

    def said(*words: str, ok: bool = True) -> Result:
        result = run(world, *words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            wrong.append(f"traceback: {' '.join(words[:1])}: {''.join(traceback.format_exception(result.exception))}")
        elif ok and result.exit_code != 0:
            wrong.append(f"refused: {' '.join(words[:1])}: {result.output}")
        return result

    words = chance.choice([["status", "--json"], ["status", exp, "--json"]])
    if (result := said(*words)).exit_code == 0:
        found = rows(result)
        wrong += [f"{words}: {one} is not shown" for one in world.rows.keys() - found.keys()]
        others = found.keys() - {target}
        wrong += [f"{words}: {one} is another: {found[one]}" for one in others if found[one] != world.rows.get(one)]
    if (result := said("results", exp, "--json")).exit_code == 0:
        found_table = table(result)
        noted = json.dumps([found_table["problems"], found_table["notes"]])
        if found_table["rows"] != world.table and target not in noted:
            wrong.append(f"a number without a note: {found_table}")
    if (result := said("submit", exp, "--dry-run")).exit_code == 0:
        started = {one for one in world.rows if f"{one}/config.yaml" in result.stdout}
        remade = {target} if target.startswith(STORE) else set()  # what of a store is damaged is made again
        if started - {target} != {world.preempted} - {target} or started & {world.running, *world.finished} - remade:
            wrong.append(f"submit would start {sorted(started)}: {result.stderr}")
    said(chance.choice(["status", "logs"]), target)
    further = [
        *([["status"], ["status", sound], ["plan", exp], ["logs", sound], ["rm", sound], ["cancel", sound]]),
        *([["results", exp, "--format", style] for style in ("table", "md", "csv")]),
        ["cancel", str(world.folder / "other.yaml")],
    ]
    said(*chance.choice(further))
    if chance.random() < 0.1:
        said("results", exp, "--sweep", ok=False)
    return wrong


@pytest.mark.parametrize("seed", range(TRIES))
def test_one_damaged_file_is_a_state_of_its_run_alone(world: World, seed: int) -> None:
    chance = random.Random(seed)
    target, path, kind = damage(world, chance)
    wrong = check(world, target, chance)
    gone(world.root / target, random.Random())
    shutil.copytree(world.folder / "sound" / target, world.root / target)
    assert not wrong, f"{kind} {path.relative_to(world.root)}:\n" + "\n".join(wrong)
