"""The seam: a place that only the tests know runs runs, and no file of the product was changed for it."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.launch import backend
from kdcluster.launch.backend import Options
from kdcluster.launch.local.backend import Local
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from tests.tiny import put_images, write_experiment
from tests.toy_backend import Toy

WITHIN_S = 120.0
"""For what takes seconds on an idle machine: a test that waits longer hangs."""

BEGUN = {"teacher": "running", STORE: "queued", "baseline": "running", "distilled": "queued"}
"""Of an experiment whose runs take long: what waits has been given to its place, too."""

TRAINER = textwrap.dedent(
    """
    import json, pathlib, signal, sys, time
    run_dir, number, digest = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    (run_dir.parent / f"began-{run_dir.name}-{number}").touch()
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    while (run_dir.parent / "slow").exists():
        time.sleep(0.05)
        if told:
            (run_dir / "attempts" / number / "preempted.json").write_text('{"step": 7}')
            sys.exit(1)
    if (run_dir.parent / "broken").exists():
        sys.exit("ValueError: as asked")
    (run_dir / "best.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    best = {"epoch": 1, "step": 10, "test/top1": 50.0}
    result = {"schema": "kdcluster.result/1", "id": run_dir.name, "hash": digest, "attempt": int(number)}
    result |= {"epochs": 1, "steps": 10, "selected_on": "test", "params": 3, "best": best, "last": best}
    (run_dir / "result.json.aside").write_text(json.dumps(result))
    (run_dir / "result.json.aside").rename(run_dir / "result.json")
    """
)
"""What a fake job does in the place of torchrun; it waits while there is a file `slow`, fails where one `broken`."""
FAKE_JOB = textwrap.dedent(
    f"""
    import sys
    from pathlib import Path
    from tests import toy_backend
    from kdcluster.runs import RunDir
    toy_backend.BACKENDS["toy"] = "tests.toy_backend:Toy"
    run_dir = RunDir(Path(sys.argv[-2]).parent, Path(sys.argv[-2]).name)
    there = sys.modules[toy_backend.Child.__module__]
    trainer = [sys.executable, "-S", "-c", {TRAINER!r}, str(run_dir.path)]
    there.command = lambda *_, attempt: [*trainer, str(attempt), run_dir.load().hash]
    there.code_state = lambda: ({{"trainer_code": "x", "git": {{}}}}, "")
    toy_backend.main(run_dir, Path(sys.argv[-1]), [])
    """
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registered by its one line; nothing of it is left at the end."""
    monkeypatch.setitem(backend.BACKENDS, "toy", "tests.toy_backend:Toy")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    monkeypatch.setenv("KDCLUSTER_BACKEND", "toy")
    monkeypatch.setattr(Toy, "jobs", [])
    yield
    for job in Toy.jobs:
        job.terminate()
        job.wait(WITHIN_S)


@pytest.fixture
def folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny.yaml, and jobs that are fake."""
    write_experiment(empty_folder)
    monkeypatch.setattr(Toy, "argv", [sys.executable, "-c", FAKE_JOB])
    monkeypatch.setattr("kdcluster.commands.submit.preflight", lambda runs, data_dir, fetch: None)
    return empty_folder


def kdcluster(*words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == expect, done.output
    return done


def rows() -> dict[str, dict[str, Any]]:
    """Of each role: its row of `status --json`."""
    found = json.loads(kdcluster("status", "tiny.yaml", "--json").stdout)["runs"]
    return {row["role"]: row for row in found}


def states() -> dict[str, str]:
    return {role: row["state"] for role, row in rows().items()}


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, rows()
        time.sleep(0.05)


def test_the_toy_is_small() -> None:
    lines = (Path(__file__).parents[1] / "toy_backend.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 60


def test_plan_knows_it(folder: Path) -> None:
    planned = json.loads(kdcluster("plan", "tiny.yaml", "--backend", "toy", "--json").stdout)["runs"]
    assert {(row["state"], row["sbatch"]) for row in planned} == {("planned", None)}
    said = kdcluster("plan", "tiny.yaml", "--backend", "toyy", expect=2).stderr
    assert "there are auto, local, slurm, toy" in said


def test_where_nobody_stays_who_could_tell_whoever_waits_does(folder: Path) -> None:
    said = kdcluster("submit", "tiny.yaml", "--backend", "toy", "--notify", "cat > told", expect=2).stderr
    assert "--notify: in the toy queue it takes --wait" in said
    assert Toy.jobs == []
    kdcluster("submit", "tiny.yaml", "--backend", "toy", "--wait", "--notify", "cat > told")
    assert json.loads((folder / "told").read_text())["counts"] == {"done": 4}


def test_a_whole_experiment_runs_on_it(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "slow").touch()
    said = kdcluster("submit", "tiny.yaml", "--backend", "toy").stderr
    assert "4 of 4 runs in the toy queue, 4 jobs" in said
    assert said.count("  queued\n") == 4
    wait_for(lambda: states() == BEGUN)
    assert rows()["distilled"]["reason"] == "its job is ACTIVE"
    assert {row["job_id"] for row in rows().values()} == {str(job.pid) for job in Toy.jobs}
    assert "nothing to start" in kdcluster("submit", "tiny.yaml", "--backend", "toy").stderr
    local = kdcluster("submit", "tiny.yaml", "--backend", "local").stderr
    assert "nothing to start" in local
    (folder / "runs" / "slow").unlink()
    kdcluster("status", "tiny.yaml", "--watch")
    assert {row["state"] for row in rows().values()} == {"done"}
    assert {row["attempts"] for row in rows().values()} == {1}
    assert "\n4 of 4 done\n" in kdcluster("status", "tiny.yaml").stdout
    table = kdcluster("results", "tiny.yaml").stdout  # a fake job has no events
    assert all((row["id"] in table) == (role != STORE) for role, row in rows().items())
    assert "nothing to start" in kdcluster("submit", "tiny.yaml", "--backend", "toy").stderr


def test_what_waits_and_what_runs_there_is_cancelled_and_goes_on_with_retry(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "slow").touch()
    kdcluster("submit", "tiny.yaml", "--role", "distilled", "--backend", "toy")
    wait_for(lambda: list((folder / "runs").glob("began-*")))
    assert "is running; cancel it first" in kdcluster("rm", rows()["teacher"]["id"], expect=2).stderr
    said = kdcluster("cancel", "tiny.yaml").stderr
    assert said.endswith("3 runs stopped\nnext: kdcluster submit tiny.yaml --role distilled --retry\n")
    assert (rows()["teacher"]["state"], rows()["distilled"]["state"]) == ("cancelled", "cancelled")
    assert rows()["teacher"]["reason"].startswith("stopped at step 7")
    assert rows()[STORE]["attempts"] == rows()["distilled"]["attempts"] == 0
    (folder / "runs" / "slow").unlink()
    assert "3 cancelled are left out (--retry)" in kdcluster("submit", "tiny.yaml", "--role", "distilled").stderr
    kdcluster("submit", "tiny.yaml", "--role", "distilled", "--retry")
    wait_for(lambda: rows()["distilled"]["state"] == "done")
    assert (rows()["teacher"]["attempts"], rows()["distilled"]["attempts"]) == (2, 1)
    assert "is needed by" in kdcluster("rm", rows()["teacher"]["id"], expect=2).stderr
    every = [rows()[role]["id"] for role in ("teacher", STORE, "distilled")]
    assert "3 runs deleted" in kdcluster("rm", *every, "--yes").stderr
    assert set(states().values()) == {"planned"}


def test_what_fails_there_is_failed_and_blocks(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "broken").touch()
    kdcluster("submit", "tiny.yaml", "--role", "distilled", "--wait", expect=1)
    blocked = {STORE: "blocked", "distilled": "blocked"}
    wait_for(lambda: states() == {"teacher": "failed", "baseline": "planned", **blocked})
    assert "ValueError: as asked" in rows()["teacher"]["reason"]


def test_a_job_that_died_there_is_lost_and_goes_on(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "slow").touch()
    kdcluster("submit", "tiny.yaml", "--role", "baseline", "--backend", "toy")
    wait_for(lambda: list((folder / "runs").glob("began-*")))
    Toy.jobs[0].kill()
    Toy.jobs[0].wait()
    wait_for(lambda: rows()["baseline"]["state"] == "lost")  # its agent dies with it, a moment later
    assert rows()["baseline"]["reason"].startswith("its job is ENDED")
    (folder / "runs" / "slow").unlink()
    kdcluster("submit", "tiny.yaml", "--role", "baseline", "--backend", "toy")
    wait_for(lambda: rows()["baseline"]["state"] == "done")
    assert rows()["baseline"]["attempts"] == 2


def test_a_place_of_a_package_that_is_not_here_is_unknown_and_breaks_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "slow").touch()
    kdcluster("submit", "tiny.yaml", "--backend", "toy")
    wait_for(lambda: len(list((folder / "runs").glob("began-*"))) == 2)
    with monkeypatch.context() as without:
        without.delitem(backend.BACKENDS, "toy")
        without.setenv("KDCLUSTER_BACKEND", "local")
        assert states() == BEGUN
        assert "no backend 'toy' is installed here" in rows()["distilled"]["reason"]
        assert "it is not known what becomes of these runs" in kdcluster("submit", "tiny.yaml", expect=4).stderr
        kdcluster("rm", rows()["distilled"]["id"], expect=2)
    kdcluster("cancel", "tiny.yaml")
    assert set(states().values()) == {"cancelled"}


def test_what_a_place_leaves_out_is_what_the_seam_says(folder: Path) -> None:
    """The toy and this machine alike leave out what they have no need of."""
    for place in (Toy.of(Options()), Local.of(Options())):
        assert place.scripts(None, folder) == {}  # type: ignore[arg-type]
        assert place.notes(None, []) == []  # type: ignore[arg-type]
        assert place.described() == place.title
        assert list(place.examine(None, folder, with_job=False)) == []
        assert type(place).is_wanted(Options()) == (False, "")


@pytest.mark.integration
def test_it_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "argv", [sys.executable, "-m", "tests.toy_backend"])
    put_images(folder / "data")
    kdcluster("submit", "tiny.yaml", "--role", "baseline", "--backend", "toy", "--wait")
    row = rows()["baseline"]
    assert (row["state"], row["attempts"], row["epoch"]) == ("done", 1, 2)
    assert RunDir(folder / "runs", row["id"]).newest().given_to().backend == "toy"  # type: ignore[union-attr]
    assert f"{row['best_top1']:.2f}" in kdcluster("results", "tiny.yaml", "--role", "baseline", "--strict").stdout
