"""The command line as CLI.md promises it: commands, options, streams, exit codes, JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import kdcluster
from kdcluster.cli import main
from kdcluster.commands.cells import short_name
from kdcluster.commands.submit import listed
from kdcluster.errors import KdclusterError, SchedulerError, WaitTimeout
from kdcluster.experiment.configfile import load
from kdcluster.launch.status import Status
from kdcluster.launch.submission import Submission
from kdcluster.plan import plan
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.wording import command as typed
from kdcluster.wording import wide
from tests.fabricated import put
from tests.tiny import make_run

EXP = ("--set", "--seeds")
RUNS = ("--runs-dir",)
WHERE = (*RUNS, "--data-dir")
PLACE = ("--backend", "--cluster", "--nodes")
COMMANDS: dict[str, tuple[str, ...]] = {
    "list": ("--json",),
    "plan": (*EXP, "--gpus", "--procs", "--role", *WHERE, *PLACE, "--check", "--commands", "--json"),
    "submit": (
        *(*EXP, "--gpus", "--procs", "--role", *WHERE, *PLACE, "--max-gpu-hours"),
        *("--retry", "--dry-run", "--wait", "--timeout", "--notify"),
    ),
    "debug": (*EXP, "--gpus", "--procs", "--role", "--steps", "--profile", *WHERE),
    "status": (*EXP, *RUNS, "--watch", "--json"),
    "show": (*RUNS, "--json"),
    "diff": (*EXP, *RUNS, "--json"),
    "logs": (*RUNS, "--follow", "--lines", "--rank", "--json"),
    "results": (
        *EXP,
        "--role",
        *RUNS,
        "--format",
        "--protocol",
        "--output",
        "--strict",
        "--per-seed",
        "--columns",
        "--sort",
        "--together",
        "--compare",
        "--sweep",
        "--json",
    ),
    "prefetch": (*EXP, "--role", *WHERE),
    "views": ("--set", *WHERE, "--output"),
    "verify": ("--set", *WHERE, "--images", "--seed", "--json"),
    "schema": ("--json", "--recipe"),
    "cancel": (*EXP, *RUNS, "--shared"),
    "rm": (*RUNS, "--checkpoints", "--yes"),
    "sweep": (
        *("--set", "--gpus", "--procs", *WHERE, *PLACE, "--trials", "--gpus-per-trial"),
        *(
            "--ray-address",
            "--dashboard",
            "--allow-teacher",
            "--both",
            "--confirm",
            "--write-best",
            "--dry-run",
            "--notify",
        ),
    ),
    "doctor": (*EXP, "--gpus", "--procs", "--role", *WHERE, *PLACE, "--with-job", "--json"),
    "tensorboard": ("--runs-dir", "--port"),
    "report": (*EXP, *WHERE, "--output", "--internal"),
    "plot": (*EXP, *WHERE, "--output", "--picture", "--width-mm", "--y-min"),
    "export": (*EXP, *WHERE, "--best", "--output", "--force", "--benchmark"),
    "evaluate": (*EXP, *WHERE, "--best", "--data", "--format", "--output", "--device", "--json"),
}
"""CLI.md's tables, as far as the commands exist; a new command or option belongs there and here."""
ARGUMENTS = {
    "plan": "EXP...",
    "submit": "EXP|RUN...",
    "debug": "EXP",
    "status": "[EXP|RUN...]",
    "show": "RUN",
    "diff": "A [B]",
    "logs": "RUN|EXP",
    "results": "[EXP...]",
    "cancel": "EXP|RUN...",
    "rm": "[RUN|EXP...]",
    "sweep": "EXP",
    "doctor": "[EXP...]",
    "verify": "EXP...",
    "views": "EXP",
    "tensorboard": "[EXP...]",
    "report": "EXP...",
    "plot": "EXP",
    "export": "RUN|EXP",
    "evaluate": "RUN",
}


