"""Decoded images on disk, made once and mapped into memory, and the batches taken from them.

    <data_dir>/arrays/<name>[-<digest8>-<size>]/
                   train_images.npy train_labels.npy test_images.npy test_labels.npy
                   meta.json          what they hold, what they were made from, their check sums
    <data_dir>/downloads/             archives as published

Letters: N images of a split, B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdcluster.errors import ConfigError, Damaged, KdclusterError
from kdcluster.files import folder_digest, read_json, write_json
from kdcluster.plan import Run
from kdcluster.train import sources
from kdcluster.train.sources import Labels, Part, Pixels

SCHEMA = "kdcluster.arrays/1"
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
    meta = _meta(folder)
    if meta["fingerprint"] != fingerprint(run):
        raise _damaged(folder, f"made from {meta['fingerprint']!r}, but the run wants {fingerprint(run)!r}")
    files = {name: _mapped(folder, name, meta) for name in _FILES}
    for split in SPLITS:
        images, labels = files[f"{split}_images"], files[f"{split}_labels"]
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == run.channels
        if not fits or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise _damaged(folder, f"{split} holds {images.dtype}{images.shape} and {labels.dtype}{labels.shape}")
        if labels.min() < 0 or labels.max() >= run.num_classes:
            raise _damaged(folder, f"{split}_labels.npy has labels outside 0 to {run.num_classes - 1}")
    return Arrays(
        folder,
        {split: files[f"{split}_images"] for split in SPLITS},
        {split: files[f"{split}_labels"] for split in SPLITS},
        tuple(meta["classes"]),
        meta["image_rule"],
    )


def arrays_folder(run: Run, data_dir: Path) -> Path:
    """Where the run's decoded images lie."""
    name: str = run.data.name
    if run.data.path is not None:
        name += f"-{run.digests[run.data.path][:8]}-{run.data.image_size or 'auto'}"
    return data_dir / "arrays" / name


def fingerprint(run: Run) -> str:
    """What decides the content of the arrays; the number after the slash is raised when a source changes."""
    if run.data.path is None:
        return f"{run.data.name}/1"
    return f"image_folder/1 {run.digests[run.data.path]} {run.data.image_size or 'auto'}"


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
    shutil.rmtree(aside, ignore_errors=True)  # left by a builder that was killed, since the lock is ours
    scratch = aside / "scratch"
    scratch.mkdir(parents=True)
    try:
        source = sources.open_source(run.data, downloads, scratch)
        path = run.data.path
        if path is not None and folder_digest(Path(path)) != run.digests[path]:
            raise ConfigError(f"data.path: the images in {path} have changed since this run was planned; plan again")
        log.info("writing the decoded images to %s", folder)
        for split, part in source.parts.items():
            _write_part(aside, split, part)
        shutil.rmtree(scratch)
        arrays = {name: np.load(aside / f"{name}.npy", mmap_mode="r") for name in _FILES}
        meta = {
            "schema": SCHEMA,
            "fingerprint": fingerprint(run),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "dtypes": {name: str(array.dtype) for name, array in arrays.items()},
            "num_classes": len(source.classes),
            "classes": source.classes,
            "image_rule": source.image_rule,
            "crc32c": {name: _crc32c(aside / f"{name}.npy", sync=True) for name in _FILES},
        }
        write_json(aside / "meta.json", meta)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write_part(folder: Path, split: str, part: Part) -> None:
    np.save(folder / f"{split}_labels.npy", part.labels)
    path = folder / f"{split}_images.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, part.shape)
    with path.open("rb+") as file:
        # A full disk then says so here; a page that cannot be written later would kill the process (SIGBUS).
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    part.write(images)
    images.flush()


def _crc32c(path: Path, *, sync: bool = False) -> str:
    """Check sum of a file as 8 hexadecimal digits; `sync` sees to it that the disk has the file as well."""
    check = google_crc32c.Checksum()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(1 << 20):
            check.update(chunk)
    return str(check.digest().hex())


def _verify(folder: Path) -> None:
    known = _meta(folder)["crc32c"]
    wrong = [name for name in _FILES if _crc32c(folder / f"{name}.npy") != known.get(name)]
    if wrong:
        raise _damaged(folder, f"the check sum of {', '.join(f'{name}.npy' for name in wrong)} is wrong")


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = read_json(folder / "meta.json")
    except Damaged as error:
        raise _damaged(folder, f"meta.json: {error.why}") from None
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise _damaged(folder, f"meta.json is missing, or its schema is not {SCHEMA}")
    if lost := {"fingerprint", "shapes", "dtypes", "classes", "crc32c", "image_rule"} - meta.keys():
        raise _damaged(folder, f"meta.json lacks {', '.join(sorted(lost))}")
    return meta


def _mapped(folder: Path, name: str, meta: Mapping[str, Any]) -> Any:
    """One array, mapped read-only.

    Not copy-on-write, which would spare torch its warning: Linux refuses such a mapping of a file larger than
    the machine's memory (tried, 400 GB on 24 GB), and a big image folder is just that.
    """
    path = folder / f"{name}.npy"
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header is Python text to numpy: TokenError, SyntaxError, ValueError, …
        raise _damaged(folder, f"{path.name}: {error}") from None
    found, wanted = (list(array.shape), str(array.dtype)), (meta["shapes"].get(name), meta["dtypes"].get(name))
    if found != wanted or path.stat().st_size != array.offset + array.nbytes:
        raise _damaged(folder, f"{path.name} is not what meta.json says")
    return array


def _damaged(folder: Path, what: str) -> KdclusterError:
    return KdclusterError(
        f"{folder} is damaged or was not made by this version of kdcluster ({what}); "
        "move the folder away and run `kdcluster prefetch` to make it again"
    )


@dataclass(frozen=True)
class Split:
    """One split as training takes batches from it."""

    images: Tensor
    """uint8 (N, C, H, W), on `device`, or mapped on the host where the device has no room. Never write to it:
    on the CPU it is the file, read-only."""
    labels: Tensor
    """int64 (N,) on `device`"""
    device: torch.device


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
    if images.nbytes <= budget_bytes:
        images = images.to(device)
    return Split(images, labels.to(device), device)


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # True, and meant: a write would end the process, and nothing writes (see Split).
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def gather(split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch, on the split's device, without waiting for it.

    Args:
        split: from `to_device`.
        index: int64 (B,) on the CPU, B may be 0.

    Returns:
        uint8 (B, C, H, W) and int64 (B,), copies of what the split holds.
    """
    on_device = index.to(split.device, non_blocking=True)
    labels = split.labels.index_select(0, on_device)
    if split.images.device.type == split.device.type:
        return split.images.index_select(0, on_device), labels
    # gpu: from pinned memory, which the copy needs to run beside the computation; torch keeps and reuses it
    batch = torch.empty((len(index), *split.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
    torch.index_select(split.images, 0, index, out=batch)
    return batch.to(split.device, non_blocking=True), labels


def share(n: int, rank: int, world: int) -> range:
    """Which of n items are a rank's: neighbours, as evenly as can be, the first ranks take what is left over.

    Each item is exactly one rank's. Rank 0 has some unless n is 0; later ranks may have none.
    """
    each, over = divmod(n, world)
    start = rank * each + min(rank, over)
    return range(start, start + each + (rank < over))
