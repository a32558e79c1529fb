"""Submit on this machine: what it starts, that it starts nothing twice, and what its supervisor does.

The supervisor runs here in this process, on short Python scripts instead of torchrun.
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kdcluster.errors import KdclusterError
from kdcluster.files import read_json
from kdcluster.launch import attempt as launched
from kdcluster.launch.local import backend as local
from kdcluster.launch.local import supervisor
from kdcluster.launch.local.backend import Local, check_room, layouts
from kdcluster.launch.local.slots import Slots
from kdcluster.launch.local.supervisor import Supervisor
from kdcluster.launch.status import run_status, statuses
from kdcluster.launch.submission import submit, to_start
from kdcluster.launch.torchrun import Layout
from kdcluster.plan import Plan, Run
from kdcluster.processes import process_record
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from tests import fabricated
from tests.fabricated import LIVE, STATES, put
from tests.tiny import make_plan

FORK = multiprocessing.get_context("fork")
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on

CPU = Layout("cpu", 1, 1)
GPU = Layout("cuda", 1, None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A teacher, its store, a baseline, a distilled run."""
    return make_plan(tmp_path_factory.mktemp("experiment"))


def roles(made: Plan) -> dict[str, Run]:
    return {run.role: run for run in made.runs}


# --- what a submit starts ---------------------------------------------------------------------------------------

ALWAYS = ("planned", "preempted", "stopped", "lost")
WITH_RETRY = ("failed", "cancelled")


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_to_start_in_every_state(made: Plan, root: Path, state: str, retry: bool) -> None:
    teacher, store, baseline, distilled = made.runs
    put(root, teacher, "done")
    put(root, store, "done")
    put(root, baseline, state)
    put(root, distilled, state)
    again = state in ALWAYS or (retry and state in WITH_RETRY)
    expected = [baseline.id, distilled.id] if again else []
    assert to_start(made, statuses(made, root), root, retry=retry) == expected


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_store_holds_no_student_back_and_is_made_for_those_that_read_it(
    made: Plan, root: Path, state: str, retry: bool
) -> None:
    teacher, store, _, distilled = made.runs
    put(root, teacher, "done")
    put(root, store, state)
    chosen = to_start(made, statuses(made, root), root, retry=retry)
    assert distilled.id in chosen
    assert (store.id in chosen) == (state in ALWAYS or (retry and state in WITH_RETRY))
    for run in made.runs[2:]:
        put(root, run, "done")
    assert to_start(made, statuses(made, root), root) == []


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_student_starts_when_its_teacher_is_done_or_on_its_way(
    made: Plan, root: Path, state: str, retry: bool
) -> None:
    put(root, made.runs[0], state)
    chosen = to_start(made, statuses(made, root), root, retry=retry)
    assert (roles(made)["distilled"].id in chosen) == (retry or state not in WITH_RETRY)
    assert roles(made)["baseline"].id in chosen


@pytest.mark.parametrize("state", STATES)
def test_a_run_that_is_named_goes_on_where_it_was_cancelled_and_what_it_needs_too(
    made: Plan, root: Path, state: str
) -> None:
    teacher, store, _, distilled = made.runs
    for run in made.runs:
        put(root, run, state)
    named = {teacher.id, store.id, distilled.id}
    found = statuses(made, root)
    before, chosen = to_start(made, found, root), to_start(made, found, root, named=named)
    assert chosen == ([teacher.id, store.id, distilled.id] if state == "cancelled" else before)
    assert not (state == "failed" and chosen)


def test_blocked_starts_once_the_reason_is_gone(tmp_path: Path, root: Path) -> None:
    made = make_plan(tmp_path, {"teacher.min_top1": 60.0})
    teacher, _, _, distilled = made.runs
    run_dir = put(root, teacher, "failed")
    assert statuses(made, root)[distilled.id].state == "blocked"
    assert distilled.id not in to_start(made, statuses(made, root), root)
    fabricated.done(run_dir, top1=59.0)
    assert statuses(made, root)[distilled.id].state == "blocked"
    assert distilled.id not in to_start(made, statuses(made, root), root, retry=True)
    lower = make_plan(tmp_path, {"teacher.min_top1": 58.0})
    assert [run.id for run in lower.runs] == [run.id for run in made.runs]
    assert distilled.id in to_start(lower, statuses(lower, root), root)


