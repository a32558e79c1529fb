"""A run and a cluster profile to the batch script that SLURM gets. Pure: rendered where there is no SLURM, too."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.torchrun import Layout, Room
from kdcluster.wording import quoted

TASK = "kdcluster.launch.slurm.task"


def room(profile: Profile, nodes: int | None) -> Room:
    """What a cluster has for one run, on so many nodes as were asked for (None: as few as hold it)."""
    pretended = profile.device == "cpu"
    each = profile.cpus_per_gpu or 1
    return Room(profile.gpus_per_node, cores_each=each, nodes=nodes, scheduled=True, pretended=pretended)


def job_name(run_dir: Path, number: int) -> str:
    """Name of a run's n-th job: one that no other job has, so that the job can be found by it."""
    place = hashlib.sha256(str(run_dir).encode("utf-8", "surrogateescape")).hexdigest()[:4]
    return f"{run_dir.name}.{place}.{number}"


def script(
    name: str,
    layout: Layout,
    profile: Profile,
    folder: Path,
    after: Iterable[str] = (),
    module: str = TASK,
    *,
    ended: Iterable[str] = (),
) -> str:
    """The batch script of one job: one task a node, which starts torchrun (launch/slurm/task.py).

    Args:
        name: of the job.
        layout: on what it runs.
        profile: how the cluster wants to be asked.
        folder: of this submission: task.json, and what the job writes.
        after: ids of the jobs that must have succeeded before.
        module: that each task runs, with the folder as its argument.
        ended: ids of the jobs that must have ended before, however.

    Raises:
        ConfigError: the folder's name holds what submitit would replace.
    """
    given = options(name, layout, profile, folder, list(after), list(ended))
    return rendered(_command(layout, module, folder), setup(profile, folder), given, layout, profile, folder)


def rendered(
    command: str, before: list[str], given: dict[str, Any], layout: Layout, profile: Profile, folder: Path
) -> str:
    """A batch script, as submitit writes it.

    Args:
        command: what the job runs.
        before: shell lines that it begins with.
        given: options of sbatch.
        layout: has its nodes, with one task on each.
        profile: has the lead time of SLURM's signal.
        folder: of this submission.

    Raises:
        ConfigError: the folder's name holds what submitit would replace.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    if found := re.search("%[jtAa]", str(folder)):
        raise ConfigError(f"{folder}: SLURM and submitit replace {found[0]} in a path; take another --runs-dir")
    text: str = _make_sbatch_string(
        command=command,
        folder=folder,
        setup=before,
        additional_parameters=given,
        **dict.fromkeys(("job_name", "time", "wckey")),
        nodes=layout.nodes,
        ntasks_per_node=1,
        signal_delay_s=profile.signal_lead_s,
        stderr_to_stdout=True,
        use_srun=False,  # it is in the command, with what SLURM 22.05 and later does not hand on
    )
    return text


def log_of(folder: Path) -> str:
    """Where a job's own output goes, with SLURM's %j for its id; what the ranks print is in the attempt's logs."""
    return f"{folder}/%j.log"


def options(
    name: str, layout: Layout, profile: Profile, folder: Path, after: Sequence[str], ended: Sequence[str] = ()
) -> dict[str, Any]:
    """The options of sbatch for one job, without those of its nodes and tasks."""
    gpus, ranks = layout.gpus // layout.nodes, layout.procs // layout.nodes
    options: dict[str, Any] = {
        "job-name": name,
        "output": log_of(folder) if _plain(folder) else "/dev/null",
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": profile.time_limit,
        "cpus-per-task": _cpus(layout, profile),
        "requeue": True,
    }
    if gpus:
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        options |= (
            {"gres": f"gpu:{kind}{gpus}"} if profile.gpu_request == "gres" else {"gpus-per-node": f"{kind}{gpus}"}
        )
    if profile.mem_per_gpu:
        number = profile.mem_per_gpu.rstrip("KMGT")
        options["mem"] = f"{int(number) * ranks}{profile.mem_per_gpu.removeprefix(number)}"
    if waits := [f"{how}:{':'.join(jobs)}" for how, jobs in (("afterok", after), ("afterany", ended)) if jobs]:
        options |= {"dependency": ",".join(waits), "kill-on-invalid-dep": "yes"}
    options |= profile.sbatch
    return {key: value for key, value in options.items() if value is not None and value is not False}


def _cpus(layout: Layout, profile: Profile) -> int | None:
    """Cores of one task, which is all of the job on its node."""
    ranks = layout.procs // layout.nodes
    if layout.device == "cpu":
        return ranks * (layout.threads or 1)
    return ranks * profile.cpus_per_gpu if profile.cpus_per_gpu else None


def setup(profile: Profile, folder: Path) -> list[str]:
    """Shell lines that a job begins with: what cannot stand in a #SBATCH line, the environment, the user's own."""
    lines = [] if _plain(folder) else [f"exec >>{quoted(str(folder))}/$SLURM_JOB_ID.log 2>&1"]
    lines += [f"export {key}={quoted(value)}" for key, value in profile.environment.items()]
    return [*lines, *profile.setup]


def _command(layout: Layout, module: str, folder: Path) -> str:
    srun = ["srun", "--unbuffered", "--cpu-bind=none", *(["--label"] if layout.nodes > 1 else [])]
    # A signal that comes before the task has its handler would end the job; SLURM requeues a preempted one itself.
    shield = ["bash", "-c", """'trap "" USR2; exec "$0" "$@"'"""]
    python = [*shield, quoted(sys.executable), "-uP", "-m", module, quoted(str(folder))]
    return " ".join([*srun, "${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}", *python])


def _plain(folder: Path) -> bool:
    """Whether SLURM takes a path as it stands: it has no escape for % and backslashes, and a line is a line."""
    return str(folder).isprintable() and not re.search(r"[\\%]", str(folder))
