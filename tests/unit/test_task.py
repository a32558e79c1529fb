"""The task of a SLURM job, without a SLURM: what torchrun is started with, and when a job may be requeued."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from kdcluster.errors import KdclusterError
from kdcluster.files import trainer_code
from kdcluster.launch.slurm import meeting, ownjob, task
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.slurm.task import Task
from kdcluster.launch.torchrun import Layout, Meeting
from kdcluster.runs import RunDir
from tests.fabricated import LIVE, put, save
from tests.tiny import make_plan, make_run


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return put(tmp_path / "runs", make_plan(tmp_path).runs[0], "planned")


def make(run_dir: RunDir, profile: Profile | None = None, layout: Layout | None = None) -> Task:
    chosen = layout or Layout("cpu", 2, 1, 1, 2)
    return Task(run_dir, Path("/data"), run_dir.path, chosen, profile or Profile(), trainer_code())


class Ended:
    """A torchrun that has ended."""

    pid = 1

    def poll(self) -> int:
        return 0


def test_the_profile_reaches_torchrun(run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def popen(argv: list[str], **given: Any) -> Ended:
        seen.update(given, argv=argv)
        return Ended()

    monkeypatch.setattr(task.subprocess, "Popen", popen)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    profile = Profile(
        scratch=f"{tmp_path}/scratch/$SLURM_JOB_ID",
        network_interface="ib0",
        shutdown_timeout_s=9,
        container=("apptainer", "exec", "image.sif"),
    )
    work = make(run_dir, profile)
    argv = work._command(3, None)
    assert argv[:3] == ["apptainer", "exec", "image.sif"]
    assert argv[-2:] == ["--attempt", "3"]  # a container that cleans the environment loses no argument
    work._start(argv, tmp_path / "log")
    env = seen["env"]
    assert env["TMPDIR"] == f"{tmp_path}/scratch/7"
    assert Path(env["TMPDIR"]).is_dir()
    assert (env["NCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == ("ib0", "ib0")
    assert env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "9"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "MASTER_PORT" not in env


def test_code_that_changed_since_the_submit_is_noticed(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Task, "_start", lambda self, argv, log: Ended())
    monkeypatch.setattr(ownjob, "waited_s", lambda: None)
    monkeypatch.setattr(Task, "_finish", lambda self: {"state": "done", "next": None, "reason": ""})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for code, changed in ((trainer_code(), False), ("another", True)):
        work = Task(run_dir, Path("/data"), run_dir.path, Layout("cpu", 1, 1), Profile(), code)
        work._lead()
        assert run_dir.newest().read("start")["code_changed"] is changed  # type: ignore[union-attr]
    assert caplog.text.count("the trainer's code has changed since this job was submitted") == 1


def test_a_requeue_by_slurm_itself_is_judged_by_the_next_attempt(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(ownjob, "why_it_ended", lambda: "NODE_FAIL")
    work = make(run_dir)
    work._judge_the_last_one()  # the first attempt
    run_dir.start_attempt({"from_step": 0, "job_id": "7"})
    work._judge_the_last_one()
    outcome = run_dir.attempt(1).read("outcome")
    assert (outcome["state"], outcome["reason"]) == ("lost", "SLURM requeued job 7 (NODE_FAIL)")
    run_dir.start_attempt({"from_step": 0, "job_id": "7"})
    with pytest.raises(KdclusterError, match="two attempts in a row did no step"):
        work._judge_the_last_one()
    assert run_dir.attempt(2).read("outcome")["state"] == "failed"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    work._judge_the_last_one()  # another job: submitted again by hand


def test_the_other_nodes_are_told_where_the_first_ones_torchrun_listens(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is the system's, and it is told once it is open; where torchrun ended before, there is nothing to do."""
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    for store, told in (
        ({"port": 4711}, {"attempt": 1, "address": "10.0.0.1", "port": 4711}),
        ({}, {"attempt": None}),
    ):
        work = make(run_dir, layout=Layout("cpu", 4, 1, 2, 4))
        work.process = Ended()  # type: ignore[assignment]
        work.attempt = run_dir.newest() or run_dir.start_attempt({})
        work.attempt.write("store", store)
        work._meet("10.0.0.1")
        assert meeting.wait_until_told(work.folder) == told
        assert work.met is bool(store)
    argv = work._command(1, Meeting(1, "10.0.0.1", 4711))
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=4711"} < set(argv)


class Slow(Ended):
    """A torchrun that runs for some looks, or until it is killed."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def poll(self) -> int | None:  # type: ignore[override]
        self.left -= 1
        return None if self.left > 0 else 0 if self.left > -9 else -9

    def kill(self) -> None:
        self.left = -9


class Endless(Ended):
    """A torchrun that ends when it is told to."""

    told = 0

    def poll(self) -> int | None:  # type: ignore[override]
        return 1 if self.told else None

    def terminate(self) -> None:
        self.told += 1


def test_a_nodes_torchrun_is_stopped_once_the_first_ones_has_failed(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranks would wait for those of the first node until a collective times out."""
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    attempt, torchrun = run_dir.start_attempt({}), Endless()
    work = make(run_dir, layout=Layout("cpu", 4, 1, 2, 4))
    monkeypatch.setattr(Task, "_start", lambda *_: torchrun)
    meeting.tell(work.folder, {"attempt": 1, "address": "10.0.0.1", "port": 4711})
    attempt.write("node0", {"host": "node1", "returncode": 1})
    work._follow(1)
    assert torchrun.told == 1
    assert attempt.read("node1")["returncode"] == 1


