"""Hold stores of a teacher's logits against what the teacher gives today. A child process of the launcher.

Reads run configurations on stdin, answers with one JSON document on stdout, as preflight.py does.

Letters: N images of the whole training set, C classes, V views, S images of the sample.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcluster.errors import KdclusterError
from kdcluster.processes import die_with
from kdcluster.run import Run
from kdcluster.runs import RunDir
from kdcluster.teacherlogits import Missing
from kdcluster.train import data, feed, models
from kdcluster.train.distributed import World
from kdcluster.train.preflight import answer_about
from kdcluster.train.storing import pixels_of
from kdcluster.train.teacher_logits import ROWS, Forward, load_teacher, made_by, store_of

ELSEWHERE = {"none": 0.01, "bf16": 0.05}
"""Precision -> by what part of the largest logit they may differ where torch or the processor is another one than in
the store. Chosen; bf16 against float32 was 0.6 to 1.9 % in a resnet18, a ViT-Ti and an efficientnet_lite0 of random
weights, and TF32 has 3 bits more than bf16. Logits of another image differ by all of it."""
STEP = 2.0**-10
"""Between two neighbours in float16, as a part of their value."""
BLOCK = 1 << 16
"""Rows of a view that are looked at together."""
SURE = 4.0
"""Standard deviations from chance that are no chance any more."""


def main() -> None:
    """`python -m kdcluster.train.verify --runs-dir DIR --data-dir DIR --images N --seed N [--whole] < runs.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--parent", type=int, required=True, help="the pid of who waits, and whom it does not outlive")
    given = parser.parse_args()
    die_with(given.parent, "the kdcluster that asked")
    where = (given.runs_dir, given.data_dir)
    answer_about(lambda runs: [verify(run, *where, given.images, given.seed, whole=given.whole) for run in runs])


def verify(run: Run, root: Path, data_dir: Path, images: int, seed: int, *, whole: bool) -> dict[str, Any]:
    """What is wrong with a store; a view that is not right is marked, so that nobody reads it.

    The arguments are those of `launch.preflight.verify`. Returns {"id", "views", "wanted", "images", "classes",
    "sample", "labels", "wrong": {view: why}, "problems": [text]}: `sample` as `Sample.found`, `labels` as `_labels`,
    both null where nothing could be computed; what is `wrong` the next submit makes again, and of `problems` each says
    what to do.
    """
    known = {"id": run.id, "views": 0, "wanted": run.views, "images": 0, "classes": run.num_classes}
    known |= {"sample": None, "labels": None, "wrong": {}, "problems": []}
    try:
        models.import_files(run.imports)
        arrays = data.open_arrays(run, data_dir)
        labels = torch.from_numpy(np.array(arrays.labels["train"]))
        store = store_of(root, run.id, run, len(labels))
        entries = store.manifest()["views"]
        found = {**known, "views": len(entries), "images": len(labels)}
        sample = Sample(run, arrays, entries, picked(sorted(map(int, entries)), len(labels), images, seed))
        stored, wrong, rows = {}, {}, {}
        for view in sorted(map(int, entries)):
            try:
                stored[view] = store.mapped(view, summed=whole)
            except Missing as missing:
                wrong[view] = str(missing)
        for view, logits in stored.items():
            at = slice(None) if whole else sample.index.get(view, torch.zeros(0, dtype=torch.int64)).numpy()
            rows[view] = _first(logits, at), labels[at]
        drawn = {view: at for view, at in sample.index.items() if view in stored}
        compared = sample.compare(root, {v: torch.from_numpy(stored[v][at.numpy()]) for v, at in drawn.items()})
        seems = sample.wrong
        for view, why in _miscounted(rows, entries) if whole else ():
            seems[view] = f"{seems[view]}; {why}" if view in seems else why
        for view, why in seems.items():
            store.mark(view, why, entries[str(view)]["crc32c"])
        wrong |= seems
        seen, problems = _labels(run, root, arrays, {view: rows[view] for view in stored if view not in wrong})
        return {**found, "sample": compared, "labels": seen, "wrong": wrong, "problems": problems}
    except Missing as missing:
        return {**known, "problems": [f"{missing}: nobody reads it, and the next submit makes all of its views again"]}
    except KdclusterError as error:
        return {**known, "problems": [f"it cannot be computed again: {error}"]}


def picked(views: list[int], total: int, images: int, seed: int) -> dict[int, Tensor]:
    """A sample that is spread over views and images alike: one of every so many rows of all views in a row.

    Returns:
        view -> ascending image indices, int64.
    """
    rows = len(views) * total
    count = min(images, rows)
    bounds = np.arange(count + 1) * rows // max(count, 1)
    at = np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])
    found = {view: torch.from_numpy(at[at // total == place] % total) for place, view in enumerate(views)}
    return {view: index for view, index in found.items() if len(index)}


@dataclass
class Sample:
    """Some rows of a store, which the teacher of today computes again.

    Args:
        run: of the store.
        arrays: its images.
        entries: what the manifest says of each view.
        index: view -> image indices.
        wrong: view -> why, once they are compared.
    """

    run: Run
    arrays: data.Arrays
    entries: Mapping[str, Mapping[str, Any]]
    index: Mapping[int, Tensor]
    wrong: dict[int, str] = field(default_factory=dict)

    def compare(self, root: Path, stored: Mapping[int, Tensor]) -> dict[str, Any] | None:
        """{"images": S, "same", "difference", "allowed", "devices", "elsewhere"}.

        Of S images `same` have the same bits; the others differ by at most `difference`, of which `allowed` is no
        fault; they were computed on `devices`, and of the views `elsewhere` on another processor, or by another torch.
        """
        if not stored:
            return None
        found: dict[str, Any] = {"images": 0, "same": 0, "difference": 0.0, "allowed": 0.0, "elsewhere": 0}
        for name in (devices := sorted({self._device(view) for view in stored})):
            ours = [view for view in stored if self._device(view) == name]
            device = torch.device(name)
            world = World(0, 1, device)
            forward, images = load_teacher(root, self.run, world), feed.to_device(self.arrays, "train", device)
            again = self._again(forward, images, ours).split([len(stored[view]) for view in ours])
            largest = float(max(rows.float().abs().max() for rows in stored.values()))
            for view, rows in zip(ours, again, strict=True):
                others, by = _apart(rows, stored[view])
                far = self.entries[str(view)].get("by") != made_by(device)
                allowed = self._allowed(device, far, largest, forward.amp)
                if by > allowed:
                    of = f"{others} of {len(rows)} images"
                    self.wrong[view] = f"other logits than the teacher gives, by up to {by:.2g} in {of}"
                found["images"] += len(rows)
                found["same"] += len(rows) - others
                found["elsewhere"] += far
                found["difference"], found["allowed"] = max(found["difference"], by), max(found["allowed"], allowed)
        return {**found, "devices": devices}

    def _again(self, forward: Forward, images: feed.Split, views: list[int]) -> Tensor:
        """Their logits on the CPU, one view after the other, float16 (S, C).

        A pass of the teacher at a time: pixels of 1,000 images at 224 px are 600 MB.
        """
        rows = torch.cat([torch.stack([torch.full_like(self.index[v], v), self.index[v]]) for v in views], dim=1)
        found = []
        for of, index in rows.split(ROWS, dim=1):
            shown = [pixels_of(self.run, images, int(view), index[of == view]) for view in of.unique_consecutive()]
            found.append(forward(torch.cat(shown)).cpu())
        return torch.cat(found)

    def _device(self, view: int) -> str:
        """Where a view was made, if that is here."""
        return "cuda" if self.entries[str(view)].get("device") == "cuda" and torch.cuda.is_available() else "cpu"

    def _allowed(self, device: torch.device, far: bool, largest: float, amp: str) -> float:
        """By how much logits may differ: by nothing on the CPU that made them; the manifest's tolerance was measured
        on few images, so twice that."""
        if far:
            return ELSEWHERE[amp] * largest
        if device.type == "cpu":
            return 0.0
        tolerance = max(entry.get("tolerance") or 0.0 for entry in self.entries.values())
        return max(2 * tolerance, STEP * largest)  # gpu


def _apart(some: Tensor, others: Tensor) -> tuple[int, float]:
    """In how many rows of two float16 (b, C) a bit differs, and by how much logits do at most."""
    differs = (some.view(torch.int16) != others.view(torch.int16)).any(-1)
    by = (some[differs].float() - others[differs].float()).abs().nan_to_num(math.inf)
    return int(differs.sum()), float(by.max()) if len(by) else 0.0


def _first(logits: Any, at: Any) -> Tensor:
    """The first choice in rows of float16 (N, C), mapped from its file; `at`: which ones, a slice or indices."""
    rows = logits[at]
    return torch.cat(
        [torch.from_numpy(rows[some : some + BLOCK].argmax(-1)) for some in range(0, len(rows) or 1, BLOCK)]
    )


def _share(choices: Tensor, labels: Tensor) -> float:
    """How many in a hundred are as labelled."""
    right = int((choices == labels).sum())
    return 100 * right / len(labels)


def _miscounted(
    rows: Mapping[int, tuple[Tensor, Tensor]], entries: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[int, str]]:
    """Views of which not so many images are as labelled as were when they were made."""
    for view, pair in rows.items():
        now, then = _share(*pair), entries[str(view)].get("top1")
        if then is not None and abs(now - then) > 1e-9:
            shuffled = f"{100 * _chance(*pair):.2f} % would be in a shuffled order"
            yield view, f"{now:.2f} % of its images are as labelled, {then:.2f} % were when it was made, {shuffled}"


def _chance(choices: Tensor, labels: Tensor) -> float:
    """What part would be as labelled if the same choices stood in another order."""
    most = int(max(choices.max(), labels.max())) + 1
    parts = (torch.bincount(some, minlength=most).double() / len(some) for some in (choices, labels))
    return float(torch.dot(*parts))


def _labels(
    run: Run, root: Path, arrays: data.Arrays, rows: Mapping[int, tuple[Tensor, Tensor]]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The first choices against the labels, in the order of their indices; and what is wrong with that order.

    {"images", "top1": [least, most], "shuffled", "test_top1"}, in percent: what of a view is as labelled, what would be
    if the same choices stood in another order, and what the teacher has on the test images.
    """
    assert run.teacher is not None
    rows = {view: pair for view, pair in rows.items() if len(pair[1])}
    if not rows:
        return None, []
    choices, labels = (torch.cat([pair[which] for pair in rows.values()]) for which in (0, 1))
    chance = _chance(choices, labels)
    each = [_share(*pair) for pair in rows.values()] if len(labels) >= len(rows) * 100 else [_share(choices, labels)]
    test = ((RunDir(root, run.teacher.id).result() or {}).get("best") or {}).get("test/top1")
    seen = {"images": len(labels), "top1": [min(each), max(each)], "shuffled": 100 * chance, "test_top1": test}
    size = len(labels) // len(rows)  # the views show the same images
    if test is None or _is_chance(test, chance, len(arrays.labels["test"])) or not _is_chance(min(each), chance, size):
        return seen, []
    why = (
        f"{min(each):.2f} % of the images are as labelled, as in a shuffled order ({100 * chance:.2f} %), while the "
        f"teacher has {test:.2f} % on the test images: images and labels of {arrays.folder} are not in one order; "
        f"delete that folder, and prefetch decodes it again"
    )
    return seen, [why]


def _is_chance(top1: float, chance: float, images: int) -> bool:
    """Whether so many in a hundred of these images are no more than chance gives."""
    return top1 <= 100 * (chance + SURE * math.sqrt(chance * (1 - chance) / max(images, 1)))


if __name__ == "__main__":
    main()
