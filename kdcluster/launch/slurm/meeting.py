"""Where the torchruns of a job on several nodes meet: the first node's task decides, the others read it in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.launch.slurm import ownjob
from kdcluster.launch.slurm.nodes import address

MEET_S = 600.0
"""How long the tasks of the other nodes wait for the first one."""
POLL_S = 0.2


def own_address() -> str:
    """This node's, as SLURM has it: its name need not resolve."""
    return address(os.environ["SLURMD_NODENAME"])


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
