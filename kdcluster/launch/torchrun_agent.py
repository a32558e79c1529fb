"""torchrun, as a run needs it: `python -P -m kdcluster.launch.torchrun_agent`, then torchrun's own arguments.

Its process, the agent, starts the ranks of one node and waits for them. What is added to torchrun:

- `--master-port=0` is a port that the system gives. It is open before anybody is told of it, so that no two runs take
  the same one, and where a run has one node, it is open to that node alone.
- The ranks are forks of the agent, which imports what the trainer needs once for all of them (ranks.py). Nothing else
  of torchrun changes: it sees processes that begin, end, and take signals.
- The ranks are told the agent's pid, so that they can see that it is gone.
- With `--report=FOLDER`, `FOLDER/torchrun-node<k>.json` says how it ended: which ranks failed, in what order, and which
  of them torchrun itself had stopped; the signal that stopped the agent; the error that it died of. Of several nodes
  the first one's port stands in `FOLDER/store.json`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcluster.launch.ranks import fork_ranks
from kdcluster.launch.torchrun import LOOPBACK
from kdcluster.processes import AGENT_VARIABLE
from kdcluster.runs import Attempt

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

AGENT = "torch.distributed.elastic.agent.server.api"
"""The logger that says by which signal torchrun was stopped."""
STOPPER = "torch.distributed.elastic.multiprocessing.api"
"""The logger that says which processes torchrun stops itself; it says so nowhere else."""


def main() -> None:
    """torchrun with the arguments of this process; ends as torchrun does."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--report", type=Path, default=None)
    given, arguments = parser.parse_known_args()

    gc.disable()  # a fifth of the imports' time: what they make, stays
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
    from torch.distributed.run import parse_args, run

    os.environ[AGENT_VARIABLE] = str(os.getpid())
    args = parse_args(arguments)
    store = None
    ended: dict[str, Any] = {"host": socket.gethostname(), "failures": [], "signal": None, "error": None}
    try:
        ranks = fork_ranks([args.training_script, *args.training_script_args], int(args.nproc_per_node))
        SubprocessHandler._popen = lambda _, argv, env: ranks.pop().begin(env)  # type: ignore[assignment,method-assign,return-value]
        stopped = Stopped()
        if args.node_rank == 0 and args.master_port == 0:
            store = open_store(args.master_addr)  # kept until the end: torchrun takes it by its port
            args.master_port = store.port
            if given.report and args.nnodes != "1":
                Attempt(given.report).write("store", {"port": store.port})
        record(run)(args)
    except ChildFailedError as error:
        ended["failures"] = failures(error, stopped)
        raise
    except SignalException as error:
        ended["signal"] = int(error.sigval)
        if error.sigval == signal.SIGTERM:
            sys.exit("torchrun was stopped on request (SIGTERM)")  # no traceback, and the same exit code, 1
        raise
    except Exception as error:
        ended["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        if given.report:
            Attempt(given.report).write_last(f"torchrun-node{args.node_rank}", {**ended, "time": time.time()})


def open_store(address: str) -> Any:
    """A TCPStore on a free port, shared with whoever in this process asks for one on that port.

    For several nodes it is open on every interface: a node's address need not be what its own name stands for there.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    port, handle = 0, None
    if address == LOOPBACK:
        listener = socket.create_server((address, 0))
        port, handle = listener.getsockname()[1], listener.detach()
    return TCPStore(address, port, None, True, wait_for_workers=False, multi_tenant=True, master_listen_fd=handle)


class Stopped(logging.Handler):
    """Which processes torchrun has sent which signals, as its logger says.

    After SIGTERM, which is how a run is asked to stop, the loggers say nothing of the signals that are passed on.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.signals: set[tuple[int, int]] = set()
        self._asked = False
        stopper = logging.getLogger(STOPPER)
        stopper.setLevel(logging.WARNING)
        stopper.addHandler(self)
        for logger in (logging.getLogger(AGENT), stopper):
            logger.addFilter(self._wanted)

    def _wanted(self, record: logging.LogRecord) -> bool:
        """Not "Received %s death signal", nor after it "Sending process %s closing signal %s"."""
        if record.name == AGENT:
            self._asked |= record.args == (signal.SIGTERM,)
            return record.args != (signal.SIGTERM,)
        return not self._asked or len(record.args or ()) != 2

    def emit(self, record: logging.LogRecord) -> None:
        """Read "Sending process %s closing signal %s" and "Unable to shutdown process %s via %s, … via %s"."""
        match record.args:
            case (int(pid), str(name)):
                self.signals.add((pid, signal.Signals[name]))
            case (int(pid), _, signal.Signals() as number):
                self.signals.add((pid, number))


def failures(error: ChildFailedError, stopped: Stopped) -> list[dict[str, Any]]:
    """The failed ranks in the order in which torchrun saw them: first those whose end made it stop the others."""
    return [
        {
            "rank": rank,
            "exitcode": failure.exitcode,
            "pid": failure.pid,
            "time": failure.timestamp,
            "by_torchrun": (failure.pid, -failure.exitcode) in stopped.signals,
        }
        for rank, failure in error.failures.items()
    ]


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Python's own end takes 0.2 s to free what was imported
