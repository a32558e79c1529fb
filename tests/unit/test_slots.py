"""That no two runs get the same GPU or core, whoever starts them, and that one is told who has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from kdcluster.errors import KdclusterError
from kdcluster.launch.local import slots
from kdcluster.launch.local.slots import Slots, own_cores
from kdcluster.ownership import locks_folder

ROOT = Path("/runs")


@pytest.fixture
def cards() -> list[str]:
    """Three cards that nobody else has: the locks lie in one folder of this user on this machine."""
    return [f"GPU-test-{uuid.uuid4()}" for _ in range(3)]


def names(taken: list[tuple[str, object]] | None) -> list[str] | None:
    return taken and [name for name, _ in taken]


def test_take_is_all_or_nothing(cards: list[str]) -> None:
    mine, other = Slots("GPU", cards, ROOT), Slots("GPU", cards, ROOT)
    two = mine.take(2, "run-a")
    assert two is not None
    assert names(two) == cards[:2]
    assert other.take(2, "run-a") is None
    one = other.take(1, "run-a")  # the try for two kept nothing
    assert one is not None
    assert names(one) == cards[2:]
    assert mine.take(1, "run-a") is None
    two[0][1].release()
    again = other.take(1, "run-a")
    assert names(again) == cards[:1]
    assert mine.take(4, "run-a") is None


TAKER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from kdcluster.launch.local.slots import Slots
    taken = Slots("GPU", sys.argv[2:], Path("/elsewhere")).take(int(sys.argv[1]), "run-b")
    print(*[name for name, _ in taken or []], flush=True)
    input()
    """
)


def test_a_lock_holds_across_processes_and_folders_and_ends_with_its_process(cards: list[str], tmp_path: Path) -> None:
    held = Slots("GPU", cards, ROOT).take(1, "run-a")
    argv = [sys.executable, "-c", TAKER, "2", *cards]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as taker:
        assert taker.stdout is not None
        assert taker.stdout.readline().split() == cards[1:]  # in another folder, past the one that is held here
        mine = Slots("GPU", cards, ROOT)
        assert mine.take(1, "run-c") is None
        assert mine.waits_for(1) == "waits for 1 GPU, held by run-a and 1 other"
        other = Slots("GPU", cards[1:], ROOT)
        assert other.take(1, "run-c") is None
        assert other.waits_for(1) == f"waits for 1 GPU, held by run-b in /elsewhere (pid {taker.pid})"
        taker.send_signal(signal.SIGKILL)
        taker.wait()
    deadline = time.monotonic() + 10
    while (freed := Slots("GPU", cards, ROOT).take(2, "run-a")) is None:
        assert time.monotonic() < deadline, "kill -9 did not free the locks"
    assert names(freed) == cards[1:]
    assert held is not None


def test_locks_that_somebody_else_could_hold_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCLUSTER_LOCKS_DIR", str(tmp_path / "locks"))
    Slots("GPU", [], ROOT)  # without GPUs there is nothing to lock
    theirs = tmp_path / "locks"
    theirs.mkdir()
    with pytest.raises(KdclusterError, match="is open to others"):
        Slots("core", own_cores(), ROOT)


def test_a_place_for_the_locks_that_cannot_be_made_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDCLUSTER_LOCKS_DIR", str(tmp_path / "file" / "locks"))
    with pytest.raises(KdclusterError, match=r"file/locks cannot be made \(Not a directory\).*KDCLUSTER_LOCKS_DIR"):
        Slots("core", own_cores(), ROOT)


def test_the_locks_are_the_same_ones_in_every_shell(
    monkeypatch: pytest.MonkeyPatch, cards: list[str], tmp_path: Path
) -> None:
    held = Slots("GPU", cards, ROOT).take(1, "run-a")
    for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert names(Slots("GPU", cards, ROOT).take(1, "run-a")) == cards[1:2]
    assert held is not None


def test_an_instance_with_a_path_for_a_name_can_be_locked(cards: list[str]) -> None:
    name = f"MIG-{cards[0]}/7/0"
    assert names(Slots("GPU", [name], ROOT).take(1, "run-a")) == [name]


def test_of_many_holders_some_are_named_and_what_has_ended_is_not(cards: list[str]) -> None:
    held = [Slots("GPU", cards, ROOT).take(1, f"run-{letter}") for letter in "abc"]
    mine, pid = Slots("GPU", cards, ROOT), os.getpid()
    assert mine.take(2, "run-d") is None
    assert mine.waits_for(2) == "waits for 2 GPUs, held by run-a and 2 others"
    (locks_folder() / f"{cards[0]}.json").unlink()  # just taken, and not yet written down
    for name in cards[1:]:
        path = locks_folder() / f"{name}.json"
        path.write_text(path.read_text().replace(f'"pid": {pid}', '"pid": 4194304'))
    assert mine.waits_for(1) == "waits for 1 GPU, held by another run"
    assert all(held)


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots.os, "sched_getaffinity", lambda pid: {7, 2, 5})
    monkeypatch.setattr(slots, "threads_available", lambda: 3)
    assert own_cores() == ["core-2", "core-5", "core-7"]
