"""Image folders as people have them: what is an image, a class and a split, and what is said of the rest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcluster import imagefolder
from kdcluster.cli import main
from kdcluster.errors import ConfigError
from kdcluster.imagefolder import LAYOUT, look
from kdcluster.runs import RunDir
from tests.tiny import make_plan, write_experiment


def images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return root


def pets(root: Path, test: str = "test") -> Path:
    return images(root, *(f"{split}/{name}/a.png" for split in ("train", test) for name in ("cat", "dog")))


def problem(root: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        look(root)
    return str(caught.value)


# Images, classes, and the digest that the runs' ids are made of


def test_classes_and_images_are_sorted(tmp_path: Path) -> None:
    names = ("dog/b.JPG", "dog/a.png", "cat/deep/c.webp", ".hidden/x.png")
    found = look(images(pets(tmp_path), *(f"train/{name}" for name in names)))
    assert found.classes == ("cat", "dog")
    assert found.images["train"] == (
        *("train/cat/a.png", "train/cat/deep/c.webp"),
        *("train/dog/a.png", "train/dog/b.JPG"),
    )
    assert found.notes == ()


def test_a_class_may_be_a_link(tmp_path: Path) -> None:
    images(tmp_path / "store" / "cats", "a.png")
    root = images(tmp_path / "pets", "train/dog/a.png", "test/dog/a.png")
    for split in ("train", "test"):
        (root / split / "cat").symlink_to(tmp_path / "store" / "cats")
    assert look(root).classes == ("cat", "dog")
    assert look(root).images["test"] == ("test/cat/a.png", "test/dog/a.png")


def test_the_digest_is_that_of_all_names_and_sizes(tmp_path: Path) -> None:
    """As runs of earlier versions have it: images in other sub-folders count, too, other files do not."""
    root = images(pets(tmp_path), "val/cat/b.png", "more/c.png", "train/cat/notes.txt", ".git/d.png")
    names = sorted(
        ["more/c.png", "val/cat/b.png", *(f"{s}/{c}/a.png" for s in ("train", "test") for c in ("cat", "dog"))]
    )
    assert look(root).digest == hashlib.sha256("".join(f"{name}\0005\n" for name in names).encode()).hexdigest()


def test_the_digest_does_not_depend_on_the_order_of_the_disk(tmp_path: Path) -> None:
    one = images(tmp_path / "one", "train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")
    two = images(tmp_path / "two", "test/dog/d.png", "test/cat/c.png", "train/dog/b.png", "train/cat/a.png")
    assert look(one).digest == look(two).digest
    images(two, "test/dog/c.png")
    assert look(one).digest != look(two).digest


def test_a_name_that_is_not_utf_8_has_a_digest_too(tmp_path: Path) -> None:
    root = pets(tmp_path)
    try:
        (root / "train" / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert len(look(root).digest) == 64


# Which folder plays which role


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_imagenets_layout_is_understood_and_said(tmp_path: Path, name: str) -> None:
    found = look(pets(tmp_path, test=name))
    assert found.folders == {"train": "train", "test": name}
    assert found.images["test"] == (f"{name}/cat/a.png", f"{name}/dog/a.png")
    assert found.notes == (f"{name}/ is what is tested on, since test/ is not there",)


def test_imagenets_test_images_have_no_classes(tmp_path: Path) -> None:
    found = look(images(pets(tmp_path, test="val"), "test/a.png"))
    assert found.folders["test"] == "val"
    assert found.notes == ("val/ is what is tested on, since test/ has no class folders",)


def test_test_goes_before_val_and_that_is_said(tmp_path: Path) -> None:
    found = look(images(pets(tmp_path), "val/cat/b.png", "val/dog/b.png"))
    assert found.images["test"] == ("test/cat/a.png", "test/dog/a.png")
    assert found.notes == (
        "val/ is not used: test/ is tested on; data.val_fraction holds out validation images from train/",
    )


def test_two_kinds_of_val_are_not_guessed_at(tmp_path: Path) -> None:
    root = images(pets(tmp_path, test="val"), "valid/cat/b.png")
    assert problem(root) == (
        f"val/ and valid/ stand in {root}, and no test/: which is to be tested on? Rename that one to test/"
    )


# What is refused


def test_what_is_no_image_folder(tmp_path: Path) -> None:
    assert problem(tmp_path) == f"no such folder: {tmp_path}/train ({LAYOUT})"
    images(tmp_path, "train/cat/a.png", "train/dog/a.png")
    assert problem(tmp_path) == f"no such folder: {tmp_path}/test ({LAYOUT})"
    images(tmp_path, "test/cat/notes.txt", "test/cat/b.heic")
    assert problem(tmp_path).startswith(f"no images below {tmp_path}/test, but 1 .heic, 1 .txt; images are .jpg .jpeg")
    images(tmp_path, "test/cat/a.png", *(f"test/{name}/a.png" for name in "bcdefg"))
    assert problem(tmp_path) == (
        "train/ has 2 classes and test/ has 7; only in train/: dog; only in test/: b, c, d, e, f and 1 more"
    )
    images(tmp_path, "test/dog/a.png", *(f"train/{name}/a.png" for name in "bcdefg"))
    assert look(tmp_path).classes == (*"bc", "cat", "d", "dog", *"efg")


def test_images_outside_the_class_folders(tmp_path: Path) -> None:
    root = images(pets(tmp_path), "test/x.png", "test/y.png")
    assert problem(root) == f"{root}/test/x.png lies outside the class folders (2 images do); move it into one"


def test_a_class_that_is_empty_in_both_splits(tmp_path: Path) -> None:
    """It would shift the labels of those behind it and leave the id as it is."""
    root = pets(tmp_path)
    for split in ("train", "test"):
        (root / split / "bird").mkdir()
    images(root, "train/bird/._a.png")
    assert problem(root) == (
        "1 class folder without an image in train/ and in test/: bird; delete the folder, or put its images there"
    )


def test_a_class_that_is_empty_in_one_split_is_said(tmp_path: Path) -> None:
    root = images(pets(tmp_path), "train/bird/a.png")
    (root / "test" / "bird").mkdir()
    assert look(root).notes == ("no images in test/ of 1 class: bird",)


def test_a_single_class_is_nothing_to_learn(tmp_path: Path) -> None:
    root = images(tmp_path, "train/cat/a.png", "test/cat/a.png")
    assert problem(root) == "there is a single class, cat: nothing is to be told apart; two are the least"


# What is left out


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """A Mac leaves ._a.png beside a.png on a foreign disk, and __MACOSX in a zip."""
    root = pets(tmp_path / "one")
    found = look(images(root, "train/cat/._a.png", "train/cat/.DS_Store", "train/.x/b.png", "__MACOSX/train/cat/b.png"))
    assert found.digest == look(pets(tmp_path / "two")).digest
    assert found.images["train"] == ("train/cat/a.png", "train/dog/a.png")
    what = "left out of train/ and test/: {} (images are "
    assert [note.partition(".jpg")[0] for note in found.notes] == [what.format("1 hidden (train/cat/._a.png)")]
    (note,) = look(images(root, "test/dog/.b.png")).notes
    assert note.startswith(what.format("2 hidden (as test/dog/.b.png)"))


def test_other_kinds_of_files_are_counted(tmp_path: Path) -> None:
    names = ("train/cat/b.heic", "train/dog/b.HEIC", "test/cat/b.avif", "train/labels.txt", "train/cat/LICENSE")
    (note,) = look(images(pets(tmp_path), *names, "readme.txt")).notes
    assert note == (
        "left out of train/ and test/: 2 .heic, 1 .avif, 1 .txt, 1 without suffix "
        "(images are .jpg .jpeg .png .bmp .ppm .webp .tif .tiff)"
    )


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets")
    before = look(root)
    (root / "train" / "cat" / "again").symlink_to(root / "train")
    (root / "train" / "dog" / "self").symlink_to(".")
    found = look(root)
    assert (found.images, found.digest) == (before.images, before.digest)
    assert found.notes == ("not followed, since it leads back to a folder above it: train/cat/again, train/dog/self",)


def test_what_cannot_be_read_beside_the_splits_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lost+found of a disk; in a split it is an error."""
    root = images(pets(tmp_path), "lost+found/a.png")
    scandir = os.scandir
    shut = "lost+found"

    def guarded(folder: str) -> object:
        if Path(folder).name == shut:
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert look(root).classes == ("cat", "dog")
    shut = "dog"
    with pytest.raises(PermissionError):
        look(root)


