"""What becomes of a store in every state, and that none of them keeps a student from being trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdcluster import cli, teacherlogits
from kdcluster.commands import teachers_first
from kdcluster.errors import ConfigError, Damaged
from kdcluster.files import write_json
from kdcluster.launch import submission
from kdcluster.launch.backend import Backend
from kdcluster.launch.local.supervisor import Supervisor
from kdcluster.launch.status import Status, statuses
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan, Run, plan
from kdcluster.runs import RunDir
from kdcluster.saved import weights_record
from kdcluster.states import State
from kdcluster.teacherlogits import SCHEMA
from tests import fabricated, tiny

WEIGHTS = "a" * 64


class Desk:
    """An experiment of four views, whose runs are as files say; nothing is started."""

    def __init__(self, folder: Path, changes: dict[str, Any] | None = None) -> None:
        self.folder, self.root = folder, folder / "runs"
        self.plan: Plan = tiny.make_plan(folder, {"train.epochs": 4, "teacher.train": {"epochs": 1}, **(changes or {})})
        self.started: list[str] = []

    def run(self, role: str) -> Run:
        return next(run for run in self.plan.runs if run.role == role)

    def put(self, role: str, how: Callable[[RunDir], object]) -> RunDir:
        run_dir = tiny.prepare(self.root, self.run(role))
        how(run_dir)
        return run_dir

    def states(self) -> dict[str, Status]:
        return {self.plan[run_id].role: one for run_id, one in statuses(self.plan, self.root).items()}

    def place(self) -> Backend:
        """One that takes everything, and starts nothing."""

        class Place(Backend):
            name, word = "local", "started"

            def check(self, *_: Any) -> list[str]:
                return []

            def start(self, plan: Plan, chosen: Any, *_: Any) -> str:
                return "nowhere"

        return Place.__new__(Place)

    def submit(self, plan: Plan | None = None, **given: Any) -> list[str]:
        """The roles that it starts."""
        plan = plan or self.plan
        found = submission.submit(plan, self.root, self.folder / "data", self.place(), lambda _: None, **given)
        return [plan[run_id].role for run_id in found.started]


def trained(run_dir: RunDir, **facts: Any) -> None:
    attempt = fabricated.started(run_dir, agent=fabricated.DEAD)
    run_dir.weights("best").write_bytes(fabricated.NO_WEIGHTS)
    weights = {"best": weights_record(run_dir.weights("best"))}
    fabricated.publish(run_dir, 50.0, attempt.number, weights=weights, **{"amp": "none", **facts})
    fabricated.ended(attempt, "done")


def stored(desk: Desk, holds: int, **other: Any) -> Callable[[RunDir], None]:
    """A finished store with so many views, of 2 images."""

    def put(run_dir: RunDir) -> None:
        run = desk.run("teacher-logits")
        teacher = RunDir(desk.root, run.needs[0])
        weights = (teacher.result() or {})["weights"]["best"]["sha256"]
        attempt = fabricated.started(run_dir, agent=fabricated.DEAD)
        (run_dir.path / "logits").mkdir()
        of = {"schema": SCHEMA, "run": run.id, "teacher": teacher.id, "weights": weights, "precision": "none"}
        of |= {"images": 2, "classes": run.num_classes}
        listed = {str(view): {"crc32c": 0} for view in range(holds)}
        for view in range(holds):
            (run_dir.path / "logits" / f"view-{view:05}.npy").write_bytes(bytes(128 + 2 * 2 * run.num_classes))
        write_json(run_dir.path / "logits" / "manifest.json", {**of, "views": listed, **other})
        result = {"schema": "kdcluster.result/1", "id": run.id, "hash": run.hash, "attempt": attempt.number}
        write_json(run_dir.path / "result.json", {**result, "views": holds, "params": 3})
        fabricated.ended(attempt, "done")

    return put


def elsewhere(run_dir: RunDir) -> None:
    """Begun on a host that cannot be asked, and silent for long."""
    process = {"host": "somewhere-else", "pid": 7, "start_time": "1"}
    attempt = run_dir.start_attempt({"supervisor": process, "backend": "local", "ref": process})
    attempt.write("start", {**attempt.start, "started": 1.0})


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.put("teacher", trained)
    return desk


def test_a_store_is_done_when_it_holds_what_is_asked_for(desk: Desk) -> None:
    desk.put("teacher-logits", stored(desk, 4))
    assert desk.states()["teacher-logits"].state == State.DONE
    assert desk.submit() == ["baseline", "distilled"]


@pytest.mark.parametrize(
    ("views", "other", "why"),
    [
        (2, {}, "holds 2 of 4 views"),  # its attempt ended just as a submit asked for more
        (4, {"weights": "b" * 64}, "its teacher has other weights now"),
        (4, {"precision": "bf16"}, "it is of another precision"),
        (4, {"run": "teacher-logits-x-s0-00000000"}, "it is of another run"),
        (4, {"views": {"x": 1}}, "holds 0 of 4 views"),
    ],
)
def test_a_store_that_lacks_something_is_planned_and_submit_starts_it(desk, views, other, why) -> None:
    desk.put("teacher-logits", stored(desk, views, **other))
    found = desk.states()["teacher-logits"]
    assert (found.state, found.reason) == (State.PLANNED, f"{why}; submit makes what is missing")
    assert desk.submit() == ["teacher-logits", "baseline", "distilled"]


@pytest.mark.parametrize("damage", ["marker", "cut", "gone"])
def test_a_view_that_is_damaged_is_said_and_the_store_is_started(desk: Desk, damage: str) -> None:
    folder = desk.put("teacher-logits", stored(desk, 4)).path / "logits"
    if damage == "marker":
        write_json(folder / "view-00003.damaged", {"why": "its check sum is wrong"})
    elif damage == "cut":
        (folder / "view-00003.npy").write_bytes(bytes(40))
    else:
        (folder / "view-00003.npy").unlink()
    found = desk.states()["teacher-logits"]
    assert (found.state, found.reason) == (State.PLANNED, "view 3 is damaged; submit makes what is missing")
    assert desk.submit() == ["teacher-logits", "baseline", "distilled"]


@pytest.mark.parametrize(("asked", "used"), [("auto", "bf16"), ("bf16", "bf16"), ("none", "none")])
def test_a_teacher_whose_result_lacks_its_precision_had_the_one_of_its_config(tmp_path: Path, asked, used) -> None:
    """auto was bf16 before results said it: taken for float32, its students would go on in another precision."""
    desk = Desk(tmp_path, {"teacher.train": {"epochs": 1, "amp": asked}})
    assert teacherlogits.precision(desk.put("teacher", fabricated.planned).path) == "none"
    teacher = desk.put("teacher", partial(trained, amp=None))
    assert teacherlogits.precision(teacher.path) == used
    desk.put("teacher-logits", stored(desk, 4, precision=used))
    assert desk.states()["teacher-logits"].state == State.DONE
    (teacher.path / "result.json").write_text("{")
    with pytest.raises(Damaged):
        teacherlogits.precision(teacher.path)


def test_what_only_another_experiment_asked_for_is_not_missed(desk: Desk) -> None:
    folder = desk.put("teacher-logits", stored(desk, 9)).path / "logits"
    write_json(folder / "view-00008.damaged", {"why": "its check sum is wrong"})
    assert desk.states()["teacher-logits"].state == State.DONE


def test_a_finished_experiment_whose_store_was_removed_starts_nothing(desk: Desk) -> None:
    for role in ("baseline", "distilled"):
        desk.put(role, fabricated.done)
    found = desk.states()
    assert {one.state for one in found.values()} == {State.DONE}
    assert found["teacher-logits"].reason == "nobody reads it any more"
    assert desk.submit() == []
    RunDir(desk.root, desk.run("teacher").id).weights("best").unlink()
    assert desk.submit() == []


@pytest.mark.parametrize("how", [fabricated.failed, fabricated.cancelled])
def test_a_store_that_was_given_up_keeps_no_student_and_asks_for_no_teacher(desk: Desk, how: Any) -> None:
    run_dir = desk.put("teacher-logits", how)
    if how is fabricated.cancelled:
        run_dir.mark_cancelled()
    assert desk.submit() == ["baseline", "distilled"]
    for role in ("baseline", "distilled"):
        desk.put(role, fabricated.done)
    RunDir(desk.root, desk.run("teacher").id).weights("best").unlink()
    assert desk.submit() == []  # nobody will read it, so nobody needs the teacher's weights


def test_a_store_of_which_nobody_knows_keeps_no_student_and_is_not_started_twice(desk: Desk) -> None:
    desk.put("teacher-logits", elsewhere)
    assert desk.states()["teacher-logits"].unknown
    assert desk.submit() == ["baseline", "distilled"]


def test_a_sweep_does_not_wait_for_a_store_of_which_nobody_knows(desk: Desk) -> None:
    desk.put("teacher-logits", elsewhere)
    chosen: Any = SimpleNamespace(root=desk.root, data=desk.folder / "data")
    students = [desk.run("distilled")]
    teachers_first.train(desk.plan.only(["teacher-logits"]), students, chosen, desk.place(), "again")  # comes back


@pytest.mark.parametrize("how", [fabricated.lost, fabricated.preempted, fabricated.failed, fabricated.planned])
def test_another_users_store_is_not_started_and_stops_nothing(desk: Desk, how: Any) -> None:
    store = desk.put("teacher-logits", how)

    def chosen() -> list[str]:
        return submission.to_start(desk.plan, statuses(desk.plan, desk.root), desk.root, retry=True)

    assert store.id in chosen()
    store.path.chmod(0o775)
    assert store.id not in chosen()  # what plan, doctor and submit --dry-run go by
    given: Any = SimpleNamespace(root=desk.root, data=desk.folder / "data")
    teachers_first.train(desk.plan.only(["teacher-logits"]), [desk.run("distilled")], given, desk.place(), "again")
    done = submission.submit(desk.plan, desk.root, given.data, desk.place(), lambda _: None, retry=True)
    assert [desk.plan[run_id].role for run_id in done.started] == ["baseline", "distilled"]
    assert done.left[store.id].reason.endswith("it is another user's, and students compute what is missing")


def test_students_alone_take_their_store_along(desk: Desk) -> None:
    assert desk.submit(desk.plan.only(["distilled"])) == ["teacher-logits", "distilled"]


def test_one_student_of_its_directory_is_started_with_a_store_or_without(desk: Desk) -> None:
    student = desk.put("distilled", elsewhere)
    runs = student.with_needs()
    assert [run.role for run in runs] == ["teacher", "distilled"]
    desk.put("teacher-logits", stored(desk, 2))
    runs = student.with_needs()
    assert [run.role for run in runs] == ["teacher", "teacher-logits", "distilled"]


@pytest.mark.parametrize("alter", [lambda text: text[:40], lambda text: text.replace("embed_dim: 24", "embed_dim: 32")])
def test_one_student_of_its_directory_is_started_without_a_store_whose_config_is_damaged(desk: Desk, alter) -> None:
    student = desk.put("distilled", fabricated.lost)
    store = desk.put("teacher-logits", stored(desk, 4))
    store.config.write_text(alter(store.config.read_text()))
    with pytest.raises(ConfigError):
        store.load()
    runs = student.with_needs()
    assert [run.role for run in runs] == ["teacher", "distilled"]
    assert desk.submit(plan([]).joined(runs)) == ["distilled"]


def test_more_views_that_are_asked_for_of_a_running_store_widen_it(desk: Desk) -> None:
    store = desk.put("teacher-logits", fabricated.running)
    more = Desk(desk.folder, {"train.epochs": 6})
    assert more.run("teacher-logits").id == store.id
    assert more.submit() == ["baseline", "distilled"]
    assert store.load().views == 6
    desk.submit()
    assert store.load().views == 6  # fewer take nothing away


def test_a_running_store_of_another_user_is_left_as_it_is(desk: Desk) -> None:
    store = desk.put("teacher-logits", fabricated.running)
    store.path.chmod(0o775)
    assert Desk(desk.folder, {"train.epochs": 6}).submit() == ["baseline", "distilled"]
    assert store.load().views == 4


def test_rm_of_a_store_is_said_to_cost_time_and_that_of_its_teacher_is_refused(desk: Desk, monkeypatch, capsys) -> None:
    monkeypatch.chdir(desk.folder)
    store = desk.put("teacher-logits", stored(desk, 4))
    student = desk.put("distilled", fabricated.failed)
    with pytest.raises(SystemExit) as ended:
        cli.main(["rm", desk.run("teacher").id, "--yes"])
    assert ended.value.code
    assert "is needed by 2 runs (no student is done)" in capsys.readouterr().err
    shutil.rmtree(student.path)
    with pytest.raises(SystemExit):
        cli.main(["rm", desk.run("teacher").id, "--yes"])
    assert "is needed by 1 run (a store of its logits)" in capsys.readouterr().err
    desk.put("distilled", fabricated.failed)
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["rm", store.id, "--yes"])
    said = capsys.readouterr().err
    assert f"{store.id} is read by 1 run not done: without it they run the teacher themselves" in said
    assert not store.path.exists()


@pytest.mark.parametrize(
    ("how", "waits"),
    [
        (fabricated.running, True),
        (fabricated.queued, True),
        (fabricated.failed, False),
        (fabricated.cancelled, False),
        (elsewhere, False),
        (None, False),
    ],
    ids=["running", "queued", "failed", "cancelled", "unknown", "gone"],
)
def test_a_student_waits_on_this_machine_for_a_store_that_is_being_made_and_for_no_other(desk, monkeypatch, how, waits):
    if how:
        desk.put("teacher-logits", how)
    run = desk.run("distilled")
    student = tiny.prepare(desk.root, run)
    supervisor = Supervisor(desk.root, desk.folder / "data", [run], {run.id: Layout("cpu", 1, 1)})
    student.write_ticket("local", supervisor.ref(run.id))
    begun: list[str] = []
    monkeypatch.setattr(Supervisor, "_start", lambda self, run, taken: begun.append(run.id))
    supervisor.start_what_can()
    assert begun == ([] if waits else [run.id])
    assert supervisor.waits == ({run.id: f"waits for {desk.run('teacher-logits').id}"} if waits else {})
