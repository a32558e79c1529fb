"""Which attempt is followed by another one in the same job: two budgets, and progress."""

from __future__ import annotations

from typing import Any

import pytest

from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.slurm.requeue import judged


def after(
    *states: str, steps: tuple[int, ...] | None = None, by_slurm: bool = True, restarts: int = 0, requeues: int = 10
) -> dict[str, Any]:
    """What is decided after attempts that ended so, of which each did 10 steps unless `steps` says otherwise."""
    outcomes = [{"state": state, "reason": "as it was"} for state in states]
    steps = tuple(range(0, 10 * len(states) + 1, 10)) if steps is None else steps
    profile = Profile(max_restarts=restarts, max_requeues=requeues)
    return judged(outcomes[-1], outcomes[:-1], steps, profile, by_slurm=by_slurm)


@pytest.mark.parametrize("state", ["preempted", "lost"])
def test_what_slurm_interrupts_is_requeued_while_the_budget_lasts(state: str) -> None:
    assert after(state)["next"] == "requeue"
    assert after(*[state] * 2, requeues=2)["next"] == "requeue"
    told = after(*[state] * 3, requeues=2)
    assert (told["next"], told["state"]) == (None, state)  # submit goes on from there
    assert told["reason"] == "as it was; max_requeues 2 are spent"
    assert after(state, requeues=0)["next"] is None


def test_what_somebody_stopped_is_not_requeued() -> None:
    assert after("preempted", by_slurm=False)["next"] is None
    assert after("cancelled")["next"] is None
    assert after("done")["next"] is None


def test_a_crash_is_no_preemption() -> None:
    assert after("failed")["next"] is None
    assert after("failed")["reason"] == "as it was"
    assert after("failed", restarts=1)["next"] == "restart"
    assert after("failed", "failed", restarts=1)["reason"] == "as it was; max_restarts 1 is spent"
    assert after("preempted", "preempted", "failed", restarts=1)["next"] == "restart"  # the budgets are separate
    assert after("failed", "preempted", restarts=1, requeues=1)["next"] == "requeue"
    assert after("preempted", "failed", restarts=3)["budget"] == {"restarts": [1, 3], "requeues": [1, 10]}


def test_two_attempts_in_a_row_without_a_step_end_it() -> None:
    assert after("lost", steps=(0, 0))["next"] == "requeue"  # bad luck: stopped while it started
    assert after("preempted", "lost", steps=(0, 4, 4))["next"] == "requeue"
    told = after("lost", "lost", steps=(4, 4, 4))
    assert (told["next"], told["state"]) == (None, "failed")
    assert told["reason"].startswith("as it was, and two attempts in a row did no step")


def test_a_run_that_is_only_evaluated_goes_on_while_the_budget_lasts() -> None:
    assert after("preempted", "preempted", "lost", steps=())["next"] == "requeue"
    told = after("preempted", "preempted", "preempted", steps=(), requeues=2)
    assert (told["next"], told["state"]) == (None, "preempted")
