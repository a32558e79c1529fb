"""Teacher, store and student as jobs of a real SLURM: who waits for whom, a store that is preempted, one that fails."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdcluster import teacherlogits
from kdcluster.experiment import yamlfile
from tests.desk import NEEDS_SLURM, PROFILE, Desk, OnSlurm, desks, dev_cluster, wait_until
from tests.tiny import TINY_MODELS

pytestmark = [pytest.mark.integration, NEEDS_SLURM]

VIEWS = 6
TEACHER = '''
"""A teacher that is slow in its store, or raises there, while the file SLOW says so."""
import os, sys, time
from pathlib import Path
import torch
from timm.models import register_model

class Slowly(torch.nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.head = torch.nn.Linear(in_chans, num_classes)

    def forward(self, x):
        said = Path(os.environ["SLOW"])
        if "teacher-logits-" in " ".join(sys.argv) and said.exists():
            if said.read_text() == "raise":
                raise ValueError("as asked")
            time.sleep(1)
        return self.head(x.mean((2, 3)))

@register_model
def slowly(pretrained=False, num_classes=10, in_chans=3, **_):
    return Slowly(num_classes, in_chans)
'''


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    with dev_cluster(17970, "--accounting") as env, desks(tmp_path, env) as make:

        def make_desk(name: str) -> Desk:
            teacher = {"model": "slowly", "train": {"epochs": 1}}
            imports = ["slowly.py", TINY_MODELS]
            path = tmp_path / name / "slowly.py"
            path.parent.mkdir()
            path.write_text(TEACHER)
            given = {"teacher": teacher, "student": {"model": "tiny_net"}, "train.epochs": VIEWS}
            place = make(f"{name}/desk", imports=["../slowly.py", *imports[1:]], **given)
            (place.folder / "own.yaml").write_text(yamlfile.dump({**PROFILE, "network_interface": "lo"}))
            place.env["KDCLUSTER_CLUSTER"] = "own.yaml"
            return place

        yield make_desk


def test_a_store_of_two_nodes_is_preempted_once_and_one_that_fails_keeps_no_student(desk: Callable[..., Desk]) -> None:
    place = desk("two nodes")
    Path(place.env["SLOW"]).write_text("slow")
    store, student, teacher = (OnSlurm(place, role) for role in ("teacher-logits", "distilled", "teacher"))
    place.run("submit", "tiny.yaml", "--gpus", "2", "--nodes", "2", "--role", "distilled")
    said = place.slurm("scontrol", "show", "job", student.job)
    (waits,) = re.findall(r"Dependency=(\S+)", said)
    assert re.findall(r"after\w+:\d+", waits) == [f"afterok:{teacher.job}", f"afterany:{store.job}"]
    assert f"afterok:{teacher.job}" in place.slurm("scontrol", "show", "job", store.job)

    wait_until(lambda: teacherlogits.held(store.run.path) >= 1)
    assert store.attempt(1)["start"]["nodes"] == "node[1-2]"
    argv = ["sbatch", "--parsable", "--partition=urgent", "--nodelist=node1", "--cpus-per-task=16", "--export=NONE"]
    urgent = place.slurm(*argv, "--output=/dev/null", "--wrap=sleep 600").strip()
    wait_until(lambda: store.slurm_state() in ("PENDING", "REQUEUED"))
    assert store.attempt(1)["preempted"]
    held = teacherlogits.held(store.run.path)
    assert 1 <= held < VIEWS
    files = {path: path.stat().st_ino for path in (store.run.path / "logits").glob("view-*.npy")}
    row = wait_until(lambda: (row := store.row)["state"] == "queued" and row)
    assert "requeued after attempt 1" in row["reason"]
    assert student.row["state"] == "queued"
    place.slurm("scancel", urgent)
    Path(place.env["SLOW"]).unlink()
    store.start_now(after=1)
    place.run("status", "tiny.yaml", "--watch")
    rows = place.states()
    assert {role: rows[role]["state"] for role in ("teacher", "teacher-logits", "distilled")} == {
        "teacher": "done",
        "teacher-logits": "done",
        "distilled": "done",
    }
    assert [attempt.number for attempt in store.run.attempts()] == [1, 2]
    assert {path: path.stat().st_ino for path in files} == files
    assert (student.run.result() or {})["views"] == {"read": VIEWS}

    machine = desk("machine")
    shutil.copytree(teacher.run.path, machine.root / teacher.run.id)
    machine.run("submit", "tiny.yaml", "--backend", "local", "--procs", "1", "--role", "teacher-logits", "--wait")
    one, other = (
        {path.name: path.read_bytes() for path in (root / store.run.id / "logits").iterdir()}
        for root in (place.root, machine.root)
    )
    assert one == other

    failing = desk("failing")
    Path(failing.env["SLOW"]).write_text("raise")
    shutil.copytree(teacher.run.path, failing.root / teacher.run.id)
    failing.run("submit", "tiny.yaml", "--gpus", "2", "--role", "distilled", "--wait", expect=1)
    rows = failing.states()
    assert (rows["teacher-logits"]["state"], rows["distilled"]["state"]) == ("failed", "done")
    assert "ValueError: as asked" in rows["teacher-logits"]["reason"]
    computed = OnSlurm(failing, "distilled")
    assert (computed.run.result() or {})["views"] == {"computed": VIEWS}
