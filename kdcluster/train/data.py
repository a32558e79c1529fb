"""Decoded images on disk, made once and mapped into memory, and the batches taken from them.

    <data_dir>/arrays/<name>[-<digest8>-<size>]/
                   train_images.npy train_labels.npy test_images.npy test_labels.npy
                   meta.json          what they hold, what they were made from, their check sums
    <data_dir>/downloads/             archives as published

Letters: N images of a split, B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import write_json
from kdcluster.inputs import ARRAYS, Images, arrays_folder, fingerprint
from kdcluster.plan import Run
from kdcluster.train import decode, sources, stored
from kdcluster.train.pixels import Pixels
from kdcluster.train.pool import Lost
from kdcluster.train.sources import Labels

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")
_FILES = tuple(f"{split}_{what}" for split in SPLITS for what in ("images", "labels"))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrays:
    """A data set's decoded images, mapped read-only: all processes of a machine share the pages."""

    folder: Path
    images: Mapping[SplitName, Pixels]
    """uint8 (N, C, H, W)"""
    labels: Mapping[SplitName, Labels]
    """int64 (N,)"""
    classes: tuple[str, ...]
    image_rule: str
    """In words, what was done to the images' size."""
    seen: Images
    """The same for people; its training images are those that are left when some are held out."""
    noted: Mapping[str, int] = field(default_factory=dict)
    """For trainer.json: how many broken images were left out, and how many test images are training images, too."""


def prepare(run: Run, data_dir: Path, *, verify: bool = False) -> Arrays:
    """The run's images, decoded first if they are not there; any number of processes may ask at once.

    Args:
        run: says which data.
        data_dir: the folder of data sets.
        verify: also compare the check sum of every byte.

    Raises:
        ConfigError: a package or a folder is missing, or the folder's images have changed since the plan.
        KdclusterError: no internet, a broken image, a damaged folder, a full disk, a file system
            without locks.
    """
    folder = arrays_folder(run, data_dir)
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _build_lock(folder):
                if not folder.exists():  # else another process made it while this one waited
                    _build(run, folder, data_dir / "downloads")
        except OSError as error:
            raise KdclusterError(f"cannot prepare {folder}: {error}") from error
    arrays = open_arrays(run, data_dir)
    if verify:
        _verify(folder)
    return arrays


def open_arrays(run: Run, data_dir: Path) -> Arrays:
    """The run's images as `prepare` left them; downloads nothing and writes nothing.

    Raises:
        KdclusterError: they are not there, are damaged, or are not what the run wants.
    """
    folder = arrays_folder(run, data_dir)
    if not folder.exists():
        raise KdclusterError(f"no decoded images in {folder}; run `kdcluster prefetch` for this experiment first")
    meta = stored.meta(folder)
    if meta["fingerprint"] != fingerprint(run):
        raise stored.damaged(folder, f"made from {meta['fingerprint']!r}, but the run wants {fingerprint(run)!r}")
    files = {name: stored.mapped(folder, name, meta) for name in _FILES}
    for split in SPLITS:
        images, labels = files[f"{split}_images"], files[f"{split}_labels"]
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == run.channels
        if not fits or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise stored.damaged(folder, f"{split} holds {images.dtype}{images.shape} and {labels.dtype}{labels.shape}")
        if labels.min() < 0 or labels.max() >= run.num_classes:
            raise stored.damaged(folder, f"{split}_labels.npy has labels outside 0 to {run.num_classes - 1}")
    return Arrays(
        folder,
        {split: files[f"{split}_images"] for split in SPLITS},
        {split: files[f"{split}_labels"] for split in SPLITS},
        tuple(meta["classes"]),
        meta["image_rule"],
        Images.stored(meta, run.num_classes, run.data),
        {
            "images_skipped": sum(map(len, meta.get("skipped", {}).values())),
            "images_in_both": (meta.get("in_both") or {"count": 0})["count"],
        },
    )


@contextmanager
def _build_lock(folder: Path) -> Iterator[None]:
    """Held by the one process that may build `folder`; free at once when that process dies."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that prepares %s", folder)
            lock.acquire()
    except OSError as error:
        raise KdclusterError(
            f"cannot lock {lock.lock_file} ({error}), and without a lock two processes could build at once; "
            f"take a --data-dir on a file system with locks, or copy {folder} from a machine that prepared it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(run: Run, folder: Path, downloads: Path) -> None:
    """Decode into a folder beside and rename it; the caller holds the lock."""
    aside = folder.with_name(f".{folder.name}.aside")
    scratch = aside / "scratch"
    aside.mkdir(exist_ok=True)
    for left in aside.iterdir():  # by a builder that was killed, since the lock is ours
        if left.is_dir():
            shutil.rmtree(left)
        elif left.suffix != decode.MARKS and not left.match("*_images.npy"):
            left.unlink()
    scratch.mkdir()
    try:
        source = sources.open_source(run.data, downloads, scratch)
        path = run.data.path
        if path is not None and source.digest != run.digests[path]:
            raise ConfigError(f"data.path: the images in {path} have changed since this run was planned; plan again")
        log.info("writing the decoded images to %s", folder)
        digests = {split: stored.write_part(aside, split, part) for split, part in source.parts.items()}
        shutil.rmtree(scratch)
        for marks in aside.glob(f"*{decode.MARKS}"):
            marks.unlink()
        arrays = {name: np.load(aside / f"{name}.npy", mmap_mode="r") for name in _FILES}
        meta = {
            "schema": ARRAYS,
            "fingerprint": fingerprint(run),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "dtypes": {name: str(array.dtype) for name, array in arrays.items()},
            "num_classes": len(source.classes),
            "classes": source.classes,
            "image_rule": source.image_rule,
            **_looked_through(source, digests),
            "crc32c": {name: stored.crc32c(aside / f"{name}.npy", sync=True) for name in _FILES},
        }
        write_json(aside / "meta.json", meta)
        aside.rename(folder)
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt | Lost) and any(aside.glob(f"*{decode.MARKS}"))):
            shutil.rmtree(aside, ignore_errors=True)
        raise


def _looked_through(source: sources.Source, digests: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
    """Of an image folder: what was left out, and how many of the test images are training images, too."""
    if not source.digest:
        return {}
    same = decode.in_both(digests["train"], digests["test"])
    names = {split: part.names for split, part in source.parts.items()}
    example = [names[split][place] for split, place in zip(("test", "train"), same[0], strict=True)] if same else []
    return {"skipped": source.skipped, "in_both": {"count": len(same), "example": example}}


def _verify(folder: Path) -> None:
    known = stored.meta(folder)["crc32c"]
    wrong = [name for name in _FILES if stored.crc32c(folder / f"{name}.npy") != known.get(name)]
    if wrong:
        raise stored.damaged(folder, f"the check sum of {', '.join(f'{name}.npy' for name in wrong)} is wrong")
