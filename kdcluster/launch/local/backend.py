"""Run on this machine: everything that one submit starts is left to one detached supervisor."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import write_json
from kdcluster.launch.backend import Backend, Options, Phase, Seen
from kdcluster.launch.local.gpus import visible_gpus
from kdcluster.launch.torchrun import Layout, Room, environment, layout, trainer
from kdcluster.ownership import keep_to_oneself, locks_folder, refuse_foreign, shared_folder
from kdcluster.plan import Plan, Run
from kdcluster.processes import is_alive, is_stopped, process_record, threads_available
from kdcluster.runs import RunDir
from kdcluster.wording import count

BEAT_S = 10.0
"""How often a supervisor says in its folder that it is there, for other hosts that share the runs directory."""
HEARD_S = 60.0
"""How long after that it counts as alive."""
GO = b"go"
"""What a supervisor waits for, on its standard input; behind it stands what it runs at the end."""


class Local(Backend):
    """The backend of this machine."""

    name = "local"
    title = "on this machine"
    word = "started"
    after: Mapping[str, Any] | None = None
    """What the next supervisor runs at the end."""

    @classmethod
    def of(cls, options: Options) -> Local:
        """There is one kind."""
        if options.nodes is not None and options.nodes > 1:
            raise ConfigError(f"--nodes {options.nodes}: this machine is one node; --backend slurm has more")
        return cls()

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        """On what each run would run here."""
        return layouts(plan)

    def check(self, plan: Plan, chosen: Sequence[str], root: Path) -> list[str]:
        """Refuse more GPUs than there are."""
        check_room({run_id: item for run_id, item in layouts(plan).items() if run_id in chosen})
        return []

    def tell(self, after: Mapping[str, Any]) -> bool:
        """The supervisor does."""
        self.after = after
        return True

    def start(self, plan: Plan, chosen: Sequence[str], root: Path, data_dir: Path) -> str:
        """Hand the runs to a new supervisor.

        Raises:
            KdclusterError: it did not come up (with its log).
        """
        folder = shared_folder(root / ".submissions") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder.mkdir()
        wanted = {run_id: asdict(item) for run_id, item in layouts(plan).items() if run_id in chosen}
        values = {"root": str(root), "data_dir": str(data_dir), "runs": list(chosen), "layouts": wanted}
        write_json(folder / "submission.json", values)
        _start_supervisor(folder, [RunDir(root, run_id) for run_id in chosen], self.after)
        return f"on this machine; log: {folder / 'supervisor.log'}"

    @classmethod
    def look(cls, refs: Sequence[Mapping[str, Any]], within_s: float = 0.0) -> list[Seen]:
        """By the supervisor's process; of another host by what it says in its folder."""
        folders = {ref["folder"] for ref in refs if ref.get("folder")}
        told = {folder: records.found(Path(folder) / "heartbeat.json") or {} for folder in folders}
        return [_seen(ref, told.get(ref.get("folder"), {})) for ref in refs]


def _seen(ref: Mapping[str, Any], told: Mapping[str, Any]) -> Seen:
    """By the process on this machine, else by what it told last in its folder."""
    host, why = ref.get("host", "?"), told.get("waits", {}).get(ref.get("run"), "waits for its turn")
    if host == socket.gethostname():
        if not is_alive(ref):
            return Seen(Phase.ENDED, f"its processes on {host} are gone")
        return Seen(Phase.ACTIVE, why, trouble="its supervisor is stopped" if is_stopped(ref) else "")
    silent_s = time.time() - (told.get("time") or -math.inf)
    if silent_s < HEARD_S:
        return Seen(Phase.ACTIVE, why, trouble=f"on {host}, heard of {silent_s:.0f} s ago")
    return Seen(Phase.UNKNOWN, f"on {host}, which cannot be asked from here")


