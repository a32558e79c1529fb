"""What runs on the nodes of a SLURM job: one task a node, which starts torchrun and says how it ended.

The task of the first node leads: it begins the run's attempt, tells the others through a file where to meet, and writes
the attempt's outcome. After SIGUSR2, near the time limit, it has the job requeued; one that is preempted with SIGTERM
SLURM requeues. Whether it may be says requeue.py.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.errors import KdclusterError
from kdcluster.files import trainer_code, write_json
from kdcluster.history import began_at
from kdcluster.launch.attempt import begin, start_torchrun
from kdcluster.launch.outcome import outcome
from kdcluster.launch.slurm import ask, meeting, ownjob
from kdcluster.launch.slurm.command import ANSWER_S
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.slurm.requeue import judged
from kdcluster.launch.status import blocked_by, last_sign, run_status
from kdcluster.launch.torchrun import Layout, Meeting, command, environment
from kdcluster.ownership import keep_to_oneself
from kdcluster.processes import process_record
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import INTERRUPTED, State

log = logging.getLogger(__name__)

POLL_S = 0.2
ENDS_S = 60.0
"""How long a task whose run has saved waits for SLURM to end it."""


def to_save_s(lead_s: float) -> float:
    """How much of the lead time a trainer has to save; a busy SLURM needs the rest to answer and to requeue the job."""
    return lead_s - min(lead_s / 3, ANSWER_S)


@dataclass
class Task:
    """One run as a SLURM job: what was submitted, and how far it is."""

    run_dir: RunDir
    data_dir: Path
    folder: Path
    layout: Layout
    profile: Profile
    code: str
    """Digest of the trainer's, at the submit."""
    attempt: Attempt | None = None
    process: subprocess.Popen[bytes] | None = None
    told_to_stop: bool = False
    """By SIGTERM, which torchrun has too."""
    warned_at: float | None = None
    """When SLURM said by SIGUSR2 that the job's end is near (time.monotonic()); the trainer has the same signal."""
    passed_on: bool = False
    """Whether processes that start only now know of that."""
    late: bool = False
    """Whether torchrun was killed, since it did not save within the lead time."""
    met: bool = False
    """Whether the other nodes have something to do."""

    def write(self) -> None:
        """Leave it for the job, as task.json."""
        paths = {"run_dir": str(self.run_dir.path), "data_dir": str(self.data_dir)}
        how = {"layout": asdict(self.layout), "profile": self.profile.model_dump(mode="json"), "code": self.code}
        write_json(self.folder / "task.json", {**paths, **how})

    @classmethod
    def read(cls, folder: Path) -> Task:
        """What `write` has left.

        Raises:
            KdclusterError: it is gone, damaged, or somebody else's.
        """
        path = folder / "task.json"
        if (said := records.read(path, own=True)) is None:
            raise KdclusterError(f"{path} is gone; submit again")
        run, profile = Path(said["run_dir"]), Profile.model_validate(said["profile"])
        layout = Layout(**said["layout"])
        return cls(RunDir(run.parent, run.name), Path(said["data_dir"]), folder, layout, profile, said["code"])

    def run(self) -> None:
        """Train, or leave it where there is nothing to train.

        Raises:
            KdclusterError: it did not end well.
        """
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told_to_stop", True))
        signal.signal(signal.SIGUSR2, lambda *_: setattr(self, "warned_at", self.warned_at or time.monotonic()))
        if node := int(os.environ.get("SLURM_NODEID", "0")):
            self._follow(node)
        else:
            self._lead()

    # The first node

    def _lead(self) -> None:
        if why := self._not_needed():
            log.info("nothing to do: %s", why)
            return meeting.tell(self.folder, {"attempt": None})
        self._judge_the_last_one()
        meet = Meeting(0, meeting.own_address()) if self.layout.nodes > 1 else None
        if trainer_code() != self.code:
            log.warning("the trainer's code has changed since this job was submitted; this is today's")
        known = {
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","),
            "gpus_held": self.layout.gpus,
            "job_id": ownjob.number(),
            "restart": ownjob.restarts(),
            "waited_s": ownjob.waited_s(),
            "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        }
        self.attempt = begin(self.run_dir, lambda number: self._command(number, meet), self.layout, known, self.code)
        log.info("attempt %d on %s; logs: %s", self.attempt.number, self.layout, self.attempt.path)
        self.process = self._start(self._command(self.attempt.number, meet), self.attempt.log())
        self.attempt.write("agent", process_record(self.process.pid))
        if meet:
            self._meet(meet.address)
        self._leave(self._finish())

    def _not_needed(self) -> str:
        """Why there is nothing to train (any more); empty where there is."""
        if self.run_dir.is_cancelled():
            return "the run was cancelled"
        ticket = self.run_dir.ticket()
        if ticket and not (ticket.backend == "slurm" and ownjob.is_ours(ticket.ref)):
            return "the run was given to somebody else meanwhile"
        if self.run_dir.result() is not None and run_status(self.run_dir).state == State.DONE:
            return "the run is done"
        run = self.run_dir.load()
        needs = {need: run_status(RunDir(self.run_dir.root, need)) for need in run.needs}
        if why := blocked_by(run, needs):
            return f"blocked: {why}"
        for need, status in needs.items():
            if status.state != State.DONE:
                raise KdclusterError(f"{need}, which this run needs, is {status.state}; submit again")
        return ""

    def _judge_the_last_one(self) -> None:
        """Where SLURM requeued this job by itself, say so in the attempt before, and go on only if the run may."""
        past = self._attempts()
        ended = past[-1].read("outcome") if past else {}
        if not past or ended.get("next") or ended.get("state") == State.FAILED:
            return
        why = ownjob.why_it_ended()
        unsaid = {"state": State.LOST, "reason": f"SLURM requeued job {ownjob.number()}{f' ({why})' if why else ''}"}
        told = self._judged(past, ended or {**unsaid, "time": last_sign(past[-1])}, by_slurm=True)
        if told["next"] is None:
            raise KdclusterError(f"attempt {past[-1].number}: {told['state']}: {told['reason']}")

    def _attempts(self) -> list[Attempt]:
        """Those of this job, oldest first."""
        return [one for one in self.run_dir.attempts() if one.read("start").get("job_id") == ownjob.number()]

    def _judged(self, attempts: list[Attempt], ended: dict[str, Any], *, by_slurm: bool) -> dict[str, Any]:
        """Write the outcome of the last of these attempts, with what comes next."""
        steps = [*map(began_at, attempts), self.run_dir.saved_step()] if self.run_dir.load().train else []
        told = judged(ended, [one.read("outcome") for one in attempts[:-1]], steps, self.profile, by_slurm=by_slurm)
        attempts[-1].write_last("outcome", told)
        log.info("attempt %d: %s %s", attempts[-1].number, told["state"], told["reason"])
        return told

    def _poll(self) -> int | None:
        """The exit code of torchrun, None while it runs; after SLURM's warning it is given the time to save."""
        assert self.attempt is not None
        assert self.process is not None
        if (code := self.process.poll()) is not None or self.warned_at is None:
            return code
        if not self.passed_on:
            self.passed_on = True
            try:
                self.attempt.write("stop", {"time": time.time()})
            except OSError as error:  # a full disk, say; processes that have the signal need no file
                log.error("%s", error)
        if not self.late and time.monotonic() > self.warned_at + to_save_s(self.profile.signal_lead_s):
            self.late = True
            self.process.kill()
        return None

    def _finish(self) -> dict[str, Any]:
        """Wait for torchrun, write the attempt's outcome, and return it."""
        assert self.attempt is not None
        while (code := self._poll()) is None:
            time.sleep(POLL_S)
        if known := self.attempt.read("outcome"):  # by who killed it while this process was stopped
            return known
        self._note_end(0, code)
        if not self.late and self.met:
            self._await_nodes()
        ended = outcome(self.run_dir, self.attempt, code, told_to_stop=self.told_to_stop or self.late)
        if self.late and ended["state"] == State.LOST:
            ended["reason"] = "did not save within the lead time of SLURM's signal"
        if ended["state"] in INTERRUPTED and (why := ownjob.why_interrupted(self.profile.signal_lead_s)):
            ended["reason"] += f": {why}"
        by_slurm = self.warned_at is not None or not self.told_to_stop or ownjob.is_being_preempted()
        return self._judged(self._attempts(), {**ended, "time": time.time()}, by_slurm=by_slurm)

    def _await_nodes(self) -> None:
        """Give the other nodes' tasks the time to say how their torchrun ended: it may be the one that knows why."""
        assert self.attempt is not None
        deadline = time.monotonic() + self.profile.shutdown_timeout_s + 10
        missing = {f"node{number}" for number in range(1, self.layout.nodes)}
        while missing and time.monotonic() < deadline:
            missing = {name for name in missing if not self.attempt.read(name)}
            time.sleep(POLL_S)

    def _leave(self, ended: dict[str, Any]) -> None:
        """End this task as the run has ended; where SLURM requeues the job by itself, only when it does.

        A job whose task returned before would count as ended.

        Raises:
            KdclusterError: the run did not end well.
        """
        assert self.attempt is not None
        if ended["state"] == State.DONE:
            return
        if ended.get("next") == "restart":
            ownjob.restart(self.attempt, ended["rank"], self.layout.procs)
        elif ended.get("next") == "requeue":
            deadline = time.monotonic() + ENDS_S
            while self.warned_at is None and (
                ownjob.is_being_preempted()
                or not (self.told_to_stop or ownjob.is_elsewhere() or time.monotonic() > deadline)
            ):
                time.sleep(1.0)
            if self.warned_at is not None and not ownjob.is_elsewhere():
                ask.requeue(ownjob.number())
        raise KdclusterError(f"attempt {self.attempt.number}: {ended['state']}: {ended['reason']}")

    def _meet(self, address: str) -> None:
        """Tell the other nodes where torchrun listens here, once it does, or that it has ended."""
        assert self.attempt is not None
        while not (store := self.attempt.read("store")) and self._poll() is None:
            time.sleep(POLL_S)
        self.met = bool(store)
        told = {"attempt": self.attempt.number, "address": address, **store}
        meeting.tell(self.folder, told if store else {"attempt": None})

    # Every node

    def _follow(self, node: int) -> None:
        told = meeting.wait_until_told(self.folder)
        if told["attempt"] is None:
            return log.info("nothing to do")
        attempt = self.run_dir.attempt(told["attempt"])
        self.attempt = attempt
        meet = Meeting(node, told["address"], told["port"])
        self.process = self._start(self._command(attempt.number, meet), attempt.path / f"torchrun-node{node}.log")
        while (code := self.process.poll()) is None:
            if not self.told_to_stop and attempt.read("node0").get("returncode"):
                self.told_to_stop = True  # ranks that wait for those of the first node may wait for long
                self.process.terminate()
            time.sleep(POLL_S)
        self._note_end(node, code)  # what that means, the first node says

    def _note_end(self, node: int, code: int) -> None:
        assert self.attempt is not None
        ended = {"host": socket.gethostname(), "returncode": code, "time": time.time()}
        self.attempt.write(f"node{node}", ended)

    def _command(self, attempt: int, meet: Meeting | None) -> list[str]:
        return [*self.profile.container, *command(self.run_dir.path, self.data_dir, self.layout, meet, attempt)]

    def _start(self, argv: list[str], log_file: Path) -> subprocess.Popen[bytes]:
        env = environment(os.environ, self.layout)
        env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(self.profile.shutdown_timeout_s)
        if interface := self.profile.network_interface:
            env |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
        if self.profile.scratch:
            env["TMPDIR"] = os.path.expandvars(self.profile.scratch)
            Path(env["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        return start_torchrun(argv, env, log_file, shielded={signal.SIGUSR2})


def main() -> None:
    """`python -m kdcluster.launch.slurm.task FOLDER`, in each task of a job: what FOLDER/task.json says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    keep_to_oneself()
    try:
        Task.read(Path(sys.argv[1])).run()
    except KdclusterError as error:  # what is to be known of it stands in the run directory, without a traceback
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
