"""The states of a run, and which of them mean what. A new state begins here.

`launch/status.py` says which one is true of a run, `launch/submission.py` what a submit does with it.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What is true of a run; the values are those of `status --json`."""

    PLANNED = "planned"
    BLOCKED = "blocked"
    """Something that it needs has failed, or the teacher stayed under `min_top1`."""
    QUEUED = "queued"
    RUNNING = "running"
    PREEMPTED = "preempted"
    """Interrupted after it had saved."""
    STOPPED = "stopped"
    """Ended early by a sweep's scheduler."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Nobody knows it any more, and nothing was heard of it for long; or its weights are gone."""
    DONE = "done"


LIVE = (State.QUEUED, State.RUNNING)
"""Something is at it, or will be."""
ENDED = tuple(state for state in State if state not in (*LIVE, State.PLANNED))
"""Nothing happens any more until someone submits again."""
INTERRUPTED = (State.PREEMPTED, State.LOST)
"""It goes on from its last checkpoint."""
UNSTARTED = (State.PLANNED, State.BLOCKED)
"""Nothing of it has been started, or could be."""
GIVEN_UP = (State.FAILED, State.CANCELLED)
"""Started again only with --retry."""
