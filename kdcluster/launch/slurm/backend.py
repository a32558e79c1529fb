"""The backend of a cluster: one job a run, with the jobs of the teacher and of its logits as those it depends on."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.files import next_numbered, trainer_code, write_aside
from kdcluster.launch.backend import Finding, Options, Seen
from kdcluster.launch.slurm import ask, nodes, queue
from kdcluster.launch.slurm.answers import Job
from kdcluster.launch.slurm.command import Refused, unconfigured
from kdcluster.launch.slurm.examine import examine
from kdcluster.launch.slurm.nodes import NodeType
from kdcluster.launch.slurm.profile import Profile, choose, own
from kdcluster.launch.slurm.script import job_name, room, script
from kdcluster.launch.torchrun import Layout, layout
from kdcluster.plan import Plan
from kdcluster.processes import process_record
from kdcluster.runs import RunDir
from kdcluster.states import LIVE, State
from kdcluster.wording import count

log = logging.getLogger(__name__)

START_S = 60
"""Seconds that a job needs to its first step, roughly."""


class Slurm:
    """Jobs of one cluster.

    Args:
        profile: how the cluster wants to be asked.
        cluster: the profile's name; None: SLURM's own defaults.
        nodes: nodes of each run; None: as few as hold its GPUs.
        max_gpu_hours: refuse more than this in the worst case; None: no limit.
    """

    name = "slurm"
    title = "in SLURM"
    word = str(State.QUEUED)

    def __init__(
        self,
        profile: Profile | None = None,
        cluster: str | None = None,
        nodes: int | None = None,
        max_gpu_hours: float | None = None,
    ) -> None:
        self.given = profile or Profile()
        self.cluster, self.nodes, self.max_gpu_hours = cluster, nodes, max_gpu_hours

    @classmethod
    def of(cls, options: Options) -> Slurm:
        """With the profile that was named, or the user's only one."""
        name, profile = choose(options.cluster)
        return cls(profile, name, options.nodes, options.max_gpu_hours)

    @classmethod
    def is_wanted(cls, options: Options) -> tuple[bool, str]:
        """Where a cluster was named, or there is sbatch and it knows a SLURM; and this is not inside a job already."""
        if not ask.is_here() and options.cluster is None:
            return False, ""
        if ask.is_inside_job():
            return False, "running on this machine: this is inside a job; --backend slurm submits from here"
        is_meant = options.cluster is not None or own() or "SLURM_CONF" in os.environ
        if not is_meant and (why := unconfigured()):
            todo = "SLURM_CONF says where its configuration is, --backend local that it is not meant"
            return False, f"running on this machine: SLURM is not configured here\n{why}; {todo}"
        return True, ""

    def described(self) -> str:
        """With its cluster profile."""
        return f"in SLURM, {f'cluster profile {self.cluster!r}' if self.cluster else 'with its own defaults'}"

    @cached_property
    def node(self) -> NodeType | None:
        """What a node has, asked of sinfo where the profile leaves it open; None where there is no SLURM here."""
        settled = self.given.gpus_per_node and self.given.cpus_per_gpu
        if settled or not ask.is_here():
            return None
        return nodes.node_type(self.given.partition)

    @cached_property
    def profile(self) -> Profile:
        """The profile, with what it leaves open taken from the cluster."""
        if self.node is None or not self.node.gpus:
            return self.given
        gpus = self.given.gpus_per_node or self.node.gpus
        cpus = self.given.cpus_per_gpu or max(1, self.node.cpus // gpus)
        return self.given.model_copy(update={"gpus_per_node": gpus, "cpus_per_gpu": cpus})

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        """On what each run would run in the queue."""
        there = room(self.profile, self.nodes)
        return {run.id: layout(run.resources, there) for run in plan.runs}

    def scripts(self, plan: Plan, root: Path) -> dict[str, str]:
        """The batch script of each run as it would be sent, `<job of RUN>` for ids that do not exist yet."""
        layouts = self.layouts(plan)
        made = {}
        for run in plan.runs:
            run_dir = RunDir(root, run.id)
            number = next_number(run_dir)
            after, ended = (
                [f"<job of {one}>" for one in ids if RunDir(root, one).result() is None]
                for ids in (run.needs, run.after)
            )
            name, folder = job_name(run_dir.path, number), folder_of(run_dir, number)
            made[run.id] = script(name, layouts[run.id], self.profile, folder, after, ended=ended)
        return made

    def gpu_hours(self, plan: Plan, chosen: Sequence[str]) -> float | None:
        """GPU-hours of the worst case: every run takes its whole time limit, as often as it may be started.

        None: there is no time limit.
        """
        limit = self.profile.time_limit
        if limit is None and ask.is_here():
            found = nodes.node_type(self.profile.partition)
            limit = found.time_limit_min if found else None
        gpus = sum(layout.gpus for run_id, layout in self.layouts(plan).items() if run_id in chosen)
        return None if limit is None else gpus * limit / 60 * self.attempts

    @property
    def attempts(self) -> int:
        """How often a run may be started in one job."""
        return 1 + self.profile.max_restarts + self.profile.max_requeues

    def notes(self, plan: Plan, chosen: Sequence[str]) -> list[str]:
        """The worst case, and a time limit that may leave a job no room for a step: its signal may come early."""
        hours = self.gpu_hours(plan, chosen)
        once = "" if hours is None else f" ({hours / self.attempts:.4g} without restarts and requeues)"
        cost = "not known: there is no time limit" if hours is None else f"{hours:.4g} GPU-hours{once}"
        worst = f"worst case of {count(len(chosen), 'run')}: {cost}"
        limit_s, lead_s = 60 * (self.given.time_limit or 0), self.given.signal_lead_s
        if not limit_s or limit_s > lead_s + 60 + START_S:
            return [worst]
        return [
            worst,
            f"time_limit {limit_s // 60} min and signal_lead_s {lead_s} leave a job little or no room for a step: "
            f"SLURM may send its signal a minute early, and a start takes about {START_S} s",
        ]

    def check(self, plan: Plan, chosen: Sequence[str], root: Path) -> list[str]:
        """Refuse a budget that is too small, and ask SLURM whether such jobs could ever run; queues nothing.

        Raises:
            KdclusterError: more GPU-hours than allowed.
            Refused: SLURM would never run it, in its own words.
            SchedulerError: SLURM does not answer.
        """
        worst = self.gpu_hours(plan, chosen)
        if self.max_gpu_hours is not None and (worst is None or worst > self.max_gpu_hours):
            what = "no time limit is known: set time_limit in the profile" if worst is None else f"{worst:g} GPU-hours"
            raise KdclusterError(
                f"--max-gpu-hours {self.max_gpu_hours:g}: the worst case is more ({what}); nothing is queued"
            )
        layouts = self.layouts(plan)
        self.check_layouts([layouts[run_id] for run_id in chosen])
        return ["SLURM would run these jobs (sbatch --test-only)"]

    def check_layouts(self, layouts: Iterable[Layout]) -> None:
        """Ask SLURM whether such jobs could ever run.

        Raises:
            Refused: one could not.
        """
        with tempfile.TemporaryDirectory() as folder:
            for layout in dict.fromkeys(layouts):
                path = Path(folder) / "job.sh"
                path.write_text(script("kdcluster-test", layout, self.profile, Path(folder)))
                try:
                    ask.check(path)
                except Refused as error:
                    raise Refused(
                        f"SLURM would never run a job on {layout}, so nothing is queued:\n{error}\nmend the profile"
                        f"{f' {self.cluster!r}' if self.cluster else ''}, or ask for less"
                    ) from None

    def tell(self, after: Mapping[str, Any]) -> bool:
        """Nothing of a submit stays on the login node; SLURM itself can send mail (`sbatch: {mail-type: END}`)."""
        return False

    def start(self, plan: Plan, chosen: Sequence[str], root: Path, data_dir: Path) -> str:
        """Queue the runs, all or none.

        Raises:
            Refused: SLURM took one not; those before it were cancelled.
            SchedulerError: SLURM does not answer any more; likewise.
        """
        layouts, jobs = self.layouts(plan), dict[str, str]()
        wanted = [run for run in plan.runs if run.id in chosen]
        try:
            for run in wanted:
                after, ended = (
                    [job for one in ids if (job := jobs.get(one) or waited_for(RunDir(root, one)))]
                    for ids in (run.needs, run.after)
                )
                jobs[run.id] = self._queue(RunDir(root, run.id), data_dir, layouts[run.id], after, ended)
        except BaseException as error:
            asked = len(jobs) + (not isinstance(error, ask.Unanswered))  # else its ticket has to find it
            back = self._take_back([RunDir(root, run.id) for run in wanted[:asked]])
            if isinstance(error, KdclusterError):
                raise type(error)(f"{error}\n{back}") from None
            log.error("interrupted: %s", back)
            raise
        where = f" of cluster profile {self.cluster!r}" if self.cluster else ""
        return f"in SLURM{where}: jobs {', '.join(jobs.values())}"

    def _queue(self, run_dir: RunDir, data_dir: Path, layout: Layout, after: list[str], ended: list[str]) -> str:
        from kdcluster.launch.slurm.task import Task

        number = next_number(run_dir)
        folder = folder_of(run_dir, number)
        folder.mkdir(parents=True)
        name = job_name(run_dir.path, number)
        Task(run_dir, data_dir, folder, layout, self.profile, trainer_code()).write()
        path = folder / "job.sh"
        text = script(name, layout, self.profile, folder, after, ended=ended)
        write_aside(path, text.encode("utf-8", "surrogateescape"))
        intent: dict[str, Any] = {"id": None, "name": name, "folder": str(folder), "time": time.time()}
        intent |= {"cluster": self.cluster, "slurm": queue.cluster(), "submitter": process_record(os.getpid())}
        run_dir.write_ticket(self.name, intent)
        job_id = ask.submit(path, name, intent["time"])
        run_dir.note_ref({**intent, "id": job_id})
        return job_id

    @classmethod
    def look(cls, refs: Sequence[Mapping[str, Any]], within_s: float = 0.0) -> list[Seen]:
        """One squeue for all of them, and one sacct for what the queue has forgotten."""
        return queue.look(refs, within_s)

    @classmethod
    def cancel(cls, refs: Sequence[Mapping[str, Any]]) -> None:
        """scancel, pending jobs first, so that none of them begins meanwhile."""
        ask.cancel(queue.alive(refs))

    @classmethod
    def ends_within_s(cls) -> float:
        """KillWait."""
        return nodes.kill_wait_s()

    def examine(self, plan: Plan | None, root: Path, *, with_job: bool) -> Iterator[Finding]:
        """The profile against what SLURM says."""
        return examine(self, plan, root, with_job=with_job)

    def _take_back(self, run_dirs: list[RunDir]) -> str:
        """Cancel what this command has queued, students first; returns what became of it."""
        try:
            for run_dir in reversed(run_dirs):
                if (ticket := run_dir.ticket()) and ticket.backend == self.name:
                    job = ticket.ref
                    known = [Job(job["id"], job["name"], "")] if job["id"] else ask.find(job["name"], job["time"])
                    ask.cancel(known)
                    run_dir.drop_ticket()
        except KdclusterError as error:
            return (
                f"its jobs could not be taken back ({error}); once SLURM answers, submit again goes on with them, "
                f"and cancel ends them"
            )
        return "nothing is queued: the jobs of this command that were accepted are cancelled again"


def folder_of(run_dir: RunDir, number: int) -> Path:
    """Where the n-th job of a run has its script, what it has to do, and its own log."""
    return run_dir.path / "slurm" / str(number)


def next_number(run_dir: RunDir) -> int:
    """Number of the next job of a run."""
    return next_numbered(run_dir.path / "slurm")


def waited_for(run_dir: RunDir) -> str | None:
    """The job that will make a run that is not done; None: it is done, or is not SLURM's."""
    from kdcluster.launch.status import run_status

    status = run_status(run_dir)
    return status.job_id if status.state in LIVE and status.backend == Slurm.name else None
