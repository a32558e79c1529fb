"""`kdcluster export`: the model of a run, or of an experiment's distilled runs, as files for others."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdcluster import __version__, records
from kdcluster.columns import in_ascii
from kdcluster.commands import beside, costs
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.best import best_of, distilled, refuse_for_a_run
from kdcluster.commands.card import Card
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.launch import finished
from kdcluster.launch.status import run_status
from kdcluster.ownership import umask
from kdcluster.plan import Plan, Run
from kdcluster.results.table import Table
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.tabled import tabled
from kdcluster.terminal import can_show, say, show, show_wrapped, width
from kdcluster.wording import one_line, size

WRITTEN = ("model.safetensors", "model.onnx", "model.pt2", "README.md")
FILES = {*(Path(name).suffix for name in WRITTEN), ".pt", ".pth", ".bin", ".zip", ".tar", ".gz"}
"""Ends by which somebody means a file, not a folder."""


def export(chosen: Chosen, output: Path | None, *, best: bool, force: bool, benchmark: bool) -> None:
    """Write them and print what was written; of an experiment a folder for each run, or of the best one.

    Raises:
        ConfigError: the folder has something in it; a store was named.
        KdclusterError: a run is not finished; it cannot be exported.
    """
    if output is None and not benchmark:
        raise ConfigError("--output is missing: the folder to write; or --benchmark, which needs none")
    target = _new(output) if output else None
    picked = _picked(chosen, best=best, force=force)
    if benchmark:
        _benchmark(picked, chosen)
    if output and target:
        _write(picked, chosen, output, target)


def _benchmark(picked: _Picked, chosen: Chosen) -> None:
    """Measure what is not measured yet, of an experiment its teacher, too; and print it."""
    teachers = {run.teacher.id: None for run in picked.runs if run.teacher and picked.made}
    places = [RunDir(chosen.root, run_id) for run_id in (*teachers, *(run.id for run in picked.runs))]
    _refuse_unfinished(places, force=False)
    found = finished.benchmark([place.load() for place in places], chosen.root, chosen.data)
    models = [
        (place.id, record, (place.result() or {})["best"]["test/top1"])
        for place, record in zip(places, found, strict=True)
    ]
    for line in costs.for_terminal(list(costs.rows(models)), width()):
        show(line if can_show("–") else in_ascii(line))
    for note in costs.notes(found):
        show_wrapped("", note)


def _write(picked: _Picked, chosen: Chosen, output: Path, target: Path) -> None:
    failed = False
    made = picked.made
    table = tabled(made, chosen.root) if made else beside.table_of(RunDir(chosen.root, picked.runs[0].id), chosen)
    with _folder_beside(target) as aside:
        for facts in finished.export(picked.runs, chosen.root, chosen.data, aside):
            run = next(run for run in picked.runs if run.id == facts["id"])
            _describe(aside / run.id, run, facts, RunDir(chosen.root, run.id), table=table, selected=picked.selected)
            failed |= _say(facts)
        _put(aside if picked.several else aside / picked.runs[0].id, target)
    for run in picked.runs:
        folder = target / run.id if picked.several else target
        for path in sorted(folder.iterdir()):
            show(f"{output / path.relative_to(target)}  {size(path.stat().st_size)}")
    if picked.selected:
        say(f"{picked.runs[0].id}: {picked.selected}")
    if failed:
        sys.exit(1)


def _say(facts: dict[str, Any]) -> bool:
    """What an export lacks; whether an exporter has failed, and not only a package is missing."""
    run_id, missing = facts["id"], facts["missing"]
    for name, why in missing.items():
        say(f"{run_id}: no {name}: {why}")
    if not facts["checked"]["real"]:
        say(f"{run_id}: held against noise, not on images of the data set: {facts['data']}")
    if facts["timm"]:
        say(f"{run_id}: timm does not load it by itself ({facts['timm']}); README.md there says how to")
    return any("not installed" not in why for why in missing.values())


@dataclass(frozen=True)
class _Picked:
    runs: list[Run]
    made: Plan | None = None
    """Of the experiment that was named."""
    several: bool = False
    selected: str = ""
    """How one of several was chosen."""


def _picked(chosen: Chosen, *, best: bool, force: bool) -> _Picked:
    """The runs that are meant, each with weights that can be used."""
    if not chosen.named:
        refuse_for_a_run(chosen, best=best)
        (run_dir,) = chosen.single
        run = run_dir.load()
        if run.role == STORE:
            raise ConfigError(f"{run.id} stores logits and has no model of its own; export its teacher {run.needs[0]}")
        _refuse_unfinished([run_dir], force)
        return _Picked([run])
    made, places = distilled(chosen)
    _refuse_unfinished(places, force)
    if not best:
        return _Picked([place.load() for place in places], made, several=True)
    place, words = best_of(made, places)
    return _Picked([place.load()], made, selected=words)


def _refuse_unfinished(places: list[RunDir], force: bool) -> None:
    """Those that are not done, without `force`; those without weights that can be used, always."""
    problems = []
    for place in places:
        wrong = place.weights_problem("best")
        if place.result() is None and not force:
            problems.append(f"{place.id} is not finished: {_how_far(place)}")
        elif wrong:
            problems.append(f"{place.id}: its best weights are {wrong}; kdcluster submit {place.id} --retry makes them")
    if any("is not finished" in problem for problem in problems):
        problems.append("--force exports the best weights that are there, and the card says so")
    if problems:
        raise KdclusterError("\n".join(problems))


def _how_far(place: RunDir) -> str:
    status = run_status(place)
    at, of = (status.heartbeat.get(key, 0) for key in ("step", "steps"))
    return f"{status.state}, step {at} of {of}" if of else status.state


def _describe(
    folder: Path, run: Run, facts: dict[str, Any], place: RunDir, *, table: Table | None, selected: str
) -> None:
    """Class names and card."""
    names = facts["classes"] or [str(label) for label in range(run.num_classes)]
    (folder / "classes.txt").write_text("".join(f"{one_line(name)}\n" for name in names), encoding="utf-8")
    newest, result = place.newest(), place.result()
    teacher = RunDir(place.root, run.teacher.id).result() if run.teacher else None
    card = Card(
        run,
        facts,
        {path.name: path.stat().st_size for path in folder.iterdir()},
        result,
        newest.read("trainer") if newest else {},
        beside.models(run, place.root),
        table,
        teacher["best"]["test/top1"] if teacher else None,
        selected,
        unfinished="" if result else _how_far(place),
        made=_made_by(),
        cost=records.found(place.path / "benchmark.json"),
    )
    (folder / "README.md").write_text(card.text(), encoding="utf-8")


def _made_by() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    return f"Exported by kdcluster {__version__} with {packages} on {time.strftime('%Y-%m-%d')}"


# The folder


def _new(output: Path) -> Path:
    """Where an export goes: a folder that is not there, or is empty; a link to one is followed.

    Raises:
        ConfigError: something is there.
    """
    target = Path(os.path.realpath(output))
    if output.suffix.lower() in FILES:
        raise ConfigError(f"--output {output} is to be a folder, for several files ({', '.join(WRITTEN)}); name one")
    if target == Path.cwd():
        raise ConfigError(f"--output {output} is the folder that you are in, which would be replaced; name one in it")
    try:
        target.stat()
    except FileNotFoundError:
        return target
    except OSError as error:
        raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
    if not target.is_dir():
        raise ConfigError(f"--output {output} is a file; name a folder that is not there, or is empty")
    if there := sorted(records.entries(target)):
        some = ", ".join(there[:3]) + ", …" * (len(there) > 3)
        raise ConfigError(f"--output {output} is not empty ({some}), and nothing is written over; name another folder")
    return target


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A folder to write into, on the same file system, gone at the end; and gone are those of exports that were killed.

    Each is locked while its export lives; where a file system has no locks, none is taken for dead. Its name has the
    host, since some lock within one host alone.
    """
    name = f".export-{socket.gethostname()}-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside, lock = _locked(target.parent, name)
    except OSError as error:
        raise KdclusterError(f"cannot write {target}: {error.strerror}; give another --output") from None
    try:
        for other in target.parent.glob(f"{glob.escape(name)}????????.aside"):
            with suppress(OSError), _lock(other):  # somebody else's, or a living one
                shutil.rmtree(other, ignore_errors=True)
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        lock.close()


def _locked(parent: Path, name: str) -> tuple[Path, ExitStack]:
    """A new folder, and its lock, as far as there are any."""
    while True:
        aside, lock = Path(tempfile.mkdtemp(dir=parent, prefix=name, suffix=".aside")), ExitStack()
        try:
            lock.enter_context(_lock(aside))
        except (BlockingIOError, FileNotFoundError):  # another export came between, and took it for a dead one's
            continue
        except OSError:
            return aside, lock
        if aside.exists():
            return aside, lock
        lock.close()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held within; the system drops it when this process ends, however that comes.

    Raises:
        OSError: another process holds it, or there are no locks on folders there.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _put(folder: Path, target: Path) -> None:
    """Rename, which the system refuses over a folder that has something in it by now."""
    folder.chmod(0o777 & ~umask())
    try:
        folder.rename(target)
    except OSError as error:
        raise KdclusterError(f"{target} cannot be written ({error.strerror}), and is as it was") from None
