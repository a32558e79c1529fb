"""The index of event files is only ever a shortcut: nobody else can lay it, and damage makes it longer, never wrong."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

from kdcluster import rereading
from kdcluster.cli import main
from kdcluster.results import events, index, table
from kdcluster.results.events import Follower, Scalars, read_scalars
from kdcluster.results.index import Index
from kdcluster.results.measured import measure
from tests.fabricated import evaluated, put
from tests.tiny import make_plan
from tests.unit.test_events import NAME, content, grown, scalar, start, top1, values
from tests.unit.test_sweep import space


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as old as they need to be."""
    monkeypatch.setattr(index, "is_settled", lambda stamp: True)


def read(root: Path, run: str = "one") -> Scalars:
    """As a command does that reads one run."""
    known = Index(root)
    found = read_scalars(root / run / "events", index=known)
    known.save()
    return found


def event_file(root: Path, run: str = "one") -> Path:
    return root / run / "events" / NAME


def put_events(root: Path, many: int = 30, run: str = "one") -> Path:
    path = event_file(root, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content([start(0), *top1(range(many)), scalar("val/loss", 3, float("nan"))]))
    return path


def index_of(root: Path) -> Path:
    return root / ".index" / f"events-{os.geteuid()}"


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were read of a file, each time that one was."""
    sizes: list[int] = []
    monkeypatch.setattr(events, "split", lambda data, base: sizes.append(len(data)) or split(data, base))
    return sizes


split = events.split


def test_a_file_that_is_as_it_was_is_not_read_again(tmp_path: Path, splits: list[int]) -> None:
    path = put_events(tmp_path)
    first = read(tmp_path)
    assert first.problems  # of a value that is not finite
    assert repr(read(tmp_path)) == repr(first) == repr(read_scalars(path.parent))
    assert len(splits) == 2


def again(path: Path, new: bytes) -> None:
    """In place, until the clock of the disk has gone on."""
    before = path.stat()
    while rereading.stamp_of(path.stat()) == rereading.stamp_of(before):
        path.write_bytes(new)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and cp -p set it


def replaced(path: Path, new: bytes) -> None:
    path.with_name("aside").write_bytes(new)
    path.with_name("aside").replace(path)


@pytest.mark.parametrize("how", [again, replaced])
def test_what_has_changed_is_read_again(tmp_path: Path, how: Callable[[Path, bytes], None]) -> None:
    path = put_events(tmp_path)
    before = read(tmp_path)
    how(path, content([start(0), *top1(range(30), 1.0), scalar("val/loss", 3, float("nan"))]))
    assert values(read(tmp_path)) == {step: 1 + value for step, value in values(before).items()}
    path.unlink()
    assert read(tmp_path).points == {}


def test_of_a_file_that_grew_only_what_is_new_is_looked_at(tmp_path: Path, splits: list[int]) -> None:
    path = put_events(tmp_path)
    read(tmp_path)
    more = content([start(20), *top1(range(20, 40), 1.0)])
    path.write_bytes(path.read_bytes() + more)
    assert values(read(tmp_path)) == {step: step / 8 + (step >= 20) for step in range(40)}
    assert splits[1:] == [len(more)]
    path.write_bytes(content(top1(range(30), 2.0)) + more + more)  # another one, that is longer
    assert repr(read(tmp_path)) == repr(read_scalars(path.parent))
    assert splits[2] == path.stat().st_size


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grown())
def test_however_files_grow_the_index_gives_what_reading_everything_gives(pieces: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "one" / "events"
        folder.mkdir(parents=True)
        for file, data in pieces:
            before = (folder / file).stat() if (folder / file).exists() else None
            with (folder / file).open("ab") as open_file:
                open_file.write(data)
            known = Index(root)
            follower = Follower(folder, index=known)
            assert repr(follower.look()) == repr(read_scalars(folder)), before
            known.save()
            assert repr(read(root)) == repr(follower.look())


def test_what_may_be_changing_just_now_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "is_settled", rereading.is_settled)
    put_events(tmp_path)
    read(tmp_path)
    assert not index_of(tmp_path).exists()


# --- what cannot be trusted


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "is_settled", lambda stamp: True)
        root = tmp_path_factory.mktemp("runs")
        put_events(root)
        put_events(root, 9, "two")
        known = Index(root)
        found = [read_scalars(root / run / "events", index=known) for run in ("one", "two")]
        known.save()
    return root, index_of(root).read_bytes(), repr(found)


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_index_changes_nothing(world: tuple[Path, bytes, str], seed: int) -> None:
    root, sound, expected = world
    chance, damaged = random.Random(seed), bytearray(sound)
    at = chance.randrange(len(damaged))
    kind = chance.choice(["flip", "flip", "cut", "out", "noise", "twice", "swap"])
    if kind == "flip":
        damaged[at] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del damaged[at:]
    elif kind == "out":
        del damaged[at : at + chance.randrange(1, 50)]
    elif kind == "noise":
        damaged[at:] = chance.randbytes(100)
    elif kind == "twice":
        damaged[at:at] = damaged[:at]
    else:  # what is known of one run under the name of the other
        damaged = bytearray(bytes(damaged).replace(b"\none/", b"\n###/").replace(b"\ntwo/", b"\none/"))
        damaged = bytearray(bytes(damaged).replace(b"\n###/", b"\ntwo/"))
    index_of(root).write_bytes(damaged)
    known = Index(root)
    assert repr([read_scalars(root / run / "events", index=known) for run in ("one", "two")]) == expected


def planted(root: Path) -> None:
    """An index that says something else of a file."""
    text = index_of(root).read_text()
    head, line, _ = text.split("\n")
    name, _, body = line.split("\t")
    body = body.replace("3.625", "99.25")
    index_of(root).write_text(f"{head}\n{name}\t{index._check(body)}\t{body}\n")


def test_an_index_that_others_may_write_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_events(tmp_path)
    first = repr(read(tmp_path))
    planted(tmp_path)
    assert values(read(tmp_path))[29] == 99.25  # what is one's own is
    for mode in (0o664, 0o646):
        index_of(tmp_path).chmod(mode)
        assert repr(read_scalars(path.parent, index=Index(tmp_path))) == first
    index_of(tmp_path).chmod(0o644)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    index_of(tmp_path).write_bytes((tmp_path / ".index" / f"events-{owner}").read_bytes())  # put there by that user
    assert repr(read_scalars(path.parent, index=Index(tmp_path))) == first


def test_an_index_of_other_code_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_events(tmp_path)
    first = repr(read(tmp_path))
    planted(tmp_path)
    monkeypatch.setattr(index, "_version", lambda: "kdcluster.events/1 another")
    assert repr(read(tmp_path)) == first
    assert repr(read(tmp_path)) == first
    assert index_of(tmp_path).read_text().startswith("kdcluster.events/1 another\n")


def test_where_nothing_can_be_written_the_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_events(tmp_path)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert len(values(read(tmp_path))) == 30
    assert not index_of(tmp_path).parent.exists()


# --- the table


def test_the_table_leaves_an_index_without_runs_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: list[int]
) -> None:
    made, root = make_plan(tmp_path, {"distill.logits": "computed"}), tmp_path / "runs"
    for run in made.runs:
        run_dir = put(root, run, "done")
        evaluated(run_dir, [{"step": 10, "test/top1": 50.0}])
    first = table.build(made, root)
    assert len(splits) == len(made.runs)
    assert table.build(made, root) == first
    assert len(splits) == len(made.runs)
    assert oct(index_of(root).parent.stat().st_mode) == oct(root.stat().st_mode)
    shutil.rmtree(root / made.runs[0].id)
    put_events(root, run="new")
    read(root, "new")
    names = {line.partition("/")[0] for line in index_of(root).read_text().splitlines()[1:]}
    assert names == {"new", *(run.id for run in made.runs[1:])}
    assert measure(made.runs[1], run_dir, "best", Index(root)).done


def test_a_table_of_no_runs_makes_no_folder(tmp_path: Path) -> None:
    table.build(make_plan(tmp_path), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_trials_of_a_sweep_are_looked_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    searched = space(tmp_path, {"trials": 2})
    for point in searched.drawn(2):
        run_dir = put(tmp_path / "runs", point.runs[0], "done")
        run_dir.note_trial("tiny", point.values)
        evaluated(run_dir, [{"step": 4, "val/top1": 60.0, "val/loss": 1.0}])
    said = []
    for _ in range(2):
        result = CliRunner().invoke(main, ["results", "tiny.yaml", "--sweep"])
        said.append((result.exit_code, result.stdout))
    assert said[0] == said[1]
    assert "60.00" in said[0][1]
    assert len(splits) == 2  # each file once
