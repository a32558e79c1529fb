"""The SLURM backend on a real SLURM: slurmctld, two slurmd, munge, accounting (slurm/dev-cluster).

Each job costs 8 to 10 s on two cores, so each test follows one story and looks at much on its way.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kdcluster.errors import ConfigError
from kdcluster.experiment import yamlfile
from kdcluster.launch.slurm import ask as scheduler
from kdcluster.launch.slurm import command, nodes
from kdcluster.launch.slurm.profile import Profile
from kdcluster.launch.slurm.script import job_name, script
from kdcluster.launch.torchrun import Layout
from kdcluster.results.events import read_scalars
from kdcluster.runs import RunDir
from tests.desk import NEEDS_SLURM, WITHIN_S, Desk, desks, dev_cluster, wait_until
from tests.tiny import TINY_MODELS, write_experiment

pytestmark = [pytest.mark.integration, NEEDS_SLURM]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """With accounting."""
    with dev_cluster(17930, "--accounting") as env:
        yield env


@pytest.fixture
def desk(tmp_path: Path, cluster: dict[str, str]) -> Iterator[Callable[..., Desk]]:
    with desks(tmp_path, cluster) as make:
        yield make


def table(desk: Desk, *words: str) -> list[tuple[Any, ...]]:
    document = json.loads(desk.run("results", "tiny.yaml", "--json", *words)[0])
    return [(row["configuration"], row["top1_mean"], row["gain"]) for row in document["experiments"][0]["rows"]]


def test_the_whole_experiment_in_the_queue_gives_the_table_of_one_machine(desk: Callable[..., Desk]) -> None:
    place = desk('it\'s a $(touch HACK) `touch HACK` "desk"\n#SBATCH --partition=urgent')
    _, said = place.run("submit", "tiny.yaml", "--gpus", "2", "--nodes", "2", "--wait")
    assert "running in SLURM, cluster profile 'dev'\nworst case of 4 runs: 88 GPU-hours (8 without restarts" in said
    assert "waits for the run that it needs)" in said
    rows = place.states()
    assert {role: row["state"] for role, row in rows.items()} == dict.fromkeys(rows, "done")
    ids = [row["job_id"] for row in rows.values()]
    assert len(set(ids)) == 4
    accounted = place.slurm("sacct", "-X", "-n", "-P", "-j", ",".join(ids), "-o", "JobID,State,Partition")
    assert sorted(accounted.split()) == sorted(f"{number}|COMPLETED|normal" for number in ids)
    for row in rows.values():
        start = RunDir(place.root, row["id"]).attempt(1).read("start")
        assert (start["job_id"], start["procs"], start["nodes"]) == (row["job_id"], 2, "node[1-2]")
        assert len(start["gpus"]) == 1  # of the first node, as SLURM gave it
        assert start["code_changed"] is False
    assert list(place.folder.parent.rglob("HACK")) == []
    assert "nothing to start" in place.run("submit", "tiny.yaml", "--gpus", "2", "--nodes", "2")[1]

    machine = desk("machine")
    machine.run("submit", "tiny.yaml", "--procs", "2", "--backend", "local", "--wait")
    assert table(place) == table(machine)
    for where in (place, machine):
        student = RunDir(where.root, rows["distilled"]["id"])
        assert (student.result() or {})["views"] == {"read": 2}


def test_two_nodes_of_two_ranks_and_a_rank_that_raises(desk: Callable[..., Desk]) -> None:
    place = desk(
        imports=["models.py", TINY_MODELS], teacher={"model": "tiny_net", "min_top1": 100}, student={"model": "slow"}
    )
    Path(place.env["SLOW"]).write_text("raise")
    profile = "device: cpu\ngpus_per_node: 8\ncpus_per_gpu: 1\nnetwork_interface: lo\nshutdown_timeout_s: 5\n"
    (place.folder / "lo.yaml").write_text(profile)
    place.env["KDCLUSTER_CLUSTER"] = "lo.yaml"
    _, said = place.run("submit", "tiny.yaml", "--gpus", "4", "--nodes", "2", "--wait", expect=1)
    rows = place.states()
    assert {role: row["state"] for role, row in rows.items()} == {
        "teacher": "done",
        "teacher-logits": "blocked",
        "baseline": "failed",
        "distilled": "blocked",  # its job found the teacher under the gate, and started no torchrun
    }
    assert rows["baseline"]["reason"].endswith(": ValueError: as asked; nothing is saved yet")
    assert "under teacher.min_top1 100" in rows["distilled"]["reason"]
    assert RunDir(place.root, rows["distilled"]["id"]).newest() is None
    attempt = RunDir(place.root, rows["teacher"]["id"]).attempt(1)
    assert sorted(path.name for path in attempt.path.glob("rank*.log")) == [f"rank{rank}.log" for rank in range(4)]
    assert [attempt.read(f"node{node}")["returncode"] for node in (0, 1)] == [0, 0]
    failed = RunDir(place.root, rows["baseline"]["id"]).attempt(1)
    assert all(failed.read(f"torchrun-node{node}")["failures"] for node in (0, 1))
    assert "--retry" in said
    states = place.slurm("sacct", "-X", "-n", "-P", "-j", rows["baseline"]["job_id"], "-o", "State")
    assert states.strip() == "FAILED"  # torchrun's failure is the job's


def test_a_teacher_that_is_stopped_by_hand_a_cancel_and_a_resume_elsewhere(desk: Callable[..., Desk]) -> None:
    place = desk(
        imports=["models.py", TINY_MODELS],
        teacher={"model": "slow", "train": {"epochs": 20}},
        student={"model": "tiny_net"},
        **{"train.checkpoint_every": "1steps"},
    )
    slow = Path(place.env["SLOW"])
    slow.write_text("")
    place.run("submit", "tiny.yaml", "--gpus", "2", "--role", "teacher,distilled")
    rows = place.states()
    teacher = RunDir(place.root, rows["teacher"]["id"])
    wait_until(lambda: teacher.saved_step() >= 2)
    assert place.states()["teacher"]["state"] == "running"
    assert "no attempt yet: queued, job" in place.run("logs", "distilled")[1]

    # Somebody types scancel: the run saves, and its student never starts.
    place.slurm("scancel", rows["teacher"]["job_id"])
    row = wait_until(lambda: (row := place.states()["teacher"])["state"] == "preempted" and row)
    saved = teacher.saved_step()
    assert (
        f"stopped at step {saved}: its job was ended or requeued; step {saved} is saved (SLURM ended job"
        in row["reason"]
    )
    wait_until(lambda: place.slurm("squeue", "--noheader", "--states=PD,R,CG").strip() == "")
    assert place.states()["distilled"]["state"] == "planned"

    # Submitted again, as another job; kdcluster cancel takes the whole DAG.
    place.run("submit", "tiny.yaml", "--gpus", "2", "--role", "teacher,distilled")
    wait_until(lambda: teacher.saved_step() > saved)
    said = place.run("cancel", "tiny.yaml")[1]
    assert "3 runs stopped" in said
    assert {role: row["state"] for role, row in place.states().items()} == {
        "teacher": "cancelled",
        "teacher-logits": "cancelled",
        "baseline": "planned",
        "distilled": "cancelled",
    }
    wait_until(lambda: not place.processes())

    # And goes on where it was, on this machine without SLURM.
    slow.unlink()
    saved = teacher.saved_step()
    place.run("submit", "tiny.yaml", "--backend", "local", "--procs", "2", "--role", "teacher", "--retry", "--wait")
    assert f"resuming at step {saved}" in teacher.attempt(3).log(0).read_text()
    assert place.states()["teacher"]["state"] == "done"


def test_what_could_never_run_is_refused_and_a_dead_submit_is_adopted(desk: Callable[..., Desk]) -> None:
    place = desk()
    profile = place.folder / "typo.yaml"
    profile.write_text("device: cpu\ncpus_per_gpu: 1\ngpus_per_node: 8\npartition: nromal\n")
    said = place.run("submit", "tiny.yaml", "--cluster", "typo.yaml", expect=1)[1]
    assert "invalid partition specified: nromal" in said
    assert "nothing is queued" in said
    profile.write_text("device: cpu\ncpus_per_gpu: 1\ngpus_per_node: 99\n")
    said = place.run("submit", "tiny.yaml", "--gpus", "20", "--cluster", "typo.yaml", expect=1)[1]
    assert "Requested node configuration is not available" in said
    assert place.slurm("squeue", "--noheader").strip() == ""
    assert not list(place.root.glob("*/slurm"))

    said = place.run("doctor", "tiny.yaml", "--cluster", "typo.yaml", expect=1)[0]
    assert "FAIL  partition: the default partition: nodes of 8 GPUs and 16 cores\n      do: the profile says 99" in said
    said = place.run("doctor", "tiny.yaml", "--cluster", "dev", "--with-job")[0]
    assert "ok    file locks there: hold between here and there" in said
    assert "ok    submit: 4 of 4 runs would be queued; SLURM would run these jobs (sbatch --test-only)" in said

    # A submit that is killed between sbatch and its record: the job is there, and nobody wrote down its id.
    killer = (
        "import os, signal\nfrom kdcluster.launch.slurm import ask as scheduler\nfrom kdcluster.cli import main\n"
        "submit = scheduler.submit\n"
        "def once(*given):\n    submit(*given)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "scheduler.submit = once\nmain(['submit', 'tiny.yaml', '--gpus', '1', '--role', 'teacher'])\n"
    )
    died = subprocess.run([sys.executable, "-c", killer], cwd=place.folder, env=place.env, capture_output=True)
    assert died.returncode == -signal.SIGKILL
    teacher = RunDir(place.root, place.states()["teacher"]["id"])
    assert teacher.ticket().ref["id"] is None  # type: ignore[index]
    assert place.states()["teacher"]["state"] in ("queued", "running", "done")
    said = place.run("submit", "tiny.yaml", "--gpus", "1", "--role", "teacher", "--wait")[1]
    assert "nothing to start" in said
    assert place.states()["teacher"]["state"] == "done"
    names = place.slurm("sacct", "-X", "-n", "-P", "--name", job_name(teacher.path, 1), "-o", "JobID").split()
    assert len(names) == 1
    assert [attempt.number for attempt in teacher.attempts()] == [1]

    # From inside a job, nothing of that job goes on into the new one.
    words = [sys.executable, "-m", "kdcluster.cli", "submit", "tiny.yaml", "--gpus", "1", "--role", "baseline"]
    typed = shlex.join([*words, "--backend", "slurm", "--wait"])
    place.slurm("sbatch", "--wait", "--cpus-per-task=3", "--gres=gpu:2", "--output=inside.log", f"--wrap={typed}")
    baseline = place.states()["baseline"]
    assert baseline["state"] == "done", (place.folder / "inside.log").read_text()
    cpus = place.slurm("sacct", "-X", "-n", "-P", "-j", baseline["job_id"], "-o", "AllocCPUS")
    assert cpus.strip() == "1"


def _hostile(without: str, at_least: int) -> st.SearchStrategy[str]:
    pieces = st.sampled_from(
        ["'", '"', "$(touch HACK)", "`touch HACK`", "\n#SBATCH --partition=urgent\n", "\\", "$HOME"]
    )
    letters = st.characters(exclude_characters="\0" + without, exclude_categories=("Cs",))
    text = st.lists(pieces | letters, min_size=at_least, max_size=12).map("".join)
    return text.filter(lambda text: text not in (".", "..") and len(text.encode()) < 200)


@settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(_hostile("/", 1), min_size=6, max_size=6, unique=True),
    values=st.lists(_hostile("", 0), min_size=30, max_size=30),
)
def test_whatever_is_named_reaches_the_job_and_no_more(
    cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory, names: list[str], values: list[str]
) -> None:
    """Names of working and runs directories, and values of variables, through a real sbatch and srun."""
    place = tmp_path_factory.mktemp("hostile")
    given = {f"V{number}": value for number, value in enumerate(values)}
    waiting = {}
    for name in names:
        folder = place / name / "slurm"
        folder.mkdir(parents=True)
        try:
            profile = Profile(environment=given, time_limit=5)
            text = script("hostile", Layout("cpu", 1, 1), profile, folder, (), "tests.says_env")
        except ConfigError:
            assert re.search("%[jtAa]", name)
            continue
        (folder / "job.sh").write_text(text)
        argv = ["sbatch", "--parsable", "--wait", str(folder / "job.sh")]
        env = {**cluster, "PYTHONPATH": str(Path(__file__).parents[2])}
        waiting[folder] = subprocess.Popen(argv, cwd=folder.parent, env=env, stdout=subprocess.PIPE, text=True)
    for folder, process in waiting.items():
        job = process.communicate(timeout=WITHIN_S)[0].strip()
        said = (folder / f"{job}.log").read_text()
        assert process.returncode == 0, said
        there = dict(item.split(b"=", 1) for item in (folder / "env").read_bytes().split(b"\0") if item)
        assert {key: there[key.encode()].decode() for key in given} == given
        assert there[b"SLURM_SUBMIT_DIR"].decode() == str(folder.parent)
        assert there[b"SLURM_JOB_PARTITION"] == b"normal"
    assert list(place.rglob("HACK")) == []


ODD = 'it\'s a $(touch HACK) `touch HACK` "value"\n#SBATCH --partition=urgent\r\n \\ %j ü'


def test_thirty_at_once_without_accounting_and_a_teacher_that_fails(desk: Callable[..., Desk]) -> None:
    """Two SLURMs side by side; this one keeps no accounts."""
    with dev_cluster(17940) as env:
        place = desk(
            env=env, imports=["models.py", TINY_MODELS], teacher={"model": "slow"}, student={"model": "tiny_net"}
        )
        Path(place.env["SLOW"]).write_text("raise")
        profile = {"device": "cpu", "gpus_per_node": 8, "cpus_per_gpu": 1, "container": ["env", "IN_CONTAINER=1"]}
        profile |= {"environment": {"ODD": ODD}, "setup": ['printf %s "$ODD" >"$SLURM_SUBMIT_DIR/odd"']}
        profile |= {"scratch": "$SLURM_SUBMIT_DIR/scratch-$SLURM_JOB_ID"}
        (place.folder / "odd.yaml").write_text(yamlfile.dump(profile))
        place.env["KDCLUSTER_CLUSTER"] = "odd.yaml"
        kdcluster = [sys.executable, "-m", "kdcluster.cli"]
        commands = [["submit", "tiny.yaml", "--gpus", "1"], ["status", "tiny.yaml", "--json"]] * 30
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        at_once = [subprocess.Popen([*kdcluster, *c], cwd=place.folder, env=place.env, **quiet) for c in commands]
        said = [process.communicate(timeout=WITHIN_S)[1] for process in at_once]
        assert [process.returncode for process in at_once] == [0] * 60, said
        place.run("submit", "tiny.yaml", "--gpus", "1", "--wait", expect=1)
        wait_until(lambda: place.slurm("squeue", "--noheader", "--states=PD,R,CG").strip() == "")
        names = place.slurm("squeue", "--noheader", "--states=all", "--format=%j").split()
        assert len(names) == len(set(names)) == 4  # one job a run, whoever was first
        rows = place.states()
        assert {role: row["state"] for role, row in rows.items()} == {
            "teacher": "failed",
            "teacher-logits": "blocked",
            "baseline": "done",
            "distilled": "blocked",
        }
        assert f"{rows['teacher']['id']} is failed: rank 0 on " in rows["distilled"]["reason"]
        assert "ValueError: as asked" in rows["distilled"]["reason"]
        assert (place.folder / "odd").read_bytes() == ODD.encode()  # the environment, as bash in the job saw it
        start = RunDir(place.root, rows["baseline"]["id"]).attempt(1).read("start")
        assert start["command"][:2] == ["env", "IN_CONTAINER=1"]
        assert (place.folder / f"scratch-{start['job_id']}").is_dir()
        assert list(place.folder.rglob("HACK")) == []
        document = json.loads(place.run("results", "tiny.yaml", "--json")[0])
        assert len(document["experiments"][0]["problems"]) == 2


def test_two_nodes_compute_what_one_process_computes(desk: Callable[..., Desk]) -> None:
    """2 nodes x 2 ranks against one process: the gradient and one step to 1e-5, the loss over 52 steps to 1e-3."""
    place, machine = desk("place"), desk("machine")
    train = {"amp": "none", "weight_decay": 0.0, "epochs": 1, "batch_size": 64}  # one step
    trains = {
        "gradient": {**train, "optimizer": "sgd", "lr": 1.0},  # so the weights move by 1.9 times the gradient
        "step": {**train, "lr": 1e-3},
        "loss": {**train, "lr": 1e-3, "batch_size": 16, "epochs": 13},
    }
    for where in (place, machine):
        for name, block in trains.items():
            write_experiment(where.folder, {"resources": {"threads": 1}, "train": block}, name)
    files = [f"{name}.yaml" for name in trains]
    place.run("submit", *files, "--gpus", "4", "--nodes", "2", "--role", "baseline", "--wait")
    machine.run("submit", *files, "--procs", "1", "--backend", "local", "--role", "baseline", "--wait")
    for name in trains:
        rows = json.loads(place.run("status", f"{name}.yaml", "--json")[0])["runs"]
        (row,) = (row for row in rows if row["role"] == "baseline")
        ours, theirs = RunDir(place.root, row["id"]), RunDir(machine.root, row["id"])
        assert ours.attempt(1).read("start")["procs"] == 4
        if name == "loss":
            many, one = (read_scalars(run.events, ("train/loss",)).points["train/loss"] for run in (ours, theirs))
            assert [point.step for point in many] == [point.step for point in one]
            assert many[-1].step == 52
            assert [point.value for point in many] == pytest.approx([point.value for point in one], abs=1e-3)
        else:
            spread, single = (load_file(run.weights("last")) for run in (ours, theirs))
            apart = max((spread[key] - single[key]).abs().max().item() for key in single)
            assert apart <= 1e-5 * (1.9 if name == "gradient" else 1.0)


HOSTILE = {
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_PARTITION": "nope",
    "SBATCH_JOB_NAME": "other",
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_STATES": "CD",
    "SQUEUE_USERS": "nobody",
    "SACCT_FORMAT": "user",
    "SCANCEL_STATE": "PENDING",
    "SCANCEL_NAME": "other",
    "SINFO_PARTITION": "nope",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_MPI_TYPE": "nope",
    "SRUN_DEBUG": "9",
    "SUBMITIT_EXECUTOR": "local",
}


def test_what_is_set_in_a_shell_changes_neither_jobs_nor_answers(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    once = (scheduler.settings, scheduler._has_json, command._say_what_is_ignored)
    for function in once:
        function.cache_clear()
    for name, value in {**HOSTILE, "SLURM_CONF": cluster["SLURM_CONF"], "PATH": cluster["PATH"]}.items():
        monkeypatch.setenv(name, value)
    path, told = tmp_path / "job.sh", tmp_path / "environment"
    lines = ("--job-name=mine.1", "--time=30", "--output=/dev/null")
    body = f"env >{told}.part; mv {told}.part {told}; sleep 600"
    path.write_text("\n".join(("#!/bin/bash", *(f"#SBATCH {line}" for line in lines), body)) + "\n")
    since = time.time()
    number = scheduler.submit(path, "mine.1", since)
    assert [record.getMessage().partition(": ")[2].partition(";")[0] for record in caplog.records] == [
        ", ".join(sorted(HOSTILE))
    ]
    (job,) = scheduler.find("mine.1", since)
    assert (job.id, job.user, job.cluster) == (number, scheduler.user(), "kdclusterdev")
    assert job.submitted is not None
    assert since - 2 < job.submitted < since + 60
    wait_until(told.exists)
    known = scheduler.describe(number)
    assert (known["JobName"], known["Partition"], known["TimeLimit"]) == ("mine.1", "normal", "00:30:00")
    assert {line.partition("=")[0] for line in told.read_text().splitlines()} & HOSTILE.keys() == set()

    def state() -> str:
        return next(job.state for job in scheduler.queue() if job.id == number)

    def accounted() -> list[tuple[str, str, str]]:
        return [(known.id, known.state, known.user) for known in scheduler.accounting((), ["mine.1"])]

    wait_until(lambda: accounted() == [(number, "", job.user)])  # of what runs it is no witness
    scheduler.cancel([replace(job, name="mine.2")])  # the number is another job's by now
    assert state() == "RUNNING"
    scheduler.cancel([job])
    wait_until(lambda: state() == "CANCELLED")
    wait_until(lambda: accounted() == [(number, "CANCELLED", job.user)])
    scheduler.cancel([job])  # once more is no error
    assert (scheduler.cluster_name(), nodes.kill_wait_s(), command.unconfigured()) == ("kdclusterdev", 10.0, "")
    for function in once:
        function.cache_clear()
