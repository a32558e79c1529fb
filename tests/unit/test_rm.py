"""`rm`: what goes with an experiment, and what stays for others; what is shown before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcluster import saved
from kdcluster.cli import main
from kdcluster.experiment.configfile import load
from kdcluster.launch.status import run_status
from kdcluster.plan import Plan, plan
from kdcluster.runs import RunDir, run_dirs
from tests.fabricated import put, save
from tests.tiny import write_experiment


@pytest.fixture
def root(empty_folder: Path) -> Path:
    """An empty runs directory, and the experiments `one` and `two`, which share a teacher."""
    (empty_folder / "configs").mkdir()
    for name, lr in (("one", 0.5), ("two", 0.25)):
        write_experiment(empty_folder / "configs", {"distill.temperature": 2 + lr, "teacher.train": {"lr": 1.0}}, name)
    return empty_folder / "runs"


def submitted(root: Path, name: str, state: str = "done") -> Plan:
    made = plan([load(name)])
    for run in made.runs:
        put(root, run, state).add_experiments([name])
    return made


def rm(*arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr."""
    result = CliRunner().invoke(main, ["rm", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def left(root: Path) -> set[str]:
    return {run_dir.id for run_dir in run_dirs(root)}


def test_every_run_of_an_experiment_goes_after_it_was_named(root: Path) -> None:
    made = submitted(root, "one")
    other = plan([load("one", ["seeds=[7]"])]).runs[-1]  # of other settings, as its sweep's trials are
    put(root, other, "stopped").add_experiments(["one"])
    shown, said = rm("one")
    assert [line.split()[0] for line in shown.splitlines()] == sorted(
        str(root / run_id) for run_id in [*(run.id for run in made.runs), other.id]
    )
    assert said.startswith("nothing was deleted; --yes deletes 5 runs, ")
    assert len(left(root)) == 5
    assert rm("one", "--yes")[1].startswith("5 runs deleted, ")
    assert left(root) == set()
    assert rm("one", code=5)[1] == f"nothing was started for one in {root}\n"


def test_what_another_experiment_was_submitted_with_stays_until_that_goes_too(root: Path) -> None:
    one, two = submitted(root, "one"), submitted(root, "two")
    teacher, store, baseline, distilled = (run.id for run in one.runs)
    assert {run.id for run in two.runs} == {teacher, store, baseline, two.runs[-1].id}
    shown, said = rm("one")
    assert shown.split()[0] == str(root / distilled)
    assert "3 runs stay: started for two, too\n" in said
    assert "--yes deletes 1 run, " in said
    rm("one", "--yes")
    assert left(root) == {run.id for run in two.runs}
    assert RunDir(root, teacher).experiments() == ["two"]  # so that it goes with that
    rm("two", "--yes")
    assert left(root) == set()


def test_several_experiments_go_together(root: Path) -> None:
    submitted(root, "one")
    submitted(root, "two")
    assert "stays" not in rm("one", "two", "--yes")[1]
    assert left(root) == set()


def test_what_a_run_of_nobody_needs_stays_and_a_run_that_is_named_is_refused(root: Path) -> None:
    made = submitted(root, "one")
    stray = put(root, plan([load("two")]).runs[-1], "planned")
    _, said = rm("one", "--yes")
    assert f"{made.runs[0].id} stays: needed by {stray.id}\n" in said
    assert left(root) == {made.runs[0].id, stray.id}
    refused = rm(made.runs[0].id, code=2)[1].splitlines()
    assert refused[0].startswith(f"{made.runs[0].id} is needed by 1 run (no student is done)")
    assert refused[1:] == [f"to delete these, too: kdcluster rm {made.runs[0].id} {stray.id}"]


def test_a_refusal_names_once_all_that_need_a_run_in_a_command_to_copy(root: Path) -> None:
    made = submitted(root, "one")
    others = [put(root, plan([load("one", [f"seeds=[{seed}]"])]).runs[-1], "planned") for seed in (7, 8)]
    teacher = made.runs[0].id
    said, command = rm(teacher, code=2)[1].splitlines()
    assert said.startswith(f"{teacher} is needed by 4 runs (1 done, whose retention")
    words = command.removeprefix("to delete these, too: ").split()
    assert words[:3] == ["kdcluster", "rm", teacher]
    assert set(words[3:]) == {made.runs[1].id, made.runs[-1].id, *(one.id for one in others)}
    assert rm(*words[2:], "--yes")[1].startswith("5 runs deleted, ")
    assert left(root) == {made.runs[2].id}


def test_a_store_needs_its_teacher_and_nobody_needs_a_store(root: Path) -> None:
    """What students read of it they can compute; and it has no retention that would be gone."""
    teacher, store, baseline, distilled = (run.id for run in submitted(root, "one").runs)
    rm(distilled, "--yes")
    refused = rm(teacher, code=2)[1].splitlines()
    assert refused[0] == f"{teacher} is needed by 1 run (a store of its logits)"
    submitted(root, "one")
    assert rm(store, "--yes")[1].startswith("1 run deleted, ")
    assert left(root) == {teacher, baseline, distilled}


def test_what_is_going_on_is_refused_as_a_whole(root: Path) -> None:
    made = submitted(root, "one")
    running = put(root, plan([load("one", ["seeds=[7]"])]).runs[2], "running")
    running.add_experiments(["one"])
    assert rm("one", "--yes", code=2)[1] == f"{running.id} is running; cancel it first\n"
    assert left(root) == {running.id, *(run.id for run in made.runs)}


def test_the_file_may_be_gone(root: Path) -> None:
    submitted(root, "one")
    (root.parent / "configs" / "one.yaml").unlink()
    rm("one", "--yes")
    assert left(root) == set()
    assert "no experiment 'one', neither" in rm("one", code=5)[1]


# Checkpoints


def kept(root: Path) -> dict[str, list[int]]:
    return {run_dir.id: saved.steps(run_dir.checkpoints) for run_dir in run_dirs(root)}


def test_the_checkpoints_of_what_is_done_go_after_their_sizes_were_shown(root: Path) -> None:
    teacher, store, baseline, distilled = submitted(root, "one").runs
    put(root, plan([load("one", ["seeds=[7]"])]).runs[2], "stopped").add_experiments(["one"])
    for run_dir in run_dirs(root):
        if run_dir.id != store.id:
            save(run_dir, 8)
    shown, said = rm("one", "--checkpoints")
    assert sorted(shown.splitlines()) == sorted(
        f"{root / run.id}/checkpoints  24 B" for run in (teacher, baseline, distilled)
    )
    assert said.splitlines()[0].endswith(" keeps them: it is stopped")
    assert "--yes deletes the checkpoints of 3 runs, 72 B" in said
    assert "weights, events and results stay, but with more train.epochs such a run starts from scratch" in said
    assert sorted(kept(root).values()) == [[], [8], [8], [8], [8]]
    rm("--checkpoints", "--yes")  # of all
    assert sorted(kept(root).values()) == [[], [], [], [], [8]]
    assert run_status(RunDir(root, teacher.id)).state == "done"
    assert RunDir(root, teacher.id).weights_problem("best") == ""
    assert rm("--checkpoints", "one")[1].endswith("no checkpoint to delete\n")
    assert "Missing argument 'RUN|EXP...'" in rm(code=2)[1]


def test_what_a_checkpoint_may_still_mend_keeps_it(root: Path) -> None:
    teacher = RunDir(root, submitted(root, "one").runs[0].id)
    save(teacher, 8)
    teacher.weights("best").unlink()
    assert f"{teacher.id} keeps them: its best weights are gone\n" in rm(teacher.id, "--checkpoints", "--yes")[1]
    assert kept(root)[teacher.id] == [8]


def test_checkpoints_of_other_users_and_other_versions_go_only_if_the_run_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _, baseline, _ = (RunDir(root, run.id) for run in submitted(root, "one").runs)
    for run_dir in (teacher, baseline):
        save(run_dir, 8)
    baseline.config.write_text(baseline.config.read_text() + "later: 1\n")
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: os.getuid() + 1)
        said = rm("--checkpoints", "--yes")[1]
    assert "2 runs keep them: another user's, so it has to be named itself\n" in said
    rm("one", "--checkpoints", "--yes")
    assert kept(root) == {**kept(root), teacher.id: [], baseline.id: [8]}
    rm(baseline.id, "--checkpoints", "--yes")
    assert kept(root)[baseline.id] == []


def test_checkpoints_behind_a_link_stay(root: Path, tmp_path: Path) -> None:
    run_dir = RunDir(root, submitted(root, "one").runs[0].id)
    save(run_dir, 8)
    run_dir.checkpoints.rename(tmp_path / "archive")
    run_dir.checkpoints.symlink_to(tmp_path / "archive")
    assert rm("--checkpoints", "--yes")[1] == "no checkpoint to delete\n"
    assert len(list((tmp_path / "archive").iterdir())) == 1


def test_cancel_says_what_of_an_experiment_goes_on(root: Path) -> None:
    """`submit one --seeds 7`, then `cancel one`: nothing was stopped, and nothing said why."""
    (run,) = plan([load("one", ["seeds=[7]"])]).only(["baseline"]).runs[-1:]
    put(root, run, "running").add_experiments(["one"])
    result = CliRunner().invoke(main, ["cancel", "one"], catch_exceptions=False)
    assert result.stderr.splitlines() == [
        "  1 run of other settings, or of a sweep, goes on; give the same --set and --seeds, or name what to stop",
        "nothing to stop: none of these runs is queued or running",
    ]


def test_a_copy_of_the_file_finds_the_runs_that_were_started_for_another(root: Path) -> None:
    """`status` and `results` showed them, and `logs` and `rm` said that nothing was started for it."""
    made = submitted(root, "one")
    (root.parent / "configs" / "copy.yaml").write_text((root.parent / "configs" / "one.yaml").read_text())
    assert rm("copy", "--yes") == ("", "4 runs stay: started for one\nnothing to delete\n")
    assert left(root) == {run.id for run in made.runs}
    told = CliRunner().invoke(main, ["logs", "copy"], catch_exceptions=False).stderr
    assert told.startswith("no run of copy is running, and none has failed; the last: ")


def test_a_broken_file_says_so_where_nothing_was_started_for_it(root: Path) -> None:
    path = root.parent / "configs" / "one.yaml"
    made = submitted(root, "one")
    path.write_text(path.read_text() + "no: key\n")
    assert rm("one", "--yes")[1].startswith("4 runs deleted, ")
    assert left(root).isdisjoint(run.id for run in made.runs)
    assert "no: unknown key" in rm("one", code=2)[1]
