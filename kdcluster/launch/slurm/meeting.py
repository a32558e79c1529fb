"""Where the torchruns of a job on several nodes meet: the first node's task decides, the others read it in a file."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.launch.slurm import ownjob
from kdcluster.launch.slurm.nodes import address

log = logging.getLogger(__name__)

MEET_S = 600.0
"""How long the tasks of the other nodes wait for the first one."""
POLL_S = 0.2


def own_address() -> str:
    """This node's, as SLURM has it: its name need not resolve."""
    return address(os.environ["SLURMD_NODENAME"])


def place() -> dict[str, str]:
    """{"endpoint", "id"} on this node: a port from the job's id, another one where it is taken.

    The first choice lies below the ports that Linux gives out by itself.

    Raises:
        KdclusterError: there is no free port.
    """
    here, job, restarts = own_address(), int(ownjob.number()), ownjob.restarts()
    for port in (20000 + (job * 7 + restarts) % 10000, 0):
        with socket.socket() as probe:
            try:
                probe.bind((here, port))
            except OSError:
                log.info("port %d of %s is taken; taking another", port, here)
                continue
            return {"endpoint": f"{here}:{probe.getsockname()[1]}", "id": f"{job}-{restarts}"}
    raise KdclusterError(f"no free port on {here}")


def tell(folder: Path, values: dict[str, Any]) -> None:
    """Say to the other nodes which attempt this is and where to meet, or that there is nothing to do."""
    write_json(_file(folder), values)


def wait_until_told(folder: Path) -> dict[str, Any]:
    """What the first node's task said.

    Raises:
        KdclusterError: nothing within `MEET_S`.
    """
    deadline = time.monotonic() + MEET_S
    while (told := read_json(_file(folder))) is None:
        if time.monotonic() > deadline:
            raise KdclusterError(f"the first node's task said nothing within {MEET_S:.0f} s ({_file(folder)})")
        time.sleep(POLL_S)
    return dict(told)


def _file(folder: Path) -> Path:
    return folder / f"start-{ownjob.number()}-{ownjob.restarts()}.json"
