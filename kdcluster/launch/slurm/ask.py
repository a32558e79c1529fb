"""SLURM's own commands: what is asked of them, and what they answer. Nothing here knows about runs."""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdcluster.errors import KdclusterError, SchedulerError
from kdcluster.launch.torchrun import is_torchrun_variable

log = logging.getLogger(__name__)

ANSWER_S = 60.0
"""Seconds after which a command of SLURM counts as not answered."""
PASSING = (
    "unable to contact slurm controller",
    "timed out",
    "timeout",
    "connection refused",
    "connection reset",
    "temporarily",
    "try again",
    "slurm backup controller",
    "controller not responding",
)
"""Parts of errors that pass by themselves; any other is an answer."""
MISSING = ("fetch_config", "command not found", "no such file", "configuration source")


@dataclass(frozen=True)
class Job:
    """One job as SLURM has it: `state` in its long form, `start` of a pending job where SLURM knows one."""

    id: str
    name: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""

    @property
    def number(self) -> int:
        """Of the id, which may be one of an array (7_1) or of a heterogeneous job (7+0); the higher, the newer."""
        found = re.match(r"\d+", self.id)
        return int(found[0]) if found else 0


class Refused(KdclusterError):
    """SLURM said no, in its own words."""


def is_here() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def is_inside_job() -> bool:
    """Whether this process runs inside an allocation."""
    return "SLURM_JOB_ID" in os.environ


def clean_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment to submit from: inside a job nothing of that job (SLURM would apply it to the new one).

    SLURM_CONF and SLURM_CLUSTERS say which SLURM is meant and stay. Nothing of a torchrun goes on either.
    """
    kept = {name: value for name, value in base.items() if not is_torchrun_variable(name)}
    if "SLURM_JOB_ID" not in base:
        return kept
    ours = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {n: v for n, v in kept.items() if n in ours or not n.startswith(("SLURM_", "SRUN_", "SBATCH_", "SUBMITIT_"))}


def ask(*argv: str, shielded: bool = False) -> str:
    """What a command of SLURM prints.

    Args:
        argv: the command.
        shielded: from the SIGTERM that SLURM sends to every process of a job that is being ended.

    Raises:
        Refused: it answered with an error.
        SchedulerError: it is not there, or does not answer.
    """
    environment = {**clean_environment(os.environ), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
            env=environment,
            preexec_fn=_ignore_sigterm if shielded else None,
        )
    except FileNotFoundError:
        raise SchedulerError(
            f"no {argv[0]} on this machine; submit from a login node, or use --backend local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{argv[0]} did not answer within {ANSWER_S:.0f} s; try again later") from None
    if done.returncode == 0:
        return done.stdout
    said = "\n".join(dict.fromkeys(line.strip() for line in done.stderr.splitlines() if line.strip()))
    if any(words in said.lower() for words in MISSING):
        raise SchedulerError(
            f"SLURM is installed here, but not configured ({said}): --backend local runs on this machine; "
            f"on a login node, SLURM_CONF says where its configuration is"
        )
    if any(words in said.lower() for words in PASSING):
        raise SchedulerError(f"SLURM cannot be reached: {said}; try again later, or use --backend local")
    raise Refused(said or f"{argv[0]} ended with {done.returncode}")


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stays so in the command


def queue() -> list[Job]:
    """The user's jobs that the controller still knows, ended ones for a few minutes (MinJobAge). One squeue call."""
    form = "--format=%i|%T|%r|%S|%N|%j"
    text = ask("squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", form)
    jobs = []
    for line in text.splitlines():
        parts = line.split("|", 5)
        if len(parts) == 6 and parts[0][:1].isdigit():  # a site's banner is not a job
            number, state, reason, start, nodes, name = parts
            jobs.append(Job(number, name, state, reason, "" if start in ("N/A", "") else start, nodes))
    return jobs


def accounting(ids: Iterable[str], names: Iterable[str] = ()) -> list[Job]:
    """What accounting has of jobs, the newest of each id; empty where there is no accounting. One sacct call."""
    ids, names = sorted(set(ids)), sorted(set(names))
    if (not ids and not names) or shutil.which("sacct") is None:
        return []
    which = [f"--jobs={','.join(ids)}"] if ids else []
    which += [f"--name={','.join(names)}", "--starttime=now-30days"] if names else []
    form = "--format=JobIDRaw,State,Start,NodeList,JobName"
    try:
        text = ask("sacct", "--allocations", "--noheader", "--parsable2", *which, form)
    except (Refused, SchedulerError) as error:
        log.debug("no accounting: %s", error)
        return []
    found = {}
    for line in text.splitlines():
        parts = line.split("|", 4)
        if len(parts) == 5 and parts[0][:1].isdigit():
            number, state, start, nodes, name = parts
            found[number] = Job(number, name, state.split(" ")[0], state, start, nodes)
    return list(found.values())


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


def submit(script: Path, name: str) -> str:
    """Queue a batch script; returns the job's id. An error that passes is tried again, after a look for the job.

    Args:
        script: the file.
        name: its job name, which no other job has.

    Raises:
        Refused: SLURM does not take it, in its words.
        SchedulerError: SLURM does not answer; whether it has the job is not known then.
    """
    for wait_s in (1.0, 2.0, 4.0, None):
        try:
            text = ask("sbatch", "--parsable", str(script))
            break
        except SchedulerError as error:
            if wait_s is None:
                raise
            log.warning("%s; trying again", error)
            time.sleep(wait_s)  # the controller is busy: give it room
            if known := _found(name):
                return known[-1].id  # it was accepted, only the answer was lost
    found = re.findall(r"^(\d+)(?:;\S+)?$", text, re.MULTILINE)  # a site may print a banner before it
    if not found:
        raise Refused(f"cannot make out a job id in what sbatch said: {text.strip()!r}")
    return str(found[-1])


def _found(name: str) -> list[Job]:
    try:
        return find(name)
    except SchedulerError:
        return []


def find(name: str) -> list[Job]:
    """Jobs of a name, oldest first, from the queue or from accounting.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    known = {job.id: job for job in accounting((), [name])}
    known |= {job.id: job for job in queue() if job.name == name}
    return sorted(known.values(), key=lambda job: job.number)


def cancel(ids: Iterable[str]) -> None:
    """End jobs; those that have ended already are no error."""
    if ids := list(ids):
        try:
            ask("scancel", *ids)
        except Refused as error:
            if "already" not in str(error) and "nvalid job id" not in str(error):
                raise


def describe(job_id: str) -> dict[str, str]:
    """What the controller knows of a job (`scontrol show job`), by its own names.

    Raises:
        Refused: it knows no such job.
        SchedulerError: it does not answer.
    """
    text = ask("scontrol", "show", "job", "--oneliner", job_id)
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


def why_ended(job_id: str) -> str:
    """What accounting calls the end of a requeued job's last start (NODE_FAIL, PREEMPTED, …); empty without one."""
    form = ("--allocations", "--duplicates", "--noheader", "--parsable2", "--format=State")
    try:
        states = ask("sacct", f"--jobs={job_id}", *form).split("\n")
    except (Refused, SchedulerError) as error:
        log.debug("no accounting: %s", error)
        return ""
    ended = [state.split(" ")[0] for state in states if state and not state.startswith(("RUNNING", "PENDING"))]
    return ended[-1] if ended else ""
