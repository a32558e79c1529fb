"""What runs on the nodes of a SLURM job: one task a node, which starts torchrun and says how it ended.

submitit unpickles a `Task` and calls it. The task of the first node leads: it begins the run's attempt, tells the
others through a file where to meet, and writes the attempt's outcome. On SIGUSR2 submitit calls `checkpoint` there,
and requeues the job when it returns.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.launch.agent import dies_with
from kdcluster.launch.code import code_state
from kdcluster.launch.outcome import outcome
from kdcluster.launch.profile import Profile
from kdcluster.launch.scheduler import node_address
from kdcluster.launch.status import blocked_by, run_status
from kdcluster.launch.torchrun import Layout, Rendezvous, command, environment
from kdcluster.runs import Attempt, RunDir, process_record

log = logging.getLogger(__name__)

POLL_S = 0.2
MEET_S = 600.0
"""How long the tasks of the other nodes wait for the first one."""


class Task:
    """One run as a SLURM job.

    Args:
        run_dir: the run's directory.
        data_dir: decoded arrays.
        folder: of this submission.
        layout: `Layout`, as a mapping.
        profile: of the cluster.
        code: digest of the trainer's code when the job was submitted.
    """

    def __init__(
        self, run_dir: str, data_dir: str, folder: str, layout: dict[str, Any], profile: Profile, code: str
    ) -> None:
        self._given = (run_dir, data_dir, folder, layout, profile, code)
        self.run_dir = RunDir(Path(run_dir).parent, Path(run_dir).name)
        self.data_dir, self.folder = Path(data_dir), Path(folder)
        self.layout, self.profile, self.code = Layout(**layout), profile, code
        self.attempt: Attempt | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.told_to_stop = False

    def __reduce__(self) -> Any:
        return Task, self._given

    def __call__(self) -> str:
        """Train; returns the state in which the attempt ended.

        Raises:
            KdclusterError: it did not end well, so that SLURM has the job as failed and starts no dependent.
        """
        ours = logging.getLogger("kdcluster")  # not the root: submitit's own lines would come twice
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told_to_stop", True))  # torchrun has it too, and saves
        node = int(os.environ.get("SLURM_NODEID", "0"))
        if node != 0:
            return self._follow(node)
        from submitit.core.utils import UncompletedJobError

        try:
            return self._lead()
        except UncompletedJobError:  # out of submitit's signal handler, where checkpoint() gave nothing to requeue
            if self.attempt is not None and self.attempt.read("outcome").get("state") == "done":
                return "done"
            raise

    def checkpoint(self) -> Any:
        """What submitit calls on SIGUSR2, in the first node's task, before it requeues the job.

        The trainer has the same signal: it saves and leaves. Only when its outcome is written may SLURM end the job.
        Returns None, and nothing is requeued, where the run did not save, or is no step further than before: it would
        be requeued for ever.
        """
        from submitit.core.utils import DelayedSubmission

        if self.process is not None and self.attempt is not None:
            if self._finish() != "preempted":
                return None
            if self.run_dir.saved_step() <= self.attempt.read("start")["from_step"]:
                log.error("no step was done in this attempt: not requeued; time_limit or signal_lead_s leave no room")
                return None
        return DelayedSubmission(Task(*self._given))

    # The first node

    def _lead(self) -> str:
        if why := self._not_needed():
            log.info("nothing to do: %s", why)
            self._tell({"attempt": None})
            return why
        meet = self._meeting_place() if self.layout.nodes > 1 else None
        code, diff = code_state()
        if code["trainer_code"] != self.code:
            log.warning("the trainer's code has changed since this job was submitted; this is today's")
        argv = self._command(meet)
        self.attempt = self.run_dir.start_attempt(
            {
                "supervisor": process_record(os.getpid()),
                "command": argv,
                "device": self.layout.device,
                "procs": self.layout.procs,
                "threads": self.layout.threads,
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","),
                "code": code,
                "code_changed": code["trainer_code"] != self.code,
                "job_id": os.environ["SLURM_JOB_ID"],
                "restart": _restart(),
                "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
                "from_step": self.run_dir.saved_step(),
            }
        )
        if diff:
            (self.attempt.path / "code.diff").write_text(diff)
        self._tell({"attempt": self.attempt.number, "meet": meet})
        log.info("attempt %d on %s; logs: %s", self.attempt.number, self.layout, self.attempt.path)
        self.process = self._start(argv, self.attempt.log())
        self.attempt.write("agent", process_record(self.process.pid))
        return self._result(self._finish())

    def _not_needed(self) -> str:
        """Why there is nothing to train (any more); empty where there is.

        Raises:
            KdclusterError: something that the run needs is not there.
        """
        if self.run_dir.is_cancelled():
            return "the run was cancelled"
        if self.run_dir.result() is not None and run_status(self.run_dir).state == "done":
            return "the run is done"
        run = self.run_dir.load()
        needs = {need: run_status(RunDir(self.run_dir.root, need)) for need in run.needs}
        if why := blocked_by(run, needs):
            return f"blocked: {why}"
        for need, status in needs.items():
            if status.state != "done":
                raise KdclusterError(f"{need}, which this run needs, is {status.state}; submit again")
        return ""

    def _finish(self) -> str:
        """Wait for torchrun, write the attempt's outcome once, and return its state.

        Polled: submitit's signal handler runs in the middle of this, and a second wait() on a process would hang.
        """
        assert self.attempt is not None
        assert self.process is not None
        while (code := self.process.poll()) is None:
            time.sleep(POLL_S)
        if not self.attempt.read("outcome"):
            self._await_nodes()
            ended = outcome(self.run_dir, self.attempt, code, told_to_stop=self.told_to_stop)
            self.attempt.write_last("outcome", {**ended, "time": time.time()})
            log.info("attempt %d: %s %s", self.attempt.number, ended["state"], ended["reason"])
        return str(self.attempt.read("outcome")["state"])

    def _await_nodes(self) -> None:
        """Give the other nodes' tasks the time to say how their torchrun ended: it may be the one that knows why."""
        assert self.attempt is not None
        deadline = time.monotonic() + self.profile.shutdown_timeout_s + 10
        missing = {f"node{number}" for number in range(1, self.layout.nodes)}
        while missing and time.monotonic() < deadline:
            missing = {name for name in missing if not self.attempt.read(name)}
            time.sleep(POLL_S)

    def _result(self, state: str) -> str:
        assert self.attempt is not None
        if state == "done":
            return state
        raise KdclusterError(f"attempt {self.attempt.number}: {state}: {self.attempt.read('outcome')['reason']}")

    def _meeting_place(self) -> dict[str, str]:
        """Address and port on this node where the torchruns meet: a port from the job's id, another where it is taken.

        The first choice lies below the ports that Linux gives out by itself.
        """
        address = node_address(os.environ["SLURMD_NODENAME"])
        job = int(os.environ["SLURM_JOB_ID"])
        for port in (20000 + (job * 7 + _restart()) % 10000, 0):
            with socket.socket() as probe:
                try:
                    probe.bind((address, port))
                except OSError:
                    log.info("port %d of %s is taken; taking another", port, address)
                    continue
                return {"endpoint": f"{address}:{probe.getsockname()[1]}", "id": f"{job}-{_restart()}"}
        raise KdclusterError(f"no free port on {address}")

    # Every node

    def _follow(self, node: int) -> str:
        told = self._wait_until_told()
        if told["attempt"] is None:
            return "nothing to do"
        attempt = self.run_dir.attempt(told["attempt"])
        self.attempt = attempt
        self.process = self._start(self._command(told["meet"], node), attempt.path / f"torchrun-node{node}.log")
        while (code := self.process.poll()) is None:
            time.sleep(POLL_S)
        attempt.write(f"node{node}", {"host": socket.gethostname(), "returncode": code, "time": time.time()})
        return f"torchrun ended with {code}"  # what that means, the first node says

    def _told(self) -> Path:
        return self.folder / f"start-{os.environ['SLURM_JOB_ID']}-{_restart()}.json"

    def _tell(self, values: dict[str, Any]) -> None:
        if self.layout.nodes > 1:
            write_json(self._told(), values)

    def _wait_until_told(self) -> dict[str, Any]:
        deadline = time.monotonic() + MEET_S
        while (told := read_json(self._told())) is None:
            if time.monotonic() > deadline:
                raise KdclusterError(f"the first node's task said nothing within {MEET_S:.0f} s ({self._told()})")
            time.sleep(POLL_S)
        return dict(told)

    def _command(self, meet: dict[str, str] | None, node: int = 0) -> list[str]:
        rendezvous = meet and Rendezvous(
            meet["endpoint"], meet["id"], node == 0, node_address(os.environ["SLURMD_NODENAME"])
        )
        return [*self.profile.container, *command(self.run_dir.path, self.data_dir, self.layout, rendezvous or None)]

    def _start(self, argv: list[str], log_file: Path) -> subprocess.Popen[bytes]:
        assert self.attempt is not None
        env = environment(os.environ, self.layout, attempt=self.attempt.number)
        env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(self.profile.shutdown_timeout_s)
        if interface := self.profile.network_interface:
            env |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
        if self.profile.scratch:
            env["TMPDIR"] = os.path.expandvars(self.profile.scratch)
            Path(env["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=_shielded(dies_with(os.getpid())),
            )


def _shielded(then: Callable[[], None]) -> Callable[[], None]:
    """Have torchrun ignore SIGUSR2, of which it would die; its workers handle the signal themselves."""

    def prepare() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        then()

    return prepare


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
