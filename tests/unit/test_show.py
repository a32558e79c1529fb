"""`show` and `diff`: what there is to know of one run, and the keys in which two runs or experiments differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.experiment.configfile import load
from kdcluster.launch.cancel import needing
from kdcluster.plan import Plan, Run, plan
from kdcluster.runs import RunDir
from tests import fabricated
from tests.fabricated import put, save, started
from tests.tiny import make_plan, write_experiment


def say(*arguments: str, code: int = 0) -> str:
    """stdout of a command, or stderr of one that must fail."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def document(*arguments: str) -> dict[str, Any]:
    found = json.loads(say(*arguments, "--json"))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def root(empty_folder: Path) -> Path:
    return empty_folder / "runs"


@pytest.fixture
def made(root: Path) -> Plan:
    """teacher and its store done, baseline failed, distilled planned, of ./configs/tiny.yaml."""
    folder = root.parent / "configs"
    folder.mkdir()
    made = make_plan(folder, {"train.lr": 0.5})
    for run, state in zip(made.runs, ("done", "done", "failed", "planned"), strict=True):
        run_dir = put(root, run, state)
        run_dir.add_experiments(["tiny"])
        run_dir.note_submit("tiny --procs 2")
    return made


# show


def test_all_of_a_run_on_one_screen(made: Plan, root: Path) -> None:
    teacher, store, _, distilled = made.runs
    save(RunDir(root, teacher.id), 10)
    said = say("show", teacher.id[:12])
    assert said.splitlines()[:3] == [
        teacher.id,
        "  state       done",
        "  result      best test/top1 50.00 % (after epoch 1, selected on test), last 50.00 %; 3 parameters",
    ]
    assert f"  needed by   {distilled.id}, {store.id}\n" in said.replace(",\n             ", ",")
    assert "  started by  kdcluster submit tiny --procs 2\n" in said
    changed, _, rest = said.partition("settings that are not the default\n")[2].partition("settings at their default\n")
    assert re.search(r"^  train\.lr +0\.5$", changed, re.MULTILINE)
    assert re.search(r"^  model_args\.patch_size +8$", changed, re.MULTILINE)
    assert re.search(r"^  resources\.threads +1 +\(not in the id\)$", changed, re.MULTILINE)
    before = said.partition("settings that")[0]
    assert before.index("needs") < before.index("attempt 1 on ")
    at_default, _, after = rest.partition("\n\n")
    assert "train.optimizer adamw" in " ".join(at_default.split())
    assert "train.lr" not in at_default
    assert "24 B  checkpoints/step-00000010.ckpt" in after
    assert re.search(r"attempts/  \d files", after)
    assert re.search(r" B  records  \d files\n", after)
    assert not re.search(r"trainer\.lock|\.json", after)


def test_of_a_run_that_failed_the_traceback_and_what_to_do(made: Plan, root: Path) -> None:
    run_dir = RunDir(root, made.runs[2].id)
    fabricated.rank_failed(run_dir.attempt(1), 1)
    result = CliRunner().invoke(main, ["show", run_dir.id])
    assert "  state       failed: rank 1, step 7: ValueError: no; nothing is saved yet\n" in result.stdout
    assert "\n      ValueError: no\n" in result.stdout
    assert result.stderr.endswith("next: kdcluster submit tiny --procs 2 --retry\n")


def test_of_a_run_that_waits_what_it_needs(made: Plan, root: Path) -> None:
    teacher, _, _, distilled = made.runs
    said = say("show", distilled.id)
    assert f"  needs       {teacher.id} (done, 50.00 %)\n" in said
    assert "  needed by   no run that is here\n" in said
    assert "\nno attempt yet\n" in said
    attempt = started(RunDir(root, distilled.id), agent=fabricated.LIVE)
    attempt.write("heartbeat", fabricated.BEAT)
    assert "none yet: epoch 3 of 10, step 30 of 100; best test/top1 so far 41.25 %\n" in say("show", distilled.id)


def test_show_in_json(made: Plan, root: Path) -> None:
    teacher, store, _, distilled = made.runs
    found = document("show", teacher.id)
    assert (found["schema"], found["id"], found["state"]) == ("kdcluster.show/1", teacher.id, "done")
    assert found["settings"]["train.lr"] == {"value": 0.5, "default": 0.0003, "is_default": False, "hashed": True}
    assert found["settings"]["resources.gpus"]["hashed"] is False
    assert (found["needs"], found["needed_by"]) == ([], [distilled.id, store.id])
    assert [one["attempt"] for one in found["attempts"]] == [1]
    assert found["result"]["best"]["test/top1"] == 50.0
    assert {"path": "config.yaml", "bytes": RunDir(root, teacher.id).config.stat().st_size} in found["files"]
    assert document("show", distilled.id)["needs"] == [{"id": teacher.id, "state": "done", "best_top1": 50.0}]


