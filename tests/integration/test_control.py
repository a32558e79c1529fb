"""Stop, cancel, hang, twenty submits at once: with real processes, each run trained once, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kdcluster.files import read_json
from tests import tiny
from tests.integration.test_kill import assert_nothing_is_left, kdcluster

pytestmark = pytest.mark.integration

LONG = {"train.epochs": 400, "train.checkpoint_every": "50steps"}
"""More steps than a test waits for."""


@pytest.fixture
def folder(tmp_path):
    tiny.put_images(tmp_path / "data")
    return tmp_path


def states(folder, *names):
    rows = json.loads(kdcluster(folder, "status", *names, "--json").stdout)["runs"]
    return {row["role"]: row for row in rows}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def training(folder, role="baseline"):
    """The run's directory once it has taken some steps."""
    run = next((folder / "runs").glob(f"{role}-vit*"))

    def beats():
        heartbeat = read_json(run / "attempts" / "1" / "heartbeat.json")
        return heartbeat and heartbeat["step"] >= 3

    wait_for(beats)
    return run


def supervisor(run):
    return read_json(run / "attempts" / "1" / "start.json")["supervisor"]["pid"]


def test_stopped_and_cancelled_runs_keep_what_they_have(folder):
    tiny.write_experiment(folder, {**LONG, "resources": {"device": "cpu", "procs": 2, "threads": 1}})
    tiny.write_experiment(folder, {**LONG, "train.lr": 0.02, "teacher.train": {"lr": 0.01}}, name="other")
    arguments = ("submit", "tiny.yaml", "--role", "baseline")
    kdcluster(folder, *arguments)
    run = training(folder)
    # The machine goes down: SIGTERM to the supervisor.
    os.kill(supervisor(run), signal.SIGTERM)
    wait_for(lambda: states(folder, "tiny.yaml")["baseline"]["state"] == "preempted")
    saved = read_json(run / "attempts" / "1" / "preempted.json")["step"]
    assert saved >= 3
    assert_nothing_is_left(folder)
    # The next submit goes on there; cancel stops it.
    kdcluster(folder, *arguments)
    resumed = wait_for(lambda: read_json(run / "attempts" / "2" / "trainer.json"))["resumed_at_step"]
    assert resumed == saved
    wait_for(lambda: (read_json(run / "attempts" / "2" / "heartbeat.json") or {"step": 0})["step"] > saved)
    cancelled = kdcluster(folder, "cancel", "tiny.yaml")
    assert f"{run.name}  cancelled" in cancelled.stderr
    assert_nothing_is_left(folder)
    row = states(folder, "tiny.yaml")["baseline"]
    assert (row["state"], row["attempts"]) == ("cancelled", 2)
    assert "1 cancelled is left out (--retry)\n" in kdcluster(folder, *arguments).stderr
    assert len(list((run / "attempts").iterdir())) == 2
    assert "nothing to stop" in kdcluster(folder, "cancel", run.name[:12]).stderr
    # Named, it goes on from what the cancelled attempt saved.
    kdcluster(folder, "submit", run.name)
    assert wait_for(lambda: read_json(run / "attempts" / "3" / "trainer.json"))["resumed_at_step"] > saved
    kdcluster(folder, "cancel", run.name)
    # rm shows, then deletes.
    assert run.name in kdcluster(folder, "rm", run.name).stdout
    assert run.is_dir()
    kdcluster(folder, "rm", run.name, "--yes")
    assert not run.exists()
    assert_nothing_is_left(folder)


def test_twenty_submits_at_once_train_each_run_once(folder):
    tiny.write_experiment(folder, {"train.epochs": 1})
    argv = [sys.executable, "-m", "kdcluster.cli", "submit", "tiny.yaml"]
    submits = [subprocess.Popen(argv, cwd=folder, stderr=subprocess.PIPE, text=True) for _ in range(20)]
    said = [submit.communicate(timeout=240)[1] for submit in submits]
    assert [submit.returncode for submit in submits] == [0] * 20
    assert sum("4 of 4 runs on this machine" in text for text in said) == 1
    kdcluster(folder, "submit", "tiny.yaml", "--wait")  # attaches
    assert {row["attempts"] for row in states(folder, "tiny.yaml").values()} == {1}
    assert_nothing_is_left(folder)


def test_a_rank_that_hangs_ends_the_run(folder):
    changes = {
        "imports": [tiny.TINY_MODELS],
        "student": {"model": "hanging_net"},
        "resources": {"device": "cpu", "procs": 2, "threads": 1, "collective_timeout_min": 0.05},
    }
    tiny.write_experiment(folder, changes)
    arguments = ("submit", "tiny.yaml", "--role", "baseline", "--wait")
    failed = kdcluster(folder, *arguments, check=False, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3")
    assert failed.returncode == 1
    row = states(folder, "tiny.yaml")["baseline"]
    assert row["state"] == "failed"
    assert row["failure"]["rank"] == 0
    assert "waited 0.05 minutes for another rank" in row["reason"]
    assert_nothing_is_left(folder)


def test_shared_runs_go_on(folder):
    tiny.write_experiment(folder, LONG)
    tiny.write_experiment(folder, {**LONG, "distill.alpha": 0.9}, name="other")
    kdcluster(folder, "submit", "tiny.yaml", "other.yaml")
    training(folder, "teacher")
    text = kdcluster(folder, "cancel", "tiny.yaml").stderr
    teacher = next((folder / "runs").glob("teacher-vit*")).name
    assert f"{teacher}  goes on: started for other, too" in text
    assert states(folder, "tiny.yaml")["teacher"]["state"] == "running"
    kdcluster(folder, "cancel", "tiny.yaml", "other.yaml")
    assert {row["state"] for row in states(folder, "other.yaml").values()} == {"cancelled"}
    assert_nothing_is_left(folder)


def test_doctor(folder):
    tiny.write_experiment(folder)
    done = kdcluster(folder, "doctor", "tiny.yaml", check=False)
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok    file locks: work") for line in lines)
    assert any(line.startswith("ok    torch: ") for line in lines)
    assert done.returncode == any(line.startswith("FAIL") for line in lines)