def test_a_student_of_a_teacher_that_is_not_planned_to_run_again_waits(tmp_path: Path, root: Path) -> None:
    """`--role` leaves the teacher in the plan, so what it needs is always known."""
    made = make_plan(tmp_path).only(["distilled"])
    assert [run.role for run in made.runs] == ["teacher", STORE, "distilled"]
    put(root, made.runs[0], "running")
    assert to_start(made, statuses(made, root), root) == [run.id for run in made.runs[1:]]


def test_layouts_are_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["GPU-a"])
    monkeypatch.setattr(local, "threads_available", lambda: 6)
    given = make_plan(tmp_path, {"resources": {}})
    assert set(layouts(given).values()) == {Layout("cuda", 1, None)}
    on_cpu = make_plan(tmp_path, {"resources": {"device": "cpu", "procs": 2}})
    assert set(layouts(on_cpu).values()) == {Layout("cpu", 2, 3)}


@pytest.mark.parametrize(
    ("asked", "here", "message"),
    [
        (1, 0, "1 GPU asked for, this machine shows none; ask for fewer with --gpus, or run on the CPU with --procs"),
        (8, 2, "8 GPUs asked for, this machine shows 2; "),
        (2, 2, None),
    ],
)
def test_more_gpus_than_there_are_is_an_error(
    monkeypatch: pytest.MonkeyPatch, asked: int, here: int, message: str | None
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["GPU"] * here)
    wanted = {"a": Layout("cpu", 64, 1), "b": Layout("cuda", asked, None), "c": GPU}
    if message is None:
        return check_room(wanted)
    with pytest.raises(KdclusterError, match=f"^{message}"):
        check_room(wanted)


def test_a_run_cannot_have_several_mig_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA shows a process the first one that CUDA_VISIBLE_DEVICES names, so a second rank would have none."""
    monkeypatch.setattr(local, "visible_gpus", lambda: ["MIG-a", "MIG-b"])
    check_room({"a": Layout("cuda", 1, None), "b": Layout("cuda", 1, None)})
    with pytest.raises(KdclusterError, match=r"2 GPUs asked for one run.*MIG instances.*ask for --gpus 1"):
        check_room({"a": Layout("cuda", 2, None)})


def test_what_others_could_lock_is_refused_before_anything_is_queued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["GPU-a"])
    monkeypatch.setenv("KDCLUSTER_LOCKS_DIR", str(tmp_path / "locks"))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks").chmod(0o777)
    for device in ("cpu", "cuda"):
        with pytest.raises(KdclusterError, match="is open to others"):
            check_room({"a": Layout(device, 1, 1)})


def ready(runs: list[Run]) -> None:
    """Data and weights are here."""


# --- submit -----------------------------------------------------------------------------------------------------


def take_over(folder: Path, run_dirs: list[RunDir], after: object) -> None:
    """Instead of a supervisor: this process has the runs in its queue."""
    for run_dir in run_dirs:
        run_dir.write_ticket("local", LIVE)


@pytest.fixture
def queue_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_start_supervisor", take_over)


@pytest.mark.usefixtures("queue_only")
def test_submit_prepares_what_it_starts_and_a_second_one_starts_nothing(made: Plan, tmp_path: Path, root: Path) -> None:
    teacher, store, baseline, distilled = made.runs
    put(root, baseline, "done")
    first = submit(made, root, tmp_path / "data", Local(), ready)
    assert first.started == [teacher.id, store.id, distilled.id]
    assert first.waits == dict.fromkeys(first.started, "waits for its turn")
    assert {run_id: status.state for run_id, status in first.left.items()} == {baseline.id: "done"}
    log = Path(first.where.removeprefix("on this machine; log: "))
    given = read_json(log.with_name("submission.json"))
    assert given == {
        "root": str(root),
        "data_dir": str(tmp_path / "data"),
        "runs": first.started,
        "layouts": {run_id: asdict(Layout("cpu", 1, 1)) for run_id in first.started},
    }
    assert [RunDir(root, run_id).load() for run_id in first.started] == [teacher, store, distilled]
    second = submit(made, root, tmp_path / "data", Local(), ready)
    assert (second.started, second.where) == ([], "")
    assert {status.state for status in second.left.values()} == {"queued", "done"}
    assert len(list((root / ".submissions").iterdir())) == 1


@pytest.mark.usefixtures("queue_only")
def test_a_shared_teacher_that_runs_for_another_experiment_is_not_started_again(tmp_path: Path, root: Path) -> None:
    first = make_plan(tmp_path)
    second = make_plan(tmp_path, {"distill": {"alpha": 0.9}})
    put(root, first.runs[0], "running")
    submission = submit(second, root, tmp_path, Local(), ready)
    assert submission.started == [run.id for run in second.runs[1:]]
    assert submission.left[first.runs[0].id].state == "running"
    third = submit(first, root, tmp_path, Local(), ready)
    assert third.started == [roles(first)["distilled"].id]  # baseline and store are shared as well, and queued


def _submit_one(made: Plan, root: Path, barrier: Any, started: Any) -> None:
    barrier.wait(30)
    started.put(submit(made, root, root, Local(), ready).started)


@forks
@pytest.mark.usefixtures("queue_only")
def test_submits_at_the_same_moment_start_each_run_once(made: Plan, root: Path) -> None:
    barrier, started = FORK.Barrier(6), FORK.SimpleQueue()
    submitters = [FORK.Process(target=_submit_one, args=(made, root, barrier, started)) for _ in range(6)]
    for process in submitters:
        process.start()
    got = sorted(started.get() for _ in submitters)
    for process in submitters:
        process.join(30)
    assert got == [[]] * 5 + [[run.id for run in made.runs]]


@pytest.mark.usefixtures("queue_only")
def test_a_submit_that_cannot_run_here_prepares_nothing(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "visible_gpus", list)
    made = make_plan(tmp_path, {"resources": {"gpus": 1}})
    with pytest.raises(KdclusterError, match="1 GPU asked for, this machine shows none"):
        submit(made, root, tmp_path, Local(), ready)
    assert not root.exists()


def test_a_supervisor_that_does_not_come_up_is_an_error_with_its_log(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module: kdcluster\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(
        KdclusterError, match=r"the supervisor did not come up, .* submit again:\nno such module: kdcluster$"
    ):
        submit(make_plan(tmp_path), root, tmp_path, Local(), ready)


def test_a_supervisor_whose_submit_was_killed_before_it_handed_the_runs_over_starts_nothing(
    made: Plan, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tickets would come after the submit lock was let go, and beside those of whoever submits then."""
    pipes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def killed(*given: Any, **more: Any) -> Any:
        pipes.append(popen(*given, **more))
        raise KeyboardInterrupt

    monkeypatch.setattr(local.subprocess, "Popen", killed)
    with pytest.raises(KeyboardInterrupt):
        submit(made, root, tmp_path, Local(), ready)
    [process] = pipes
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0
    assert {RunDir(root, run.id).ticket() for run in made.runs} == {None}
    assert {status.state for status in statuses(made, root).values()} == {"planned"}
    [log] = (root / ".submissions").glob("*/supervisor.log")
    assert "the submit that started this ended before it had handed the runs over" in log.read_text()


