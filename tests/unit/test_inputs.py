"""What the models will see, in one line, from a plan to a log; and what timm alone knows, remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from kdcluster import inputs
from kdcluster.cli import main
from kdcluster.inputs import Eye, Images, line, told
from kdcluster.train import data
from tests.tiny import CNN, make_plan, put_images, train_here, write_experiment

SMALL = {"model": "test_vit", "image_size": 32}
IMAGES = Images(10, {"train": 4000, "test": 1000}, (28, 28))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(root: Path, *, train: int = 3, test: int = 2, size: int = 28) -> Path:
    """An image folder with two classes and so many images in each, all different."""
    random = np.random.RandomState(0)
    for split, number in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = random.randint(0, 256, (size, size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def run(*words: str) -> Result:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return result


# Labels


def test_how_many_have_labels_stands_in_the_line(tmp_path: Path) -> None:
    changes = {"data": {"name": "mnist5k", "labelled": 500, "val_fraction": 0.1}, "train": {"steps": 400}}
    (seen,) = told(make_plan(tmp_path, changes).runs, tmp_path)
    assert seen.line.startswith("10 classes, 3,600 train (500 with labels, 3,100 without), 400 val, 1,000 test, 28")
    assert seen.warnings == ()


def test_more_labels_than_images_are_refused_in_a_plan(folder: Path) -> None:
    write_experiment(folder, {"data": {"name": "mnist5k", "labelled": 3601, "val_fraction": 0.1}})
    result = CliRunner().invoke(main, ["plan", "tiny.yaml"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "data.labelled: there are 3,600 training images beside 400 that are held out, not 3,601; take fewer, or null "
        "for all"
    ]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"val_fraction": 0.12},
            "data.val_fraction: 0.12 of 4,000: images are mixed with others of the same 5 %, which it would cut; take "
            "0.1 or 0.15",
        ),
        (
            {"val_fraction": 0.1, "labelled": 500},
            "data.labelled: 500 of 4,000: images are mixed with others of the same 5 %, which it would cut; take 600 "
            "or 400 or null for all",
        ),
    ],
)
@pytest.mark.parametrize("teacher", [{}, {"augment": {"flip": False}}])  # its own views are not mixed, or as theirs
def test_a_split_that_cuts_a_stratum_is_refused_in_a_plan_of_mixed_images(
    folder: Path, data: dict[str, float], line: str, teacher: dict[str, Any]
) -> None:
    settings = {"name": "mnist5k", **data, "augment": {"mixup": {}}}
    write_experiment(
        folder, {"data": settings, "train": {"steps": 400}, **{f"teacher.{k}": teacher[k] for k in teacher}}
    )
    result = CliRunner().invoke(main, ["plan", "tiny.yaml"])
    assert (result.exit_code, result.stderr.splitlines()) == (2, [line])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"teacher.train": {"batch_size": 4001}},
            "train.batch_size: 4,001 is more than the 4,000 images that teacher trains on; take fewer",
        ),
        (
            {"data": {"name": "mnist5k", "labelled": 15}, "train": {"steps": 40, "batch_size": 16}},
            "train.batch_size: 16 is more than the 15 images that teacher trains on; take fewer",
        ),
        (
            {"train": {"epochs": 2, "batch_size": 400, "warmup_steps": 20}, "teacher.train": {"epochs": 3}},
            "train.warmup_steps: 20 leave none of the 20 steps of baseline (2 epochs of 10); take fewer",
        ),
    ],
)
def test_a_batch_or_a_warm_up_that_the_images_do_not_fill_is_refused_in_a_plan(
    folder: Path, changes: dict[str, Any], line: str
) -> None:
    write_experiment(folder, {"data": {"name": "mnist5k"}, **changes})
    result = CliRunner().invoke(main, ["plan", "tiny.yaml"])
    assert (result.exit_code, result.stderr.splitlines()) == (2, [line])


def test_standardised_logits_of_two_classes_are_refused_in_a_plan(folder: Path) -> None:
    block = {"name": "image_folder", "path": str(pictures(folder / "pets"))}
    write_experiment(folder, {"data": block, "train.batch_size": 4, "distill.standardise": True})
    result = CliRunner().invoke(main, ["plan", "tiny.yaml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "distill.standardise: the standardised logits of two classes say which is the first and nothing else; leave it "
        "out\n"
    )


def test_arms_of_unequal_length_are_warned_of(tmp_path: Path) -> None:
    (seen,) = told(make_plan(tmp_path, {"data": {"name": "mnist5k", "labelled": 500}}).runs, tmp_path)
    assert seen.warnings == (
        "an epoch of distilled has more images than one of baseline: train.steps gives both as many steps",
    )


# The line


def test_the_line_says_classes_images_sizes_and_who_sees_what() -> None:
    eyes = [Eye("teacher", "resnet18", 224, 1, False), Eye("student", "test_vit", 160, 16, False)]
    assert line(IMAGES, eyes) == "10 classes, 4,000 train, 1,000 test, 28×28 px; resnet18 sees 224 px, test_vit 160 px"


def test_what_is_not_known_is_not_made_up() -> None:
    eyes = [Eye("teacher", "resnet18", None, 1, False), Eye("student", "resnet18", 28, 1, True)]
    few = Images(2, {"train": 500, "val": 50, "test": 9}, (20, 30), looked_at=64)
    assert line(few, eyes) == (
        "2 classes, 500 train, 50 val, 9 test, 20×30 px (height × width) (64 looked at); "
        "teacher resnet18 sees its default size, student resnet18 28 px"
    )


def test_a_plan_says_it_for_each_data_set(tmp_path: Path) -> None:
    one = make_plan(tmp_path, {"data": {"name": "cifar100", "val_fraction": 0.1}})
    two = make_plan(tmp_path, {"data": {"name": "mnist5k"}, "student": {"model": "test_vit", "image_size": 28}})
    assert [one.line for one in told([*one.runs, *two.runs], tmp_path / "data")] == [
        "cifar100: 100 classes, 45,000 train, 5,000 val, 10,000 test, 32×32 px; vit_tiny_patch16_224 sees 16 px",
        "mnist5k: 10 classes, 4,000 train, 1,000 test, 28×28 px; vit_tiny_patch16_224 sees 16 px, test_vit 28 px",
    ]


def test_who_enlarges_images_without_being_told_to_is_warned_of(tmp_path: Path) -> None:
    made = make_plan(tmp_path, {"data": {"name": "mnist5k"}, "teacher": {"model": "resnet18"}, "student": SMALL})
    (before,) = told(made.runs, tmp_path)
    assert before.notes == (
        "the default size of resnet18, often 224 px, is known once doctor, plan --check, prefetch or submit has built "
        "it; image_size sets another",
    )
    inputs.remember(made.runs[0], 224, 1)
    (after,) = told(made.runs, tmp_path)
    assert after.warnings == (
        "resnet18 enlarges 28 px to 224 px (8 times, about 64 times the work): set teacher.image_size to 28, or to 224 "
        "if that is meant",
    )
    meant = make_plan(tmp_path, {"data": {"name": "mnist5k"}, "teacher": {"model": "resnet18", "image_size": 224}})
    assert told(meant.runs, tmp_path)[0].warnings == ()


def test_the_size_to_set_is_one_that_the_patches_fit(tmp_path: Path) -> None:
    made = make_plan(tmp_path, {"data": {"name": "mnist5k"}, "student": {"model": "test_vit"}})
    inputs.remember(made.runs[-1], 160, 16)
    assert "set student.image_size to 32, or to 160" in told(made.runs, tmp_path)[0].warnings[0]


def test_what_was_learnt_is_of_one_timm_and_of_the_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def size(**changes: Any) -> int | None:
        return inputs.eyes(make_plan(tmp_path, {"student": {"model": "test_vit"}, **changes}).runs)[-1].size

    inputs.remember(make_plan(tmp_path, {"student": {"model": "test_vit"}}).runs[-1], 160, 16)
    (tmp_path / "mine.py").write_text("")
    assert (size(), size(imports=["mine.py"])) == (160, None)
    monkeypatch.setattr(inputs, "version", lambda _: "99")
    assert size() is None


# An image folder, before and after it is decoded


def test_a_folder_that_is_not_decoded_is_looked_into(tmp_path: Path) -> None:
    block, few = {"name": "image_folder", "path": str(pictures(tmp_path / "pets"))}, {"train.batch_size": 4}
    (said,) = told(make_plan(tmp_path, {"data": block, **few}).runs, tmp_path / "data")
    assert said.line == "2 classes, 6 train, 4 test, 28×28 px; vit_tiny_patch16_224 sees 16 px"
    (said,) = told(make_plan(tmp_path, {"data": {**block, "image_size": 40}, **few}).runs, tmp_path / "data")
    assert "40×40 px;" in said.line
    Image.new("RGB", (9, 9)).save(tmp_path / "pets" / "test" / "cat" / "odd.png")
    (said,) = told(make_plan(tmp_path, {"data": block, **few}).runs, tmp_path / "data")
    assert "224×224 px;" in said.line
    assert said.notes == (
        "sizes differ (shorter sides of 9 to 28 px): shorter side resized to 224 px (bicubic, antialias), then "
        "224×224 px cropped at the centre; data.image_size sets another size",
        "half of the training images are mirrored; data.augment.flip: false where left and right matter",
    )


def test_of_a_big_folder_some_images_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SAMPLE", 4)
    block = {"name": "image_folder", "path": str(pictures(tmp_path / "pets"))}
    (said,) = told(make_plan(tmp_path, {"data": block, "train.batch_size": 4}).runs, tmp_path / "data")
    assert "28×28 px (4 looked at);" in said.line


def test_decoded_images_are_known_as_they_are(tmp_path: Path) -> None:
    put_images(tmp_path, train=20, test=10, size=16)
    assert told(make_plan(tmp_path).runs, tmp_path)[0].line.startswith("10 classes, 20 train, 10 test, 16×16 px;")
    (tmp_path / "arrays" / "cifar10" / "meta.json").write_text("{")  # whoever opens them says so
    assert told(make_plan(tmp_path).runs, tmp_path)[0].line.startswith("10 classes, 50,000 train, ")


# Where it is said

LINE = "10 classes, 64 train, 32 test, 16×16 px; test_resnet sees 16 px, vit_tiny_patch16_224 16 px"


def test_plan_and_dry_run_say_it(folder: Path) -> None:
    put_images(folder / "data")
    write_experiment(folder, {"teacher": CNN})
    assert run("plan", "tiny.yaml").stdout.splitlines()[-3] == LINE
    assert json.loads(run("plan", "tiny.yaml", "--json").stdout)["inputs"] == [LINE]
    assert LINE in run("submit", "tiny.yaml", "--dry-run").stderr.splitlines()


def test_a_plan_needs_no_torch_for_it(folder: Path) -> None:
    block = {"name": "image_folder", "path": str(pictures(folder / "pets"))}
    write_experiment(folder, {"data": block, "student": {"model": "test_vit"}, "train.batch_size": 4})
    code = "import sys; from kdcluster.cli import main; main(['plan', 'tiny.yaml'], standalone_mode=False);"
    code += "print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "test_vit its default size" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_and_prefetch_say_it_and_the_plan_knows_it_from_then_on(folder: Path) -> None:
    pictures(folder / "pets")
    (folder / "pets" / "train" / "cat" / "b.heic").touch()
    block = {"name": "image_folder", "path": str(folder / "pets")}
    models = {"teacher": {"model": "test_resnet"}, "student": {"model": "test_vit"}}
    write_experiment(folder, {"data": block, **models, "train.batch_size": 4})
    sees = "test_resnet sees 160 px, test_vit 160 px"
    pixels = "2 classes, 6 train, 4 test, 28×28 px"
    warned = (
        "test_vit enlarges 28 px to 160 px (5.7 times, about 33 times the work): set student.image_size to 32, or to"
    )
    said = run("doctor", "tiny.yaml").stdout
    assert f"ok    images: {pixels}; {sees}\n" in said
    assert f"ok    images: {warned}" in said
    assert "fetched" not in said
    assert f"ok    first: the images in {folder}/pets will be decoded into {folder}/data\n" in said
    for said in (run("plan", "tiny.yaml").stdout, run("prefetch", "tiny.yaml").stderr):
        assert f"{pixels}; {sees}\n" in said
        assert f"warning: {warned}" in said
        assert "note: left out of train/ and test/: 1 .heic (images are " in said


def test_a_log_begins_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_images(tmp_path)
    made = make_plan(tmp_path, {"teacher": CNN, "train.epochs": 1})
    caplog.set_level("INFO", logger="kdcluster")
    train_here(tmp_path / "runs", made.runs[0], tmp_path)
    train_here(tmp_path / "runs", made.runs[-1], tmp_path, max_steps=1)
    said = [record.message for record in caplog.records if "64 train" in record.message]
    assert said == [LINE.partition(", vit")[0], LINE]
    assert caplog.records[0].message == said[0]


def test_a_run_records_how_many_images_were_left_out_and_are_in_both(tmp_path: Path) -> None:
    pets = pictures(tmp_path / "pets", train=10, size=16)
    (pets / "train" / "cat" / "0.png").write_bytes(b"no image")
    (pets / "test" / "cat" / "9.png").write_bytes((pets / "train" / "cat" / "1.png").read_bytes())
    settings = {"name": "image_folder", "path": str(pets), "skip_broken": True}
    made = make_plan(tmp_path, {"data": settings, "train.epochs": 1}).runs[0]
    data.prepare(made, tmp_path / "data")
    newest = train_here(tmp_path / "runs", made, tmp_path / "data").newest()
    assert newest is not None
    trainer = newest.read("trainer")
    assert (trainer["images_skipped"], trainer["images_in_both"]) == (1, 1)
