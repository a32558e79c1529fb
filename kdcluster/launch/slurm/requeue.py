"""Whether a SLURM job is requeued after an attempt of its run has ended: two budgets, and progress. Pure.

A crash is not a preemption. A crash starts again while `max_restarts` of the profile last; a preemption, a time limit
or a lost node while `max_requeues` last, and only while steps are done: a run that is requeued for ever without one
costs GPU-hours and gives nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcluster.launch.slurm.profile import Profile
from kdcluster.states import INTERRUPTED, State


def judged(
    ended: dict[str, Any], past: Sequence[dict[str, Any]], steps: Sequence[int], profile: Profile, *, by_slurm: bool
) -> dict[str, Any]:
    """An attempt's outcome with what comes next: {"next": "restart" | "requeue" | None, "budget": …, …}.

    Args:
        ended: its outcome (outcome.py).
        past: outcomes of the earlier attempts of this job, oldest first.
        steps: the step that each attempt of this job began from, oldest first, this one's last; then the step that
            is saved now. Empty for a run that is only evaluated: it has no steps to show progress by.
        by_slurm: whether SLURM stopped the attempt in order to requeue it, or will be asked to.
    """
    states = [*(str(outcome.get("state")) for outcome in past), str(ended["state"])]
    restarts, requeues = states.count(State.FAILED), sum(state in INTERRUPTED for state in states)
    budget = {"restarts": [restarts, profile.max_restarts], "requeues": [requeues, profile.max_requeues]}
    told = {**ended, "budget": budget, "next": None}
    if ended["state"] == State.FAILED:
        if restarts <= profile.max_restarts:
            return {**told, "next": "restart"}
        return {**told, "reason": told["reason"] + _spent("max_restarts", profile.max_restarts)}
    if ended["state"] not in INTERRUPTED or not by_slurm:
        return told
    if len(steps) > 2 and steps[-1] == steps[-2] == steps[-3]:
        why = f"{ended['reason']}, and two attempts in a row did no step: time_limit and signal_lead_s leave no room"
        return {**told, "state": State.FAILED, "reason": why}
    if requeues > profile.max_requeues:
        return {**told, "reason": told["reason"] + _spent("max_requeues", profile.max_requeues)}
    return {**told, "next": "requeue"}


def _spent(name: str, number: int) -> str:
    if number:
        return f"; {name} {number} {'is' if number == 1 else 'are'} spent"
    return f"; not requeued, since {name} is 0" if name == "max_requeues" else ""
