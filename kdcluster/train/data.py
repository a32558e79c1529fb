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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import write_json
from kdcluster.inputs import ARRAYS, Images, arrays_folder, fingerprint
from kdcluster.plan import Run
from kdcluster.train import decode, sources, stored
from kdcluster.train.losses import UNLABELLED
from kdcluster.train.pixels import Pixels
from kdcluster.train.pool import Lost
from kdcluster.train.sources import Labels

SplitName = Literal["train", "test"]
HOST = torch.device("cpu")
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


@dataclass(frozen=True)
class Split:
    """One split as training takes batches from it."""

    images: Tensor
    """uint8 (N, C, H, W), on `device`, or mapped on the host where the device has no room. Never write to it:
    on the CPU it is the file, read-only."""
    labels: Tensor
    """int64 (N,) on `device`; UNLABELLED where there is none"""
    device: torch.device
    resident: bool = True
    """Whether the images are on `device`."""


@dataclass(frozen=True)
class Index:
    """Which images, on the host and on the device. A batch's is a slice of an epoch's, which went there in one copy:
    one copy a batch, from memory that is not pinned, made the host wait for the device in every step (5,416 of 7,225
    images/s, ViT-Tiny on an H100)."""

    host: Tensor
    """int64 (N,)"""
    device: Tensor
    """The same."""

    @classmethod
    def placed(cls, index: Tensor, device: torch.device) -> Index:
        """An index on the host, there and on `device`."""
        if device == HOST:
            return cls(index, index)
        return cls(index, index.pin_memory().to(device, non_blocking=True))

    def __getitem__(self, part: slice) -> Index:
        return Index(self.host[part], self.device[part])

    def __len__(self) -> int:
        return len(self.host)


def to_device(arrays: Arrays, split: SplitName, device: torch.device, *, budget_bytes: int | None = None) -> Split:
    """A split for training on `device`: there as a whole if it fits, else batch by batch from the host.

    Args:
        arrays: what `open_arrays` found.
        split: train or test.
        device: where batches are wanted. On the CPU nothing is copied in either case.
        budget_bytes: most bytes of images to hold on the device; None: half of what a GPU has free.
    """
    images, labels = _tensor(arrays.images[split]), _tensor(arrays.labels[split])
    if budget_bytes is None:
        gpu = device.type == "cuda"
        budget_bytes = torch.cuda.mem_get_info(device)[0] // 2 if gpu else images.nbytes  # gpu: first branch
    resident = device == HOST or images.nbytes <= budget_bytes
    return Split(images.to(device) if resident else images, labels.to(device), device, resident)


def only_labels_of(split: Split, known: Tensor) -> Split:
    """The same images with the labels of some; all others are UNLABELLED, so that nothing can learn from them.

    Args:
        split: from `to_device`.
        known: int64 (K,) on the CPU, the images that keep their labels.
    """
    known = known.to(split.device)
    labels = torch.full_like(split.labels, UNLABELLED)
    labels[known] = split.labels[known]
    return replace(split, labels=labels)


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # True, and meant: a write would end the process, and nothing writes (see Split).
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def gather(split: Split, index: Index) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch, on the split's device, without waiting for it.

    Args:
        split: from `to_device`.
        index: of B images, which may be 0; placed on the split's device.

    Returns:
        uint8 (B, C, H, W) and int64 (B,), copies of what the split holds.
    """
    labels = split.labels.index_select(0, index.device)
    if split.resident:
        return split.images.index_select(0, index.device), labels
    # From pinned memory, which the copy needs to run beside the computation; torch keeps and reuses it.
    batch = torch.empty((len(index), *split.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
    torch.index_select(split.images, 0, index.host, out=batch)
    return batch.to(split.device, non_blocking=True), labels


def share(n: int, rank: int, world: int) -> range:
    """Which of n items are a rank's: neighbours, as evenly as can be, the first ranks take what is left over.

    Each item is exactly one rank's. Rank 0 has some unless n is 0; later ranks may have none.
    """
    each, over = divmod(n, world)
    start = rank * each + min(rank, over)
    return range(start, start + each + (rank < over))
