"""What cannot be asked is unknown: its last known state stands, the reason says so, and nothing is started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.errors import KdclusterError, SchedulerError
from kdcluster.launch.local.backend import Local
from kdcluster.launch.slurm import ask
from kdcluster.launch.slurm.backend import Slurm
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.status import run_status, statuses
from kdcluster.launch.submission import submit
from kdcluster.plan import Plan
from kdcluster.runs import RunDir
from tests import fabricated
from tests.fabricated import DEAD, LIVE, put, started
from tests.tiny import make_plan

AWAY = "echo 'Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return make_plan(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`slurm(squeue="echo …")`: programs in the place of SLURM's; those that are not named end with an error."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for once in (ask.settings, ask._has_json):
        once.cache_clear()

    def make(**programs: str) -> Path:
        for name in ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel"):
            (folder / name).write_text(f"#!/bin/bash\ncd '{folder}'\n{programs.get(name, 'exit 9')}\n")
            (folder / name).chmod(0o755)
        return folder

    return make


def in_slurm(run_dir: RunDir, job_id: str | None = "5", **more: Any) -> RunDir:
    ref = {"id": job_id, "name": "n", "folder": str(run_dir.path), "time": time.time(), "submitter": LIVE, **more}
    run_dir.write_ticket("slurm", ref)
    return run_dir


def requeued(made: Plan, root: Path) -> RunDir:
    """A run that has saved, and whose job SLURM has put back into the queue."""
    run_dir = in_slurm(put(root, made.runs[0], "planned"))
    attempt = started(run_dir, agent=DEAD)
    attempt.write("start", {**attempt.read("start"), "job_id": "5"})
    fabricated.ended(attempt, "preempted", "stopped at step 30")
    attempt.write("outcome", {**attempt.read("outcome"), "next": "requeue"})
    return run_dir


def test_a_requeued_run_is_not_startable_while_its_controller_is_away(made: Plan, root: Path, slurm: Any) -> None:
    folder = slurm(squeue=AWAY, sacct=AWAY, sbatch="echo x >>sent; echo 9")
    run_dir = requeued(made, root)
    found = run_status(run_dir)
    assert (found.state, "Unable to contact slurm controller" in found.unknown) == ("preempted", True)
    assert "whether it goes on is unknown: SLURM cannot be reached" in found.reason
    for backend in (Slurm(Profile(gpus_per_node=8, cpus_per_gpu=1, time_limit=60)), Local()):
        with pytest.raises(
            SchedulerError, match="it is not known what becomes of these runs, so nothing is started"
        ) as e:
            submit(made, root, root, backend, lambda runs: None)
        assert e.value.exit_code == 4
    assert not (folder / "sent").exists()
    slurm(squeue=f"echo '5|PENDING|BeginTime|N/A|{time.time():.0f}|{ask.user()}||n'", sacct="true")
    assert run_status(run_dir).state == "queued"


def test_a_running_job_that_is_silent_is_not_startable_while_its_controller_is_away(
    made: Plan, root: Path, slurm: Any
) -> None:
    slurm(squeue=AWAY, sacct=AWAY)
    run_dir = in_slurm(put(root, made.runs[0], "planned"))
    attempt = started(run_dir, agent={**DEAD, "host": "node1"})
    attempt.write("start", {**attempt.read("start"), "job_id": "5", "started": time.time() - 1200})
    found = run_status(run_dir)
    assert (found.state, bool(found.unknown)) == ("running", True)
    assert "last heard of 20 min ago" in found.reason
    with pytest.raises(SchedulerError):
        submit(made, root, root, Local(), lambda runs: None)


def test_a_job_whose_torchrun_is_seen_here_runs_and_what_does_not_answer_is_said(
    made: Plan, root: Path, slurm: Any
) -> None:
    slurm(squeue=AWAY, sacct=AWAY)
    run_dir = in_slurm(put(root, made.runs[0], "planned"))
    attempt = started(run_dir, agent=LIVE)
    attempt.write("start", {**attempt.read("start"), "job_id": "5"})
    found = run_status(run_dir)
    assert (found.state, found.unknown) == ("running", "")
    assert "SLURM cannot be reached" in found.reason


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            {"squeue": "true", "sacct": f"echo '5|RUNNING|Unknown|1900000000|{ask.user()}|c|n1|n'"},
            "accounting has job 5 as RUNNING",
        ),
        (
            {"squeue": f"echo '5|FROZEN|None|N/A|1900000000|{ask.user()}|n1|n'", "sacct": "true"},
            "SLURM says that job 5 is FROZEN, which is",
        ),
    ],
)
def test_what_slurm_says_and_we_do_not_understand_is_unknown(
    made: Plan, root: Path, slurm: Any, answers: dict[str, str], words: str
) -> None:
    """Accounting keeps some jobs as RUNNING for ever, and a newer SLURM has states of its own."""
    slurm(**answers)
    run_dir = in_slurm(put(root, made.runs[0], "planned"))
    attempt = started(run_dir, agent={**DEAD, "host": "node1"})
    attempt.write("start", {**attempt.read("start"), "job_id": "5", "started": time.time() - 1200})
    found = run_status(run_dir)
    assert (found.state, found.unknown.startswith(words)) == ("running", True)
    run_dir.mark_cancelled()  # somebody who knows better
    assert (run_status(run_dir).state, run_status(run_dir).unknown) == ("cancelled", "")


def test_a_queued_run_of_an_unknown_place_stays_queued(made: Plan, root: Path) -> None:
    run_dir = put(root, made.runs[0], "planned")
    run_dir.write_ticket("pbs", {"id": "7"})
    found = statuses(made, root)[run_dir.id]
    assert (found.state, found.unknown) == ("queued", "no backend 'pbs' is installed here; there are local, slurm")
    with pytest.raises(SchedulerError, match="no backend 'pbs' is installed here"):
        submit(made, root, root, Local(), lambda runs: None)


def test_a_queue_on_another_host_is_neither_started_again_nor_deleted(made: Plan, root: Path, tmp_path: Path) -> None:
    run_dir = put(root, made.runs[0], "planned")
    run_dir.write_ticket("local", {**LIVE, "host": "another", "folder": str(tmp_path)})
    (tmp_path / "heartbeat.json").write_text(f'{{"time": {time.time() - 5}}}')
    left = submit(make_plan(tmp_path).only(["teacher"]), root, root, Local(), lambda runs: None).left
    assert (left[run_dir.id].state, left[run_dir.id].unknown) == ("queued", "")
    answer = CliRunner().invoke(main, ["rm", run_dir.id, "--yes", "--runs-dir", str(root)])
    assert (answer.exit_code, "is queued; cancel it first" in answer.stderr) == (2, True)
    (tmp_path / "heartbeat.json").write_text(f'{{"time": {time.time() - 5000}}}')
    with pytest.raises(KdclusterError, match="on another, which cannot be asked from here"):
        submit(made, root, root, Local(), lambda runs: None)
    assert run_dir.config.exists()


def test_a_plan_needs_no_slurm(tmp_path: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with slurm-client installed and not configured."""
    monkeypatch.setenv("KDCLUSTER_BACKEND", "auto")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    slurm(sinfo="echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    make_plan(tmp_path)
    answer = CliRunner().invoke(main, ["plan", "tiny.yaml"])
    assert answer.exit_code == 0, answer.output
    assert "SLURM is installed here, but not configured" in answer.stderr
    assert "this is the plan for this machine" in answer.stderr
    assert "kdcluster.launch.torchrun_agent" in answer.stdout
    asked = CliRunner().invoke(main, ["plan", "tiny.yaml", "--backend", "slurm"])
    assert asked.exit_code == 4
