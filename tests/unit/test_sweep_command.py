"""`kdcluster sweep` and `results --sweep` as they are typed; nothing is started."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.commands import sweep as sweep_command
from kdcluster.commands import teachers_first
from kdcluster.commands.arguments import Chosen
from kdcluster.experiment import configfile
from kdcluster.launch.local.backend import Local
from kdcluster.launch.slurm.answers import Job
from kdcluster.launch.slurm.backend import Slurm
from kdcluster.plan import Run, plan
from kdcluster.run import STORE
from kdcluster.sweep.points import Point, Space
from tests.fabricated import done, put
from tests.tiny import write_experiment


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCLUSTER_BACKEND", "local")
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def fails(code: int, *words: str) -> str:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return result.stderr


def space(folder: Path, block: dict[str, Any], **changes: Any) -> Space:
    write_experiment(folder, {**changes, "sweep": block})
    return Space(configfile.load(str(folder / "tiny.yaml")), allow_teacher=True)


def test_a_dry_run_shows_points_runs_and_teachers_and_writes_nothing(folder: Path) -> None:
    searched = space(folder, {"trials": 2})
    first, second = searched.drawn(2)
    teacher, store = plan([searched.loaded]).runs[:2]
    there = put(folder / "runs", teacher, "done")
    put(folder / "runs", store, "done")
    put(folder / "runs", first.runs[0], "stopped")
    lines = [
        f"  1  {' '.join(first.settings)}  {first.ids[0]} (stopped)",
        f"  2  {' '.join(second.settings)}  {second.ids[0]} (planned)",
    ]
    said = run("sweep", "tiny.yaml", "--dry-run").stdout.splitlines()
    unknown = f"how long that takes is not known yet: no run of these models is done in {folder / 'runs'}"
    confirmed = "9 runs to confirm the best; nothing was started"
    assert said == [*lines, f"2 trials, 1 teacher (0 to be trained), {confirmed}", unknown]
    there.weights("best").unlink()
    said = run("sweep", "tiny.yaml", "--dry-run").stdout.splitlines()
    again = f"first {teacher.id}"
    assert said[:4] == [*lines, again, f"2 trials, 1 teacher (1 to be trained), {confirmed}"]
    assert not (folder / "runs" / ".sweeps").exists()


def test_a_dry_run_says_how_long_the_whole_takes_from_what_such_runs_took(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = space(folder, {"trials": 4}, **{"train.epochs": 4})
    monkeypatch.setattr("kdcluster.sweep.flow.threads_available", lambda: 2)

    def took(made: Run, seconds: float, epochs: int) -> None:
        other = made.model_copy(update={"train": made.train and made.train.model_copy(update={"epochs": epochs})})
        run_dir = put(folder / "runs", other, "done")
        run_dir.attempt(1).write("start", {"started": 1000.0, "host": "here"})
        run_dir.attempt(1).write("outcome", {"state": "done", "time": 1000.0 + seconds})

    teacher, store, baseline, distilled = plan([searched.loaded]).runs
    took(teacher, 300, 4)
    took(store, 10, 4)
    took(distilled, 200, 2)  # 100 s an epoch, however many there were: 400 s
    lines = run("sweep", "tiny.yaml", "--dry-run").stdout.splitlines()
    # 4 trials and 3 + 3 distilled runs of the confirmation, two at a time; nothing like a baseline is done
    known = "about 33 min, 2 at a time, as such runs took here"
    assert lines[-1] == f"{known}, without 3 runs of a kind that was never done here"
    took(baseline, 80, 4)
    lines = run("sweep", "tiny.yaml", "--dry-run", "--set", "resources.threads=2").stdout.splitlines()
    assert lines[-1] == "about 71 min, one after another, as such runs took here"  # 10 * 400 + 3 * 80
    took(searched.drawn(1)[0].runs[0], 400, 4)
    assert run("sweep", "tiny.yaml", "--dry-run", "--confirm", "0").stdout.splitlines()[-2:] == [
        "4 trials, 1 teacher (0 to be trained), 0 runs to confirm the best; nothing was started",
        "about 13 min, 2 at a time, as such runs took here",
    ]


def test_a_dry_run_counts_the_teachers_of_a_space_that_has_several(folder: Path) -> None:
    space(folder, {"space": {"teacher.seed": {"grid": [1, 2, 3]}}})
    assert "--allow-teacher trains each, and --dry-run says how many" in fails(2, "sweep", "tiny.yaml", "--dry-run")
    lines = run("sweep", "tiny.yaml", "--allow-teacher", "--dry-run").stdout.splitlines()
    assert len([line for line in lines if line.startswith("first teacher-logits-")]) == 4
    assert len([line for line in lines if line.startswith("first ")]) == 4 + 4
    assert lines[-2].startswith("3 trials, 4 teachers (4 to be trained), 9 runs to confirm")


BOTH = {"space": {"distill.alpha": {"uniform": [0.1, 0.9]}, "train.lr": {"choice": [0.01, 0.02]}}, "trials": 2}


def test_a_dry_run_of_both_shows_what_the_baseline_gets(folder: Path) -> None:
    searched = space(folder, BOTH, **{"teacher.train": {"lr": 0.01}})
    baseline = searched.of_baseline()
    assert baseline is not None
    lines = run("sweep", "tiny.yaml", "--both", "--dry-run").stdout.splitlines()
    assert lines[2] == "the baseline with the same chance:"
    assert [line.split()[1:3] for line in lines[3:5]] == [[*one.settings, *one.ids] for one in baseline.drawn(2)]
    assert lines[-2].startswith("4 trials, 1 teacher (1 to be trained), ")


def test_both_needs_a_key_that_concerns_the_baseline(folder: Path) -> None:
    space(folder, {"trials": 2})
    assert fails(2, "sweep", "tiny.yaml", "--both", "--dry-run") == (
        "--both: none of distill.alpha, distill.temperature concerns the baseline; add train.lr or the like to "
        "sweep.space\n"
    )


def test_a_baseline_with_fewer_points_than_trials_says_so(folder: Path) -> None:
    grids = {"distill.alpha": {"grid": [0.1, 0.5]}, "train.lr": {"grid": [0.1, 0.01, 0.001]}}
    space(folder, {"space": grids}, **{"teacher.train": {"lr": 0.01}})
    result = run("sweep", "tiny.yaml", "--both", "--dry-run")
    said = "the keys that concern the baseline have 3 points, fewer than the 6 of the distilled students: all are tried"
    assert said in result.stderr


def test_a_space_with_fewer_points_than_trials_says_so(folder: Path) -> None:
    space(folder, {"space": {"distill.alpha": {"choice": [0.1, 0.5]}}, "trials": 5})
    result = run("sweep", "tiny.yaml", "--dry-run")
    assert result.stderr == "the space has 2 points, fewer than the 5 trials asked for: all are tried\n"
    assert result.stdout.splitlines()[-2].startswith("2 trials, ")


def test_a_dry_run_refuses_what_the_images_do_not_allow(folder: Path) -> None:
    space(folder, {"space": {"train.batch_size": {"choice": [16, 60_000]}}, "trials": 2})
    said = fails(2, "sweep", "tiny.yaml", "--dry-run", "--allow-teacher")
    assert said.startswith("train.batch_size: 60,000 is more than the ")


def test_a_dry_run_refuses_what_the_real_one_would(folder: Path) -> None:
    space(folder, {"trials": 2})
    assert "no cluster profile 'nope'" in fails(
        5, "sweep", "tiny.yaml", "--dry-run", "--cluster", "nope", "--backend", "slurm"
    )
    assert "a trial needs" in fails(2, "sweep", "tiny.yaml", "--dry-run", "--gpus", "2")
    assert "--nodes 2: this machine is one node" in fails(2, "sweep", "tiny.yaml", "--dry-run", "--nodes", "2")


def test_a_dry_run_with_optuna_shows_what_is_known_beforehand(folder: Path) -> None:
    space(folder, {"trials": 9, "search": "optuna"})
    lines = run("sweep", "tiny.yaml", "--dry-run").stdout.splitlines()
    assert len(lines) == 3 + 1 + 2 + 2
    assert lines[3] == "     and 6 more, which follow from the results of these"


def test_what_is_wrong_with_the_options_is_said_first(folder: Path) -> None:
    space(folder, {"trials": 2, "search": "optuna"})
    assert "--allow-teacher needs sweep.search random" in fails(2, "sweep", "tiny.yaml", "--allow-teacher")
    said = fails(2, "sweep", "tiny.yaml", "--gpus-per-trial", "1.5")
    assert said == "--gpus-per-trial 1.5: a share of one GPU, or whole GPUs\n"
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-best.yaml").write_text("mine")
    said = fails(2, "sweep", "tiny.yaml", "--write-best")
    assert "configs/tiny-best.yaml is there already and is not overwritten" in said
    assert not (folder / "runs").exists()


def test_results_of_a_sweep_come_from_the_run_directories(folder: Path) -> None:
    searched = space(folder, {"trials": 2})
    assert "no trial of tiny.yaml in" in fails(5, "results", "tiny.yaml", "--sweep")
    for point, state in zip(searched.drawn(2), ("done", "failed"), strict=True):
        put(folder / "runs", point.runs[0], state).note_trial("tiny", point.values)
    result = run("results", "tiny.yaml", "--sweep", "--strict")
    assert result.exit_code == 1
    assert "failed: rank 1, step 7: ValueError: no" in result.stdout
    document = json.loads(run("results", "tiny.yaml", "--sweep", "--json").stdout)
    assert {row["state"] for row in document["trials"]} == {"done", "failed"}
    assert run("results", "tiny.yaml", "--sweep", "--output", "trials.csv", "--format", "csv").exit_code == 0
    assert len((folder / "trials.csv").read_text().splitlines()) == 3
    assert "--role does not go with --sweep" in fails(2, "results", "tiny.yaml", "--sweep", "--role", "teacher")
    write_experiment(folder, name="other")
    both = run("results", "other.yaml", "tiny.yaml", "--sweep")
    assert both.stdout == result.stdout
    assert both.stderr.startswith("no trial of other.yaml in ")


def test_a_teacher_under_the_gate_has_no_trials(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"space": {"teacher.seed": {"grid": [1, 2]}}}
    searched = space(folder, grid, **{"teacher.min_top1": 60.0})
    points = searched.drawn(2)
    there = [run for run in searched.teachers(points).runs if run.role == "teacher"]
    for run_, top1 in zip(there[1:], (70.0, 55.0), strict=True):
        done(put(folder / "runs", run_, "planned"), top1)

    def good(chosen: list[Point], *, every: bool = False) -> list[Point]:
        with main.make_context("kdcluster", ["list"]) as context:
            context.obj = {"quiet": False}
            return teachers_first.with_a_good_one(chosen, folder / "runs", every=every)

    assert good(points) == [points[0]]
    assert "not tried: teacher-" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        good(points, every=True)  # as of Optuna, whose points are not known yet, and of the confirmation
    with pytest.raises(SystemExit):
        good(points[1:])
    assert "reached 55.00 %, under teacher.min_top1 60" in capsys.readouterr().err


def test_a_teacher_whose_weights_are_gone_is_made_again_where_a_trial_needs_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = space(folder, {"trials": 1})
    (point,) = searched.drawn(1)
    teacher = searched.teachers([])
    run_dir, _ = (put(folder / "runs", run, "done") for run in teacher.runs)
    started: list[str] = []
    backend = Local()
    monkeypatch.setattr(backend, "start", lambda made, chosen, root, data: started.extend(chosen) or "here")
    with main.make_context("kdcluster", ["list"]) as context:
        context.obj = {"quiet": False}
        chosen = Chosen(("tiny.yaml",), runs_dir=folder / "runs")
        teachers_first.submit(teacher, point.runs, chosen, backend)
        run_dir.weights("best").unlink()
        teachers_first.submit(teacher, [], chosen, backend)
        assert started == []  # no trial is left that needs it
        teachers_first.submit(teacher, point.runs, chosen, backend)
        assert started == [teacher.runs[0].id]


def test_a_store_is_made_while_a_trial_is_left_that_reads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = space(folder, {"trials": 2})
    first, second = (point.runs[0] for point in searched.drawn(2))
    made = searched.teachers([])
    assert [run.role for run in made.runs] == ["teacher", STORE]
    put(folder / "runs", made.runs[0], "done")
    started: list[str] = []
    backend = Local()
    monkeypatch.setattr(backend, "start", lambda made, chosen, root, data: started.extend(chosen) or "here")
    with main.make_context("kdcluster", ["list"]) as context:
        context.obj = {"quiet": False}
        chosen = Chosen(("tiny.yaml",), runs_dir=folder / "runs")
        for run in (first, second):
            put(folder / "runs", run, "done")
        teachers_first.submit(made, [first, second], chosen, backend)
        assert started == []
        shutil.rmtree(folder / "runs" / second.id)
        teachers_first.submit(made, [first, second], chosen, backend)
        assert started == [made.runs[1].id]


def test_without_gpus_the_nodes_are_of_the_trials_and_not_of_the_teacher(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space(folder, {"trials": 2})
    asked: list[Any] = []
    monkeypatch.setattr(sweep_command, "preflight", lambda runs, data, fetch: None)
    monkeypatch.setattr(sweep_command.job, "under_way", lambda folder: None)
    monkeypatch.setattr(Slurm, "check_layouts", lambda self, layouts: asked.extend(layouts))
    monkeypatch.setattr(
        "kdcluster.launch.submission.submit",
        lambda made, root, data, there, prepare, waiting: asked.append(there.layouts(made)),
    )
    monkeypatch.setattr(sweep_command.job, "submit", lambda *given: asked.append(given[4:6]) or ("7", Path("log")))
    teacher = plan([configfile.load("tiny.yaml")]).runs[0]
    put(folder / "runs", teacher, "done")
    result = run("sweep", "tiny.yaml", "--backend", "slurm", "--cluster", "dev", "--nodes", "2", "--trials", "3")
    assert result.exit_code == 0, result.output
    layout, of_teacher, (loaded, words) = asked
    assert (layout.procs, layout.nodes, layout.gpus) == (2, 2, 0)
    assert of_teacher[teacher.id].nodes == 1
    assert loaded.name == "tiny"
    assert words[-2:] == ["--trials", "3"]
    assert "worst case of the sweep: 0 GPU-hours" in result.stderr
    assert "job 7 sweeps tiny on 2 CPU processes of 1 thread on 2 nodes; log: log" in result.stderr
    again = "kdcluster sweep tiny.yaml --backend slurm --cluster dev --nodes 2 --trials 3"
    assert f"next: kdcluster results tiny.yaml --sweep\nscancel 7 stops it; then: {again}\n" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whatever_interrupts_it_is_told_what_goes_on(capsys: pytest.CaptureFixture[str], number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    of_tests = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupted() -> None:
        with sweep_command._interruptible("kdcluster sweep tiny.yaml"):
            signal.raise_signal(number)  # to this thread

    with pytest.raises(SystemExit) as left:
        interrupted()
    signal.signal(signal.SIGINT, of_tests)
    assert left.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\nnext: kdcluster sweep tiny.yaml\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_sweep_here_waits_for_the_one_in_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space(folder, {"trials": 2})
    monkeypatch.setattr(sweep_command, "preflight", lambda runs, data, fetch: None)
    monkeypatch.setattr(sweep_command, "is_here", lambda: True)
    monkeypatch.setattr(sweep_command, "is_inside_job", lambda: False)
    monkeypatch.setattr(sweep_command.job, "under_way", lambda folder: Job("7", "sweep-tiny.1234.1", "RUNNING"))
    assert "job 7 in SLURM is at the sweep of tiny; wait for it" in fails(1, "sweep", "tiny.yaml")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("option", ["--per-seed", "--together", "--columns=n", "--sort=n"])
def test_the_trials_are_one_table_of_their_own(folder: Path, option: str) -> None:
    space(folder, {"trials": 2})
    assert "not go with --sweep" in fails(2, "results", "tiny.yaml", "--sweep", option)


@pytest.mark.parametrize(("how", "event"), [(True, "ended"), (1, "failed"), (False, None), (130, None), (2, None)])
def test_the_end_of_a_sweep_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: bool | int, event: str | None
) -> None:
    """Not where it was interrupted, nor where a job does it."""
    searched = space(folder, {"trials": 2})
    first, second = searched.drawn(2)
    for point, state in ((first, "done"), (second, "failed")):
        run_dir = put(folder / "runs", point.runs[0], state)
        run_dir.note_trial("tiny", dict(point.values))

    def swept(*_: object) -> bool:
        if isinstance(how, bool):
            return how
        raise SystemExit(how)

    monkeypatch.setattr(sweep_command, "sweep", swept)
    result = run("sweep", "tiny.yaml", "--notify", "cat > told")
    assert result.exit_code == (0 if isinstance(how, bool) else how), result.output
    assert (folder / "told").exists() == (event is not None)
    assert ("a job cannot be told of --notify" in result.stderr) == (how is False)
    if event:
        told = json.loads((folder / "told").read_text())
        assert (told["what"], told["event"], told["experiments"]) == ("sweep", event, ["tiny"])
        assert told["counts"] == {"done": 1, "failed": 1}
        assert [row["state"] for row in told["rows"]] == ["done", "failed"]
        assert told["subject"] == "sweep of tiny: 1 done, 1 failed"
        assert [problem["run"] for problem in told["problems"]] == [second.ids[0]]


def test_a_dry_run_tells_nobody(folder: Path) -> None:
    space(folder, {"trials": 2})
    assert "job" not in run("sweep", "tiny.yaml", "--dry-run", "--notify", "touch told").stderr
    assert not (folder / "told").exists()
