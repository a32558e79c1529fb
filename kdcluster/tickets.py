"""Who was given a run: `{"backend", "ref"}` in a run's ticket.json, and in the start.json of an attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ticket:
    """Who was given a run, and after which attempt of it."""

    backend: str
    """Name of the place."""
    ref: Mapping[str, Any]
    """What that place calls it: a process with its host, a job with its cluster and its name."""
    after_attempt: int = 0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Ticket | None:
        """From ticket.json, or from an attempt's start.json; None where that names nobody.

        Those of earlier versions name a `supervisor` or a `job` instead.
        """
        number = values.get("after_attempt", 0)
        if "backend" in values:
            return cls(values["backend"], values["ref"], number)
        if "job" in values:
            return cls("slurm", values["job"], number)
        if values.get("supervisor") and "job_id" not in values:  # the task of a SLURM job has its ticket
            return cls("local", values["supervisor"], number)
        return None
