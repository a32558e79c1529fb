"""Which GPUs there are, with an nvidia-smi made for the test, and that no two runs get the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdcluster.errors import KdclusterError
from kdcluster.launch.local import gpus
from kdcluster.launch.local.gpus import GpuPool, visible_gpus

CARDS = ("GPU-aaaa1111-0", "GPU-aabb2222-0", "GPU-cccc3333-0")
Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Puts an nvidia-smi on the PATH that prints these UUIDs, or fails."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def make(*cards: str, fails: str = "") -> None:
        script = tmp_path / "nvidia-smi"
        lines = [f"echo {card}" for card in cards] + ([f"echo {fails!r} >&2", "exit 9"] if fails else [])
        script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        script.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, CARDS),
        ("", ()),
        ("  ", ()),
        ("0", CARDS[:1]),
        ("2,0", (CARDS[2], CARDS[0])),
        (" 1 , 2 ", CARDS[1:]),
        (CARDS[1], CARDS[1:2]),
        ("GPU-aab", CARDS[1:2]),
        ("GPU-c,0", (CARDS[2], CARDS[0])),
        ("MIG-12345678-90ab", ("MIG-12345678-90ab",)),
        ("0,7,1", CARDS[:1]),  # CUDA ignores what stands behind an entry that it does not know
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1,1", CARDS[1:2]),  # one card twice is one card: a run would wait for the second for ever
    ],
)
def test_cuda_visible_devices_limits_the_choice(
    smi: Smi, monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: tuple[str, ...]
) -> None:
    smi(*CARDS)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == list(expected)


def test_no_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible_gpus() == []


def test_a_broken_driver_is_an_error_and_not_a_machine_without_gpus(smi: Smi) -> None:
    smi(fails="NVIDIA-SMI has failed because it could not communicate with the driver")
    with pytest.raises(KdclusterError, match="nvidia-smi failed: NVIDIA-SMI has failed because"):
        visible_gpus()


def test_an_nvidia_smi_that_hangs_is_an_error(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(*CARDS)

    def hang(argv: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(argv, 60)

    monkeypatch.setattr(gpus.subprocess, "run", hang)
    with pytest.raises(KdclusterError, match="nvidia-smi did not answer within 60 s"):
        visible_gpus()


@pytest.fixture
def cards() -> Iterator[list[str]]:
    """Three cards that nobody else has: the locks lie in one folder of this user on this machine."""
    names = [f"GPU-test-{uuid.uuid4()}" for _ in range(3)]
    yield names
    for name in names:
        (Path("/tmp") / f"kdcluster-gpus-{os.getuid()}" / f"{name}.lock").unlink(missing_ok=True)


def names(taken: list[tuple[str, object]] | None) -> list[str] | None:
    return taken and [name for name, _ in taken]


def test_take_is_all_or_nothing(cards: list[str]) -> None:
    mine, other = GpuPool(cards), GpuPool(cards)
    two = mine.take(2)
    assert two is not None
    assert names(two) == cards[:2]
    assert other.take(2) is None
    one = other.take(1)  # the try for two kept nothing
    assert one is not None
    assert names(one) == cards[2:]
    assert mine.take(1) is None
    two[0][1].release()
    again = other.take(1)
    assert names(again) == cards[:1]
    assert mine.take(4) is None


TAKER = textwrap.dedent(
    """
    import sys
    from kdcluster.launch.local.gpus import GpuPool
    taken = GpuPool(sys.argv[2:]).take(int(sys.argv[1]))
    print(*[name for name, _ in taken or []], flush=True)
    input()
    """
)


def test_a_lock_holds_across_processes_and_folders_and_ends_with_its_process(cards: list[str], tmp_path: Path) -> None:
    held = GpuPool(cards).take(1)
    argv = [sys.executable, "-c", TAKER, "2", *cards]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as taker:
        assert taker.stdout is not None
        assert taker.stdout.readline().split() == cards[1:]  # in another folder, past the one that is held here
        assert GpuPool(cards).take(1) is None
        taker.send_signal(signal.SIGKILL)
        taker.wait()
    deadline = time.monotonic() + 10
    while (freed := GpuPool(cards).take(2)) is None:
        assert time.monotonic() < deadline, "kill -9 did not free the locks"
    assert names(freed) == cards[1:]
    assert held is not None
