"""What the attempts of a run did and cost, from directories made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcluster.history import Cost, cost, headline, history, post_mortem
from kdcluster.runs import RunDir
from tests import fabricated
from tests.fabricated import put, save
from tests.tiny import make_run


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return put(tmp_path / "runs", make_run(tmp_path, "teacher"), "planned")


def attempt(
    run_dir: RunDir,
    started: float,
    hours: float,
    from_step: int,
    to_step: int,
    outcome: dict[str, Any] | None,
    gpus: int = 2,
) -> None:
    one = run_dir.start_attempt({"started": started, "gpus_held": 2, "job_id": "7", "nodes": "node2", "waited_s": 12.0})
    one.write("trainer", {"resumed_at_step": from_step})
    one.write("heartbeat", {"time": started + 3600 * hours, "step": to_step})
    if outcome:
        one.write("outcome", {"reason": "", "time": started + 3600 * hours, **outcome})


def test_steps_that_were_done_twice_are_lost_gpu_hours(run_dir: RunDir) -> None:
    attempt(run_dir, 1000.0, 1.0, 0, 40, {"state": "preempted", "reason": "stopped at step 40"})
    attempt(run_dir, 9000.0, 1.0, 40, 80, {"state": "failed", "reason": "no", "rank": 1, "returncode": 1})
    attempt(run_dir, 19000.0, 0.5, 60, 100, {"state": "done"})
    first, second, third = history(run_dir)
    assert (first.from_step, first.to_step, first.gpu_hours, first.lost_gpu_hours) == (0, 40, 2.0, 0.0)
    assert (second.gpu_hours, second.lost_gpu_hours) == (2.0, 1.0)  # 20 of its 40 steps were done again
    assert (third.state, third.lost_gpu_hours) == ("done", 0.0)
    assert cost([first, second, third]) == Cost(5.0, 1.0, 9000.0)
    assert cost([cost([first]), cost([second, third])]) == Cost(5.0, 1.0, 9000.0)


def test_an_attempt_without_a_step_is_lost_and_one_that_runs_is_not(run_dir: RunDir) -> None:
    attempt(run_dir, 1000.0, 0.5, 40, 40, None)
    attempt(run_dir, 9000.0, 1.0, 40, 50, None)
    first, second = history(run_dir)
    assert (first.state, first.reason) == ("lost", "it ended without a word")
    assert first.ended == 1000.0 + 1800
    assert (first.gpu_hours, first.lost_gpu_hours) == (1.0, 1.0)
    assert (second.state, second.ended, second.gpu_hours, second.lost_gpu_hours) == (None, None, 2.0, 0.0)


def test_what_is_not_saved_of_a_failed_run_is_lost(run_dir: RunDir) -> None:
    attempt(run_dir, 1000.0, 1.0, 0, 40, {"state": "failed"})
    save(run_dir, 30)
    assert history(run_dir)[0].lost_gpu_hours == 0.5


def test_a_cpu_run_costs_no_gpu_hours_a_share_its_part_and_an_old_record_is_read(run_dir: RunDir) -> None:
    one = run_dir.start_attempt({"gpus": [""], "started": 5.0})
    one.write("outcome", {"state": "done", "reason": "", "time": 7205.0})
    two = run_dir.start_attempt({"gpus": ["0", "1"], "started": 5.0})
    two.write("outcome", {"state": "done", "reason": "", "time": 7205.0})
    three = run_dir.start_attempt({"gpus": ["0"], "gpus_held": 0.25, "started": 5.0})
    three.write("outcome", {"state": "done", "reason": "", "time": 7205.0})
    assert [record.gpu_hours for record in history(run_dir)] == [0.0, 4.0, 0.5]


def test_the_post_mortem_has_all_that_is_known(run_dir: RunDir) -> None:
    attempt(run_dir, 1000.0, 1.0, 0, 40, {"state": "failed", "reason": "rank 1: no", "rank": 1, "signal": "SIGKILL"})
    fabricated.rank_failed(run_dir.attempt(1), 1, step=41, traceback="Traceback:\n  here")
    (record,) = history(run_dir)
    assert headline(record).startswith("on node2 in job 7; from ")
    assert "(1:00:00); waited 0:12; steps 0 to 41; 2 GPU-hours, 2 of them lost; failed: rank 1: no" in headline(record)
    assert post_mortem([record])[1:] == [
        "    rank 1, signal SIGKILL",
        "    Traceback:",
        "      here",
        "2 GPU-hours, 2 of them lost to repeats",
    ]
