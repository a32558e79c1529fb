"""Run on this machine: everything that one submit starts is left to one detached supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from kdcluster.errors import KdclusterError
from kdcluster.files import read_json, write_json
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.torchrun import Layout, environment, layout, trainer
from kdcluster.plan import Plan, Run
from kdcluster.processes import threads_available
from kdcluster.runs import RunDir


class Local:
    """The backend of this machine."""

    name = "local"

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        """On what each run would run here."""
        return layouts(plan)

    def scripts(self, plan: Plan, root: Path) -> dict[str, str]:
        """None: nothing is queued here."""
        return {}

    def gpu_hours(self, plan: Plan, chosen: list[str]) -> float | None:
        """None: nothing limits a run here."""
        return None

    def notes(self) -> list[str]:
        """Nothing."""
        return []

    def check(self, plan: Plan, chosen: list[str], root: Path) -> None:
        """Refuse more GPUs than there are."""
        check_room({run_id: item for run_id, item in layouts(plan).items() if run_id in chosen})

    def start(self, plan: Plan, chosen: list[str], root: Path, data_dir: Path) -> str:
        """Hand the runs to a new supervisor.

        Raises:
            KdclusterError: it did not come up (with its log).
        """
        folder = root / ".submissions" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder.mkdir(parents=True)
        wanted = {run_id: asdict(item) for run_id, item in layouts(plan).items() if run_id in chosen}
        values = {"root": str(root), "data_dir": str(data_dir), "runs": chosen, "layouts": wanted}
        write_json(folder / "submission.json", values)
        _start_supervisor(folder)
        return f"on this machine; log: {folder / 'supervisor.log'}"


def layouts(plan: Plan) -> dict[str, Layout]:
    """On what each run would run here."""
    undecided = any(run.resources.device == "auto" and run.resources.procs is None for run in plan.runs)
    gpus = len(visible_gpus()) if undecided else 0  # a broken driver does not stop what runs on the CPU
    return {run.id: layout(run.resources, gpus_here=gpus, cores_here=threads_available()) for run in plan.runs}


def check_room(wanted: Mapping[str, Layout]) -> None:
    """Refuse what this machine can never run.

    Raises:
        KdclusterError: more GPUs were asked for than there are.
    """
    most = max((item.procs for item in wanted.values() if item.device == "cuda"), default=0)
    here = len(visible_gpus()) if most else 0
    if most > here:
        raise KdclusterError(
            f"{most} GPU{'s' * (most > 1)} asked for, this machine shows {here or 'none'}; "
            f"ask for fewer with --gpus, or run on the CPU with --procs"
        )


def _start_supervisor(folder: Path) -> None:
    """Start it in its own session, and return once it has taken the runs over."""
    with (folder / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdcluster.launch.local.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while read_json(folder / "supervisor.json") is None:
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        if read_json(folder / "supervisor.json") is None:
            text = (folder / "supervisor.log").read_text(errors="replace").strip()
            raise KdclusterError(f"the supervisor did not come up, so nothing was started; submit again:\n{text}")


def debug(run: Run, root: Path, data_dir: Path, steps: int) -> int:
    """A few steps of one run in one foreground process, in `<root>/debug`, where `breakpoint()` works.

    Returns the process's exit code. A trained teacher is used where there is one, else its start weights.
    """
    run_dir = RunDir(root / "debug", run.id)
    run_dir.prepare(run)
    for need in run.needs:
        link = root / "debug" / need
        if RunDir(root, need).weights("best").is_file() and not link.exists():
            link.symlink_to(root / need)
    where = layout(run.resources, gpus_here=len(visible_gpus()), cores_here=threads_available())
    where = Layout(where.device, 1, where.threads and threads_available())
    argv = [sys.executable, *trainer(run_dir.path, data_dir, where), "--max-steps", str(steps)]
    return subprocess.run(argv, env=environment(os.environ, where)).returncode
