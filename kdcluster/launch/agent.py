"""A torchrun agent that dies with whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

AWAITED = {signal.SIGCHLD, signal.SIGTERM}
"""What a supervisor waits for, and so blocks in itself and not in its children."""


def dies_with(parent: int) -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGKILL when the thread that starts it ends, so start it from the main one."""
    libc = ctypes.CDLL(None)

    def set_death_signal() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal
