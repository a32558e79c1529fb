"""A third place that runs things, in under 60 lines: a queue file, and a process for each job (think PBS)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kdcluster.launch.backend import BACKENDS, Backend, Phase, Seen
from kdcluster.launch.local.supervisor import Child
from kdcluster.launch.status import run_status
from kdcluster.launch.torchrun import Layout
from kdcluster.processes import is_alive, process_record
from kdcluster.runs import RunDir
from kdcluster.states import LIVE, State


class Toy(Backend):
    name, title, word = "toy", "in the toy queue", "queued"
    argv, jobs = [sys.executable, "-m", "tests.toy_backend"], []

    def layouts(self, plan):
        return {run.id: Layout("cpu", 1, 1) for run in plan.runs}

    def start(self, plan, chosen, root, data_dir):
        for run_id in chosen:
            job = subprocess.Popen([*self.argv, root / run_id, data_dir], stdin=subprocess.PIPE, start_new_session=True)
            self.jobs.append(job)
            RunDir(root, run_id).write_ticket("toy", process_record(job.pid) | {"queue": str(root / "toy.queue")})
            with (root / "toy.queue").open("a") as queue, job.stdin:  # it waits for the end of its input
                queue.write(f"{job.pid}\n")
        return f"{self.title}, {len(chosen)} jobs"

    @classmethod
    def look(cls, refs, within_s=0.0):
        ended = [Phase.ENDED if str(ref["pid"]) in Path(ref["queue"]).read_text() else Phase.ABSENT for ref in refs]
        phases = [Phase.ACTIVE if is_alive(ref) else phase for ref, phase in zip(refs, ended, strict=True)]
        return [
            Seen(phase, f"its job is {phase.name}", str(ref["pid"])) for ref, phase in zip(refs, phases, strict=True)
        ]

    @classmethod
    def cancel(cls, refs):
        for ref in filter(is_alive, refs):
            os.kill(ref["pid"], signal.SIGTERM)


def main(run_dir, data_dir, told):
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    sys.stdin.read()
    needs = [RunDir(run_dir.root, need) for need in run_dir.load().needs]
    first = [*needs, *(RunDir(run_dir.root, one) for one in run_dir.load().after)]
    while not told and any(run_status(one).state in LIVE for one in first):
        time.sleep(0.1)
    mine = (ticket := run_dir.ticket()) and ticket.ref["pid"] == os.getpid()
    if not told and mine and all(run_status(need).state == State.DONE for need in needs):
        child = Child.start(run_dir, data_dir, Layout("cpu", 1, 1), known={"backend": "toy", "ref": ticket.ref})
        while child.process.poll() is None:
            time.sleep(0.1)
            if told:
                child.tell_to_stop()
        child.attempt.write_last("outcome", child.outcome(told_to_stop=bool(told)))


if __name__ == "__main__":
    BACKENDS["toy"] = "tests.toy_backend:Toy"  # the one line
    main(RunDir(Path(sys.argv[-2]).parent, Path(sys.argv[-2]).name), Path(sys.argv[-1]), [])
