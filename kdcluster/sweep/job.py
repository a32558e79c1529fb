"""A sweep as one SLURM job: slurm/ray.sbatch with the cluster profile's options and this sweep's arguments."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kdcluster.experiment import configfile
from kdcluster.experiment.config import Resources
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.files import next_numbered, shipped, write_aside
from kdcluster.launch.slurm import ask
from kdcluster.launch.slurm import queue as jobs
from kdcluster.launch.slurm import script as sbatch
from kdcluster.launch.slurm.answers import Job
from kdcluster.launch.slurm.backend import Slurm
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.torchrun import Layout
from kdcluster.launch.torchrun import layout as layout_of
from kdcluster.sweep.room import check_fit
from kdcluster.wording import quoted


def allocation(
    resources: Resources, profile: Profile, gpus: int | None, nodes: int | None, per_trial: float | None, at_once: int
) -> tuple[Layout, list[str]]:
    """On what a whole sweep runs, and the arguments by which its trials know what each of them gets.

    Args:
        resources: of the experiment, for one trial.
        profile: of the cluster.
        gpus: of the whole sweep, over all nodes; None: no GPUs, but `at_once` trials on CPU cores.
        nodes: None: as few as hold them.
        per_trial: GPUs of a trial; None: what `resources` say.
        at_once: trials at the same time, where there are no GPUs to count.

    Raises:
        ConfigError: the GPUs cannot be spread evenly over the nodes, or a trial fits on none of them.
    """
    threads = resources.threads or profile.cpus_per_gpu or 1
    if gpus is None:
        procs = resources.procs or 1
        whole = resources.model_copy(update={"device": "cpu", "gpus": None, "procs": procs * at_once})
        layout = layout_of(whole.model_copy(update={"threads": threads}), sbatch.room(profile, nodes))
        check_fit(Layout("cpu", procs, threads), 0, [(layout.cores / layout.nodes, 0)])
        return layout, _set("device=cpu", "gpus=null", f"procs={procs}", f"threads={threads}")
    whole = resources.model_copy(update={"device": "cuda", "gpus": gpus, "procs": None})
    layout = layout_of(whole, sbatch.room(profile, nodes))
    each = per_trial or resources.gpus or 1
    check_fit(Layout("cuda", math.ceil(each), None), each, [(1, layout.gpus / layout.nodes)])
    words = ["--gpus-per-trial", f"{each:g}"]
    if layout.device == "cuda":
        return layout, words + _set("device=cuda", "procs=null", f"gpus={math.ceil(each)}")
    return layout, words + _set("device=cpu", "gpus=null", f"procs={math.ceil(each)}", f"threads={threads}")


def _set(*resources: str) -> list[str]:
    return [word for one in resources for word in ("--set", f"resources.{one}")]


def script(
    name: str,
    layout: Layout,
    profile: Profile,
    folder: Path,
    after: list[str],
    words: list[str],
    again: str = "",
    ended: Sequence[str] = (),
) -> str:
    """The batch script.

    Args:
        name: of the job.
        layout: of the whole allocation.
        profile: how the cluster wants to be asked.
        folder: of this job.
        after: jobs that must have succeeded before, as the teacher's.
        words: arguments of `kdcluster sweep`.
        again: the command that goes on with it, for messages.
        ended: jobs that must have ended before, however, as that of the teacher's logits.
    """
    given = sbatch.options(name, layout, profile, folder, after, ended)
    given |= {"no-kill": True, "signal": f"B:USR2@{profile.signal_lead_s}"}
    lines = [
        *sbatch.setup(profile, folder),
        f"export KDCLUSTER_PYTHON={quoted(sys.executable)} KDCLUSTER_RAY_DIR={quoted(str(folder))}",
        *_for_the_trials(profile, again),
        f"set -- {' '.join(map(quoted, words))}",
    ]
    body = [line for line in shipped("slurm/ray.sbatch").read_text().splitlines() if not line.startswith("#")]
    return sbatch.rendered("\n".join(body), lines, given, layout, profile, folder)


def _for_the_trials(profile: Profile, again: str) -> list[str]:
    """What tasks of ordinary jobs are told in other ways (launch/slurm/task.py)."""
    given = {
        "KDCLUSTER_MAX_REQUEUES": str(profile.max_requeues),
        "KDCLUSTER_SWEEP_AGAIN": again,
        "KDCLUSTER_SCRATCH": profile.scratch or "",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(profile.shutdown_timeout_s),
    }
    if profile.network_interface:
        given |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), profile.network_interface)
    return [f"export {key}={quoted(value)}" for key, value in given.items()]


def under_way(folder: Path) -> Job | None:
    """The job of an experiment's sweep in this runs directory that waits or runs.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    beginning = _name(folder, 0).removesuffix("0")
    live = [job for job in ask.queue() if job.name.startswith(beginning)]
    return next((job for job in live if job.state in (*jobs.WAITING, *jobs.ACTIVE)), None)


def submit(
    folder: Path,
    layout: Layout,
    slurm: Slurm,
    after: list[str],
    loaded: LoadedExperiment,
    words: list[str],
    again: str,
    ended: Sequence[str] = (),
) -> tuple[str, Path]:
    """Queue the sweep; returns the job's id and its log.

    Args:
        folder: `<runs>/.sweeps/<experiment>`.
        layout: of the whole allocation.
        slurm: the cluster.
        after: jobs that must have succeeded before.
        loaded: the experiment; the job gets a copy of its file.
        words: arguments of `kdcluster sweep` beside it.
        again: the command that goes on with it, for messages.
        ended: jobs that must have ended before, however.

    Raises:
        Refused: SLURM does not take it.
        SchedulerError: SLURM does not answer.
    """
    number = next_numbered(folder / "slurm")
    own = folder / "slurm" / str(number)
    own.mkdir(parents=True)
    name = _name(folder, number)
    path = own / "job.sh"
    words = [str(configfile.kept(loaded, own).path), *words]
    text = script(name, layout, slurm.profile, own, after, words, again, ended)
    write_aside(path, text.encode("utf-8", "surrogateescape"))
    job_id = ask.submit(path, name, time.time())
    return job_id, Path(os.path.realpath(own)) / f"{job_id}.log"


def _name(folder: Path, number: int) -> str:
    return sbatch.job_name(folder.with_name(f"sweep-{folder.name}"), number)
