"""What plan, submit, results and show say of stores of a teacher's logits; of stores made by hand, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.commands import stores
from kdcluster.files import write_json
from kdcluster.launch import submission
from kdcluster.plan import Plan, Run
from kdcluster.results import table
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from tests import fabricated
from tests.tiny import make_plan, put_images

IMAGES = 500


@pytest.fixture
def root(empty_folder: Path) -> Path:
    put_images(empty_folder / "data", train=IMAGES, test=100)
    return empty_folder / "runs"


def made(root: Path, epochs: int = 4, seeds: str = "0,1,2", **changes: Any) -> Plan:
    return make_plan(root.parent, {"train.epochs": epochs, **changes}, [f"seeds=[{seeds}]"])


def of(plan: Plan, role: str = STORE) -> Run:
    return next(run for run in plan.runs if run.role == role)


def hold(root: Path, run: Run, views: int) -> RunDir:
    """A store with so many views, of which the files are only as large as they have to be."""
    run_dir = fabricated.put(root, run, "planned")
    (run_dir.path / "logits").mkdir(parents=True, exist_ok=True)
    for view in range(views):
        (run_dir.path / "logits" / f"view-{view:05}.npy").write_bytes(bytes(128 + IMAGES * run.num_classes * 2))
    entry = {"crc32c": 1, "device": "cpu", "by": "torch", "tolerance": 0.0}
    manifest = {"schema": "kdcluster.teacher-logits/1", "images": IMAGES, "classes": run.num_classes}
    entries = {str(view): {**entry, "top1": 97.0 + view / 4} for view in range(views)}
    write_json(run_dir.path / "logits" / "manifest.json", {**manifest, "precision": "none", "views": entries})
    return run_dir


def say(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


# plan and submit


@pytest.mark.parametrize(
    ("seeds", "there", "said"),
    [
        ("0,1,2", 0, "; 4 teacher passes, not 12"),
        ("0,1,2", 3, "; 1 teacher pass, not 12"),
        ("0,1,2", 4, "; all there, which saves 12 teacher passes"),
        ("0", 0, "; 4 teacher passes, none for more seeds, students and trials"),
    ],
)
def test_a_store_in_a_line(root: Path, seeds: str, there: int, said: str) -> None:
    plan = made(root, seeds=seeds)
    hold(root, of(plan), there)
    (line,) = stores.told(plan, root, root.parent / "data")
    assert line == f"teacher logits: 4 views of {IMAGES} images, 39.1 KiB{said}"


def test_views_that_come_again_save_more(root: Path) -> None:
    plan = made(root, epochs=8, seeds="0", **{"data.views": 2})
    (line,) = stores.told(plan, root, root.parent / "data")
    assert line.startswith("teacher logits: 2 views of ")
    assert line.endswith("; 2 teacher passes, not 8")


@pytest.mark.parametrize(("val_fraction", "passes"), [(0.0, 19), (0.5, 37)])
def test_passes_of_a_length_in_steps(empty_folder: Path, val_fraction: float, passes: int) -> None:
    """They were counted from `train.epochs`, which such a run does not have."""
    length = {"train": {"steps": 9001, "batch_size": 100}}  # epochs of 500 steps, or of 250 where half is held out
    plan = make_plan(empty_folder, {"data.val_fraction": val_fraction, **length}, ["seeds=[0,1]"])
    (line,) = stores.told(plan, empty_folder / "runs", empty_folder / "data")
    assert line.startswith(f"teacher logits: {passes} views of 50,000 images, ")
    assert line.endswith(f"; {passes} teacher passes, not {2 * passes}")


def test_held_out_images_are_in_the_store_too(root: Path) -> None:
    plan = made(root, **{"data.val_fraction": 0.5})
    assert f"of {IMAGES} images" in stores.told(plan, root, root.parent / "data")[0]


def test_nothing_is_said_where_there_is_no_store(root: Path) -> None:
    for changes in ({"distill.logits": "computed"}, {"distill.alpha": 0.0}):
        assert stores.told(made(root, **changes), root, root.parent / "data") == []
    plan = made(root)
    assert stores.told(plan, root, root.parent / "data", [of(plan, "teacher").id]) == []
    assert len(stores.told(plan, root, root.parent / "data", [of(plan, "distilled").id])) == 1


@pytest.mark.parametrize(("free", "there", "warns"), [(39_999, 0, True), (40_000, 0, False), (10_000, 3, False)])
def test_a_disk_that_would_not_hold_what_is_missing(root, monkeypatch, free, there, warns) -> None:
    plan = made(root)
    hold(root, of(plan), there)
    asked = []

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    _, *warnings = stores.told(plan, root, root.parent / "data")
    assert asked == [root]
    assert bool(warnings) == warns
    for warning in warnings:
        assert warning.startswith(f"warning: the teacher's logits need 39.1 KiB more, and {root} has 39.1 KiB free")
        assert all(words in warning for words in ("data.views=N", "distill.logits=computed", "--runs-dir"))


def test_a_runs_directory_that_is_not_there_yet(root: Path) -> None:
    assert len(stores.told(made(root), root / "not" / "yet", root.parent / "data")) == 1


def test_plan_in_json(root: Path) -> None:
    made(root)
    document = json.loads(say("plan", "tiny.yaml", "--json"))
    for row in document["runs"]:
        known = (4, 4 * IMAGES * 10 * 2) if row["role"] == STORE else (None, None)
        assert (row["views"], row["bytes"]) == known
        assert bool(row["after"]) == (row["role"] == "distilled")
    assert any(note.startswith("teacher logits: 4 views of") for note in document["notes"])
    assert "teacher logits: 4 views of" in say("plan", "tiny.yaml")


def test_submit_says_it_before_it_starts_anything(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(root)
    said = CliRunner().invoke(main, ["submit", "tiny.yaml", "--dry-run"], catch_exceptions=False)
    assert said.stderr.count("teacher logits: 4 views of") == 1

    def looked_at(plan: Plan, root: Path, data: Path, place: Any, prepare: Any, **_: Any) -> None:
        prepare(list(plan.runs))
        raise KeyboardInterrupt

    monkeypatch.setattr(submission, "submit", looked_at)
    monkeypatch.setattr("kdcluster.commands.submit.preflight", lambda *_, **__: None)
    said = CliRunner().invoke(main, ["submit", "tiny.yaml"], catch_exceptions=False)
    assert said.stderr.count("teacher logits: 4 views of") == 1


# results


@pytest.mark.parametrize(
    ("views", "logits", "said"),
    [
        ({"read": 3, "computed": 1}, "stored", "in 1 of 4 epochs"),
        ({"computed": 4}, "stored", "in 4 of 4 epochs"),
        ({"read": 4}, "stored", ""),
        ({"computed": 4}, "computed", ""),
        (None, "stored", ""),
        (4, "stored", ""),
    ],
)
def test_the_table_says_what_students_computed_though_there_was_a_store(root, views, logits, said) -> None:
    plan = made(root, seeds="0", **{"distill.logits": logits})
    for run in plan.runs:
        if run.role != STORE:
            fabricated.publish(fabricated.put(root, run, "done"), 50.0, **({"views": views} if run.distill else {}))
    (experiment,) = table.build(plan, root, "best").experiments
    notes = [note for note in experiment.notes if "computed along the way" in note]
    assert [said in note for note in notes] == ([True] if said else [])


# show


def test_show_says_what_a_store_holds_and_who_reads_it(root: Path) -> None:
    plan = made(root, seeds="0,1")
    run = of(plan)
    hold(root, run, 3)
    for reader in plan.readers(run.id):
        fabricated.put(root, reader, "planned")
    said = " ".join(say("show", run.id).split())
    assert (
        f"holds 3 of 4 views of {IMAGES} images, 10 classes, 29.3 KiB; 97.00 to 97.50 % of the images as labelled; "
        f"made on cpu, precision none, tolerance 0"
    ) in said
    assert f"read by {', '.join(reader.id for reader in plan.readers(run.id))}" in said
    document = json.loads(say("show", run.id, "--json"))
    assert document["logits"] == {
        "views": 3,
        "bytes": 3 * IMAGES * 20,
        "images": IMAGES,
        "classes": 10,
        "precision": "none",
        "devices": ["cpu"],
        "tolerance": 0.0,
        "top1": [97.0, 97.5],
    }
    assert len(document["needed_by"]) == 2


def test_show_of_a_store_without_a_view_and_of_one_that_is_done(root: Path) -> None:
    run = of(made(root))
    fabricated.put(root, run, "planned")
    assert "holds none of 4 views yet" in " ".join(say("show", run.id).split())
    run_dir = hold(root, run, 4)
    known = {"schema": "kdcluster.result/1", "id": run.id, "hash": run.hash, "attempt": 1}
    write_json(run_dir.path / "result.json", {**known, "views": 4, "params": 3})
    assert "4 of 4 views" in " ".join(say("show", run.id).split())
    assert json.loads(say("show", run.id, "--json"))["result"]["views"] == 4


@pytest.mark.parametrize(
    ("logits", "views", "said"),
    [
        ("stored", {"read": 3, "computed": 1}, "logits {} (planned); read in 3 epochs, computed in 1 epoch"),
        ("stored", None, "logits {} (planned)"),
        ("computed", {"computed": 4}, "logits computed in each epoch"),
    ],
)
def test_show_says_where_a_student_takes_the_logits_from(root, logits, views, said) -> None:
    plan = made(root, seeds="0", **{"distill.logits": logits})
    run = of(plan, "distilled")
    fabricated.put(root, of(plan, "teacher"), "done")
    run_dir = fabricated.put(root, run, "done")
    if views:
        fabricated.publish(run_dir, 50.0, views=views)
    assert said.format(run.store) in " ".join(say("show", run.id).split())
    document = json.loads(say("show", run.id, "--json"))
    assert document["after"] == ([{"id": run.store, "state": "planned"}] if run.store else [])
