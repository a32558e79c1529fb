"""The detached process of one `submit`: starts torchrun for each run in DAG order and writes down how it ended.

Everything it starts dies with it (PR_SET_PDEATHSIG), so that a run whose supervisor is gone is not training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdcluster import records
from kdcluster.errors import Damaged, KdclusterError
from kdcluster.files import write_json
from kdcluster.launch.attempt import AWAITED, Child
from kdcluster.launch.local.backend import BEAT_S, GO, reference
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.local.slots import Slots, own_cores
from kdcluster.launch.status import KNOWN_S, Status, blocked_by, run_status
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Run
from kdcluster.runs import RunDir
from kdcluster.states import LIVE, State

log = logging.getLogger(__name__)


class Supervisor:
    """Runs that were submitted together, each started once what it needs is done and there is room for it."""

    def __init__(
        self,
        root: Path,
        data_dir: Path,
        runs: list[Run],
        layouts: dict[str, Layout],
        folder: Path | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.data_dir, self.layouts, self.folder = root, data_dir, layouts, folder
        self.pending = {run.id: run for run in runs}
        self.children: dict[str, Child] = {}
        devices = {item.device for item in layouts.values()}
        self.gpus = Slots("GPU", visible_gpus() if "cuda" in devices else [], root)
        self.cores = Slots("core", own_cores() if "cpu" in devices else [], root)
        self.known = reference(os.getpid(), folder)
        self.waits: dict[str, str] = {}
        """For what each pending run waits, in words."""
        self.stopping = self.failed = False
        self.after = after
        """Who is told of failures and of the end, as `Backend.tell` has it."""
        self.telling: dict[str, subprocess.Popen[bytes]] = {}
        """By event; it is told once."""
        self._beaten_at = -math.inf
        self._told: dict[str, str] = {}

    def run(self) -> None:
        """Until every run has ended or cannot start. SIGTERM has the runs save and leave, and ends this process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
        self.tick()
        if self.folder is not None:  # now it is known what has started, and for what the others wait
            write_json(self.folder / "supervisor.json", self.known)
        while self.pending or self.children:  # a child's end wakes at once; free slots or a run elsewhere are polled
            woken = signal.sigtimedwait(AWAITED, 1.0)
            if woken and woken.si_signo == signal.SIGTERM:
                self.stop_everything()
            self.tick()
        if not self.stopping:  # else the runs go on with the next submit
            self.tell("ended")

    def tick(self) -> None:
        """One look at everything."""
        self.reap()
        self.stop_what_was_cancelled()
        self.start_what_can()
        if self.failed and (self.pending or self.children):  # else the end says it
            self.tell(State.FAILED)
        self.beat()

    def beat(self) -> None:
        """Say, to other hosts too, that this process is there, and for what its runs wait."""
        due = time.monotonic() - self._beaten_at >= BEAT_S or self.waits != self._told
        if self.folder is not None and due:
            self._beaten_at, self._told = time.monotonic(), dict(self.waits)
            try:
                write_json(self.folder / "heartbeat.json", {"time": time.time(), "waits": self.waits}, sync=False)
            except OSError as error:  # a full disk, say; other hosts then do not know what becomes of these runs
                log.error("no heartbeat: %s", error)

    def reap(self) -> None:
        """Write the outcome of every torchrun that has ended."""
        for run_id, child in list(self.children.items()):
            if child.process.poll() is None:
                continue
            del self.children[run_id]
            try:
                ended = child.outcome(told_to_stop=self.stopping)
                if not child.attempt.read("outcome"):  # by who killed it while this process was stopped
                    child.attempt.write_last("outcome", ended)
            except OSError as error:  # the run is then lost, and submit heals it; the others go on
                log.error("%s: its outcome cannot be written: %s", run_id, error)
            else:
                log.info("%s attempt %d: %s %s", run_id, child.attempt.number, ended["state"], ended["reason"])
                self.failed = self.failed or ended["state"] == State.FAILED

    def tell(self, event: str) -> None:
        """Have a process of its own tell whoever wants to know, for which no run waits."""
        if self.after is None or event in self.telling:
            return
        try:
            with tempfile.TemporaryFile() as given:  # a pipe would have to be waited for
                given.write(json.dumps({**self.after["given"], "event": event}).encode())
                given.seek(0)
                self.telling[event] = subprocess.Popen(self.after["argv"], stdin=given, start_new_session=True)
        except OSError as error:
            log.error("nobody is told that the runs have %s: %s", event, error)

    def stop_what_was_cancelled(self) -> None:
        """Pass on what `kdcluster cancel` marked: torchrun gives its processes 30 s to save, then kills them."""
        for run_id, child in self.children.items():
            if RunDir(self.root, run_id).is_cancelled():
                child.tell_to_stop()
        for run_id in [i for i in self.pending if RunDir(self.root, i).is_cancelled()]:
            self.drop(run_id)

    def stop_everything(self) -> None:
        """The machine is going down, or somebody ended this process: save what runs, start nothing more."""
        self.stopping = True
        for run_id in list(self.pending):
            self.drop(run_id)
        for child in self.children.values():
            child.tell_to_stop()

    def drop(self, run_id: str) -> None:
        """Start a run no more; the next submit may."""
        del self.pending[run_id]
        RunDir(self.root, run_id).drop_ticket()

    def start_what_can(self) -> None:
        """Start the pending runs whose needs are done, while there is room; drop those that are blocked.

        What many runs share is looked at once, and of a run that has to wait nothing else.
        """
        self.waits = {}
        every = dict.fromkeys(need for run in self.pending.values() for need in (*run.needs, *run.after))
        found = {need: run_status(RunDir(self.root, need), KNOWN_S) for need in every}
        full: dict[tuple[str, int], str] = {}
        for run_id, run in list(self.pending.items()):
            needs = {need: found[need] for need in run.needs}
            why = blocked_by(run, needs) or self._abandoned(needs)
            undone = [need for need, status in needs.items() if status.state != State.DONE]
            undone += [one for one in run.after if one in self.pending or self._goes_on(found[one])]
            slots, wanted = self._wants(run)
            waits = f"waits for {', '.join(undone)}" if undone else full.get((slots.what, wanted), "")
            if waits and not why:
                self.waits[run_id] = waits
            elif not self._is_ours(run_id):
                log.info("%s: it is somebody else's now, or nobody's", run_id)
                del self.pending[run_id]
            elif why:
                log.info("%s: blocked: %s", run_id, why)
                self.drop(run_id)
            else:
                try:
                    if (taken := slots.take(wanted, run_id)) is None:
                        self.waits[run_id] = full[slots.what, wanted] = slots.waits_for(wanted)
                    else:
                        self._start(run, taken)
                except (OSError, KdclusterError) as error:  # a full disk, say: the others go on, submit heals this one
                    log.error("%s cannot be started: %s", run_id, error)
                    self.drop(run_id)

    def _is_ours(self, run_id: str) -> bool:
        """Whether a run that waits here is still this process's to start.

        It is not where others have begun it, as a trial of a sweep, or where it was cancelled or given to another
        supervisor while this process was stopped; and not where its ticket cannot be read.
        """
        run_dir = RunDir(self.root, run_id)
        try:
            ticket, newest = run_dir.ticket(), run_dir.newest()
        except Damaged as error:
            log.error("%s", error)
            return False
        if ticket is None or ticket.ref != self.ref(run_id):
            return False
        return newest is None or newest.number <= ticket.after_attempt

    def _abandoned(self, needs: dict[str, Status]) -> str:
        """Why a need will not be done by anybody: this process does not have it, and nobody else is at it."""
        for need, status in needs.items():
            if need not in self.pending and status.state not in (State.DONE, *LIVE):
                return f"{need} is {status.state}"
        return ""

    def _goes_on(self, status: Status) -> bool:
        """Whether somebody is known to be at it."""
        return status.state in LIVE and not status.unknown

    def ref(self, run_id: str) -> dict[str, Any]:
        """This process as the ticket of one of its runs names it."""
        return {**self.known, "run": run_id}

    def _wants(self, run: Run) -> tuple[Slots, int]:
        """What it takes: a GPU for each process, or cores; who wants more cores than there are has them all."""
        layout = self.layouts[run.id]
        if layout.device == "cuda":
            return self.gpus, layout.procs
        return self.cores, min(layout.cores, len(self.cores.names))

    def _start(self, run: Run, taken: list[tuple[str, FileLock]]) -> None:
        """Start a run on the GPUs or cores that were taken for it."""
        layout = self.layouts[run.id]
        gpus, locks = [name for name, _ in taken if layout.device == "cuda"], [lock for _, lock in taken]
        known = {"backend": "local", "ref": self.ref(run.id)}
        child = Child.start(RunDir(self.root, run.id), self.data_dir, layout, gpus, locks, known)
        del self.pending[run.id]
        self.children[run.id] = child
        log.info("%s attempt %d: started on %s", run.id, child.attempt.number, layout)


def main() -> None:
    """`python -m kdcluster.launch.local.supervisor SUBMISSION`: a folder that local.submit wrote."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    folder = Path(sys.argv[1])
    told = sys.stdin.buffer.read()
    if not told.startswith(GO):
        return log.info("the submit that started this ended before it had handed the runs over")
    given = records.read(folder / "submission.json", own=True)
    root = Path(given["root"])
    runs = []
    for run_id in given["runs"]:
        try:
            runs.append(RunDir(root, run_id).load())
        except KdclusterError as error:  # nobody has it then, and the next submit writes it again
            log.error("%s is left out: %s", run_id, error)
            RunDir(root, run_id).drop_ticket()
    layouts = {run_id: Layout(**values) for run_id, values in given["layouts"].items()}
    supervisor = Supervisor(root, Path(given["data_dir"]), runs, layouts, folder, json.loads(told[len(GO) :]))
    supervisor.run()
    log.info("all ended")


if __name__ == "__main__":
    main()
