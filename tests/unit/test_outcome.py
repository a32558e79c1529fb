"""Why torchrun ended. Its texts in tests/fixtures were printed by torch 2.14 and shortened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from kdcluster.launch.outcome import outcome
from kdcluster.runs import Attempt, RunDir
from tests.fabricated import publish

FIXTURES = Path(__file__).parents[1] / "fixtures"
KERNEL = " (the kernel does that when memory runs out)"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path, "teacher-x-s0-00000000")


def attempt(run_dir: RunDir, text: str | None) -> Attempt:
    """An attempt with torchrun's text: one of the fixtures, or as it stands here."""
    made = run_dir.start_attempt({})
    made.write("start", {"host": "node7"})
    if text is not None and (FIXTURES / f"torchrun-{text}.txt").is_file():
        shutil.copy(FIXTURES / f"torchrun-{text}.txt", made.log())
    elif text is not None:
        made.log().write_text(text)
    return made


def fails(attempt: Attempt, rank: int, message: str, **changes: Any) -> None:
    """A rank's failure file, as train/worker.py writes it."""
    values = {"rank": rank, "host": f"node{rank}", "time": 10.0, "step": 5, "message": message}
    attempt.write(f"failure-rank{rank}", {**values, "collective": False, "out_of_memory": False, **changes})


@pytest.mark.parametrize(
    ("text", "returncode", "reason", "rank", "signal"),
    [
        ("exception", 1, "rank 1 on node7 ended with 1: ValueError: rank one is broken", 1, None),
        (
            "import-error",
            1,
            "rank 0 on node7 ended with 1: ModuleNotFoundError: No module named 'no_such_module'",
            0,
            None,
        ),
        ("silent", 1, "rank 0 on node7 ended with 3: it printed nothing", 0, None),
        ("sigkill", 1, "rank 1 on node7 was killed by SIGKILL" + KERNEL, 1, "SIGKILL"),
        # Both died within a second, and torchrun calls the one that is first in its list the root cause.
        ("sigkill-second", 1, "rank 1 on node7 was killed by SIGKILL" + KERNEL, 1, "SIGKILL"),
        # Somebody else's SIGTERM stands at the root; torchrun's own, to the siblings, only among the others.
        ("sigterm", 1, "rank 1 on node7 was killed by SIGTERM", 1, "SIGTERM"),
        ("realtime-signal", 1, "rank 1 on node7 was killed by signal 40", 1, "signal 40"),
        # Rank 0 ignored SIGTERM for 30 s, then torchrun itself sent SIGKILL.
        ("forced", 1, "rank 1 on node7 ended with 1: ValueError: rank one is broken", 1, None),
        ("agent-sigkill", -9, "torchrun was killed by SIGKILL", None, "SIGKILL"),
        ("agent-sigterm", 1, "torchrun was stopped by SIGTERM", None, "SIGTERM"),
        ("", 1, "torchrun ended with 1: it printed nothing", None, None),
        (None, 1, "torchrun ended with 1: it printed nothing", None, None),
        ("", 0, "torchrun ended with 0: it printed nothing", None, None),
        ("usage: train.py\ntrain.py: error: what?\n", 2, "torchrun ended with 2: train.py: error: what?", None, None),
    ],
)
def test_from_torchruns_text_alone(
    run_dir: RunDir, text: str | None, returncode: int, reason: str, rank: int | None, signal: str | None
) -> None:
    ended = outcome(run_dir, attempt(run_dir, text), returncode)
    expected = {"state": "failed", "reason": reason, "rank": rank, "signal": signal, "returncode": returncode}
    assert ended == {**expected, "host": "node7", "out_of_memory": False}


def test_a_failure_file_says_more_than_torchrun(run_dir: RunDir) -> None:
    started = attempt(run_dir, "exception")
    fails(started, 1, "ValueError: rank one is broken", step=7)
    ended = outcome(run_dir, started, 1)
    assert ended["reason"] == "rank 1 on node1, step 7: ValueError: rank one is broken"
    assert (ended["rank"], ended["host"], ended["signal"]) == (1, "node1", None)


@pytest.mark.parametrize("text", ["sigkill", "sigkill-second"])
def test_a_signal_beats_an_exception(run_dir: RunDir, text: str) -> None:
    """The survivor of a killed rank fails in its collective, and is the only one that can write."""
    started = attempt(run_dir, text)
    fails(started, 0, "RuntimeError: Connection closed by peer", collective=True)
    ended = outcome(run_dir, started, 1)
    assert ended["reason"] == "rank 1 on node7 was killed by SIGKILL" + KERNEL
    assert ended["rank"] == 1


def test_what_torchrun_did_to_the_siblings_is_not_the_cause(run_dir: RunDir) -> None:
    for text in ("exception", "forced"):
        started = attempt(run_dir, text)
        fails(started, 1, "ValueError: rank one is broken")
        assert outcome(run_dir, started, 1)["reason"] == "rank 1 on node1, step 5: ValueError: rank one is broken"


def test_an_exception_outside_a_collective_beats_an_earlier_one_inside(run_dir: RunDir) -> None:
    started = attempt(run_dir, "exception")
    fails(started, 0, "RuntimeError: Connection reset by peer", collective=True, time=9.0)
    fails(started, 2, "ValueError: late", time=12.0)
    fails(started, 1, "ValueError: first", time=11.0)
    fails(started, 3, "RuntimeError: gloo", collective=True, time=8.0)
    assert outcome(run_dir, started, 1)["reason"] == "rank 1 on node1, step 5: ValueError: first"


def test_out_of_memory_is_marked(run_dir: RunDir) -> None:
    started = attempt(run_dir, "exception")
    fails(started, 1, "out of memory with 8 images at once; try --set train.micro_batch=4", out_of_memory=True)
    ended = outcome(run_dir, started, 1)
    assert ended["out_of_memory"] is True
    assert ended["reason"].endswith("try --set train.micro_batch=4")


def test_done_needs_this_attempts_result(run_dir: RunDir) -> None:
    started = attempt(run_dir, "")
    publish(run_dir, 50.0, attempt=1)
    assert outcome(run_dir, started, 0)["state"] == "done"
    again = attempt(run_dir, "")
    ended = outcome(run_dir, again, 0)
    assert (ended["state"], ended["reason"]) == ("failed", "torchrun ended with 0: it printed nothing")
    crashed_at_exit = outcome(run_dir, started, 1)  # all is published: `status` says done, and so does this
    assert (crashed_at_exit["state"], crashed_at_exit["returncode"]) == ("done", 1)


def test_a_long_last_line_is_cut_and_bytes_that_are_no_text_do_not_matter(run_dir: RunDir) -> None:
    started = attempt(run_dir, "")
    started.log().write_bytes(b"\xff\xfe\nRuntimeError: " + b"x" * 1000 + b"\n")
    assert outcome(run_dir, started, 1)["reason"] == "torchrun ended with 1: RuntimeError: " + "x" * 286
