"""One command of SLURM: the environment that it gets, its answer, and what its errors mean.

None of the variables by which SLURM's commands take options gets past here: the profile and the batch script say how a
job is asked for. `SBATCH_TIMELIMIT` in somebody's shell would override the script, `SQUEUE_FORMAT` what squeue answers,
and what sbatch hands on to the job would change its srun.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from functools import cache

from kdcluster.errors import KdclusterError, SchedulerError
from kdcluster.launch.torchrun import is_torchrun_variable

log = logging.getLogger(__name__)

ANSWER_S = 60.0
"""Seconds after which a command of SLURM counts as not answered."""
FAMILIES = (
    *("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_"),
    *("_SLURM_SPANK_OPTION_", "SUBMITIT_"),
)
WHICH_SLURM = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS"),
    *("SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS", "SLURM_SACK_SOCKET"),
)
"""What says which SLURM is meant and who asks; these stay."""
PASSING = (
    *("unable to contact slurm controller", "controller not responding", "can't be reached now"),
    *("slurm backup controller", "connection refused", "connection reset"),
    *("timed out", "timeout", "temporarily", "try again"),
)
"""Parts of errors that pass by themselves; any other is an answer."""
MISSING = ("fetch_config", "command not found", "no such file", "configuration source")


class Unconfigured(SchedulerError):
    """SLURM's commands are here, and know no SLURM."""

    def __init__(self, why: str) -> None:
        self.why = why
        where = "on a login node, SLURM_CONF says where its configuration is"
        super().__init__(
            f"SLURM is installed here, but not configured ({why}): --backend local runs on this machine; {where}"
        )


class Refused(KdclusterError):
    """SLURM said no, in its own words."""


def clean_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment to ask and to submit from: no options of SLURM's or submitit's, nothing of a torchrun."""
    return {name: value for name, value in base.items() if not (is_torchrun_variable(name) or _is_option(name))}


def _is_option(name: str) -> bool:
    return name.startswith(FAMILIES) and name not in WHICH_SLURM


def ignored(base: Mapping[str, str]) -> list[str]:
    """The user's own variables that would have changed what is asked or answered.

    Inside a job most are SLURM's, so none is named there. salloc is never asked; and a path is what a site's module
    says of itself (SLURM_ROOT).
    """
    if "SLURM_JOB_ID" in base:
        return []
    options = sorted(name for name in base if _is_option(name) and not name.startswith("SALLOC_"))
    return [name for name in options if not (name.startswith(("SLURM_", "SLURMD_")) and base[name].startswith("/"))]


@cache
def _say_what_is_ignored() -> None:
    if names := ignored(os.environ):
        log.warning(
            "ignored, though set in this shell: %s; the cluster profile says how jobs are asked for, SLURM_CONF and "
            "SLURM_CLUSTERS which SLURM is meant",
            ", ".join(names),
        )


def ask(*argv: str, within_s: float = ANSWER_S, shielded: bool = False) -> str:
    """What a command of SLURM prints; squeue and sacct say times in seconds since the epoch.

    Args:
        argv: the command.
        within_s: how long it may take.
        shielded: from the SIGTERM that SLURM sends to every process of a job that is being ended.

    Raises:
        Refused: it answered with an error.
        SchedulerError: it is not there, or does not answer.
    """
    _say_what_is_ignored()
    env = {**clean_environment(os.environ), "LC_ALL": "C.UTF-8"}
    if argv[0] in ("squeue", "sacct"):
        env["SLURM_TIME_FORMAT"] = "%s"
    conf, inside = env.get("SLURM_CONF"), "SLURM_JOB_ID" in os.environ
    if conf and not inside and not os.access(conf, os.R_OK):  # SLURM itself would look for it for a minute
        raise Unconfigured(f"SLURM_CONF={conf} cannot be read")
    shield = _ignore_sigterm if shielded else None
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=within_s, env=env, preexec_fn=shield
        )
    except FileNotFoundError:
        raise SchedulerError(
            f"no {argv[0]} on this machine; submit from a login node, or use --backend local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{argv[0]} did not answer within {within_s:.0f} s; try again later") from None
    if done.returncode == 0:
        return done.stdout
    said = "\n".join(dict.fromkeys(line.strip() for line in done.stderr.splitlines() if line.strip()))
    if any(words in said.lower() for words in MISSING):
        raise Unconfigured(said.splitlines()[-1])
    if any(words in said.lower() for words in PASSING):
        raise SchedulerError(f"SLURM cannot be reached: {said}; try again later, or use --backend local")
    raise Refused(said or f"{argv[0]} ended with {done.returncode}")


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stays so in the command


def unconfigured() -> str:
    """Why SLURM's commands are of no use here; empty where they may be. Asks no controller."""
    try:
        ask("scontrol", "show", "hostnames", "localhost", within_s=10.0)
    except Unconfigured as error:
        return error.why
    except KdclusterError:
        pass  # it has read its configuration, or is to be asked again
    return ""
