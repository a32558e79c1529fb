"""This machine's GPUs: which there are, and a lock for each, so that two experiments never share one by accident."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from kdcluster.errors import KdclusterError

_WITHOUT = "; mend the driver, or run on the CPU with --procs (CUDA_VISIBLE_DEVICES= hides the GPUs)"


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that this process may use, without importing torch.

    CUDA_VISIBLE_DEVICES limits the choice: indices in nvidia-smi's order, UUIDs or their beginnings.

    Raises:
        KdclusterError: nvidia-smi is there but fails or hangs, as with a broken driver.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise KdclusterError(f"nvidia-smi did not answer within 60 s{_WITHOUT}") from None
    if found.returncode != 0:
        raise KdclusterError(f"nvidia-smi failed: {(found.stdout + found.stderr).strip()}{_WITHOUT}")
    gpus = found.stdout.split()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    visible = []
    for name in filter(None, (part.strip() for part in chosen.split(","))):
        if name.isdigit() and int(name) < len(gpus):
            visible.append(gpus[int(name)])
        elif name.startswith("MIG-"):
            visible.append(name)
        elif matches := [uuid for uuid in gpus if uuid.startswith(name)]:
            visible.append(matches[0])
        else:
            break  # CUDA ignores everything behind the first entry that it does not know
    return list(dict.fromkeys(visible))


class GpuPool:
    """The visible GPUs, each behind a lock of this user on this machine, whatever the runs directory."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self.gpus = list(gpus)
        self._folder = Path("/tmp") / f"kdcluster-gpus-{os.getuid()}"

    def take(self, count: int) -> list[tuple[str, FileLock]] | None:
        """`count` free GPUs, locked, or None while there are not so many."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        taken: list[tuple[str, FileLock]] = []
        for gpu in self.gpus:
            if len(taken) == count:
                break
            lock = FileLock(self._folder / f"{gpu}.lock", is_singleton=False, fallback_to_soft=False)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            taken.append((gpu, lock))
        if len(taken) == count:
            return taken
        for _, lock in taken:
            lock.release()
        return None
