"""The Ray in which a search runs: one of our own on this machine, or one that is there already.

What a Ray of our own starts is written down with pid and start time, so that the next call can remove what a kill left.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdcluster.errors import KdclusterError
from kdcluster.files import acquire, read_json, write_json
from kdcluster.launch.slurm.ask import is_inside_job
from kdcluster.ownership import keep_to_oneself, own_folder, refuse_foreign, shared_folder
from kdcluster.processes import descendants, is_alive, kill_tree, process_record, threads_available
from kdcluster.sweep.room import check_nodes, ray_module
from kdcluster.sweep.tuning import quiet

DASHBOARD = ("aiohttp_cors", "opencensus")
"""What Ray's dashboard stands on, beside Ray."""
REACHED_S = 10.0
LEASE_S = 120.0
"""How long a job waits for the lock of a sweep whose node has died: file servers keep it a while (NFSv4: 90 s)."""


class Session:
    """One search at a time of an experiment in a runs directory, and the processes that it has started here.

    Args:
        folder: `<runs>/.sweeps/<experiment>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(8)
        self.ending = folder / "ending.json"
        self.temp = ""
        self._file = folder / "processes.json"
        self._known: dict[str, Any] = {}
        self._lock = FileLock(folder / "lock", fallback_to_soft=False)
        self._ray: list[dict[str, Any]] = []

    def begin(self) -> list[int]:
        """Take the experiment's sweep over; returns the pids of what an earlier one left here and is removed.

        Raises:
            KdclusterError: another one is under way.
        """
        keep_to_oneself()
        shared_folder(self.folder.parent)
        self.folder.mkdir(exist_ok=True)
        refuse_foreign(self.folder)  # it says what to kill
        self._lock_it(LEASE_S if is_inside_job() else 0)
        before = read_json(self._file) or {}
        left = [pid for record in before.get("processes", ()) for pid in kill_tree(record)]
        if (temp := Path(before.get("temp", ""))).parent == own_folder():
            shutil.rmtree(temp, ignore_errors=True)
        self.note()
        return left

    def refuse_another(self) -> None:
        """Refuse where a sweep of this experiment is under way, whoever's it is.

        Raises:
            KdclusterError: one is.
        """
        shared_folder(self.folder.parent)
        self.folder.mkdir(exist_ok=True)
        self._lock_it(0)
        self.close()

    def _lock_it(self, timeout_s: float) -> None:
        try:
            acquire(self._lock, "do not sweep twice at the same time", timeout_s)
        except Timeout:
            driver = (read_json(self._file) or {}).get("driver") or {"host": "another machine", "pid": "?"}
            raise KdclusterError(
                f"a sweep of {self.folder.name} is under way already (process {driver['pid']} on {driver['host']}); "
                f"wait for it, or stop it first"
            ) from None

    def close(self) -> None:
        """Let others sweep."""
        self._lock.release()

    def note(self) -> None:
        """Write down which processes there are below this one."""
        found = [process_record(pid) for pid in descendants(os.getpid())]
        known = {"driver": process_record(os.getpid()), "temp": self.temp, "processes": found}
        if known != self._known:
            self._known = known
            write_json(self._file, known, sync=False)

    def leave_if_ray_is_gone(self) -> None:
        """End this process where Ray's daemons have died: Ray itself would hang in its shutdown, or end it wordlessly.

        The trials die with them, as do they with this process.
        """
        if not all(map(is_alive, self._ray)):
            again = "what was saved is safe, and the same command goes on"
            sys.stderr.write(f"Ray has died under the sweep (killed, or out of memory?); {again}\n")
            sys.stderr.flush()
            shutil.rmtree(self.temp, ignore_errors=True)
            os._exit(1)

    def where_ray_says_why(self) -> str:
        """For a person who waits for Ray."""
        return f"Ray's logs: {self.temp}/session_latest/logs" if self.temp else "has that Ray room? `ray status` says"

    def go_on(self) -> None:
        """A search begins, after another one that may have been ended."""
        self.ending.unlink(missing_ok=True)

    def end(self, why: str) -> None:
        """From now on what is stopped goes on another time."""
        write_json(self.ending, {"why": why})

    @contextmanager
    def ray_here(self, gpus: int, *, dashboard: bool = False) -> Iterator[None]:
        """A Ray of this machine's cores and of so many GPUs, which listens on the loopback alone and wants a token.

        Raises:
            KdclusterError: its dashboard was asked for and is not installed.
        """
        quiet()
        # In a folder that is closed to others, since Ray opens its own to all; short, as the names of Unix sockets are.
        self.temp = tempfile.mkdtemp(prefix="", dir=own_folder())
        want_token(Path(self.temp))
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its only switch for 127.0.0.1, whatever its name says
        self.note()
        ray = ray_module()
        try:
            if dashboard and not all(map(importlib.util.find_spec, DASHBOARD)):
                raise KdclusterError("--dashboard needs more of Ray: pip install 'ray[default]'")
            with _sigterm_kept():
                context = ray.init(
                    num_cpus=threads_available(),
                    num_gpus=gpus,
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    configure_logging=False,
                    _temp_dir=self.temp,
                    runtime_env=_environment(),
                )
            if dashboard:
                sys.stderr.write(f"Ray's dashboard: http://{context.dashboard_url}\n")
            self.note()
            self._ray = [record for record in self._known["processes"] if _name(record) in ("raylet", "gcs_server")]
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(self.temp, ignore_errors=True)

    @contextmanager
    def ray_at(self, address: str, data_dir: Path) -> Iterator[None]:
        """A Ray that is there already, on nodes that all see the runs directory.

        Raises:
            KdclusterError: there is none, or a node cannot do a trial's work.
        """
        with joined(address):
            check_nodes(self.folder, data_dir)
            yield


def want_token(folder: Path) -> None:
    """Have the Ray that this process starts or joins let in nobody without a token, which lies in the folder."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def _name(record: dict[str, Any]) -> str:
    try:
        return Path(f"/proc/{record['pid']}/comm").read_text().strip()
    except OSError:
        return ""


@contextmanager
def joined(address: str) -> Iterator[None]:
    """This process as a driver of a Ray; one that it has joined already is kept.

    Raises:
        KdclusterError: there is no Ray at the address.
    """
    quiet()
    ray = ray_module()
    if ray.is_initialized():
        yield
        return
    if wrong := unreachable(address):  # Ray itself would try for ever
        raise KdclusterError(
            f"--ray-address {address}: {wrong}; is a Ray up there? `ray start --head` prints its address"
        )
    try:
        with _sigterm_kept():
            ray.init(address=address, log_to_driver=False, configure_logging=False, runtime_env=_environment())
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; one that wants a token needs RAY_AUTH_MODE=token here"
        raise KdclusterError(f"--ray-address {address}: {error}{hint}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray's own handler, which it sets as it starts, would end this process without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # by that handler
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment() -> dict[str, str]:
    """Ray hands its interpreter's path to a shell as it is, and would wait for ever where that has a blank."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def unreachable(address: str) -> str:
    """Why nobody answers at HOST:PORT; empty where somebody does, or for Ray's own words, as auto."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return ""
    try:
        socket.create_connection((host, int(port)), REACHED_S).close()
    except OSError as error:
        return str(error)
    return ""
