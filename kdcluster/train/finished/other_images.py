"""A finished run on other images than its own. A child process of the launcher.

Reads a run's configuration on stdin, answers with one JSON document on stdout, as preflight.py does.

Letters: N images, C channels, H W pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcluster import imagefolder
from kdcluster.errors import ConfigError
from kdcluster.inputs import Images
from kdcluster.plan import Run
from kdcluster.processes import die_with
from kdcluster.runs import RunDir
from kdcluster.teacherlogits import precision
from kdcluster.train import data, decode, feed, pixels
from kdcluster.train.distributed import World
from kdcluster.train.evaluate import evaluate
from kdcluster.train.finished.looks import Look, looks
from kdcluster.train.finished.model import Finished, open_run, told
from kdcluster.train.pool import each
from kdcluster.train.preflight import answer_about


def main() -> None:
    """`python -m kdcluster.train.finished.other_images --runs-dir DIR --data-dir DIR --images DIR …`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--device", required=True, help="auto: a GPU where there is one")
    parser.add_argument("--parent", type=int, required=True, help="the pid of who waits, and whom it does not outlive")
    given = parser.parse_args()
    die_with(given.parent, "the kdcluster that asked")
    where = (given.runs_dir, given.data_dir, given.images, given.device)
    answer_about(lambda runs: told(lambda: judge(runs[0], *where)))


def judge(run: Run, root: Path, data_dir: Path, folder: Path, device: str) -> dict[str, Any]:
    """Evaluate a run's best weights as its training does, in its precision, on a folder with a sub-folder a class.

    Returns:
        {"top1", "top5" in percent, "loss", "classes": their names, "labels", "predicted": (N,) numbers of classes,
        "device", "precision", "notes": [text]}

    Raises:
        ConfigError: the folder is not as it should be; there is no such device.
        KdclusterError: the run cannot be used.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; without --device it takes what there is")
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu"))
    there = open_run(run, root, data_dir)
    if not there.classes:
        raise ConfigError(f"{run.id}: the names of its classes are not known: {there.without}")
    names, notes = imagefolder.of_classes(folder, there.classes)
    labels = np.array([there.classes.index(name.split("/")[0]) for name in names], np.int64)
    amp = precision(RunDir(root, run.id).path)
    run = run.with_amp("bf16" if amp == "bf16" else "none") if run.train else run
    net = there.net.to(world.device)
    if run.train and run.train.channels_last:
        net.in_channels_last()
    with tempfile.TemporaryDirectory(prefix="kdcluster-") as aside:
        images, unlike = decoded([folder / name for name in names], there, Path(aside))
        seen = Images(run.num_classes, {"test": len(names)}, images.shape[2:])
        arrays = data.Arrays(folder, {"test": images}, {"test": labels}, there.classes, "", seen)
        split = feed.to_device(arrays, "test", world.device)
        found, logits = evaluate(net, run, split, torch.arange(len(names)), world, dtype=torch.float32)
    assert logits is not None
    best = logits.topk(min(5, run.num_classes), dim=1).indices[:, 0]  # as top-1 is counted, also among equals
    return {
        **found,
        "classes": list(there.classes),
        "labels": labels.tolist(),
        "predicted": best.tolist(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "precision": run.amp,
        "notes": [*notes, *unlike],
    }


def decoded(paths: Sequence[Path], there: Finished, aside: Path) -> tuple[Any, list[str]]:
    """uint8 (N, C, H, W) of a run's channels and size, as its own images were brought there, in a file in `aside`;
    and how they differ from these, in words.

    Raises:
        ConfigError: images cannot be read, or cannot be brought there.
    """
    if there.input_size is None:
        raise ConfigError(
            f"{there.run.id}: how large its own images were kept is not known, since they are not in the data "
            f"directory ({there.without}); name it: --data-dir"
        )
    height, width = there.input_size
    shape = (len(paths), there.run.channels, height, width)
    found = each(looks, paths, "looking at images")
    if height != width:  # they were all of this size, and none was cut
        _refuse_others(paths, found, there.input_size)
    try:
        images = pixels.writable(aside / "images.npy", np.uint8, shape)
        decode.write_images(paths, images, "")
    except pixels.Unreadable as first:
        broken = decode.unreadable(paths) or [first]
        lines = [f"  {one.path}: {one.why}" for one in broken[: decode.SHOWN]]
        more = [f"  and {len(broken) - decode.SHOWN} more"] if len(broken) > decode.SHOWN else []
        head = f"{len(broken):,} of {len(paths):,} images cannot be read; replace or remove them:"
        raise ConfigError(head, *lines, *more) from None
    return images, list(_unlike(found, there))


def _refuse_others(paths: Sequence[Path], found: Sequence[Look | None], size: tuple[int, int]) -> None:
    for path, look in zip(paths, found, strict=True):
        if look and look[0] != size:
            (height, width), (h, w) = look[0], size
            raise ConfigError(
                f"{path} has {height}×{width} px (height × width), and this run has learnt from images of {h}×{w} px "
                f"alone; bring it to that size"
            )


def _unlike(found: Sequence[Look | None], there: Finished) -> Iterator[str]:
    """How images differ from those that the run has learnt from, in words."""
    assert there.input_size is not None
    (height, width), run = there.input_size, there.run
    seen = [look for look in found if look]
    small = sum(h < height or w < width for (h, w), _ in seen)
    others = sum(size != there.input_size for size, _ in seen)
    grey = sum(is_grey for _, is_grey in seen)
    own = f"{height}×{width} px"
    if small:
        yield f"{small:,} of {len(seen):,} images are smaller than {own}, the size of the run's own, and were enlarged"
    elif others and run.data.path is None:
        how = "shorter side resized, then cropped at the centre"
        yield f"{others:,} of {len(seen):,} images have another size than the run's own, {own}: {how}"
    if run.channels == 1 and grey < len(seen):
        yield f"{len(seen) - grey:,} of {len(seen):,} images are in colour, and were turned to grey, like the run's own"
    if run.channels == 3 and grey:
        yield f"{grey:,} of {len(seen):,} images are grey, and the run takes colour"


if __name__ == "__main__":
    main()
