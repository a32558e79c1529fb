"""Preempted, requeued, resumed on a real SLURM: the same numbers, and states that are true under every fault.

The two minutes that SLURM makes a requeued job wait are cut short (`scontrol update starttime=now`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdcluster.runs import RunDir
from tests.desk import MODELS, NEEDS_SLURM, WITHIN_S, OnSlurm, desks, dev_cluster, same_weights, wait_until
from tests.disk import fill, small_disk

pytestmark = [pytest.mark.integration, NEEDS_SLURM]


@pytest.fixture(scope="module")
def with_signal() -> Iterator[dict[str, str]]:
    """A SLURM that sends preempted jobs the signal of their --signal; without accounting."""
    with dev_cluster(17950, "--user-signal") as env:
        yield env


@pytest.fixture(scope="module")
def with_sigterm() -> Iterator[dict[str, str]]:
    """A SLURM that sends preempted jobs SIGTERM; with accounting."""
    with dev_cluster(17955, "--accounting") as env:
        yield env


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The distilled run of two processes on this machine, and beside it its teacher."""
    folder = tmp_path_factory.mktemp("template") / "desk"
    with desks(folder.parent, dict(os.environ)) as desk:
        place = desk("desk", **MODELS)
        place.run("submit", "tiny.yaml", "--backend", "local", "--procs", "2", "--role", "distilled", "--wait")
        return RunDir(place.root, place.states()["distilled"]["id"])


@pytest.fixture(scope="module", autouse=True)
def beyond_its_limit(tmp_path_factory: pytest.TempPathFactory, undisturbed: RunDir) -> Iterator[OnSlurm]:
    """A run that is longer than its time limit, a minute: it goes on in a SLURM of its own beside the other tests."""
    with dev_cluster(17965) as env, desks(tmp_path_factory.mktemp("long"), env) as desk:
        with Path(env["SLURM_CONF"]).open("a") as conf:
            conf.write("MinJobAge=2\n")  # seconds after which the controller forgets a job; there is no accounting
        subprocess.run(["scontrol", "reconfigure"], env=env, check=True)
        place = desk("desk", **{**MODELS, "train.epochs": 50})
        (teacher,) = undisturbed.load().needs
        shutil.copytree(undisturbed.root / teacher, place.root / teacher)
        run = OnSlurm(place, "distilled")
        run.slow.write_text("1")  # seconds a step, so that all 200 take longer than two attempts
        run.submit(time_limit=1, signal_lead_s=30)
        forgotten = OnSlurm(place, "baseline")
        forgotten.submit(sbatch={"hold": True})
        place.slurm("scancel", forgotten.job)
        going_on = threading.Thread(target=cut_the_waits_short, args=(run,), daemon=True)
        going_on.start()
        yield run
        going_on.join(WITHIN_S)


def cut_the_waits_short(run: OnSlurm) -> None:
    """Beside the other tests: have a run that has reached its time limit go on at once, twice."""
    for number in (1, 2):
        deadline = time.monotonic() + 2 * WITHIN_S
        while not (outcome := run.run.attempt(number).read("outcome")) and time.monotonic() < deadline:
            time.sleep(0.5)
        if outcome:
            run.start_now(after=number)


@pytest.fixture
def student(tmp_path: Path, undisturbed: RunDir) -> Iterator[Callable[..., OnSlurm]]:
    """Makes a distilled run, slow for now, whose teacher is done; the same as `undisturbed` unless told otherwise."""
    with desks(tmp_path, {}) as desk:

        def make(env: dict[str, str], name: str = "desk", **given: Any) -> OnSlurm:
            place = desk(name, env=env, **{**MODELS, **given})
            (teacher,) = undisturbed.load().needs
            shutil.copytree(undisturbed.root / teacher, place.root / teacher)
            run = OnSlurm(place, "distilled")
            run.slow.touch()
            return run

        yield make