# Walked once in a command


@pytest.fixture
def walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every folder that is read, in a working directory with three experiments on the same images."""
    monkeypatch.chdir(tmp_path)
    root = pets(tmp_path / "pets")
    (tmp_path / "configs").mkdir()
    data = {"name": "image_folder", "path": str(root), "image_size": 16}
    for name in ("one", "two", "three"):
        few = {"data": data, "train.batch_size": 2}
        write_experiment(tmp_path / "configs", {**few, "sweep": {"trials": 4}}, name=name)
        run = make_plan(tmp_path, {**few, "variant": name}).runs[-1]
        RunDir(tmp_path / "runs", run.id).prepare(run)
    found: list[str] = []
    scandir = os.scandir

    def counted(folder: str) -> object:
        if str(folder).startswith(str(root)):
            found.append(str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "one"),
        ("plan", "one", "two", "three"),
        ("sweep", "one", "--dry-run"),
        ("status",),
        ("status", "one", "two"),
        ("results", "one", "two"),
        ("submit", "one", "--dry-run"),
    ],
    ids=" ".join,
)
def test_a_command_walks_the_images_once(walks: list[str], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert len(walks) == 7  # pets, train and test, and two classes in each
    assert len(set(walks)) == len(walks)
    assert CliRunner().invoke(main, words).exit_code == 0
    assert len(walks) == 14  # the next command looks again


def test_outside_of_a_command_each_look_is_new(tmp_path: Path) -> None:
    root = pets(tmp_path)
    with imagefolder.looked_at_once():
        first = look(root)
        images(root, "train/cat/b.png")
        assert look(root) is first
    assert look(root) != first