def test_debug_is_one_process_in_a_folder_of_its_own(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fake_run(argv: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        calls.append((argv, env))
        return subprocess.CompletedProcess(argv, 7)

    monkeypatch.setattr(local.subprocess, "run", fake_run)
    monkeypatch.setattr(local, "threads_available", lambda: 5)
    monkeypatch.setenv("RANK", "1")
    made = make_plan(tmp_path, {"resources": {"device": "cpu", "procs": 4}})
    teacher, student = made.runs[0], roles(made)["distilled"]
    assert local.debug(student, root, tmp_path / "data", 3) == 7
    [(argv, env)] = calls
    assert argv[:1] == [sys.executable]
    assert not {"kdcluster.launch.torchrun_agent", "--attempt"} & set(argv)
    assert argv[2] == str(root / "debug" / student.id)
    assert argv[-6:] == ["--device", "cpu", "--threads", "5", "--max-steps", "3"]
    assert not {"RANK"} & env.keys()
    assert run_status(RunDir(root, student.id)).state == "planned"  # the real run knows nothing of it
    assert not (root / "debug" / teacher.id).exists()
    local.debug(student, root, tmp_path / "data", 3, profile=True)
    assert calls[-1][0] == [*argv, "--profile"]
    run_dir = put(root, teacher, "done")
    run_dir.weights("best").touch()
    for _ in range(2):
        local.debug(student, root, tmp_path / "data", 3)
        assert RunDir(root / "debug", teacher.id).weights("best").samefile(run_dir.weights("best"))
    moved = root.rename(tmp_path / "moved")
    local.debug(student, moved, tmp_path / "data", 3)
    assert RunDir(moved / "debug", teacher.id).weights("best").samefile(moved / teacher.id / "best.safetensors")
    link = moved / "debug" / teacher.id
    link.unlink()
    link.symlink_to(root / teacher.id)  # as an earlier version made it: it leads to where the folder was
    local.debug(student, moved, tmp_path / "data", 3)
    assert RunDir(moved / "debug", teacher.id).weights("best").samefile(moved / teacher.id / "best.safetensors")


# --- the supervisor ---------------------------------------------------------------------------------------------

TRAINER = textwrap.dedent(
    """
    import json, os, pathlib, sys, time
    run_dir, how = pathlib.Path(sys.argv[1]), sys.argv[2]
    root = run_dir.parent
    number = int(sys.argv[3])
    with open(root / "starts", "a") as file:
        file.write(f"{run_dir.name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
    if how == "fails":
        sys.exit("ValueError: as asked")
    if how == "alone":
        (root / "busy").mkdir()  # fails where another one is at it
        time.sleep(0.1)
        (root / "busy").rmdir()
    if how == "together":
        (root / f"here-{run_dir.name}").touch()
        deadline = time.monotonic() + 20
        while len(list(root.glob("here-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    epoch = {"step": 10, "test/top1": 50.0}
    known = {"schema": "kdcluster.result/1", "id": run_dir.name, "hash": run_dir.name[-8:], "params": 3}
    result = {**known, "attempt": number, "best": epoch, "last": epoch}
    (run_dir / "result.json").write_text(json.dumps(result))
    """
)
Scripted = Callable[..., Supervisor]


@pytest.fixture
def scripted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """A supervisor on two cores, whose runs do what their role (or `store`) is told: ok, fails, alone, together."""
    told: dict[str, str] = {}

    def command(run_dir: Path, data_dir: Path, layout: Layout, attempt: int) -> list[str]:
        how = told.get("store" if run_dir.name.startswith(STORE) else run_dir.name.partition("-")[0], "ok")
        return [sys.executable, "-S", "-c", TRAINER, str(run_dir), how, str(attempt)]

    def make(made: Plan, layout: Layout = CPU, only: list[Run] | None = None, **how: str) -> Supervisor:
        told.update(how)
        runs = list(made.runs) if only is None else only
        for run in runs:
            RunDir(root, run.id).prepare(run)
        there = Supervisor(root, root.parent, runs, {run.id: layout for run in runs})
        for run in runs:
            RunDir(root, run.id).write_ticket("local", there.ref(run.id))
        return there

    monkeypatch.setattr(launched, "command", command)
    monkeypatch.setattr(launched, "code_state", lambda: ({"trainer_code": "x", "git": {}}, ""))
    cores = [f"core-test-{uuid.uuid4()}" for _ in range(2)]
    monkeypatch.setattr(supervisor, "own_cores", lambda: cores)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield make
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def starts(root: Path) -> list[str]:
    """Ids in the order in which they were started."""
    return [line.split()[0] for line in (root / "starts").read_text().splitlines()]


@forks
def test_everything_runs_in_the_order_of_its_needs(tmp_path: Path, root: Path, scripted: Scripted) -> None:
    made = make_plan(tmp_path, {"seeds": [0, 1]})
    scripted(made).run()
    assert {status.state for status in statuses(made, root).values()} == {"done"}
    order = starts(root)
    assert sorted(order) == sorted(run.id for run in made.runs)
    for run in made.runs:
        assert all(order.index(need) < order.index(run.id) for need in (*run.needs, *run.after))
        attempt = RunDir(root, run.id).newest()
        assert attempt is not None
        assert attempt.number == 1
        start, outcome = attempt.read("start"), attempt.read("outcome")
        assert (start["device"], start["procs"], start["threads"], start["gpus"]) == ("cpu", 1, 1, [])
        assert start["command"][0] == sys.executable
        assert start["supervisor"] == LIVE
        assert start["code"] == {"trainer_code": "x", "git": {}}
        assert attempt.read("agent")["pid"] > 0
        assert (outcome["state"], outcome["returncode"]) == ("done", 0)


NOTES = "import json, sys; given = json.load(sys.stdin); open(given['to'] + given['event'], 'x').write(given['key'])"


@forks
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, {"ended"}),
        ({"teacher": "fails", "baseline": "alone"}, {"failed", "ended"}),  # the baseline goes on
        ({"baseline": "fails", "distilled": "fails"}, {"ended", "failed"}),
        ({"distilled": "fails"}, {"ended"}),  # nothing was left to go on
    ],
)
def test_who_wants_to_know_is_told_once(
    tmp_path: Path, made: Plan, root: Path, scripted: Scripted, how: dict[str, str], told: set[str]
) -> None:
    there = scripted(made, Layout("cpu", 2, 1), **how)  # one after the other
    there.after = {"argv": [sys.executable, "-c", NOTES], "given": {"to": f"{tmp_path}/told-", "key": "x" * 200_000}}
    there.run()
    assert {process.wait(60) for process in there.telling.values()} == {0}
    found = {path.name.removeprefix("told-"): path.read_text() for path in tmp_path.glob("told-*")}
    assert set(found) == told
    assert set(found.values()) == {"x" * 200_000}


