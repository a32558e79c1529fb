"""Work on many files, in this process and, where that is worth it, in one for each core.

Each is a fresh interpreter that imports what its work needs, and no more. multiprocessing's own would import the main
module of this process, which here means torch (2 s), and a fork may hang where torch's threads are. Threads are slower
than none: of a small image's 0.2 ms most is Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import TypeVar

from kdcluster.errors import KdclusterError
from kdcluster.processes import die_with, threads_available
from kdcluster.train.bar import Pace

Result = TypeVar("Result")
Work = Callable[[int, Sequence[Path]], list[Result]]
"""Takes the place of the first file, and some files from there on; can be pickled."""

CHUNK = 32
"""Files at a time: few enough to share out evenly, enough that asking costs nothing (0.1 ms beside 6)."""
AHEAD = 2
"""Chunks that a process has been asked for: it need not wait for the next."""
START_S = 0.3
"""Until the processes work (0.25 s on an idle machine): files are worked on here for so long first, and it must save
twice as much."""


class Lost(KdclusterError):
    """A process ended before its work did."""


def each(work: Work[Result], paths: Sequence[Path], what: str) -> list[Result]:
    """What `work` gives for all files, in their order.

    Args:
        work: it may raise a KdclusterError, which comes out here, and then no process is left.
        paths: the files.
        what: for the bar, or the log: `decoding`.

    Raises:
        Lost: a process was killed.
    """
    processes = threads_available()
    results: list[Result] = []
    spent = 0.0
    with Pace(what, len(paths)) as pace:
        for start in range(0, len(paths), CHUNK):
            began = time.perf_counter()
            chunk = paths[start : start + CHUNK]
            results += work(start, chunk)
            pace.add(len(chunk))
            spent += (took := time.perf_counter() - began)
            done = start + len(chunk)
            saved = took / len(chunk) * (len(paths) - done) * (1 - 1 / processes)
            if spent > START_S and saved > 2 * START_S:
                return results + _in_processes(work, paths, done, processes, pace)
    return results


def _in_processes(work: Work[Result], paths: Sequence[Path], first: int, processes: int, pace: Pace) -> list[Result]:
    """`each` from place `first` on."""
    starts = range(first, len(paths), CHUNK)
    chunks = ((start, paths[start : start + CHUNK]) for start in starts)
    results: dict[int, list[Result]] = {}
    with _children(work, min(processes, len(starts))) as children:
        for connection in [*children] * AHEAD:
            for chunk in islice(chunks, 1):
                _ask(connection, chunk)
        while len(results) < len(starts):
            for connection in children.keys() & wait([*children]):
                try:
                    start, result = connection.recv()
                except (EOFError, ConnectionError):
                    raise Lost(
                        f"a process of this one ended with {children[connection].wait()} while it was {pace.what} (-9: "
                        "it was killed, often for want of memory); run the same command again to go on"
                    ) from None
                if isinstance(result, Exception):
                    raise result
                results[start] = result
                pace.add(len(paths[start : start + CHUNK]))
                for chunk in islice(chunks, 1):
                    _ask(connection, chunk)
    return [one for start in starts for one in results[start]]


def _ask(connection: Connection, what: object) -> None:
    with suppress(ConnectionError):  # of a process that is gone the end is read next
        connection.send(what)


@contextmanager
def _children(work: Work[Result], count: int) -> Iterator[dict[Connection, subprocess.Popen[bytes]]]:
    """Processes that do this work, by the connection that asks them; none is left afterwards."""
    children: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for _ in range(count):
            ours, theirs = Pipe()
            with theirs:
                children[ours] = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C is for this process, which then ends them
                    env={
                        **os.environ,
                        "OPENBLAS_NUM_THREADS": "1",
                    },  # numpy starts a thread for each core at its import
                )
            _ask(ours, work)
        yield children
    finally:
        for child in children.values():
            child.kill()
        for connection, child in children.items():
            child.wait()
            connection.close()


def main() -> None:
    """`python -m kdcluster.train.pool HANDLE PARENT`: do what is asked over the connection, until it ends."""
    handle, parent = map(int, sys.argv[1:])
    die_with(parent, "the process that decodes images")
    with Connection(handle) as connection, suppress(EOFError, ConnectionError):
        work = connection.recv()
        while True:
            start, paths = connection.recv()
            try:
                result = work(start, paths)
            except Exception as error:
                if not isinstance(error, KdclusterError):
                    error.add_note(traceback.format_exc())
                result = error
            connection.send((start, result))


if __name__ == "__main__":
    main()
