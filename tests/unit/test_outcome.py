"""Why torchrun ended, as its agents and its ranks tell it; texts in tests/fixtures were printed by torch 2.14."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
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


def attempt(
    run_dir: RunDir, text: str | None = None, failures: Iterable[tuple[int, ...]] = (), **report: Any
) -> Attempt:
    """An attempt with torchrun's text (one of the fixtures, or as it stands here), and its report if one is given.

    `failures` as torchrun saw them: (rank, exit code, time, whether torchrun itself did that).
    """
    made = run_dir.start_attempt({})
    made.write("start", {"host": "node7"})
    if text is not None and (FIXTURES / f"torchrun-{text}.txt").is_file():
        shutil.copy(FIXTURES / f"torchrun-{text}.txt", made.log())
    elif text is not None:
        made.log().write_text(text)
    if failures or report:
        reports(made, 0, failures, **report)
    return made


def reports(attempt: Attempt, node: int, failures: Iterable[tuple[int, ...]] = (), **changes: Any) -> None:
    """What the torchrun of a node says at its end, as torchrun_agent.py writes it."""
    names = ("rank", "exitcode", "time", "by_torchrun")
    seen = [{"pid": 100 + failure[0], **dict(zip(names, failure, strict=True))} for failure in failures]
    values = {"host": f"node{7 + node}", "failures": seen, "signal": None, "error": None}
    attempt.write(f"torchrun-node{node}", {**values, **changes})


def fails(attempt: Attempt, rank: int, message: str, **changes: Any) -> None:
    """A rank's failure file, as train/worker.py writes it."""
    values = {"rank": rank, "host": f"node{rank}", "time": 10.0, "step": 5, "message": message}
    attempt.write(f"failure-rank{rank}", {**values, "collective": False, "out_of_memory": False, **changes})


EXCEPTION = ((1, 1, 5, False), (0, -15, 5, True))
"""Rank 1 raised, and torchrun stopped rank 0."""


@pytest.mark.parametrize(
    ("text", "given", "returncode", "reason", "rank", "signal"),
    [
        (
            "exception",
            {"failures": EXCEPTION},
            1,
            "rank 1 on node7 ended with 1: ValueError: rank one is broken",
            1,
            None,
        ),
        (
            "import-error",
            {"failures": [(0, 1, 5, False), (1, 1, 5, False)]},
            1,
            "rank 0 on node7 ended with 1: ModuleNotFoundError: No module named 'no_such_module'",
            0,
            None,
        ),
        ("silent", {"failures": [(0, 3, 5, False)]}, 1, "rank 0 on node7 ended with 3: it printed nothing", 0, None),
        (None, {"failures": [(1, -9, 5, False)]}, 1, "rank 1 on node7 was killed by SIGKILL" + KERNEL, 1, "SIGKILL"),
        # Both died within a second, and torchrun saw the survivor's exception first.
        (
            None,
            {"failures": [(0, 1, 5, False), (1, -9, 5, False)]},
            1,
            "rank 1 on node7 was killed by SIGKILL" + KERNEL,
            1,
            "SIGKILL",
        ),
        # Somebody else's SIGTERM; torchrun's own, to the sibling, came after it.
        (
            None,
            {"failures": [(1, -15, 5, False), (0, -15, 5, True)]},
            1,
            "rank 1 on node7 was killed by SIGTERM",
            1,
            "SIGTERM",
        ),
        (None, {"failures": [(1, -40, 5, False)]}, 1, "rank 1 on node7 was killed by signal 40", 1, "signal 40"),
        # Rank 0 ignored SIGTERM for 30 s, then torchrun itself sent SIGKILL.
        (
            "exception",
            {"failures": [(1, 1, 5, False), (0, -9, 35, True)]},
            1,
            "rank 1 on node7 ended with 1: ValueError: rank one is broken",
            1,
            None,
        ),
        ("", {}, -9, "torchrun was killed by SIGKILL", None, "SIGKILL"),
        ("", {"signal": 15}, 1, "torchrun was stopped by SIGTERM", None, "SIGTERM"),
        ("", {"error": "DistError: no\nmore"}, 1, "torchrun ended by itself: DistError: no", None, None),
        ("", {}, 1, "torchrun ended with 1: it printed nothing", None, None),
        (None, {}, 1, "torchrun ended with 1: it printed nothing", None, None),
        ("", {}, 0, "torchrun ended with 0: it printed nothing", None, None),
        ("x: usage\nx: error: what?\n", {}, 2, "torchrun ended with 2: x: error: what?", None, None),
    ],
)
def test_from_what_torchrun_says_alone(
    run_dir: RunDir,
    text: str | None,
    given: dict[str, Any],
    returncode: int,
    reason: str,
    rank: int | None,
    signal: str | None,
) -> None:
    ended = outcome(run_dir, attempt(run_dir, text, **given), returncode)
    expected = {"state": "failed", "reason": reason, "rank": rank, "signal": signal, "returncode": returncode}
    assert ended == {**expected, "host": "node7", "out_of_memory": False}