@forks
def test_that_nobody_can_be_told_hurts_no_run(made: Plan, root: Path, scripted: Scripted) -> None:
    there = scripted(made)
    there.after = {"argv": ["/no/such/program"], "given": {}}
    there.run()
    assert {status.state for status in statuses(made, root).values()} == {"done"}


@forks
def test_runs_share_the_cores_and_more_wait(made: Plan, root: Path, scripted: Scripted) -> None:
    pair = [roles(made)["teacher"], roles(made)["baseline"]]
    scripted(made, Layout("cpu", 1, 1), pair, teacher="together", baseline="together").run()
    assert {run_status(RunDir(root, run.id)).state for run in pair} == {"done"}


@forks
@pytest.mark.parametrize("cores", [Layout("cpu", 2, 1), Layout("cpu", 1, 2), Layout("cpu", 8, 1)])
def test_a_run_that_fills_the_machine_runs_alone(made: Plan, root: Path, scripted: Scripted, cores: Layout) -> None:
    scripted(made, cores, teacher="alone", baseline="alone", distilled="alone").run()
    assert {status.state for status in statuses(made, root).values()} == {"done"}


@forks
def test_what_needs_a_failed_run_is_blocked_and_the_others_are_done(made: Plan, root: Path, scripted: Scripted) -> None:
    scripted(made, teacher="fails").run()
    found = {made[run_id].role: status for run_id, status in statuses(made, root).items()}
    assert {role: status.state for role, status in found.items()} == {
        "teacher": "failed",
        STORE: "blocked",
        "baseline": "done",
        "distilled": "blocked",
    }
    reason = "torchrun ended with 1: ValueError: as asked; nothing is saved yet"
    assert found["teacher"].reason == reason
    assert found["distilled"].reason == f"{roles(made)['teacher'].id} is failed: {reason}"
    student = RunDir(root, roles(made)["distilled"].id)
    assert (student.ticket(), student.attempts()) == (None, [])
    scripted(made, only=[roles(made)["teacher"], roles(made)["distilled"]], teacher="ok").run()  # --retry
    found = {made[run_id].role: status for run_id, status in statuses(made, root).items()}
    assert {role: (status.state, status.attempts) for role, status in found.items()} == {
        "teacher": ("done", 2),
        STORE: ("done", 0),
        "baseline": ("done", 1),
        "distilled": ("done", 1),
    }