def layouts(plan: Plan) -> dict[str, Layout]:
    """On what each run would run here."""
    undecided = any(run.resources.device == "auto" and run.resources.procs is None for run in plan.runs)
    gpus = len(visible_gpus()) if undecided else 0  # a broken driver does not stop what runs on the CPU
    return {run.id: layout(run.resources, Room(gpus, threads_available())) for run in plan.runs}


def check_room(wanted: Mapping[str, Layout]) -> None:
    """Refuse what this machine can never run.

    Raises:
        KdclusterError: more GPUs were asked for than there are, or than one run can have; locks have no place.
    """
    locks_folder()
    most = max((item.procs for item in wanted.values() if item.device == "cuda"), default=0)
    if not most:
        return
    gpus = visible_gpus()
    if most > len(gpus):
        raise KdclusterError(
            f"{count(most, 'GPU')} asked for, this machine shows {len(gpus) or 'none'}; "
            f"ask for fewer with --gpus, or run on the CPU with --procs"
        )
    if most > 1 and any(gpu.startswith("MIG-") for gpu in gpus):
        raise KdclusterError(
            f"{most} GPUs asked for one run, and this machine's are MIG instances: CUDA shows a process one of them "
            f"alone; ask for --gpus 1"
        )


def _start_supervisor(folder: Path, run_dirs: Sequence[RunDir], after: Mapping[str, Any] | None) -> None:
    """Start it in its own session, and return once it has taken the runs over.

    Their tickets are written here, by who holds the submit lock, and it waits for that: where this process is killed
    before, it starts nothing, and never at the same time as what somebody submits then. What it is to run at the end
    it is told there, too: that may hold a password, and stands in no file.
    """
    argv = [sys.executable, "-P", "-m", "kdcluster.launch.local.supervisor", str(folder)]
    with (folder / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
    for run_dir in run_dirs:
        run_dir.write_ticket(Local.name, {**reference(process.pid, folder), "run": run_dir.id})
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:  # it has ended, and its log says why
        process.stdin.write(GO + json.dumps(after).encode())
    has_ended = False
    while records.found(folder / "supervisor.json") is None:
        if has_ended:
            text = (folder / "supervisor.log").read_text(errors="replace").strip()
            raise KdclusterError(f"the supervisor did not come up, so nothing was started; submit again:\n{text}")
        time.sleep(0.02)
        has_ended = process.poll() is not None  # before the next look at what it wrote


def reference(pid: int, folder: Path | None) -> dict[str, Any]:
    """A supervisor of this machine, as tickets name it (with the `run`); in its folder it says that it is there."""
    return process_record(pid) | ({"folder": str(folder)} if folder else {})


def debug(run: Run, root: Path, data_dir: Path, steps: int, profile: bool = False) -> int:
    """A few steps of one run in one foreground process, in `<root>/debug`, where `breakpoint()` works.

    It takes no cores and no GPUs from others and waits for none: somebody sits in front of it.

    With `profile`, it writes a trace there and prints the dearest operations.

    Returns the process's exit code. A trained teacher is used where there is one, else its start weights.
    """
    keep_to_oneself()
    run_dir = RunDir(root / "debug", run.id)
    refuse_foreign(run_dir.path)
    run_dir.prepare(run)
    for need in (*run.needs, *run.after):
        link = root / "debug" / need
        if link.is_symlink():  # it may lead to where the runs directory was before
            link.unlink()
        if RunDir(root, need).result() is not None and not link.exists():
            link.symlink_to(Path("..", need))
    where = layout(run.resources, Room(len(visible_gpus()), threads_available()))
    where = Layout(where.device, 1, where.threads and threads_available())
    argv = [sys.executable, *trainer(run_dir.path, data_dir, where), "--max-steps", str(steps)]
    quiet = {"KINETO_LOG_LEVEL": "99"}  # where there is no GPU, the profiler calls that an error
    if profile:
        argv.append("--profile")
    return subprocess.run(argv, env=environment({**quiet, **os.environ}, where)).returncode