@pytest.mark.parametrize("kind", ["signal", "sigterm"])
def test_preempted_and_resumed_on_the_other_node_with_the_same_weights(
    kind: str, student: Callable[..., OnSlurm], undisturbed: RunDir, request: pytest.FixtureRequest
) -> None:
    run = student(request.getfixturevalue(f"with_{kind}"))
    run.submit(gpus=2)
    run.trains(1)
    with run.preempted():
        row, first = run.row, run.attempt(1)
        step = first["preempted"]["step"]
        assert row["state"] == "queued"
        why = f"stopped at step {step}: preempted for another job; step {step} is saved"
        assert f"was requeued after attempt 1 (preempted: {why}" in row["reason"]
        assert (row["step"], row["steps"]) == (step, undisturbed.result()["steps"])  # type: ignore[index]
        run.start_now(after=1)
        run.trains(2)
    run.slow.unlink()
    row = run.wait()
    assert (row["state"], row["attempts"]) == ("done", 2)
    assert run.attempt(2)["start"]["restart"] >= 1
    assert run.node(1) != run.node(2)
    assert 0 < step < row["steps"]  # strictly inside
    assert run.attempt(2)["trainer"]["resumed_at_step"] == step
    assert same_weights(run.run, undisturbed)
    assert [record["to_step"] for record in row["history"]] == [step, row["steps"]]
    assert row["gpu_hours"] == sum(record["gpu_hours"] for record in row["history"]) > 0
    assert row["lost_gpu_hours"] == 0.0
    for said in (run.desk.run("show", run.run.id)[0], run.desk.run("logs", run.run.id)[0]):
        assert f"on {run.node(1)} in job {run.job}; from " in said
        assert f"steps 0 to {step}; " in said
        assert f"steps {step} to {row['steps']}; " in said


def test_two_preemptions_without_a_step_end_it(student: Callable[..., OnSlurm], with_signal: dict[str, str]) -> None:
    run = student(with_signal)
    run.slow.write_text("hang")
    run.submit(signal_lead_s=3)
    wait_until(lambda: run.attempt(1)["trainer"])
    with run.preempted():
        assert "did not save within the lead time" in run.row["reason"]
        run.start_now(after=1)
        wait_until(lambda: run.attempt(2)["trainer"])
    run.desk.slurm("scancel", "--signal=USR2", run.job)
    row = run.wait()
    assert row["state"] == "failed"
    assert "two attempts in a row did no step: time_limit and signal_lead_s leave no room" in row["reason"]


def test_a_crash_is_tried_on_another_node_while_the_student_waits(
    student: Callable[..., OnSlurm], with_signal: dict[str, str]
) -> None:
    place = student(with_signal, teacher={"model": "slow"}, student={"model": "tiny_net"}).desk
    teacher, distilled = OnSlurm(place, "teacher"), OnSlurm(place, "distilled")
    teacher.slow.write_text("raise")
    distilled.submit(max_restarts=1)
    row = wait_until(lambda: (row := teacher.row)["state"] == "queued" and row["attempts"] == 1 and row)
    assert "was requeued after attempt 1 (failed: rank 0 on " in row["reason"]
    assert "ValueError: as asked" in row["reason"]
    assert distilled.row["state"] == "queued"
    teacher.slow.unlink()
    teacher.start_now(after=1)
    assert distilled.wait()["state"] == "done"
    assert teacher.row["attempts"] == 2
    assert teacher.node(1) != teacher.node(2)
    assert teacher.attempt(1)["outcome"]["budget"]["restarts"] == [1, 1]


def test_a_killed_rank_and_a_killed_torchrun_spend_the_budget(
    student: Callable[..., OnSlurm], with_signal: dict[str, str]
) -> None:
    run = student(with_signal, **{"train.checkpoint_every": "1steps"})
    run.submit(max_restarts=1)
    wait_until(run.run.saved_step)
    agent = run.attempt(1)["agent"]["pid"]
    rank = int(Path(f"/proc/{agent}/task/{agent}/children").read_text().split()[0])
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: run.attempt(1)["outcome"])
    run.start_now(after=1)
    run.trains(2)
    os.kill(run.attempt(2)["agent"]["pid"], signal.SIGKILL)
    row = run.wait()
    first, second = run.attempt(1), run.attempt(2)
    assert "rank 0 on " in first["outcome"]["reason"]
    assert "was killed by SIGKILL" in first["outcome"]["reason"]
    assert second["trainer"]["resumed_at_step"] > 0
    assert row["state"] == "failed"
    assert row["reason"].startswith("torchrun was killed by SIGKILL; max_restarts 1 is spent; step ")
    assert "    rank 0, exit code of torchrun 1, signal SIGKILL\n" in run.desk.run("show", run.run.id)[0]
    wait_until(lambda: not run.desk.processes())