@forks
def test_students_go_on_without_a_store_that_fails_but_not_before(made: Plan, root: Path, scripted: Scripted) -> None:
    scripted(made, store="fails").run()
    found = {made[run_id].role: str(status.state) for run_id, status in statuses(made, root).items()}
    assert found == {"teacher": "done", STORE: "failed", "baseline": "done", "distilled": "done"}
    assert [run_id for run_id in starts(root) if run_id != roles(made)["baseline"].id] == [
        roles(made)[role].id for role in ("teacher", STORE, "distilled")
    ]


@forks
def test_a_teacher_under_the_gate_blocks_its_students(tmp_path: Path, root: Path, scripted: Scripted) -> None:
    made = make_plan(tmp_path, {"teacher.min_top1": 100.0})
    scripted(made).run()
    student = statuses(made, root)[roles(made)["distilled"].id]
    assert student.state == "blocked"
    assert (
        student.reason
        == f"{made.runs[0].id} reached 50.00 %, under teacher.min_top1 100; train it longer or lower the gate"
    )


@forks
@pytest.mark.parametrize("ending", ["done", "lost"])
def test_a_run_waits_for_what_another_supervisor_trains(
    made: Plan, root: Path, scripted: Scripted, ending: str
) -> None:
    """Done there, it starts here; lost there, nobody here would wait for ever."""
    teacher, student = roles(made)["teacher"], roles(made)["distilled"]
    run_dir = put(root, teacher, "planned")
    elsewhere = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    assert elsewhere.stdin is not None
    attempt = fabricated.started(run_dir, agent=process_record(elsewhere.pid))
    here = scripted(made, only=[student])
    here.start_what_can()
    assert list(here.pending) == [student.id]
    assert run_status(RunDir(root, student.id)).state == "queued"
    if ending == "done":
        fabricated.publish(run_dir, 50.0)
        fabricated.ended(attempt, "done")
    elsewhere.stdin.close()
    elsewhere.wait()
    here.run()
    found = statuses(made, root)[student.id]
    assert found.state == ("done" if ending == "done" else "planned")
    assert RunDir(root, student.id).ticket() is None or found.state == "done"


