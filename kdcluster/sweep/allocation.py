"""A Ray on the nodes of this SLURM job, for one sweep: started here, joined here, taken down at the end.

Each node has a step of its own (srun), so that a node that dies ends nothing but its step. Ray gets the cores and GPUs
of the allocation, not those of the node, and ports that the system gives.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.files import shipped
from kdcluster.launch.attempt import dies_with
from kdcluster.launch.slurm import ask, nodes, ownjob
from kdcluster.ownership import keep_to_oneself, own_folder
from kdcluster.sweep.cluster import joined, unreachable, want_token
from kdcluster.sweep.room import nodes_of_ray

log = logging.getLogger(__name__)

START_S = 180.0
"""How long nodes may take to have their Ray up."""
END_S = 20.0
RAY = "import sys; sys.modules['grpc'] = None; from ray.scripts.scripts import main; main()"
"""Ray's own command, which then takes its server for remote clients as not installed: nobody asks that one, its port is
the same for all, and it dies, with the whole Ray, where the path of this Python has a blank."""


def main(kdcluster: Callable[..., object]) -> None:
    """`jobs/sweep.py ARGS`: on the first node, `kdcluster sweep ARGS` (the given command) in a Ray on all nodes.

    `jobs/sweep.py --node ADDRESS NAME HOST`: on each node, its part of that Ray, which has its files in the user's own
    folder there, under NAME (HOST is where the first one is).
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    keep_to_oneself()
    if sys.argv[1:2] == ["--node"]:
        sys.exit(_node(*sys.argv[2:5]))
    told: list[int] = []

    def near_the_limit(number: int, frame: Any) -> None:
        told.append(number)
        os.kill(os.getpid(), signal.SIGTERM)  # ends a search in an orderly way

    signal.signal(signal.SIGUSR2, near_the_limit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with ray_on_all_nodes() as address:
            kdcluster(["sweep", *sys.argv[1:], "--backend", "local", "--ray-address", address])
    except KdclusterError as error:  # from the Ray; the command prints its own
        log.error("%s", error)
        sys.exit(1)
    except SystemExit as left:
        if told and left.code and ownjob.restarts() < int(os.environ.get("KDCLUSTER_MAX_REQUEUES", "10")):
            log.info("the time limit is near: the job is requeued, and goes on")
            ask.requeue(ownjob.number())
            signal.pause()  # SLURM ends it; a job that returned would count as ended
        raise


@contextmanager
def ray_on_all_nodes() -> Iterator[str]:
    """The address of a Ray on every node of this job; this process has joined it on the first node."""
    base = Path(os.environ.get("KDCLUSTER_RAY_DIR") or Path.cwd())
    base.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".ray-{ownjob.number()}-", dir=base)  # new: in a shared place, others may guess
    want_token(Path(folder))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    first, *others = nodes.names(os.environ["SLURM_JOB_NODELIST"])
    address, name = f"{_own_address(first)}:{_free_port()}", secrets.token_hex(4)
    temp = own_folder() / name
    steps = {first: _step(first, address, name)}
    try:
        _until(lambda: not unreachable(address) or steps[first].poll() is not None)
        with joined(address):  # before other nodes are there: then this process hangs on no other node
            steps |= {node: _step(node, address, name) for node in others}
            import ray

            def there() -> bool:
                going = sum(step.poll() is None for step in steps.values())
                return sum(bool(node["Alive"]) for node in ray.nodes()) >= going

            _until(there)
            found = nodes_of_ray()
            cores, gpus = (sum(node[kind] for node in found) for kind in (0, 1))
            ending = threading.Event()
            threading.Thread(target=_watch, args=(steps[first], ending), daemon=True).start()
            log.info("Ray has %d of %d nodes: %g cores, %g GPUs", len(found), len(steps), cores, gpus)
            try:
                yield address
            finally:
                ending.set()
    finally:
        for step in steps.values():
            step.terminate()
        for step in steps.values():
            try:
                step.wait(END_S)
            except subprocess.TimeoutExpired:
                step.kill()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(temp, ignore_errors=True)


def _watch(head: subprocess.Popen[bytes], ending: threading.Event) -> None:
    """End this process where the Ray of the first node has died: Ray would end it without a word, or let it hang."""
    head.wait()
    if not ending.is_set():
        sys.stderr.write("Ray has died on the first node; what was saved is safe, and the same command goes on\n")
        sys.stderr.flush()
        os._exit(1)


def _step(node: str, address: str, name: str) -> subprocess.Popen[bytes]:
    """One node's part of the Ray."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    argv = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--cpu-bind=none", "--unbuffered"]
    argv += [f"--cpus-per-task={cpus}"] if cpus else []
    argv += [sys.executable, "-uP", str(shipped("jobs/sweep.py")), "--node", address, name, socket.gethostname()]
    env = {key: value for key, value in os.environ.items() if key not in ("SLURM_NODELIST", "SLURM_NNODES")}
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=env, preexec_fn=dies_with(os.getpid()))


def _node(address: str, name: str, first_host: str) -> int:
    """In a step: Ray with what this job has on this node, until it is told to end.

    Raises:
        KdclusterError: this user's folder on this node is not closed to others; Ray opens its own, inside, to all.
    """
    temp = own_folder() / name  # the same path on each node, as Ray wants it
    is_first = os.environ["SLURMD_NODENAME"] == nodes.names(os.environ["SLURM_JOB_NODELIST"])[0]
    cores = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
    shown = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    host, port = address.rsplit(":", 1)
    where = (
        ["--head", f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={temp}", "--include-dashboard=false"]
        if is_first
        else [f"--address={address}"]
    )
    argv = [sys.executable, "-Pc", RAY, "start", *where, "--block", "--disable-usage-stats"]
    argv += [f"--num-cpus={cores}", f"--num-gpus={len(shown)}", "--dashboard-agent-listen-port=0"]
    argv += ["--min-worker-port=0", "--max-worker-port=0"]
    env = dict(os.environ)
    if scratch := os.path.expandvars(env.get("KDCLUSTER_SCRATCH", "")):  # of this node
        Path(scratch).mkdir(parents=True, exist_ok=True)
        env["TMPDIR"] = scratch
    process = subprocess.Popen(argv, env=env, preexec_fn=dies_with(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    if socket.gethostname() != first_host:
        shutil.rmtree(temp, ignore_errors=True)
    return code


def _own_address(node: str) -> str:
    """This node's as SLURM has it; of a cluster that is one machine, what Ray takes."""
    known = nodes.address(node)
    if not known.startswith("127."):
        return known
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _until(condition: Any) -> None:
    deadline = time.monotonic() + START_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