def test_a_failure_file_says_more_than_torchrun(run_dir: RunDir) -> None:
    started = attempt(run_dir, "exception", EXCEPTION)
    fails(started, 1, "ValueError: rank one is broken", step=7)
    ended = outcome(run_dir, started, 1)
    assert ended["reason"] == "rank 1 on node1, step 7: ValueError: rank one is broken"
    assert (ended["rank"], ended["host"], ended["signal"]) == (1, "node1", None)


def test_a_signal_beats_an_exception(run_dir: RunDir) -> None:
    """The survivor of a killed rank fails in its collective, and is the only one that can write."""
    started = attempt(run_dir, None, [(0, 1, 5, False), (1, -9, 5, False)])
    fails(started, 0, "RuntimeError: Connection closed by peer", collective=True)
    ended = outcome(run_dir, started, 1)
    assert ended["reason"] == "rank 1 on node7 was killed by SIGKILL" + KERNEL
    assert ended["rank"] == 1


def test_a_rank_that_was_killed_on_another_node(run_dir: RunDir) -> None:
    """The first node's torchrun saw only the ranks that lost it; the other's was then told to stop."""
    started = attempt(run_dir, None, [(0, 1, 6, False)])
    reports(started, 1, [(2, -9, 5, False), (3, -15, 6, True)])
    ended = outcome(run_dir, started, 1)
    assert (ended["rank"], ended["host"]) == (2, "node8")
    assert ended["reason"] == "rank 2 on node8 was killed by SIGKILL" + KERNEL
    reports(started, 1, [(2, -9, 5, False)], host="node7")
    assert outcome(run_dir, started, 1)["host"] == "node7 (node 1)"
    reports(started, 1, signal=15)
    assert outcome(run_dir, started, 1)["rank"] == 0


def test_an_agent_that_dies_by_itself_is_not_preempted(run_dir: RunDir) -> None:
    """Its ranks get its SIGTERM and save; but nobody told it to stop."""
    for report in ({"error": "AttributeError: 'NoneType' object has no attribute 'closed'"}, {}):
        started = attempt(run_dir, "", **report)
        started.write("preempted", {"step": 4})
        ended = outcome(run_dir, started, 1)
        assert (ended["state"], ended["reason"][:14]) == ("failed", "torchrun ended")


@pytest.mark.parametrize(
    ("returncode", "report", "stop"), [(0, {}, False), (1, {"signal": 15}, False), (1, {"failures": EXCEPTION}, True)]
)
def test_whoever_was_told_to_stop_and_saved_is_preempted(
    run_dir: RunDir, returncode: int, report: dict[str, Any], stop: bool
) -> None:
    started = attempt(run_dir, "", **report)
    started.write("preempted", {"step": 4})
    if stop:
        started.write("stop", {"time": 1.0})
    ended = outcome(run_dir, started, returncode)
    assert (ended["state"], ended["reason"]) == ("preempted", "stopped at step 4")


def test_an_exception_outside_a_collective_beats_an_earlier_one_inside(run_dir: RunDir) -> None:
    started = attempt(run_dir, "exception", EXCEPTION)
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