def test_a_job_is_requeued_only_where_it_got_further(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(ownjob, "is_elsewhere", lambda: False)
    monkeypatch.setattr(ownjob, "why_interrupted", lambda lead_s: "its time limit")
    asked: list[str] = []
    monkeypatch.setattr(task.ask, "requeue", asked.append)
    from_step = 0
    for saved, expected in ((4, True), (4, True), (4, False)):  # no step in two attempts in a row: it would loop
        work = make(run_dir)
        work.process = Slow(polls=2)  # type: ignore[assignment]
        work.attempt = run_dir.start_attempt({"from_step": from_step, "job_id": "7"})
        work.attempt.write("preempted", {"step": saved})
        save(run_dir, saved)
        work.warned_at = time.monotonic()
        asked.clear()
        with pytest.raises(KdclusterError, match="attempt"):
            work._leave(work._finish())
        assert asked == ["7"] * expected
        assert work.attempt.read("stop")
        from_step = saved
    assert work.attempt.read("outcome")["state"] == "failed"
    assert "two attempts in a row did no step" in work.attempt.read("outcome")["reason"]


def test_what_does_not_save_in_time_is_killed_before_slurm_would_and_requeued(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(ownjob, "why_interrupted", lambda lead_s: "")
    work = make(run_dir, Profile(signal_lead_s=30))
    work.process = Slow(polls=10**6)  # type: ignore[assignment]
    work.attempt = run_dir.start_attempt({"from_step": 0, "job_id": "7"})
    work.warned_at = time.monotonic() - task.to_save_s(30) + 0.5
    ended = work._finish()
    assert (ended["state"], ended["next"]) == ("lost", "requeue")
    assert ended["reason"] == "did not save within the lead time of SLURM's signal"


def test_a_step_that_was_done_again_after_damage_is_a_step(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the checkpoint of step 6 turns out to be damaged, and the run goes on from an earlier one."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    save(run_dir, 6)
    work = make(run_dir)
    for resumed in (0, 2, 4):
        attempt = run_dir.start_attempt({"from_step": 6, "job_id": "7"})
        attempt.write("trainer", {"resumed_at_step": resumed})
        told = work._judged(work._attempts(), {"state": "preempted", "reason": "stopped at step 6"}, by_slurm=True)
        assert (told["state"], told["next"]) == ("preempted", "requeue")


def test_a_run_that_is_only_evaluated_needs_no_steps_to_be_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "w.safetensors").touch()
    taken = make_run(tmp_path, "teacher", {"teacher.train": "none", "teacher.pretrained": "w.safetensors"})
    run_dir = put(tmp_path / "runs", taken, "planned")
    work = make(run_dir)
    for _ in range(3):
        run_dir.start_attempt({"from_step": 0, "job_id": "7"})
        told = work._judged(work._attempts(), {"state": "preempted", "reason": "stopped at step 0"}, by_slurm=True)
        assert (told["state"], told["next"]) == ("preempted", "requeue")


@pytest.mark.parametrize(("lead_s", "left_s"), [(10, 6.7), (30, 20), (120, 80), (180, 120), (600, 540)])
def test_slurm_has_a_third_of_the_lead_time_up_to_a_minute(lead_s: int, left_s: float) -> None:
    assert task.to_save_s(lead_s) == pytest.approx(left_s, abs=0.1)


def test_a_task_survives_the_trip_to_its_node(run_dir: RunDir) -> None:
    sent = make(run_dir, Profile(partition="gpu", container=("apptainer", "exec"), environment={"A": "b"}))
    sent.write()
    assert Task.read(sent.folder) == sent


def test_a_task_that_others_could_have_written_is_not_done(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the command that goes before torchrun."""
    make(run_dir).write()
    path = run_dir.path / "task.json"
    path.chmod(0o664)
    with pytest.raises(KdclusterError, match=r"others may write .*task.json \(mode 664\).*chmod -R go-w"):
        Task.read(run_dir.path)
    path.chmod(0o644)
    Task.read(run_dir.path)
    path.write_text(path.read_text().replace('"procs": 2', '"procs": 3'))
    with pytest.raises(KdclusterError, match="check sum does not hold"):
        Task.read(run_dir.path)
    path.unlink()
    with pytest.raises(KdclusterError, match="is gone; submit again"):
        Task.read(run_dir.path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    make(run_dir).write()
    with pytest.raises(KdclusterError, match="belongs to another user"):
        Task.read(run_dir.path)


def test_a_run_that_is_done_or_cancelled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    made = make_plan(tmp_path)
    done = put(tmp_path / "runs", made.runs[0], "done")
    assert make(done)._not_needed() == "the run is done"
    cancelled = put(tmp_path / "runs", made.runs[1], "planned")
    cancelled.mark_cancelled()
    assert make(cancelled)._not_needed() == "the run was cancelled"


def test_the_gate_is_looked_at_before_torchrun(tmp_path: Path) -> None:
    made = make_plan(tmp_path, {"teacher.min_top1": 60.0})
    put(tmp_path / "runs", made.runs[0], "done")
    student = put(tmp_path / "runs", made.runs[-1], "planned")
    assert "under teacher.min_top1 60" in make(student)._not_needed()


def test_a_job_leaves_a_run_that_another_one_has_by_now(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an answer of sbatch that was lost: one of two jobs stands in the ticket."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run_dir.write_ticket("slurm", {"id": "8", "name": "n"})
    assert make(run_dir)._not_needed() == "the run was given to somebody else meanwhile"
    run_dir.write_ticket("local", LIVE)
    assert make(run_dir)._not_needed() == "the run was given to somebody else meanwhile"
    run_dir.write_ticket("slurm", {"id": "7", "name": "n"})
    assert make(run_dir)._not_needed() == ""