def run(*arguments: str, **settings: Any) -> Result:
    result = CliRunner(**settings).invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(code: int, *arguments: str) -> str:
    """What a command that must fail says, on stderr alone."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def planned(*arguments: str) -> list[dict[str, Any]]:
    result = run("plan", *arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    runs = json.loads(result.stdout)["runs"]
    assert isinstance(runs, list)
    return runs


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# What there is


def test_every_command_stands_in_the_table() -> None:
    assert set(main.commands) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_options_that_were_promised(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    shown = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", result.stdout, re.MULTILINE))
    assert shown == {*COMMANDS[command], "--help"}
    assert f"kdcluster {command}" in result.stdout.replace("main", "kdcluster")
    assert f"[OPTIONS] {ARGUMENTS[command]}" in result.stdout if command in ARGUMENTS else True


def test_help_cuts_no_sentence_off() -> None:
    for option in ("--help", "-h"):
        page = run(option).stdout
        assert not [line for line in page.splitlines() if line.startswith("  ") and line.endswith("...")]
        assert all(command in page for command in COMMANDS)


def test_version() -> None:
    assert run("--version").stdout == f"kdcluster, version {kdcluster.__version__}\n"


# Exit codes


def test_wrong_usage_is_2_and_says_what_was_meant(empty_folder: Path) -> None:
    assert "No such option '--gpu'. Did you mean '--gpus'?" in fails(2, "plan", "exp1", "--gpu", "3")
    assert "No such command 'plam'. Did you mean 'plan'?" in fails(2, "plam", "exp1")
    assert "No such command 'reslts'. Did you mean 'results'?" in fails(2, "reslts", "exp1")
    assert "'jsonl'; did you mean 'latex'?" in fails(2, "results", "--format", "latx")
    assert "'jsonl'.\n" in fails(2, "results", "--format", "zzz")
    assert "there are auto, local, slurm; did you mean 'slurm'?" in fails(2, "plan", "exp1", "--backend", "slrm")
    assert "Missing argument 'EXP...'" in fails(2, "plan")
    assert "Invalid value for '--gpus': 0 is not in the range x>=1" in fails(2, "plan", "exp1", "--gpus", "0")
    assert "--gpus and --procs exclude each other" in fails(2, "plan", "exp1", "--gpus", "1", "--procs", "1")
    assert "--timeout needs --wait" in fails(2, "submit", "exp1", "--timeout", "3")
    assert everything(empty_folder) == []


@pytest.mark.parametrize(
    ("words", "counted"),
    [
        (("plot", "demo", "--output", "a.pdf", "--width-mm", "88cm"), "'88cm' is not a valid number of millimetres."),
        (("plot", "demo", "--output", "a.pdf", "--y-min", "80%"), "'80%' is not a valid number of percent."),
        (("submit", "demo", "--wait", "--timeout", "2h"), "'2h' is not a valid number of minutes."),
        (("submit", "demo", "--max-gpu-hours", "all"), "'all' is not a valid number of GPU-hours."),
        (("sweep", "demo", "--gpus-per-trial", "half"), "'half' is not a valid number of GPUs."),
    ],
)
def test_what_is_no_number_is_told_what_is_counted(empty_folder: Path, words: tuple[str, ...], counted: str) -> None:
    assert counted in fails(2, *words)


def test_a_wrong_role(empty_folder: Path) -> None:
    said = "--role studnet: 'studnet' is no role; there are teacher, teacher-logits, baseline, distilled\n"
    assert fails(2, "plan", "exp1", "--role", "studnet") == said
    assert "distilled; did you mean 'baseline'?\n" in fails(2, "plan", "exp1", "--role", "baselin")
    for role in ("studnet", "teacher,baseline"):
        assert f"'{role}' is not one of 'teacher', 'baseline', 'distilled'" in fails(2, "debug", "exp1", "--role", role)


def test_no_such_experiment_is_5(empty_folder: Path) -> None:
    said = "no experiment 'ex1', neither ./configs/ex1.yaml nor a shipped one nor a file; did you mean 'exp1'?\n"
    for command in ("plan", "submit", "debug", "status", "results", "prefetch"):
        assert fails(5, command, "ex1") == said
    assert fails(5, "plan", "exp1", "there/exp.yaml") == "no experiment file there/exp.yaml\n"


@pytest.mark.parametrize("command", ["results", "report", "plot", "doctor", "tensorboard", "debug", "results --sweep"])
def test_a_run_in_place_of_an_experiment_is_told(tmp_path: Path, empty_folder: Path, command: str) -> None:
    words = [*command.split(), *(["--output", "a.pdf"] if command == "plot" else [])]
    run_dir = put(empty_folder / "runs", make_run(tmp_path, "baseline"), "done")
    assert f"'baseline' is a run ({run_dir.id}), not an experiment: kdcluster show baseline" in fails(
        5, *words, "baseline"
    )
    run_dir.add_experiments(["mine"])
    said = f"'baseline' is a run of mine ({run_dir.id}), not an experiment: kdcluster show baseline shows it; "
    assert fails(5, *words, "baseline") == f"{said}kdcluster results mine --per-seed has it beside others\n"
    put(empty_folder / "runs", make_run(tmp_path, "baseline", {"train.lr": 0.5}), "done")
    assert "no experiment 'baseline', and 'baseline' begins the ids of 2 runs" in fails(5, *words, "baseline")


def test_no_such_run_is_5(empty_folder: Path) -> None:
    assert fails(5, "logs", "teacher") == (
        f"no run 'teacher' in {empty_folder}/runs, and no experiment 'teacher', neither ./configs/teacher.yaml nor a "
        f"shipped one nor a file; known: demo, exp1, exp2\n"
    )
    for name in ("teacher-a-s0-00000000", "teacher-a-s0-11111111"):
        (empty_folder / "runs" / name).mkdir(parents=True)
        (empty_folder / "runs" / name / "config.yaml").touch()
    assert "'teacher' begins the ids of 2 runs, give more: teacher-a-s0-00000000, " in fails(2, "logs", "teacher")
    assert run("logs", "teacher-a-s0-0").exit_code == 0


@pytest.mark.parametrize(("error", "code"), [(KdclusterError, 1), (WaitTimeout, 3), (SchedulerError, 4)])
def test_an_error_of_ours_leaves_with_its_code(
    error: type[KdclusterError], code: int, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcluster.commands.plan.statuses", _raiser(error("what to do")))
    assert fails(code, "plan", "exp1") == "what to do\n"


def test_interrupted_is_130(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcluster.commands.plan.statuses", _raiser(KeyboardInterrupt()))
    assert fails(130, "plan", "exp1") == "interrupted\n"


def _raiser(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


def test_a_broken_file_shows_no_traceback_in_a_process_of_its_own(empty_folder: Path) -> None:
    (empty_folder / "exp.yaml").write_text("data: {name: cifar10}\nteacher: {model: t}\nstudent: {modell: s}\n")
    done = kdcluster_process("plan", "exp.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "exp.yaml:3:11: student.modell: unknown key; did you mean student.model?\n"


def kdcluster_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kdcluster.cli", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})


# plan


def test_two_experiments_on_eight_gpus_are_six_runs(empty_folder: Path) -> None:
    result = run("plan", "exp1", "exp2", "--gpus", "8", "--json")
    document = json.loads(result.stdout)
    runs = {(row["role"], *row["experiments"]): row for row in document["runs"]}
    assert document["schema"] == "kdcluster.plan/1"
    assert len(document["runs"]) == 6
    teacher = runs["teacher", "exp1", "exp2"]
    assert teacher["needs"] == runs["baseline", "exp1"]["needs"] == runs["baseline", "exp2"]["needs"] == []
    assert runs[STORE, "exp1", "exp2"]["needs"] == [teacher["id"]]
    assert runs["distilled", "exp1"]["needs"] == runs["distilled", "exp2"]["needs"] == [teacher["id"]]
    for row in document["runs"]:
        assert row["command"][:4] == [sys.executable, "-P", "-m", "kdcluster.launch.torchrun_agent"]
        assert "--nproc-per-node=8" in row["command"]
        assert row["command"][-2:] == ["--device", "cuda"]
        assert (row["state"], row["seed"], row["sbatch"]) == ("planned", 0, None)
        assert row["dir"] == str(empty_folder / "runs" / row["id"])
    assert everything(empty_folder) == []


def test_a_plan_to_read(empty_folder: Path) -> None:
    result = run("plan", "demo", "--procs", "2", "--seeds", "0")
    rows = planned("demo", "--procs", "2", "--seeds", "0")
    assert result.stderr == ""
    table, *each, last = result.stdout.split("\n\n")
    teacher, store, baseline, distilled = (row["id"] for row in rows)
    assert [line.split() for line in table.splitlines()] == [
        ["run", "state", "needs"],
        [teacher, "planned"],
        [store, "planned", teacher],
        [baseline, "planned"],
        [distilled, "planned", teacher],
    ]
    assert each == [f"{row['id']} on 2 CPU processes of 1 thread\n  command  {typed(row['command'])}" for row in rows]
    assert last == f"{DEMO}\n{STORED}\n4 runs: 1 teacher, 1 teacher-logits, 1 baseline, 1 distilled; 0 done\n"
    assert everything(empty_folder) == []


def test_a_plan_tells_label_smoothing_from_the_baseline(empty_folder: Path) -> None:
    lines = run("plan", "demo", "--seeds", "0,1", "--set", "control=label_smoothing").stdout.splitlines()
    assert lines[0].split() == ["run", "arm", "state", "needs"]
    assert [line.split()[1:-1] for line in lines[1:9] if line.startswith("baseline")] == [
        [],
        [],
        *[["label", "smoothing"]] * 2,
    ]
    assert lines[-1] == (
        "8 runs: 1 teacher, 1 teacher-logits, 2 baseline, 2 label smoothing, 2 distilled; 0 done".replace(" ", " ")
    )


def argv(text: str) -> list[str]:
    """A command that may stand in several lines."""
    return shlex.split(text.replace("\\\n", ""))


def test_a_plan_on_a_terminal_shows_a_command_once(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcluster.terminal.size", lambda stream: os.terminal_size((80, 24)))
    three = ("demo", "--seeds", "0,1,2")
    rows = planned(*three)
    result = run("plan", *three)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:9]] == [row["id"] for row in rows]
    (shown,) = re.findall(r"^each run on .*; RUN stands for its id:\n((?:.+\n)+)", result.stdout, re.MULTILINE)
    for row in rows:
        assert argv(shown.replace("/runs/RUN", f"/runs/{row['id']}")) == row["command"]
    assert lines[-1] == "8 runs: 1 teacher, 1 teacher-logits, 3 baseline, 3 distilled; 0 done"
    assert result.stderr == "all commands: kdcluster plan demo --seeds 0,1,2 --commands\n"
    assert len(lines) - shown.count("\n") + 1 <= 24 - 6 - 1  # beside six lines of the command, and the next prompt
    monkeypatch.setattr("kdcluster.launch.local.backend.Local.scripts", lambda *_: {rows[0]["id"]: "#SBATCH -J a\n"})
    assert "#SBATCH" not in run("plan", *three).stdout
    assert "batch scripts: kdcluster plan demo --seeds 0,1,2 --commands" in run("plan", *three).stderr
    result = run("plan", *three, "--commands")
    assert result.stderr == ""
    assert "  sbatch\n    #SBATCH -J a\n" in result.stdout
    found = re.findall(r"^  command  ((?:.+\\\n)*.+)", result.stdout, re.MULTILINE)
    assert list(map(argv, found)) == [row["command"] for row in rows]


@pytest.mark.parametrize(("columns", "short"), [(120, []), (100, ["needs"]), (80, ["run", "needs"])])
def test_a_plan_on_a_terminal_leaves_out_no_column(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, columns: int, short: list[str]
) -> None:
    options = ("exp1", "exp2", "--gpus", "8")
    teacher, *_, last = (row["id"] for row in planned(*options))
    monkeypatch.setattr("kdcluster.terminal.size", lambda stream: os.terminal_size((columns, 24)))
    table = run("plan", *options).stdout.partition("\n\n")[0].splitlines()
    assert table[0].split() == ["run", "state", "needs", "for"]
    assert max(map(len, table)) <= columns
    cells = {"run": last, "needs": teacher}
    cells |= {name: short_name(cells[name]).replace("\xa0", " ") for name in short}
    assert re.split("  +", table[-1]) == [cells["run"], "planned", cells["needs"], "exp2"]


def test_a_plan_says_on_what_runs_run_where_they_differ(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for procs in (1, 2):
        text = f"resources: {{device: cpu, procs: {procs}, threads: 1}}\nvariant: {'ab'[procs - 1]}\nseeds: [0]\n"
        block = "data: {name: mnist5k}\nteacher: {model: t}\nstudent: {model: s}\ntrain: {epochs: 1}\n"
        (empty_folder / f"x{procs}.yaml").write_text(block + text)
    monkeypatch.setattr("kdcluster.terminal.size", lambda stream: os.terminal_size((120, 24)))
    text = run("plan", "x1.yaml", "x2.yaml").stdout
    assert re.search(r"distilled-s-s0-\w+ +planned  teacher-t-s0-\w+  x2 +2 CPU processes of 1 thread\n", text)
    assert "\n4 runs on 1 CPU process of 1 thread; RUN stands for its id:\n" in text
    assert "\n2 runs on 2 CPU processes of 1 thread; RUN stands for its id:\n" in text


def test_a_plan_counts_states_and_says_how_long_the_rest_takes(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcluster.commands.plan.threads_available", lambda: 2)
    root = Path("runs")
    made = plan([load("demo", ["seeds=[0,1,2,3]"])])

    def last(*options: str) -> str:
        return run("plan", "demo", "--seeds", "0,1,2,3", *options).stdout.splitlines()[-1]

    for number, seconds, state in ((0, 40, "done"), (1, 20, "done"), (2, 60, "done"), (3, 0, "failed")):
        run_dir = put(root, made.runs[number], state)
        start = {"started": 1000.0, "host": "here", "device": "cpu", "procs": 1, "threads": 1}
        run_dir.attempt(1).write("start", start)
        run_dir.attempt(1).write("outcome", {"state": state, "time": 1000.0 + seconds})
    counted = "10 runs: 1 teacher, 1 teacher-logits, 4 baseline, 4 distilled; 3 done, 1 failed"
    less = ", without 4 runs of a kind that was never done here"
    assert last() == f"{counted}; 6 runs to start: about 60 s, 2 at a time, as such runs took here{less}"
    assert last("--procs", "2") == counted  # nothing is known of two processes
    for run_id in [one.id for one in made.runs[6:]]:
        put(root, made[run_id], "done")
    assert last().startswith(f"{counted.replace('3 done', '7 done')}; 2 runs to start: about 60 s")


def test_plan_needs_no_torch(empty_folder: Path) -> None:
    code = (
        "import sys; from kdcluster.cli import main; main(['plan', 'exp1', 'exp2'], standalone_mode=False); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'timm', 'ray', 'submitit'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert everything(empty_folder) == []


def test_set_seeds_and_role(empty_folder: Path) -> None:
    rows = planned("exp1", "--seeds", "3,4", "--role", "distilled")
    assert [(row["role"], row["seed"]) for row in rows] == [
        ("teacher", 0),
        (STORE, 0),
        ("distilled", 3),
        ("distilled", 4),
    ]
    assert {row["role"] for row in planned("exp1", "--role", "baseline, teacher")} == {"teacher", "baseline"}
    changed = planned("exp1", "--set", "train.epochs=3", "--set", "distill.alpha=0")
    assert [row["role"] for row in changed] == ["teacher", "baseline"]
    assert not {row["id"] for row in changed} & {row["id"] for row in planned("exp1")}


def test_options_speak_in_their_own_name(empty_folder: Path) -> None:
    assert fails(2, "plan", "exp1", "--seeds", "x") == "--seeds x: seeds.0: must be a whole number (got 'x')\n"
    assert fails(2, "plan", "exp1", "--seeds", "1,1").startswith("--seeds 1,1: seeds: each seed may stand only once")
    assert fails(2, "plan", "exp1", "--seeds", "").startswith("--seeds : seeds: must not be empty")


def test_a_wrong_set_is_said_once_and_every_broken_file_in_turn(empty_folder: Path) -> None:
    said = fails(2, "plan", "exp1", "exp2", "--set", "train.epochs=0")
    assert said == "--set train.epochs=0: train.epochs: must be at least 1 (got 0)\n"
    for name in "ab":
        (empty_folder / f"{name}.yaml").write_text(f"{name}: 1\n")
    lines = fails(2, "plan", "a.yaml", "b.yaml").splitlines()
    assert [line.split(":")[0] for line in lines] == ["a.yaml"] * 4 + ["b.yaml"] * 4


def test_gpus_and_procs_override_the_file(empty_folder: Path) -> None:
    text = "data: {name: cifar10}\nteacher: {model: t}\nstudent: {model: s}\nresources: {procs: 3, threads: 2}\n"
    (empty_folder / "exp.yaml").write_text(text)
    assert "--nproc-per-node=3" in planned("exp.yaml")[0]["command"]
    assert "--nproc-per-node=4" in planned("exp.yaml", "--procs", "4")[0]["command"]
    on_gpus = planned("exp.yaml", "--gpus", "2")[0]["command"]
    assert "--nproc-per-node=2" in on_gpus
    assert on_gpus[-2:] == ["--device", "cuda"]
    (empty_folder / "exp.yaml").write_text(text.replace("procs: 3, threads: 2", "gpus: 2"))
    assert planned("exp.yaml", "--procs", "1", "--set", "resources.threads=1")[0]["command"][-4:] == [
        *("--device", "cpu"),
        *("--threads", "1"),
    ]


def test_where_runs_and_data_lie(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places(*arguments: str) -> tuple[str, str]:
        row = planned("demo", *arguments)[0]
        return str(Path(row["dir"]).parent), row["command"][row["command"].index("--data-dir") + 1]

    here = str(empty_folder)
    assert places() == (f"{here}/runs", f"{here}/data")
    monkeypatch.setenv("KDCLUSTER_RUNS_DIR", "/scratch/me/runs")
    assert places() == ("/scratch/me/runs", "/scratch/me/data")
    monkeypatch.setenv("KDCLUSTER_DATA_DIR", "/data")
    assert places() == ("/scratch/me/runs", "/data")
    assert places("--runs-dir", "r", "--data-dir", "d") == (f"{here}/r", f"{here}/d")
    assert everything(empty_folder) == []


# list, status, logs, results


def test_list_has_the_working_directory_first(empty_folder: Path) -> None:
    (empty_folder / "configs").mkdir()
    (empty_folder / "configs" / "exp1.yaml").write_text("# Mine: α\ndata: {name: cifar10}\n")
    (empty_folder / "configs" / "zoo.yaml").write_bytes(b"x: \xff\n")
    document = json.loads(run("list", "--json").stdout)
    found = {item["name"]: item for item in document["experiments"]}
    assert document["schema"] == "kdcluster.list/1"
    assert list(found) == ["exp1", "zoo", "demo", "exp2"]
    assert found["exp1"] == {"name": "exp1", "path": "configs/exp1.yaml", "about": "Mine: α"}
    result = run("list")
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(found)
    assert "exp1  Mine: α  (configs/exp1.yaml)" in result.stdout
    assert "student: required key is missing" in fails(2, "plan", "exp1")


def test_status_of_what_was_never_started(empty_folder: Path) -> None:
    document = json.loads(run("status", "demo", "--json").stdout)
    assert document["schema"] == "kdcluster.status/1"
    assert {row["state"] for row in document["runs"]} == {"planned"}
    promised = {*("id", "experiments", "role", "seed", "state", "epoch", "epochs", "step", "job_id")}
    assert promised | {"attempts", "reason", "dir"} <= set(document["runs"][0])
    assert run("status", "demo").stdout.splitlines()[-1] == "0 of 12 done; 12 planned"
    assert everything(empty_folder) == []


def test_a_retry_is_told_with_the_options_of_the_submit(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [teacher] = (row["id"] for row in planned("demo", "--role", "teacher"))
    monkeypatch.setattr("kdcluster.launch.submission.submit", lambda *_, **__: Submission([teacher], {}, "here"))
    monkeypatch.setattr("kdcluster.commands.submit.follow", lambda *_, **__: {teacher: Status("failed", "no")})
    options = ("--set", "variant=a b", "--role", "teacher", "--procs", "2", "--data-dir", "the data", "--wait")
    result = run("submit", "demo", *options)
    assert result.exit_code == 1
    assert result.stderr.endswith(
        f"next: kdcluster logs {teacher}\n"
        "next: kdcluster submit demo --set 'variant=a b' --role teacher --procs 2 --data-dir 'the data' --retry"
        "\nnot every run is done\n"
    )


def test_who_detaches_is_told_what_stops_the_runs(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planned("demo", "--seeds", "0")
    going = {row["id"]: Status("running") for row in rows}
    monkeypatch.setattr("kdcluster.launch.submission.submit", lambda *_, **__: Submission([*going], {}, "here"))
    monkeypatch.setattr("kdcluster.commands.submit.follow", _raiser(KeyboardInterrupt()))
    monkeypatch.setattr("kdcluster.commands.submit.statuses", lambda *_: going)
    for options, told in (((), "demo --seeds 0"), (("--role", "distilled"), " ".join(going))):
        result = run("submit", "demo", "--seeds", "0", *options, "--wait")
        assert result.exit_code == 130
        look = f"next: kdcluster status demo --seeds 0 --watch, or kdcluster cancel {told} to stop them\n"
        assert result.stderr.endswith(look)


@pytest.mark.parametrize(
    ("environment", "options", "told"),
    [
        ({}, ("--backend", "local"), " --backend local"),
        ({}, ("--backend", "auto"), ""),
        ({"KDCLUSTER_BACKEND": "local"}, ("--backend", "local"), ""),
        ({"KDCLUSTER_BACKEND": "slurm"}, ("--backend", "local"), " --backend local"),
        ({"KDCLUSTER_BACKEND": "slurm"}, ("--backend", "auto"), " --backend auto"),
        ({"KDCLUSTER_CLUSTER": "local"}, ("--backend", "local"), " --backend local"),
    ],
)
def test_a_hint_names_the_place_that_was_named(
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    options: tuple[str, ...],
    told: str,
) -> None:
    [teacher] = (row["id"] for row in planned("demo", "--role", "teacher"))
    monkeypatch.delenv("KDCLUSTER_BACKEND")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("kdcluster.launch.submission.submit", lambda *_, **__: Submission([teacher], {}, "here"))
    monkeypatch.setattr("kdcluster.commands.submit.follow", lambda *_, **__: {teacher: Status("lost", "no")})
    result = run("submit", "demo", "--role", "teacher", *options, "--wait")
    assert f"next: kdcluster submit demo --role teacher{told}\n" in result.stderr


def test_plan_says_where_a_longer_run_begins(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [teacher] = (row["id"] for row in planned("exp1", "--role", "teacher"))
    for why, said in (("", "at the end of short, with the same numbers"), ("no", "from scratch, and not at the end")):
        answer = RunDir(empty_folder / "runs", "short"), why
        monkeypatch.setattr(  # a store never does
            "kdcluster.commands.plan.begins_from", lambda run, *_, answer=answer: answer if run.train else None
        )
        assert f"\n3 runs begin {said}" in run("plan", "exp1").stdout
        assert {row["begins"]["why_not"] for row in planned("exp1") if row["begins"]} == {why}
    put(Path("runs"), plan([load("exp1", [])])[teacher], "failed")
    assert next(row for row in planned("exp1") if row["id"] == teacher)["begins"] is None


def test_status_where_nothing_runs(empty_folder: Path) -> None:
    result = run("status", "--json")
    assert (result.exit_code, json.loads(result.stdout)["runs"]) == (0, [])
    assert run("status").stdout == "0 runs\n"
    assert run("status").stderr == f"nothing was started yet in {empty_folder}/runs; name an experiment\n"


def test_status_without_names_shows_what_has_runs_here(empty_folder: Path) -> None:
    (empty_folder / "configs").mkdir()
    (empty_folder / "configs" / "broken.yaml").write_text("x: 1\n")
    run_id = planned("exp2", "--role", "baseline")[0]["id"]
    RunDir(empty_folder / "runs", run_id).path.mkdir(parents=True)
    document = json.loads(run("status", "--json").stdout)
    assert [row["role"] for row in document["runs"]] == ["teacher", STORE, "baseline", "distilled"]
    assert document["runs"][2]["id"] == run_id


def test_status_without_names_shows_runs_of_other_settings_too(tmp_path: Path, empty_folder: Path) -> None:
    other = make_run(tmp_path, "baseline")
    run_dir = put(empty_folder / "runs", other, "failed")
    run_dir.add_experiments(["mine"])
    run_dir.note_submit("mine.yaml --set variant=x --gpus 2")
    (empty_folder / "mine.yaml").touch()
    (row,) = json.loads(run("status", "--json").stdout)["runs"]
    assert (row["id"], row["state"], row["experiments"]) == (other.id, "failed", ["mine"])
    said = run("status", other.id)
    assert said.stderr.splitlines()[-1] == "next: kdcluster submit mine.yaml --set variant=x --gpus 2 --retry"


def test_logs_of_a_run(empty_folder: Path) -> None:
    run_dir = RunDir(empty_folder / "runs", "teacher-a-s0-00000000")
    run_dir.path.mkdir(parents=True)
    run_dir.config.touch()
    attempt = run_dir.start_attempt({})
    attempt.log().write_text("root cause\n")
    attempt.log(0).write_text("one α\ntwo\n")
    attempt.log(1).write_text("three\n")
    attempt.write("outcome", {"state": "failed", "reason": "why"})
    lines = ["[attempt 1 torchrun] root cause", "[attempt 1 rank 0] one α", "[attempt 1 rank 0] two"]
    assert run("logs", "teacher").stdout.splitlines() == [*lines, "[attempt 1 rank 1] three"]
    assert run("logs", "teacher", "--rank", "1", "-f").stdout == "[attempt 1 rank 1] three\n"


def test_results_of_what_was_never_started(empty_folder: Path) -> None:
    result = run("results", "demo")
    assert (result.exit_code, len(result.stderr.splitlines())) == (0, 1)
    assert "planned" in result.stdout
    assert run("results", "demo", "--strict").exit_code == 1
    assert json.loads(run("results", "demo", "--json").stdout)["schema"] == "kdcluster.results/1"
    assert everything(empty_folder) == []
    written = run("results", "demo", "--output", "table.txt")
    assert (written.stdout, written.stderr.splitlines()[0]) == ("", "written: table.txt")
    assert (empty_folder / "table.txt").read_text(encoding="utf-8") == result.stdout
    (empty_folder / "link").symlink_to("table.txt")
    (empty_folder / "table.txt").write_text("old")
    (empty_folder / "table.txt").chmod(0o600)
    assert run("results", "demo", "--output", "link").stdout == ""
    assert (empty_folder / "link").is_symlink()
    assert (empty_folder / "table.txt").read_text(encoding="utf-8") == result.stdout
    assert (empty_folder / "table.txt").stat().st_mode & 0o777 == 0o600
    said = fails(1, "results", "demo", "--output", "no/table.txt")
    assert said == "cannot write no/table.txt: No such file or directory; give another --output\n"


ENDS = {
    "a.tex": "% in the preamble",
    "a.TXT": "demo: best",
    "a.md": "### demo",
    "a.html": "<table",
    "a.htm": "<table",
    "a.csv": "experiment,",
    "a.json": "{",
    "a.jsonl": '{"experiment"',
    "a": "demo: best",
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_file_says_its_format(empty_folder: Path, name: str) -> None:
    assert run("results", "demo", "--output", name).exit_code == 0
    assert (empty_folder / name).read_text(encoding="utf-8").startswith(ENDS[name])


WRONG_ENDS = {
    (
        "results",
        "a.pdf",
    ): "--output a.pdf: its end says no format that is written here; there are .txt, .md, .markdown, "
    ".tex, .html, .htm, .csv, .json, .jsonl, .ndjson; kdcluster plot draws pictures",
    (
        "results",
        "a.docx",
        "--format",
        "html",
    ): "--output a.docx: its end says no format that is written here; there are",
    ("results", "a.dat"): "; or say --format",
    (
        "results",
        "a.tex",
        "--format",
        "md",
    ): "--output a.tex --format md: .tex is the end of latex; leave one of them out",
    ("results", "a.csv", "--json"): "--output a.csv --format json: .csv is the end of csv; leave one of them out",
    (
        "report",
        "a.pdf",
    ): "--output a.pdf: a report is a page, .html; kdcluster plot draws its pictures as .pdf, .png, .svg",
    ("report", "a.md"): "--output a.md: a report is a page, .html",
    ("plot", "a.tex"): "--output a.tex: its end says no format; give it one of .pdf, .png, .svg",
    (
        "export",
        "a.onnx",
    ): "--output a.onnx is to be a folder, for several files (model.safetensors, model.onnx, model.pt2",
}


@pytest.mark.parametrize("words", WRONG_ENDS)
def test_an_end_that_says_something_else_is_refused(empty_folder: Path, words: tuple[str, ...]) -> None:
    command, name, *options = words
    said = " ".join(fails(2, command, "demo", "--output", name, *options).split())
    assert WRONG_ENDS[words] in said
    assert everything(empty_folder) == []


@pytest.mark.parametrize("name", ["a.txt", "a.inc", "a", "a.2026"])
def test_a_format_may_stand_in_a_file_whose_end_is_nobodys(empty_folder: Path, name: str) -> None:
    assert run("results", "demo", "--format", "csv", "--output", name).exit_code == 0
    assert (empty_folder / name).read_text(encoding="utf-8").startswith("experiment,")


# submit, debug, prefetch

DEMO = "10 classes, 4,000 train (500 with labels, 3,500 without), 1,000 test, 28×28 px; "
DEMO += "resnet18 sees 28 px, test_vit 28 px"
"""What the models of the demo will see."""
STORED = "teacher logits: 8 views of 4,000 images, 625.0 KiB; 8 teacher passes, not 13"
"""What its one student reads."""


def test_a_dry_run_writes_nothing(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcluster.commands.submit.preflight", _raiser(AssertionError("it fetches")))
    result = run("submit", "demo", "--dry-run", "--seeds", "0")
    assert (result.exit_code, result.stderr) == (0, f"{DEMO}\n{STORED}\n")
    for row in planned("demo", "--seeds", "0"):
        assert f"# {row['dir']}/config.yaml\nid: {row['id']}\n" in result.stdout
    assert result.stdout.count("kdcluster.launch.torchrun_agent") == 4
    assert result.stdout.endswith("# 4 of 4 runs would be started; nothing was written\n")
    assert everything(empty_folder) == []


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """submit and debug without processes; what was submitted."""
    calls: list[Any] = []

    def submit(plan: Any, root: Path, data: Path, backend: Any, prepare: Any, *, retry: bool, **_: Any) -> Submission:
        prepare(plan.runs)
        calls.append((plan, root, data, retry))
        left = {plan.runs[0].id: Status("failed", "why")}
        return Submission([r.id for r in plan.runs[1:]], left, f"on this machine; log: {root / 'supervisor.log'}")

    def debug(run: Any, root: Path, data: Path, steps: int, profile: bool) -> int:
        calls.append((run.role, run.seed, steps, profile))
        return 7

    monkeypatch.setattr("kdcluster.launch.submission.submit", submit)
    monkeypatch.setattr("kdcluster.launch.local.backend.debug", debug)
    for place in ("kdcluster.launch.preflight", "kdcluster.commands.submit"):
        monkeypatch.setattr(f"{place}.preflight", lambda runs, data_dir, fetch: calls.append(len(list(runs))))
    return calls


def test_a_run_goes_on_by_its_id(empty_folder: Path, no_start: list[Any]) -> None:
    teacher, store, _, distilled = plan([load("demo", ["seeds=[0]"])]).runs
    put(Path("runs"), teacher, "done")
    put(Path("runs"), distilled, "stopped")
    result = run("submit", distilled.id[:20], "--procs", "2", "--dry-run")
    assert result.exit_code == 0
    assert "# started on 2 CPU processes of 1 thread as" in result.stdout
    assert "1 of 2 runs would be started" in result.stdout  # a store that was never begun is left out
    put(Path("runs"), store, "cancelled")
    assert "2 of 3 runs would be started" in run("submit", distilled.id, "--dry-run").stdout
    said = run("submit", distilled.id, "--procs", "2").stderr
    assert said.splitlines()[-1] == f"next: kdcluster status {distilled.id} --watch"  # results are of experiments
    said = fails(2, "submit", distilled.id, "--set", "train.epochs=3")
    assert "--set, --seeds and --role are of an experiment; a run has its settings" in said


def test_submit_talks_on_stderr(empty_folder: Path, no_start: list[Any]) -> None:
    result = run("submit", "demo", "--seeds", "0")
    teacher, store, baseline, distilled = (row["id"] for row in planned("demo", "--seeds", "0"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "trying the models and looking at the data; that takes some seconds",
        DEMO,
        STORED,
        f"  {teacher}  failed (why)",
        f"  {store}  started",
        f"  {baseline}  started",
        f"  {distilled}  started",
        "1 failed is left out (--retry)",
        f"3 of 4 runs on this machine; log: {empty_folder}/runs/supervisor.log",
        "next: kdcluster status demo --seeds 0 --watch   then: kdcluster results demo --seeds 0",
    ]
    assert no_start[0] == 4
    assert no_start[1][1:] == (empty_folder / "runs", empty_folder / "data", False)
    quiet = run("-q", "submit", "demo", "--seeds", "0", "--retry")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert no_start[3][3] is True


def test_submit_says_started_of_what_has_started(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, store, baseline, distilled = (row["id"] for row in planned("demo", "--seeds", "0"))
    waits = {baseline: "waits for 2 cores, held by other (pid 7)", distilled: f"waits for {teacher}, {store}"}
    done = Submission([teacher, baseline, distilled], {}, "here", waits=waits)
    monkeypatch.setattr("kdcluster.launch.submission.submit", lambda *_, **__: done)
    assert run("submit", "demo", "--seeds", "0").stderr.splitlines()[:3] == [
        f"  {teacher}  started",
        f"  {baseline}  queued (waits for 2 cores, held by other (pid 7))",
        f"  {distilled}  queued (waits for {teacher}, {store})",
    ]


def test_submit_says_a_reason_of_several_runs_once() -> None:
    held = "waits for 2 cores, held by t"
    rows = [("t", "started", ""), ("b0", "queued", held), ("b1", "queued", held), ("d0", "queued", "waits for t")]
    assert listed(rows) == [
        "  t  started",
        "  b0  queued",
        "  b1  queued",
        "  d0  queued (waits for t)",
        f"  queued: 2 runs: {held}",
    ]


def test_gpus_that_are_not_there_are_an_error(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcluster.launch.local.backend.visible_gpus", list)
    monkeypatch.setattr("kdcluster.commands.submit.preflight", _raiser(AssertionError("it fetches")))
    assert "8 GPUs asked for, this machine shows none" in fails(1, "submit", "exp1", "--gpus", "8")
    assert everything(empty_folder) == []


def test_debug_leaves_with_the_trainers_code(empty_folder: Path, no_start: list[Any]) -> None:
    assert run("debug", "demo").exit_code == 7
    assert run("debug", "demo", "--role", "teacher", "--steps", "2").exit_code == 7
    assert run("debug", "demo", "--role", "baseline", "--seeds", "4", "--profile").exit_code == 7
    assert no_start == [2, ("distilled", 0, 5, False), 1, ("teacher", 0, 2, False), 1, ("baseline", 4, 5, True)]


def test_prefetch_fetches_for_the_chosen_roles(empty_folder: Path, no_start: list[Any]) -> None:
    result = run("prefetch", "demo", "--role", "teacher")
    assert (result.exit_code, result.stdout, no_start) == (0, "", [1])
    said = f"data and weights of demo are here: {empty_folder}/data\n"
    assert result.stderr == f"{DEMO.partition(', test_vit')[0]}\n{said}"


# A terminal of 80 columns


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("plan", "demo"),
        ("plan", "exp1", "exp2", "--gpus", "8"),
        ("plan", "demo", "--commands"),
        ("submit", "demo", "--dry-run"),
        ("sweep", "demo", "--dry-run"),
        ("status", "demo"),
        ("results", "demo"),
        ("diff", "exp1", "exp2"),
        ("diff", "demo", "exp1"),
        ("diff", "demo", "--set", "teacher.min_top1=99"),
        ("schema",),
        ("plan", "demos"),
        ("plan", "demo", "--set", "train.epoch=3"),
        ("submit", "demo", "--gpus", "999"),
    ],
    ids=" ".join,
)
def test_what_newcomers_read_fits(empty_folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setattr("kdcluster.terminal.size", lambda stream: os.terminal_size((80, 24)))
    monkeypatch.setenv("KDCLUSTER_RUNS_DIR", "/nowhere/runs")
    result = run(*words)
    lines = [*result.stdout.splitlines(), *result.stderr.splitlines()]
    assert lines
    # a path, as of the interpreter, may have no room, and is not cut
    assert [line for line in lines if wide(line) > 80 and max(map(wide, line.split())) <= 80 - len("  command  ")] == []


def test_values_without_room_beside_each_other_stand_below(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run("diff", "exp1", "exp2").stdout.splitlines()
    assert lines[5].endswith("  (not in the id)")
    for columns, shown in (
        (80, "reference.baseline   76.91                                      78.44\n  (not in the id)\n"),
        (50, "reference.baseline (not in the id)\n  A  76.91\n  B  78.44\n"),
    ):
        monkeypatch.setattr("kdcluster.terminal.size", lambda _, columns=columns: os.terminal_size((columns, 24)))
        assert shown in run("diff", "exp1", "exp2").stdout


# A stdout that can only take ASCII

READ = [
    ("list",),
    ("list", "--json"),
    ("plan", "grün"),
    ("plan", "grün", "--json"),
    ("submit", "grün", "--dry-run"),
    ("status", "grün"),
    ("status", "grün", "--json"),
    ("logs", "teacher"),
    ("results", "grün"),
    ("results", "grün", "--format", "md"),
    *(("results", "grün", "--format", style) for style in ("csv", "jsonl", "latex", "html")),
    ("results", "grün", "--json"),
    ("schema",),
    ("schema", "--json"),
]


@pytest.fixture
def beyond_ascii(empty_folder: Path) -> Path:
    (empty_folder / "configs").mkdir()
    text = "# α → β\ndata: {name: cifar10}\nteacher: {model: t}\nstudent: {model: s}\nvariant: α\n"
    (empty_folder / "configs" / "grün.yaml").write_text(text, encoding="utf-8")
    run_dir = RunDir(empty_folder / "runs", "teacher-a-s0-00000000")
    run_dir.path.mkdir(parents=True)
    run_dir.config.touch()
    run_dir.start_attempt({}).log(0).write_text("top-1 ±\n", encoding="utf-8")
    return empty_folder


@pytest.mark.parametrize("arguments", READ, ids=" ".join)
def test_ascii_is_enough(arguments: tuple[str, ...], beyond_ascii: Path) -> None:
    result = run(*arguments, charset="ascii")
    assert result.exit_code == 0
    assert result.stdout_bytes.isascii()
    if "--json" in arguments:
        assert json.loads(result.stdout) == json.loads(run(*arguments).stdout)


def test_ascii_is_enough_in_a_process_of_its_own(beyond_ascii: Path) -> None:
    done = kdcluster_process("list", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr?n  ? ? ?  (configs/gr?n.yaml)" in done.stdout


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "refuses"), (errno.EACCES, "refuses"), (errno.ENOSPC, "disk is full")]
)
def test_a_disk_that_takes_nothing_is_a_message(empty_folder, monkeypatch, number, words) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    monkeypatch.setattr("kdcluster.launch.submission.submit", refuse)
    said = fails(1, "submit", "demo")
    assert words in said
    assert "'runs/x'); what was saved is safe" in said
    assert "Traceback" not in said


def test_any_other_error_of_the_system_keeps_its_traceback(empty_folder, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("kdcluster.launch.submission.submit", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        run("submit", "demo")


def test_a_runs_directory_without_runs_is_named(empty_folder: Path) -> None:
    said = f"there are no runs in {empty_folder}/runs; --runs-dir or KDCLUSTER_RUNS_DIR names another directory\n"
    for command in ("status", "results"):
        assert said in run(command, "demo", "--seeds", "0").stderr
    put(empty_folder / "runs", make_run(empty_folder, "baseline"), "planned")
    for command in ("status", "results"):
        assert "there are no runs" not in run(command, "demo", "--seeds", "0").stderr
