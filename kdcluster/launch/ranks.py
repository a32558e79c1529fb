"""The ranks of a node, as forks of an agent that has imported all that they need.

An import of torch and timm takes seconds and is the same in the agent and in each rank. The forks are made before the
agent has a thread, a store or a signal handler of torch's, and wait until torchrun starts them. They could not be
made by torchrun (`--start-method=fork`): it asks whether there is a GPU, after which no fork can use one, and of ranks
that it starts as functions it reports only one that failed. What is imported asks for none (a test holds that).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import traceback
from typing import NoReturn

POLL_S = 0.02


class Rank:
    """A process below this one, as far as torchrun asks for more than its pid: a part of `subprocess.Popen`."""

    def __init__(self, pid: int, orders: socket.socket) -> None:
        self.pid, self.orders = pid, orders
        self.returncode: int | None = None

    def begin(self, env: dict[str, str]) -> Rank:
        """Have it go on, with these environment variables."""
        with self.orders, contextlib.suppress(BrokenPipeError):  # it is dead: its exit code says how
            self.orders.sendall(json.dumps(env).encode())
        return self

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code, at its end.

        Raises:
            subprocess.TimeoutExpired: that does not come within so many seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(sys.argv, timeout)
            time.sleep(POLL_S)
        return code


def fork_ranks(argv: list[str], count: int) -> list[Rank]:
    """Import what a script imports, and make processes that will run it.

    Args:
        argv: the script, with its arguments; what it does besides imports stands below `if __name__ == "__main__"`.
        count: of the processes; those that are not begun end with this one.
    """
    runpy.run_path(argv[0], run_name="__mp_main__")
    gc.freeze()  # a collection need not look at what stays
    gc.enable()  # the agent imports without
    ranks: list[Rank] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        if (pid := os.fork()) == 0:
            ours.close()
            for before in ranks:
                before.orders.close()
            _be_a_rank(argv, theirs)
        theirs.close()
        ours.recv(1)  # now it leads a session, through which torchrun signals all that it starts
        ranks.append(Rank(pid, ours))
    return ranks


def _be_a_rank(argv: list[str], orders: socket.socket) -> NoReturn:
    """Wait until this process is to begin; run the script, and end as Python would: nothing goes back to the agent."""
    code = 1
    try:
        os.setsid()
        orders.sendall(b".")
        with orders, orders.makefile("rb") as file:
            if env := file.read():
                os.environ.update(json.loads(env))
                sys.argv = argv
                runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