def test_a_damaged_run_is_shown_with_what_is_wrong(made: Plan, root: Path) -> None:
    run_dir = RunDir(root, made.runs[3].id)
    run_dir.config.write_text("id: [\n")
    assert "  wrong       its config.yaml is damaged" in say("show", run_dir.id)
    assert "its config.yaml is damaged" in document("show", run_dir.id)["reason"]


def test_numbers_that_json_has_not(made: Plan, root: Path) -> None:
    """A run may diverge, and somebody may edit a config.yaml."""
    run_dir = RunDir(root, made.runs[0].id)
    last = {"epoch": 1, "step": 10, "test/top1": 10.0, "test/loss": float("nan")}
    fabricated.publish(run_dir, 10.0, 1, last=last)
    text = run_dir.config.read_text()
    run_dir.config.write_text(
        text.replace("patch_size: 8", "patch_size: .nan").replace("depth: 1", "depth: 2026-11-28")
    )
    found = document("show", run_dir.id)
    assert found["result"]["last"]["test/loss"] is None
    assert found["settings"]["model_args.patch_size"]["value"] == ".nan"
    assert found["settings"]["model_args.depth"]["value"] == "2026-11-28"
    assert differing(run_dir.id, made.runs[2].id)["model_args.patch_size"] == (".nan", 8)


def test_an_experiment_and_what_is_not_there(made: Plan) -> None:
    assert say("show", "tiny", code=2) == "tiny is an experiment; show takes one of its runs: kdcluster status tiny\n"
    assert "no run 'zzz' in " in say("show", "zzz", code=5)


