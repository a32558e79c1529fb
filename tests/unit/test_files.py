"""Files: written whole or not at all, digests of what they hold, and where the shipped ones lie."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kdcluster import files, ownership
from kdcluster.errors import KdclusterError


def cache() -> list[Path]:
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "kdcluster" / "digests"
    return sorted(folder.glob("*.digest")) if folder.is_dir() else []


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Writing


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "state.json"
    files.write_aside(path, "α", sync=sync)
    files.write_aside(path, b"\x00new", sync=sync)
    assert path.read_bytes() == b"\x00new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    files.write_aside(path, "old")
    with pytest.raises(TypeError):
        files.write_json(path, object())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_aside(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_an_output_goes_where_its_link_leads_and_keeps_the_mode(tmp_path: Path) -> None:
    there, link = tmp_path / "there" / "table.md", tmp_path / "link.md"
    there.parent.mkdir()
    link.symlink_to(there)
    files.write_output(link, "first")  # a link that leads to nothing yet
    assert link.is_symlink()
    there.chmod(0o640)
    files.write_output(link, "α")
    assert link.is_symlink()
    assert (there.read_text(encoding="utf-8"), stat.S_IMODE(there.stat().st_mode)) == ("α", 0o640)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.md", "table.md", "there"]


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_a_new_output_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_output(tmp_path / "table.md", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "table.md").stat().st_mode) == mode


def test_an_output_into_a_pipe_leaves_the_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_output(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_our_own_files_never_go_through_a_link(tmp_path: Path) -> None:
    """A link that somebody has put into a run's directory must not lead our writing to a file of the user's."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "ticket.json").symlink_to(tmp_path / "mine")
    files.write_json(tmp_path / "ticket.json", {})
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("path", [os.fsdecode(b"/data/\xff\xfe"), "/data/\ud800", "/data/größe"])
def test_a_path_that_is_not_utf_8_is_read_back_as_it_was(tmp_path: Path, path: str) -> None:
    files.write_json(tmp_path / "start.json", {"path": path})
    assert files.read_json(tmp_path / "start.json") == {"path": path}
    assert (tmp_path / "start.json").read_bytes().isascii()


def test_json_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"a": "α"}', encoding="utf-8")
    assert files.read_json(tmp_path / "result.json") == {"a": "α"}


def test_json_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert files.read_json(path) is None
    files.write_json(path, {"b": [1, None], "a": "α"})
    assert files.read_json(path) == {"a": "α", "b": [1, None]}
    assert path.read_text(encoding="utf-8").endswith("}\n")


# Digests


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    for name, content in {"a": "one", "b": "one", "c": "two"}.items():
        (tmp_path / name).write_text(content)
    a, b, c = (files.file_digest(tmp_path / name) for name in "abc")
    assert a == b == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum
    assert c != a


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    first = files.file_digest(path)
    (remembered,) = cache()
    remembered.write_text("f" * 64)
    assert files.file_digest(path) == "f" * 64
    path.write_text("two!")
    assert files.file_digest(path) not in (first, "f" * 64)
    os.utime(path, ns=(1, 1))
    remembered.unlink()
    assert len(files.file_digest(path)) == 64


def test_a_damaged_memory_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    first = files.file_digest(path)
    cache()[0].write_text("")
    assert files.file_digest(path) == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "weights").write_text("one")
    assert files.file_digest(tmp_path / "weights").startswith("7692c3ad")


def test_the_trainers_code_has_a_digest() -> None:
    assert len(files.trainer_code()) == 64
    assert files.trainer_code() == files.trainer_code()


# A folder of one's own in /tmp


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /tmp, and in it the place of this user's folder, which is not there."""
    monkeypatch.setattr(ownership, "TEMPORARY", tmp_path)
    return tmp_path / f"kdcluster-{os.getuid()}"


def test_a_folder_of_ones_own_is_closed_to_others_and_always_the_same(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        assert ownership.own_folder() == temporary
    finally:
        os.umask(before)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(name, "/elsewhere")
    assert ownership.own_folder() == temporary


@pytest.mark.parametrize("made", ["a link to a folder", "a file", "open to its group", "another user's"])
def test_what_somebody_else_may_have_put_there_is_refused(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    if made == "a link to a folder":
        (tmp_path / "trap").mkdir(mode=0o700)
        temporary.symlink_to("trap")
        said = "is no folder"
    elif made == "a file":
        temporary.touch()
        said = "is no folder"
    elif made == "open to its group":
        temporary.mkdir()
        temporary.chmod(0o750)
        said = r"is open to others \(mode 750\)"
    else:
        uid = os.getuid() + 1
        monkeypatch.setattr(files.os, "getuid", lambda: uid)
        (tmp_path / f"kdcluster-{uid}").mkdir(mode=0o700)
        said = rf"kdcluster-{uid} belongs to another user \(uid {uid - 1}\)"
    with pytest.raises(KdclusterError, match=f"{said}; .*; remove it"):
        ownership.own_folder()


# What ships


def test_the_shipped_files_are_found() -> None:
    assert (files.shipped("configs") / "exp1.yaml").is_file()
    assert files.shipped("jobs/train.py").is_file()


def test_a_wheel_has_them_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdcluster" / "configs").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "kdcluster" / "files.py"))
    assert files.shipped("configs") == tmp_path / "kdcluster" / "configs"
    assert files.shipped("jobs/train.py") == tmp_path / "jobs" / "train.py"