def test_a_node_is_set_down_and_another_one_dies(student: Callable[..., OnSlurm], with_sigterm: dict[str, str]) -> None:
    run = student(with_sigterm, **{"train.checkpoint_every": "1steps", "train.epochs": 150})
    run.submit()
    run.trains(1)
    for state in ("down", "drain"):  # down ends the job, drain keeps its daemon from taking the node up again
        run.desk.slurm("scontrol", "update", f"nodename={run.node(1)}", f"state={state}", "reason=test")
    wait_until(lambda: run.slurm_state() in ("PENDING", "REQUEUED"))
    run.start_now(after=1)
    run.trains(2)
    assert run.node(1) != run.node(2)
    assert run.attempt(1)["outcome"]["state"] in ("lost", "preempted")
    run.desk.slurm("scontrol", "update", f"nodename={run.node(1)}", "state=resume")

    # The daemon of the second node dies. Its processes go on, until they see that they were overtaken.
    folder = Path(with_sigterm["SLURM_CONF"]).parent
    os.kill(int((folder / "run" / f"slurmd.{run.node(2)}.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: run.slurm_state() in ("PENDING", "REQUEUED"))
    run.desk.slurm("scontrol", "update", f"jobid={run.job}", "starttime=now+3")
    run.trains(3)
    assert run.node(3) == run.node(1)
    assert run.attempt(2)["outcome"]["state"] == "lost"
    assert "NODE_FAIL" in run.attempt(2)["outcome"]["reason"]
    run.slow.unlink()
    row = run.wait()
    assert (row["state"], row["attempts"]) == ("done", 3)
    assert row["lost_gpu_hours"] > 0
    subprocess.run(["slurmd", "-N", run.node(2)], env=with_sigterm, check=True)


def test_what_status_says_while_things_are_done_to_a_job(
    student: Callable[..., OnSlurm], with_signal: dict[str, str]
) -> None:
    given = {"train.checkpoint_every": "1steps", "train.epochs": 40, "distill.logits": "computed"}
    run = student(with_signal, **given)  # without a store, which would be held as well
    run.submit(sbatch={"hold": True})
    assert "is held; scontrol release" in run.row["reason"]
    run.desk.slurm("scontrol", "release", run.job)
    run.trains(1)

    run.desk.slurm("scontrol", "requeue", run.job)
    run.start_now(after=1)
    run.trains(2)
    assert run.attempt(1)["outcome"]["state"] in ("lost", "preempted")

    folder = Path(with_signal["SLURM_CONF"]).parent
    controller = int((folder / "run" / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{controller}").exists())
    row = run.row
    assert row["state"] == "running"
    assert "SLURM cannot be reached" in row["reason"]
    run.slow.unlink()
    for log in run.run.path.rglob("*.log"):
        log.unlink()
    row = run.wait()
    assert (row["state"], row["attempts"]) == ("done", 2)
    subprocess.run(["slurmctld"], env=with_signal, check=True)
    wait_until(lambda: set(run.desk.slurm("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"})
    run.desk.run("logs", run.run.id)


def test_a_full_disk_under_a_job(
    student: Callable[..., OnSlurm], with_signal: dict[str, str], undisturbed: RunDir
) -> None:
    run = student(with_signal, **{"train.checkpoint_every": "1steps"})
    with small_disk(run.run.path):
        run.submit(gpus=2)
        wait_until(run.run.saved_step)
        filler = fill(run.run.path)
        row = run.wait()
        assert row["state"] == "failed"
        assert "the disk is full" in row["reason"]
        filler.unlink()
        run.slow.unlink()
        run.submit("--retry", gpus=2)
        row = run.wait()
        assert (row["state"], row["attempts"]) == ("done", 2)
        assert run.attempt(2)["trainer"]["resumed_at_step"] > 0
        assert same_weights(run.run, undisturbed)


def test_a_run_that_is_longer_than_its_time_limit_takes_several_attempts(beyond_its_limit: OnSlurm) -> None:
    run = beyond_its_limit
    steps = []
    for number in (1, 2):  # cut_the_waits_short
        wait_until(lambda number=number: run.attempt(number)["outcome"])  # type: ignore[misc]
        steps.append(run.attempt(number)["preempted"]["step"])
        run.trains(number + 1)
    run.slow.unlink()
    if run.slurm_state() == "PENDING":  # it has reached its limit again meanwhile
        run.start_now(after=run.row["attempts"])
    row = run.wait()
    assert row["state"] == "done"
    assert row["attempts"] >= 3
    assert 0 < steps[0] < steps[1] < row["steps"]
    assert [run.attempt(number)["trainer"]["resumed_at_step"] for number in (2, 3)] == steps
    assert run.attempt(2)["outcome"]["budget"]["requeues"] == [2, 10]
    assert run.attempt(2)["outcome"]["reason"] == f"stopped at step {steps[1]}: its time limit"
    assert row["history"][1]["waited_s"] > 0

    # Nobody knows any more of the job that was cancelled as the run above began; submit starts it again.
    forgotten = OnSlurm(run.desk, "baseline")
    known = ("squeue", "--noheader", "--states=all", "--format=%i")
    wait_until(lambda: forgotten.job not in run.desk.slurm(*known).split())
    row = forgotten.row
    said = f"SLURM does not know job {forgotten.job} any more, and it never started"
    assert (row["state"], row["reason"]) == ("lost", said)
    forgotten.submit()
    assert forgotten.wait()["state"] == "done"