def test_who_needs_a_run_is_told_without_reading_every_config(
    made: Plan, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, store, _, distilled = (RunDir(root, run.id) for run in made.runs)
    read: list[str] = []
    known = RunDir.known

    def noted(run_dir: RunDir) -> tuple[Run, str]:
        read.append(run_dir.id)
        return known(run_dir)

    monkeypatch.setattr(RunDir, "known", noted)
    assert needing([teacher], root) == {teacher.id: [distilled, store]}
    assert read == [distilled.id, store.id]
    odd = teacher.path.rename(root / "kept")
    assert needing([RunDir(root, "kept"), teacher], root) == {odd.name: [], teacher.id: [distilled, store]}


def test_of_a_store_how_many_views_it_holds(made: Plan, root: Path) -> None:
    """It has no accuracy, where the results of others have one."""
    store, distilled = made.runs[1], made.runs[3]
    assert "  result      2 views stored; 7 parameters\n" in say("show", store.id)
    assert document("show", store.id)["result"]["views"] == 2
    said = say("diff", store.id, made.runs[0].id)
    assert re.search(r"^best test/top1  +– +50\.00 %$", said, re.MULTILINE), said
    assert differing(store.id, "tiny") == {}
    said = say("diff", store.id, "tiny", "--set", "distill.logits=computed", code=2)
    assert said.endswith(f" has no run of the role teacher-logits, as {store.id} is one; name another run\n")
    assert "has no run of the role distilled" in say("diff", distilled.id, "tiny", "--set", "distill.alpha=0", code=2)


# diff


def differing(*names: str) -> Mapping[str, tuple[Any, Any]]:
    return {one["key"]: (one["a"], one["b"]) for one in document("diff", *names)["differences"]}


def test_two_runs_side_by_side(made: Plan) -> None:
    _, _, baseline, distilled = made.runs
    said = say("diff", baseline.id, distilled.id).splitlines()
    assert said[:4] == [f"A  {baseline.id}", f"B  {distilled.id}", "", said[3]]
    assert said[3].split() == ["A", "B"]
    rows = {line.split()[0]: line.split()[1:] for line in said[4:]}
    assert rows["role"] == ["baseline", "distilled"]
    assert rows["distill.alpha"] == ["–", "0.5"]
    assert rows["state"] == ["failed", "planned"]
    assert "train.lr" not in rows
    assert re.fullmatch(r"\d+ keys of both are the same", said[-1])


def test_of_students_of_two_teachers_how_these_differ(made: Plan, root: Path) -> None:
    other = plan([load("tiny", ["teacher.train.lr=0.25", "train.epochs=3"])])
    for run in other.runs:
        put(root, run, "planned")
    found = differing(made.runs[3].id, other.runs[3].id)
    assert found.pop("teacher") == (made.runs[0].id, other.runs[0].id)
    assert found == {"train.epochs": (2, 3), "teacher.train.lr": (0.5, 0.25)}


def test_the_content_of_a_file_counts_and_not_its_path(root: Path) -> None:
    for name in "ab":
        (root.parent / name).mkdir()
        (root.parent / name / "mine.py").write_text("")
        write_experiment(root.parent / name, {"imports": ["mine.py"]}, name)
    paths = [f"{name}/{name}.yaml" for name in "ab"]
    assert list(differing(*paths)) == ["imports"]
    assert re.search(r"^imports .* \(not in the id\)$", say("diff", *paths), re.MULTILINE)
    (root.parent / "b" / "mine.py").write_text("1\n")
    assert list(differing(*paths)) == ["imports (content)", "imports"]


def test_what_has_come_of_two_experiments(made: Plan, root: Path) -> None:
    """The key in which they differ was shown, and not what it did."""
    put(root, made.runs[-1], "done")
    outcome = document("diff", "tiny", "--set", "distill.alpha=0.75")["outcome"]
    assert outcome == [{"key": "distilled, best test/top1", "a": "50.00 % (1 of 1)", "b": None}]


def test_two_experiments(empty_folder: Path) -> None:
    found = document("diff", "exp1", "exp2")
    assert found["schema"] == "kdcluster.diff/1"
    assert found["differences"][0]["key"] == "student.model"
    assert [one["hashed"] for one in found["differences"]] == [True, False, False]
    assert say("diff", "exp1", "exp2").splitlines()[-1].startswith("both want teacher-logits-vit_base_patch16_224-s0-")
    assert "\nno key differs\n" in say("diff", "exp1", "exp1")
    (empty_folder / "x.yaml").write_text(
        "data: {name: cifar10}\nteacher: {model: a, train: {lr: 1}}\nstudent: {model: b}\n"
    )
    (empty_folder / "y.yaml").write_text(
        "data: {name: cifar10}\nteacher: {model: a}\nstudent: {model: b}\ntrain: {lr: 1}\n"
    )
    assert differing("x.yaml", "y.yaml") == {"teacher.train.lr": (1.0, None), "train.lr": (0.0003, 1.0)}


def test_a_run_against_an_experiment_is_against_its_run_of_the_same_role_and_seed(made: Plan, root: Path) -> None:
    """The file was edited, and `status` shows other runs: which key was it?"""
    path = root.parent / "configs" / "tiny.yaml"
    path.write_text(path.read_text().replace("lr: 0.5", "lr: 0.25"))
    assert differing(made.runs[2].id, "tiny") == {"train.lr": (0.5, 0.25)}
    found = differing("tiny", made.runs[3].id)
    assert found["train.lr"] == (0.25, 0.5)
    assert found["teacher"][1] == made.runs[0].id
    said = say("diff", made.runs[2].id, "tiny").splitlines()
    assert said[1].endswith(", the baseline run of tiny with seed 0")


def test_an_experiment_against_itself_as_the_command_line_sets_it(made: Plan) -> None:
    assert differing("tiny", "--set", "train.epochs=7") == {"train.epochs": (2, 7)}
    said = say("diff", "tiny", "--set", "train.epochs=7", "--seeds", "1").splitlines()
    assert said[0] == "A  tiny (configs/tiny.yaml)"
    assert said[1] == "B  tiny (configs/tiny.yaml) --set train.epochs=7 --set 'seeds=[1]'"
    assert differing("tiny", "tiny", "--set", "train.epochs=7") == {}
    assert differing(made.runs[2].id, "tiny", "--set", "train.epochs=7") == {"train.epochs": (2, 7)}
    assert "--seeds are of an experiment" in say("diff", made.runs[2].id, "--set", "train.epochs=7", code=2)


def test_an_experiment_alone_is_compared_with_the_defaults(made: Plan) -> None:
    """So that one sees what its file and its recipe say."""
    lines = say("diff", "tiny").splitlines()
    assert lines[:2] == ["A  tiny (configs/tiny.yaml)", "B  the defaults"]
    default = differing("tiny")
    assert default["train.epochs"] == (2, 10)
    assert "train.weight_decay" not in default
    text = Path("configs/tiny.yaml").read_text()
    Path("configs/recipe.yaml").write_text(f"recipe: patient\n{text}")
    found = differing("recipe")
    assert (found["train.weight_decay"], found["train.epochs"]) == ((0.1, 0.01), (2, 10))
    assert found["data.augment.mixup.alpha"] == (1.0, None)


def test_how_good_a_run_is_that_is_going_on(made: Plan, root: Path) -> None:
    running = put(root, plan([load("tiny", ["seeds=[5]"])]).runs[2], "running")
    running.attempt(1).write("heartbeat", {**fabricated.BEAT, "best_top1": 96.2})
    said = say("diff", made.runs[0].id, running.id)
    assert re.search(r"^best test/top1  +\S+ %  +96\.20 % so far$", said, re.MULTILINE), said


def test_what_neither_a_run_nor_an_experiment_is(made: Plan) -> None:
    assert "no experiment 'tinny', neither" in say("diff", "tiny", "tinny", code=5)
    assert f"{made.runs[0].id} is a run: name what it is" in say("diff", made.runs[0].id, code=2)
