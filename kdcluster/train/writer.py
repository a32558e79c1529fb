"""Files that are written beside the training, so that neither it nor the other ranks wait for a disk."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

log = logging.getLogger(__name__)

WAITING = 2
"""Most things that wait to be written: the weights of an evaluation and the checkpoint behind it, each in memory."""


class Writer:
    """One thread that writes in order; what goes wrong there is raised to who asks for more, or waits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "writer")
        self._jobs: deque[Future[object]] = deque()

    def room(self) -> None:
        """Wait until there is room for another thing, before it is copied."""
        while self._jobs and (len(self._jobs) >= WAITING or self._jobs[0].done()):
            self._jobs.popleft().result()

    def do(self, work: Callable[[], object]) -> None:
        """Have it done after what was asked for before; waits where too much of that is left."""
        self.room()
        before = self._jobs[-1] if self._jobs else None

        def after() -> None:
            if before is not None:
                before.result()  # raises: no checkpoint of a step without its weights, behind which others would begin
            work()

        self._jobs.append(self._thread.submit(after))

    def wait(self) -> None:
        """Until all is written."""
        while self._jobs:
            self._jobs.popleft().result()

    def close(self) -> None:
        """Wait, for who is leaving because of something else, which is what is to be raised."""
        self._thread.shutdown()
        for error in filter(None, (job.exception() for job in self._jobs)):
            log.error("what was to be saved is not: %s", error)
        self._jobs.clear()


def on_host(value: Any) -> Any:
    """A copy of plain values and tensors that stays as it is while the training goes on, its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(inner) for key, inner in value.items()}
    return [on_host(inner) for inner in value] if isinstance(value, list | tuple) else value
