"""What runs on the nodes of a SLURM job: one task a node, which starts torchrun and says how it ended.

submitit unpickles a `Task` and calls it. The task of the first node leads: it begins the run's attempt, tells the
others through a file where to meet, and writes the attempt's outcome. On SIGUSR2 submitit calls `checkpoint` there,
and requeues the job when it returns; a job that SLURM preempts with SIGTERM is requeued by SLURM, and one whose run
crashed by the task itself. Whether it may be says requeue.py.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.files import trainer_code
from kdcluster.history import began_at
from kdcluster.launch.attempt import begin, start_torchrun
from kdcluster.launch.outcome import outcome
from kdcluster.launch.slurm import meeting, ownjob
from kdcluster.launch.slurm.command import ANSWER_S
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.slurm.requeue import judged
from kdcluster.launch.status import blocked_by, last_sign, run_status
from kdcluster.launch.torchrun import Layout, Meeting, command, environment
from kdcluster.processes import process_record
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import INTERRUPTED, State

log = logging.getLogger(__name__)

POLL_S = 0.2
ENDS_S = 60.0
"""How long a task whose run has saved waits for its end: by submitit, or by SLURM."""


def to_save_s(lead_s: float) -> float:
    """How much of the lead time a trainer has to save; a busy SLURM needs the rest to answer and to requeue the job."""
    return lead_s - min(lead_s / 3, ANSWER_S)


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
        self.met = False  # whether the other nodes have something to do

    def __reduce__(self) -> Any:
        return Task, self._given

    def __call__(self) -> str:
        """Train; returns the state in which the attempt ended.

        Leaves with exit code 1 where it did not end well, so that SLURM has the job as failed and starts no dependent.
        """
        ours = logging.getLogger("kdcluster")  # not the root: submitit's own lines would come twice
        ours.addHandler(handler := logging.StreamHandler(sys.stderr))
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours.setLevel(logging.INFO)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told_to_stop", True))  # torchrun has it too, and saves
        if node := int(os.environ.get("SLURM_NODEID", "0")):
            return self._follow(node)
        from submitit.core.utils import UncompletedJobError

        try:
            return self._lead()
        except UncompletedJobError:  # out of submitit's signal handler, where checkpoint() gave nothing to requeue
            if self.attempt is not None and self.attempt.read("outcome").get("state") == State.DONE:
                return State.DONE
            sys.exit(1)
        except KdclusterError as error:  # what is to be known of it stands in the run directory, without a traceback
            log.error("%s", error)
            sys.exit(1)

    def checkpoint(self) -> Any:
        """What submitit calls on SIGUSR2, in the first node's task, before it requeues the job.

        The trainer has the same signal: it saves and leaves. Only when its outcome is written may SLURM end the job;
        a trainer that hangs is killed before the lead time is over, and its last checkpoint has to do. Returns None,
        and nothing is requeued, where the run has ended or may not be (requeue.py).
        """
        from submitit.core.utils import DelayedSubmission

        if self.process is not None and self.attempt is not None:
            self.attempt.write("stop", {"time": time.time()})  # for processes that start only now
            if self._finish(give_up_at=time.monotonic() + to_save_s(self.profile.signal_lead_s))["next"] != "requeue":
                return None
        return DelayedSubmission(Task(*self._given))

    # The first node

    def _lead(self) -> str:
        if why := self._not_needed():
            log.info("nothing to do: %s", why)
            self._tell({"attempt": None})
            return why
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
        return self._leave(self._finish())

    def _not_needed(self) -> str:
        """Why there is nothing to train (any more); empty where there is.

        Raises:
            KdclusterError: something that the run needs is not there.
        """
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
        """Where SLURM requeued this job by itself, say so in the attempt before, and go on only if the run may.

        Raises:
            KdclusterError: it may not: nothing is started.
        """
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

    def _finish(self, give_up_at: float | None = None) -> dict[str, Any]:
        """Wait for torchrun, write the attempt's outcome once, and return it.

        Polled: submitit's signal handler runs in the middle of this, and a second wait() on a process would hang.

        Args:
            give_up_at: when a torchrun that was told to stop is killed (time.monotonic()), for a job that will be
                requeued.
        """
        assert self.attempt is not None
        assert self.process is not None
        late = False
        while (code := self.process.poll()) is None:
            if give_up_at is not None and not late and time.monotonic() > give_up_at:
                late = True
                self.process.kill()
            time.sleep(POLL_S)
        if known := self.attempt.read("outcome"):
            return known
        self._note_end(0, code)
        if not late and self.met:
            self._await_nodes()
        ended = outcome(self.run_dir, self.attempt, code, told_to_stop=self.told_to_stop or late)
        if late and ended["state"] == State.LOST:
            ended["reason"] = "did not save within the lead time of SLURM's signal"
        if ended["state"] in INTERRUPTED and (why := ownjob.why_interrupted(self.profile.signal_lead_s)):
            ended["reason"] += f": {why}"
        by_slurm = give_up_at is not None or not self.told_to_stop or ownjob.is_being_preempted()
        return self._judged(self._attempts(), {**ended, "time": time.time()}, by_slurm=by_slurm)

    def _await_nodes(self) -> None:
        """Give the other nodes' tasks the time to say how their torchrun ended: it may be the one that knows why."""
        assert self.attempt is not None
        deadline = time.monotonic() + self.profile.shutdown_timeout_s + 10
        missing = {f"node{number}" for number in range(1, self.layout.nodes)}
        while missing and time.monotonic() < deadline:
            missing = {name for name in missing if not self.attempt.read(name)}
            time.sleep(POLL_S)

    def _leave(self, ended: dict[str, Any]) -> str:
        """End this task as the run has ended; where others requeue the job, only when they do.

        A job whose task returned before would count as ended.
        """
        assert self.attempt is not None
        if ended["state"] == State.DONE:
            return State.DONE
        if ended["next"] == "restart":
            ownjob.restart(self.attempt, ended["rank"], self.layout.procs)
        elif ended["next"] == "requeue":
            deadline = time.monotonic() + ENDS_S
            while ownjob.is_being_preempted() or not (
                self.told_to_stop or ownjob.is_elsewhere() or time.monotonic() > deadline
            ):
                time.sleep(1.0)
        raise KdclusterError(f"attempt {self.attempt.number}: {ended['state']}: {ended['reason']}")

    def _meet(self, address: str) -> None:
        """Tell the other nodes where torchrun listens here, once it does, or that it has ended."""
        assert self.attempt is not None
        assert self.process is not None
        while not (store := self.attempt.read("store")) and self.process.poll() is None:
            time.sleep(POLL_S)
        self.met = bool(store)
        self._tell({"attempt": self.attempt.number, "address": address, **store} if store else {"attempt": None})

    def _tell(self, values: dict[str, Any]) -> None:
        if self.layout.nodes > 1:
            meeting.tell(self.folder, values)

    # Every node

    def _follow(self, node: int) -> str:
        told = meeting.wait_until_told(self.folder)
        if told["attempt"] is None:
            return "nothing to do"
        attempt = self.run_dir.attempt(told["attempt"])
        self.attempt = attempt
        meet = Meeting(node, told["address"], told["port"])
        self.process = self._start(self._command(attempt.number, meet), attempt.path / f"torchrun-node{node}.log")
        while (code := self.process.poll()) is None:
            if not self.told_to_stop and attempt.read("node0").get("returncode"):
                self.told_to_stop = True  # ranks that wait for those of the first node may wait for long
                self.process.terminate()
            time.sleep(POLL_S)
        self._note_end(node, code)
        return f"torchrun ended with {code}"  # what that means, the first node says

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
