"""SLURM's own commands: what is asked of them, and what they answer. Nothing here knows about runs."""

from __future__ import annotations

import logging
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from kdcluster.errors import ConfigError, KdclusterError, SchedulerError
from kdcluster.launch.slurm import answers
from kdcluster.launch.slurm.answers import Job
from kdcluster.launch.slurm.command import ANSWER_S, Refused, ask, clean_environment

log = logging.getLogger(__name__)

PAUSES_S = (2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each look for a job that SLURM may have taken: a minute in all."""
CLOCKS_S = 300.0
"""How far the clocks of this machine and of SLURM's controller may differ."""


class Unanswered(SchedulerError):
    """Whether SLURM has taken a job is not known."""


def is_here() -> bool:
    """Whether there is a command to submit jobs with; whether it knows a SLURM, `unconfigured` says."""
    return shutil.which("sbatch") is not None


def is_inside_job() -> bool:
    """Whether this process runs inside an allocation."""
    return "SLURM_JOB_ID" in os.environ


def user() -> str:
    """Who we are to SLURM, which goes by the number: $USER may say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@cache
def settings() -> Mapping[str, str]:
    """SLURM's configuration (`scontrol show config`), by its own names; asked once."""
    text = ask("scontrol", "show", "config", within_s=10.0)
    return dict(re.findall(r"^(\w+) *= (.*?) *$", text, re.MULTILINE))


def cluster_name() -> str:
    """The cluster that jobs are sent to and asked of.

    Raises:
        ConfigError: SLURM_CLUSTERS names several.
        SchedulerError: SLURM does not answer.
    """
    chosen = os.environ.get("SLURM_CLUSTERS", "")
    if "," in chosen or chosen == "all":
        raise ConfigError(f"SLURM_CLUSTERS={chosen} names several clusters; name the one that jobs are to be sent to")
    return chosen or settings().get("ClusterName", "")


@cache
def _has_json() -> bool:
    """Whether SLURM answers in JSON here, and only what was asked for: before 23.11 squeue dumps everybody's jobs."""
    try:
        version = re.search(r"(\d+)\.(\d+)", ask("scontrol", "--version"))
        if version is None or (int(version[1]), int(version[2])) < (23, 11):
            return False
        answers.of_json(ask("squeue", "--json", f"--user={user()}", "--states=BOOT_FAIL"))
    except (KdclusterError, ValueError) as error:  # built without it, as a rule; the text says the same
        log.debug("no JSON: %s", error)
        return False
    return True


def _jobs_in_json(*argv: str) -> list[Job]:
    try:
        return answers.of_json(ask(*argv, "--json"))
    except ValueError as error:
        raise SchedulerError(f"cannot make out what {argv[0]} --json answers ({error})") from None


def queue() -> list[Job]:
    """The user's jobs that the controller still knows, ended ones for a few minutes (MinJobAge). One squeue call.

    It alone says what has not ended.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    argv = ("squeue", "--states=all", f"--user={user()}")
    if _has_json():
        return _jobs_in_json(*argv)
    text = ask(*argv, "--noheader", answers.SQUEUE)
    try:
        cluster = cluster_name()
    except (Refused, SchedulerError) as error:
        log.debug("cluster not known: %s", error)
        cluster = ""
    return answers.of_queue(text, cluster)


def accounting(ids: Iterable[str], names: Iterable[str] = ()) -> list[Job]:
    """What accounting has of the user's jobs, by ids or by names (of the last 30 days). One sacct call.

    A job that it has not seen end comes with the state "": accounting keeps some as RUNNING for ever, so that this says
    only that SLURM once took the job. It lags some seconds behind. Empty where there is no accounting.

    Raises:
        SchedulerError: there is one, but it does not answer.
    """
    ids, names = sorted(set(ids)), sorted(set(names))
    if (not ids and not names) or shutil.which("sacct") is None:
        return []
    which = [f"--jobs={','.join(ids)}"] if ids else []
    window = ("--starttime=now-30days", "--endtime=now+1days")  # our clock may be behind the controller's
    which += [f"--name={','.join(names)}", *window] if names else []
    if chosen := os.environ.get("SLURM_CLUSTERS"):
        which.append(f"--clusters={chosen}")  # sacct does not look at it by itself
    argv = ("sacct", "--allocations", f"--user={user()}", *which)
    try:
        if _has_json():
            found = _jobs_in_json(*argv)
        else:
            found = answers.of_accounting(ask(*argv, "--noheader", "--parsable2", answers.SACCT))
    except Refused as error:
        if "accounting storage is disabled" in str(error).lower():
            return []
        raise SchedulerError(f"SLURM's accounting does not answer: {error}; try again later") from None
    return [replace(job, state="") if job.state in answers.NOT_ENDED else job for job in found]


def check(script: Path) -> None:
    """Ask whether a job could ever run (`sbatch --test-only`); queues nothing.

    Raises:
        Refused: it could not, in SLURM's words.
    """
    ask("sbatch", "--test-only", str(script))


def run(script: Path) -> str:
    """Queue a batch script and wait until its job has ended, however; returns its id."""
    argv = ["sbatch", "--parsable", "--wait", str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, env=clean_environment(os.environ))
    if found := re.findall(r"^(\d+)(?:;\S+)?$", done.stdout, re.MULTILINE):
        return str(found[-1])
    raise Refused(done.stderr.strip() or f"sbatch ended with {done.returncode}")


def submit(script: Path, name: str, since: float) -> str:
    """Queue a batch script; returns the job's id.

    Where the answer is lost, sbatch is asked again only after looks that were answered and found no such job.

    Args:
        script: the file.
        name: its job name, which no other job has.
        since: a time before this, seconds since the epoch: a job that was submitted earlier is another one.

    Raises:
        Refused: SLURM does not take it, in its words.
        Unanswered: whether SLURM has the job is not known.
        SchedulerError: SLURM does not answer, and has no such job.
    """
    for more in (True, True, False):
        try:
            text = ask("sbatch", "--parsable", str(script))
            break
        except SchedulerError as error:
            log.warning("%s; looking whether SLURM has job %s all the same", error, name)
            if found := _look_for(name, since):
                return found.id
            if not more:
                raise
    found_ids = re.findall(r"^(\d+)(?:;\S+)?$", text, re.MULTILINE)  # a site may print a banner before it
    if not found_ids:
        raise Refused(f"cannot make out a job id in what sbatch said: {text.strip()!r}")
    return str(found_ids[-1])


def _look_for(name: str, since: float) -> Job | None:
    """A job whose acceptance was not heard of; None after two looks in a row: SLURM may list late what it has taken."""
    answered = 0
    for pause_s in PAUSES_S:
        time.sleep(pause_s)  # the controller is busy: give it room
        try:
            found = find(name, since)
        except SchedulerError as error:
            log.debug("%s", error)
            answered = 0
            continue
        if found:
            return found[-1]
        if (answered := answered + 1) == 2:
            return None
    raise Unanswered(
        f"it is not known whether SLURM has taken job {name}: neither sbatch nor squeue answers; "
        f"the next submit looks for it first"
    )


def find(name: str, since: float) -> list[Job]:
    """Our jobs of a name, oldest first, from the queue or, where that has none, from accounting.

    Args:
        name: of the job.
        since: when it was submitted at the earliest, by this machine's clock.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    for asked in (queue, lambda: accounting((), [name])):
        if found := [job for job in asked() if is_meant(job, name, since)]:
            return sorted(found, key=lambda job: job.number)
    return []


def is_meant(job: Job, name: str, since: float, cluster: str = "") -> bool:
    """Whether a job is ours, and the one of a name that was submitted not before a time, to a cluster ("": any)."""
    same = job.user == user() and job.name == name and (not cluster or not job.cluster or job.cluster == cluster)
    return same and (job.submitted is None or job.submitted >= since - CLOCKS_S)


def cancel(jobs: Iterable[Job]) -> None:
    """End jobs of ours; those that have ended already are no error.

    The owner, and the name where all have one, are said as well: a number that is another job's by now ends nothing.
    """
    if jobs := list(jobs):
        names = {job.name for job in jobs}
        only = [f"--user={user()}", *([f"--name={name}" for name in names] if len(names) == 1 else [])]
        try:
            ask("scancel", *only, *(job.id for job in jobs))
        except Refused as error:
            if "already" not in str(error) and "nvalid job id" not in str(error):
                raise


def describe(job_id: str, within_s: float = ANSWER_S) -> dict[str, str]:
    """What the controller knows of a job (`scontrol show job`), by its own names.

    Args:
        job_id: the job.
        within_s: how long it may take.

    Raises:
        Refused: it knows no such job.
        SchedulerError: it does not answer.
    """
    text = ask("scontrol", "show", "job", "--oneliner", job_id, within_s=within_s)
    known: dict[str, str] = {}
    for name, value in re.findall(r"(\S+?)=(\S*)", text):
        known.setdefault(name, value)  # the user's own words (Command=, WorkDir=) come last
    return known


def requeue(job_id: str, *, without: Iterable[str] = ()) -> None:
    """End a running job and put it back into the queue, from inside it too; its dependents go on waiting.

    Nodes cannot be excluded while a job runs, so that is done once it is pending: it stays so for about two minutes.

    Args:
        job_id: the job.
        without: nodes on which it may not start again.
    """
    ask("scontrol", "requeue", job_id, shielded=True)
    if nodes := ",".join(without):
        ask("scontrol", "update", f"jobid={job_id}", f"excnodelist={nodes}", shielded=True)


def why_ended(job_id: str, within_s: float = ANSWER_S) -> str:
    """What accounting calls the end of a requeued job's last start (NODE_FAIL, PREEMPTED, …); empty without one."""
    form = ("--allocations", "--duplicates", "--noheader", "--parsable2", "--format=State")
    try:
        states = ask("sacct", f"--jobs={job_id}", *form, within_s=within_s).split("\n")
    except (Refused, SchedulerError) as error:
        log.debug("no accounting: %s", error)
        return ""
    ended = [state.split(" ")[0] for state in states if state and not state.startswith(("RUNNING", "PENDING"))]
    return ended[-1] if ended else ""
