"""What a task does to its own job after a crash, with programs in the place of SLURM's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcluster.launch.slurm import ask as scheduler
from kdcluster.launch.slurm import ownjob
from kdcluster.runs import Attempt, RunDir
from tests.fabricated import put
from tests.tiny import make_run

Slurm = Callable[..., Callable[[], list[str]]]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A job 7 on `nodes` in a partition of `usable` ones; returns what was asked of scontrol besides."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def make(
        nodes: str, usable: str, *, excluded: str = "(null)", restarts: int = 0, job: str = ""
    ) -> Callable[[], list[str]]:
        monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
        shown = (
            job
            or f"JobId=7 Restarts={restarts} JobState=RUNNING Partition=p ExcNodeList={excluded} Command=/x Restarts=9"
        )
        scontrol = f"""case "$1 $2" in
"show job") echo '{shown}';;
"show hostnames") echo "$3" | tr ',' '\\n';;
*) echo "$*" >>{folder}/asked;; esac"""
        sinfo = "\n".join(f"echo '{node}'" for node in usable.split(","))
        for name, body in (("scontrol", scontrol), ("sinfo", sinfo)):
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        return lambda: (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []

    return make


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    run_dir: RunDir = put(tmp_path / "runs", make_run(tmp_path, "teacher"), "planned")
    return run_dir.start_attempt({"from_step": 4})


def test_a_crash_before_the_first_step_is_tried_elsewhere(slurm: Slurm, attempt: Attempt) -> None:
    asked = slurm("n1", "n1 mixed,n2 idle,n3 down*,n4 drained")
    ownjob.restart(attempt, 0, 2)
    assert asked() == ["requeue 7", "update jobid=7 excnodelist=n1"]


def test_the_node_of_the_rank_that_crashed_is_left_out_beside_the_others(slurm: Slurm, attempt: Attempt) -> None:
    asked = slurm("n2,n3", "n2 mixed,n3 mixed,n4 idle,n5 idle", excluded="n1")
    ownjob.restart(attempt, 3, 4)
    assert asked()[1] == "update jobid=7 excnodelist=n1,n3"


@pytest.mark.parametrize(("usable", "rank"), [("n2 mixed,n3 mixed", 3), ("n2 mixed,n3 mixed,n4 idle", None)])
def test_no_node_is_left_out_where_there_is_none_for_it_or_nobody_knows_which(
    slurm: Slurm, attempt: Attempt, usable: str, rank: int | None
) -> None:
    asked = slurm("n2,n3", usable)
    ownjob.restart(attempt, rank, 4)
    assert asked() == ["requeue 7"]


def test_a_crash_after_some_steps_says_nothing_of_the_node(slurm: Slurm, attempt: Attempt) -> None:
    asked = slurm("n1", "n1 mixed,n2 idle")
    attempt.write("heartbeat", {"step": 5})
    ownjob.restart(attempt, 0, 2)
    assert asked() == ["requeue 7"]


def test_a_step_that_was_done_again_counts_as_a_step(slurm: Slurm, attempt: Attempt) -> None:
    """A damaged checkpoint was passed over: the attempt began before the step that was thought to be saved."""
    asked = slurm("n1", "n1 mixed,n2 idle")
    attempt.write("start", {**attempt.read("start"), "from_step": 6})
    attempt.write("trainer", {"resumed_at_step": 3})
    attempt.write("heartbeat", {"step": 5})
    ownjob.restart(attempt, 0, 2)
    assert asked() == ["requeue 7"]


def test_a_task_that_slurm_took_for_dead_does_not_stop_the_job_that_goes_on(slurm: Slurm, attempt: Attempt) -> None:
    asked = slurm("n1", "n1 mixed,n2 idle", restarts=1)
    ownjob.restart(attempt, 0, 2)
    assert asked() == []


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("JobId=7 JobState=RUNNING PreemptTime=2026-11-25T15:51:06", True),
        ("JobId=7 JobState=RUNNING PreemptTime=None", False),
        ("JobId=7 JobState=COMPLETING PreemptTime=2026-11-25T15:51:06", False),
    ],
)
def test_whether_slurm_takes_the_nodes_away(slurm: Slurm, job: str, expected: bool) -> None:
    slurm("n1", "n1 mixed", job=job)
    assert ownjob.is_being_preempted() is expected


def test_a_controller_that_is_away_costs_no_more_than_the_words(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm("n1", "n1 mixed")
    for name in ("scontrol", "sacct"):
        (tmp_path / "bin" / name).write_text("#!/bin/bash\nexec sleep 600\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(ownjob, "SOON_S", 0.2)
    assert ownjob.why_interrupted(120) == ""
    assert ownjob.why_it_ended() == ""
    assert ownjob.waited_s() is None
    assert ownjob.is_being_preempted() is True
    assert ownjob.is_elsewhere() is False


def test_a_job_knows_whether_a_ticket_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "n.1")
    assert ownjob.is_ours({"id": "7", "name": "n.1"})
    assert not ownjob.is_ours({"id": "8", "name": "n.1"})
    assert ownjob.is_ours({"id": None, "name": "n.1"})  # its submit has not written the number down yet
    assert not ownjob.is_ours({"id": None, "name": "n.2"})


def test_how_long_a_job_waited(slurm: Slurm) -> None:
    slurm("n1", "", job="JobId=7 EligibleTime=2026-11-25T15:51:06 StartTime=2026-11-25T15:52:07")
    assert ownjob.waited_s() == 61.0
    slurm("n1", "", job="JobId=7 EligibleTime=Unknown StartTime=2026-11-25T15:52:07")
    assert ownjob.waited_s() is None


def test_a_requeue_from_inside_survives_the_signal_that_it_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM sends SIGTERM to every process of the job that is requeued: scontrol, too, died of it now and then."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/bash\nkill -TERM $$\necho "$*" >>{tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scheduler.requeue("7", without=["n1"])
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue 7", "update jobid=7 excnodelist=n1"]
