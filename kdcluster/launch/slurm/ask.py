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
    """Whether there is a command to submit jobs with; whether it knows a SLURM, command.py's `unconfigured` says."""
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
    """The cluster that jobs are sent to and asked of; empty where SLURM does not say.

    Raises:
        ConfigError: SLURM_CLUSTERS names several.
    """
    chosen = os.environ.get("SLURM_CLUSTERS", "")
    if "," in chosen or chosen == "all":
        raise ConfigError(f"SLURM_CLUSTERS={chosen} names several clusters; name the one that jobs are to be sent to")
    try:
        return chosen or settings().get("ClusterName", "")
    except (Refused, SchedulerError) as error:
        log.debug("no name of the cluster: %s", error)
        return ""


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

    Raises:
        SchedulerError: SLURM does not answer.
    """
    argv, cluster = ("squeue", "--states=all", f"--user={user()}"), cluster_name()
    if _has_json():
        return _jobs_in_json(*argv)
    return answers.of_queue(ask(*argv, *answers.SQUEUE), cluster)


def accounting(ids: Iterable[str], names: Iterable[str] = ()) -> list[Job]:
    """What accounting has of the user's jobs, by ids or by names (of the last 30 days). One sacct call.

    A job that it has not seen end comes with the state "": accounting keeps some as RUNNING for ever, and lags some
    seconds behind; the queue alone says what has not ended. Empty where there is no accounting.

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
        found = _jobs_in_json(*argv) if _has_json() else answers.of_accounting(ask(*argv, *answers.SACCT))
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
    if job_id := _id_in(done.stdout):
        return job_id
    raise Refused(done.stderr.strip() or f"sbatch ended with {done.returncode}")


def _id_in(said: str) -> str:
    """The job's id in what `sbatch --parsable` prints, perhaps behind a site's banner; empty where there is none."""
    found = re.findall(r"^(\d+)(?:;\S+)?$", said, re.MULTILINE)
    return str(found[-1]) if found else ""


def submit(script: Path, name: str, since: float) -> str:
    """Queue a batch script; returns the job's id.

    Where the answer is lost, sbatch is asked again only after looks that were answered and found no such job: none of
    this name that was submitted since a time before this call (seconds since the epoch).

    Raises:
        Refused: SLURM does not take it, in its words.
        Unanswered: whether SLURM has the job is not known.
        SchedulerError: SLURM does not answer, and has no such job.
    """
    for more in (True, True, False):
        try:
            said = ask("sbatch", "--parsable", str(script))
            break
        except SchedulerError as error:
            log.warning("%s; looking whether SLURM has job %s all the same", error, name)
            if found := _look_for(name, since):
                return found.id
            if not more:
                raise
    if job_id := _id_in(said):
        return job_id
    raise Refused(f"cannot make out a job id in what sbatch said: {said.strip()!r}")


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
    """Our jobs of a name that were submitted not before a time, oldest first; accounting's where the queue has none.

    Raises:
        SchedulerError: SLURM does not answer.
    """

    def meant(jobs: Iterable[Job]) -> list[Job]:
        return sorted((job for job in jobs if is_meant(job, name, since)), key=lambda job: int(job.id))

    return meant(queue()) or meant(accounting((), [name]))


def is_meant(job: Job, name: str | None, since: float, cluster: str = "") -> bool:
    """Whether a job is ours, and the one of a name (None: any) that was submitted not before a time, to a cluster.

    Numbers are used again, and names where a run was deleted and made again. What is not known of a job does not count.
    """
    ours = job.user in (user(), "") and name in (job.name, None)
    there = not cluster or job.cluster in (cluster, "")
    return ours and there and (job.submitted is None or job.submitted >= since - CLOCKS_S)


def cancel(jobs: Iterable[Job]) -> None:
    """End jobs of ours; those that have ended already are no error.

    The owner, and the name where all have one, are said as well: a number that is another job's by now ends nothing.
    """
    jobs = list(jobs)
    if not jobs:
        return
    names = {job.name for job in jobs}
    same = [f"--name={jobs[0].name}"] if len(names) == 1 else []
    try:
        ask("scancel", f"--user={user()}", *same, *(job.id for job in jobs))
    except Refused as error:
        if "already" not in str(error) and "nvalid job id" not in str(error):
            raise


def describe(job_id: str, within_s: float = ANSWER_S) -> dict[str, str]:
    """What the controller knows of a job (`scontrol show job`), by its own names.

    Raises:
        Refused: it knows no such job.
        SchedulerError: it does not answer within this time.
    """
    text = ask("scontrol", "show", "job", "--oneliner", job_id, within_s=within_s)
    named = re.findall(r"(\S+?)=(\S*)", text)
    return dict(reversed(named))  # the first of each: the user's own words (Command=, WorkDir=) come last


def requeue(job_id: str, *, without: Iterable[str] = ()) -> None:
    """End a running job and put it back into the queue, from inside it too, to start again without some nodes.

    Its dependents go on waiting. Nodes cannot be excluded while a job runs, so that is done once it is pending: it
    stays so for about two minutes.
    """
    ask("scontrol", "requeue", job_id, shielded=True)
    if nodes := ",".join(without):
        ask("scontrol", "update", f"jobid={job_id}", f"excnodelist={nodes}", shielded=True)