@forks
def test_a_run_that_a_sweep_has_started_meanwhile_is_left_to_it(made: Plan, root: Path, scripted: Scripted) -> None:
    baseline = roles(made)["baseline"]
    here = scripted(made, only=[baseline])
    fabricated.done(RunDir(root, baseline.id))
    here.run()
    assert len(RunDir(root, baseline.id).attempts()) == 1


@forks
def test_each_gpu_has_one_run_at_a_time(
    made: Plan, root: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = f"GPU-test-{uuid.uuid4()}"
    monkeypatch.setattr(supervisor, "visible_gpus", lambda: [card])
    elsewhere = Slots("GPU", [card], root).take(1, "another")
    assert elsewhere is not None
    there = scripted(made, GPU, teacher="alone", baseline="alone", distilled="alone")
    there.start_what_can()
    assert there.children == {}  # another runs directory of this user has the card
    elsewhere[0][1].release()
    there.run()
    assert {status.state for status in statuses(made, root).values()} == {"done"}
    assert {line.split()[1] for line in (root / "starts").read_text().splitlines()} == {card}
    attempt = RunDir(root, made.runs[0].id).attempt(1)
    assert attempt.read("start")["gpus"] == [card]
    assert Slots("GPU", [card], root).take(1, "another") is not None


@forks
def test_two_submits_share_the_cores_and_what_waits_says_for_whom(made: Plan, root: Path, scripted: Scripted) -> None:
    """As another supervisor does, in a runs directory of its own."""
    pair = [roles(made)["teacher"], roles(made)["baseline"]]
    first = scripted(made, Layout("cpu", 1, 2), pair[:1])
    second = scripted(made, Layout("cpu", 2, 4), pair[1:])  # more than there are: it takes them all
    first.start_what_can()
    second.start_what_can()
    assert (list(first.children), list(second.children)) == ([pair[0].id], [])
    assert second.waits == {pair[1].id: f"waits for 2 cores, held by {pair[0].id}"}
    first.run()
    second.run()
    assert {run_status(RunDir(root, run.id)).state for run in pair} == {"done"}


@forks
def test_a_queued_run_says_for_what_it_waits(made: Plan, root: Path, scripted: Scripted, tmp_path: Path) -> None:
    here = scripted(made, Layout("cpu", 1, 2))
    here.folder = tmp_path
    here.known["folder"] = str(tmp_path)
    for run in made.runs:
        RunDir(root, run.id).write_ticket("local", here.ref(run.id))
    here.tick()
    teacher = roles(made)["teacher"].id
    said = {made[run_id].role: (one.state, one.reason) for run_id, one in statuses(made, root).items()}
    assert said == {
        "teacher": ("running", ""),
        "baseline": ("queued", f"waits for 2 cores, held by {teacher}"),
        STORE: ("queued", f"waits for {teacher}"),
        "distilled": ("queued", f"waits for {teacher}, {roles(made)[STORE].id}"),
    }
    here.run()
    assert {status.state for status in statuses(made, root).values()} == {"done"}


@forks
def test_a_supervisor_is_up_once_it_has_started_what_it_can(
    made: Plan, root: Path, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a submit says `started` of nothing that waits."""
    here = scripted(made)
    here.folder = tmp_path
    seen: list[tuple[str, list[str]]] = []
    write = supervisor.write_json

    def note(path: Path, value: Any, **more: Any) -> None:
        seen.append((path.name, sorted(here.children)))
        write(path, value, **more)

    monkeypatch.setattr(supervisor, "write_json", note)
    here.run()
    begun = sorted(run.id for run in made.runs if run.role in ("teacher", "baseline"))
    assert seen[:2] == [("heartbeat.json", begun), ("supervisor.json", begun)]
