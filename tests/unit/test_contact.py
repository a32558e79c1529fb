"""`kdcluster views`: what the models will see, on one sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from kdcluster.cli import main
from kdcluster.train import contact, data, feed
from kdcluster.train.losses import Labels
from kdcluster.train.shown import shown
from tests import tiny

DRAWN = {"crop": {"scale": [0.3, 1]}, "policy": "trivial", "erase": {"probability": 1.0}}


def views(folder: Path, *options: str) -> Result:
    where = ("--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data"))
    return CliRunner().invoke(main, ["views", str(folder / "tiny.yaml"), *where, *options])


def texts(folder: Path, changes: dict[str, Any]) -> list[str]:
    return [one.caption for one in contact.sections(tiny.make_plan(folder, changes).runs)]


def test_a_sheet_of_students_and_teacher(tmp_path: Path) -> None:
    tiny.put_images(tmp_path / "data")
    tiny.write_experiment(tmp_path, {"data.augment": DRAWN, "teacher.augment": {"pad": 2}, "teacher.image_size": 24})
    result = views(tmp_path, "--output", str(tmp_path / "sheet.png"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "sheet.png")]
    assert result.stderr.splitlines() == [
        "What the students see, at 16 px, and the teacher that they learn from, at 24 px",
        "What the teacher is trained on, at 24 px",
    ]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.format, sheet.width) == ("PNG", contact.WIDTH)
        assert sheet.height > 2 * contact.IMAGES * 16


def test_who_sees_the_same_stands_in_one_section(tmp_path: Path) -> None:
    same = "What all models see: the students at 16 px, the teacher at 16 px"
    assert texts(tmp_path, {}) == [same]
    assert texts(tmp_path, {"data.augment": DRAWN}) == [same]
    alone = texts(tmp_path, {"distill.alpha": 0.0, "teacher.augment": {"flip": False}})
    assert alone[1:] == ["What the teacher is trained on, at 16 px"]
    assert texts(tmp_path, {"teacher": {**tiny.VIT, "pretrained": "w.pt", "train": "none"}} | given(tmp_path)) == [
        "What the students see, at 16 px, and the teacher that they learn from, at 16 px"
    ]


def given(folder: Path) -> dict[str, Any]:
    (folder / "w.pt").touch()
    return {}


@pytest.mark.parametrize("augment", [{"pad": 2}, DRAWN], ids=["moved", "drawn"])
def test_its_pixels_are_those_that_training_takes(tmp_path: Path, augment: dict[str, Any]) -> None:
    tiny.put_images(tmp_path / "data")
    runs = tiny.make_plan(tmp_path, {"data.augment": augment, "data.views": 3}).runs
    found = contact.make(runs, tmp_path / "data", tmp_path / "sheet.png")
    index = torch.tensor(found["images"])
    assert len(index) == contact.IMAGES
    run = next(run for run in runs if run.role == "distilled")
    split = feed.to_device(data.open_arrays(run, tmp_path / "data"), "train", feed.HOST)
    assert len(set(split.labels[index].tolist())) == contact.IMAGES
    with Image.open(tmp_path / "sheet.png") as page:
        sheet = np.asarray(page)
    for view in range(3):
        pixels, _ = shown(split, feed.Index.placed(index, feed.HOST), run.data, view, [16])
        for one in contact._levels(pixels[16]):
            tile = one.permute(1, 2, 0).numpy().repeat(7, 0).repeat(7, 1)  # 112 of 16 pixels
            corner = np.argwhere((sheet[: -tile.shape[0], : -tile.shape[1]] == tile[0, 0]).all(-1))
            assert any((sheet[y : y + 112, x : x + 112] == tile).all() for y, x in corner)


def test_mixed_images_say_of_what() -> None:
    half = Labels(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0.25, 1.0]))
    assert list(contact._mixed(half, ["cat", "dog"])) == ["cat: 0.25, dog: 0.75", ""]
    assert list(contact._mixed(Labels(torch.tensor([0])), ["cat"])) == [""]


def test_images_of_few_classes_fill_the_sheet() -> None:
    labels = torch.tensor([0, 1] * 3 + [0] * 20)
    index = contact.chosen(labels, torch.arange(26))
    assert len(set(index.tolist())) == contact.IMAGES
    assert labels[index].tolist().count(1) == 3
    assert len(contact.chosen(labels, torch.arange(3))) == 3


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    tiny.write_experiment(tmp_path)
    result = views(tmp_path, "--output", str(tmp_path / "sheet.png"))
    assert result.exit_code == 1
    assert "run `kdcluster prefetch` for this experiment first" in result.stderr
    assert not (tmp_path / "sheet.png").exists()
    result = views(tmp_path, "--output", "sheet.jpg")
    assert (result.exit_code, result.stderr) == (2, "--output sheet.jpg: a contact sheet is a .png\n")
    tiny.put_images(tmp_path / "data")
    result = views(tmp_path, "--output", str(tmp_path / "none" / "sheet.png"))
    assert result.exit_code == 1
    assert "give another --output" in result.stderr
