"""What `plan` and `submit` say of the stores of a teacher's logits: how large they are, and what they save."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kdcluster import course, inputs, parts, teacherlogits
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.wording import count, size


def told(made: Plan, root: Path, data: Path, only: Collection[str] | None = None) -> list[str]:
    """A line for each store, and a warning where the disk of the runs directory would not hold what is missing.

    Args:
        made: the plan.
        root: the runs directory.
        data: the data directory.
        only: leave out stores that neither are among these runs nor are read by one; None: none.
    """
    stores = [run for run in made.runs if run.role == STORE]
    if only is not None:
        stores = [run for run in stores if {run.id, *(reader.id for reader in made.readers(run.id))} & set(only)]
    lines, missing = [], 0
    for run in stores:
        images = _images(run, data)
        there = min(teacherlogits.held(root / run.id), run.views or 0)
        left = (run.views or 0) - there
        missing += teacherlogits.size_of(images, run.num_classes, left)
        name = f"teacher logits of {run.model.model.partition('.')[0]}" if len(stores) > 1 else "teacher logits"
        held = f"{count(run.views or 0, 'view')} of {images:,} images, {size(_bytes(run, images))}"
        lines.append(f"{name}: {held}{_saves(made.readers(run.id), images, left)}")
    return [*lines, *_too_large(missing, root)]


def facts(run: Run, data: Path) -> dict[str, Any]:
    """{"views", "bytes"} of a store when it is whole; null of every other run."""
    if run.role != STORE:
        return {"views": None, "bytes": None}
    return {"views": run.views, "bytes": _bytes(run, _images(run, data))}


def _images(run: Run, data: Path) -> int:
    return inputs.images(run, data).counts["train"]


def _bytes(run: Run, images: int) -> int:
    return teacherlogits.size_of(images, run.num_classes, run.views or 0)


def _saves(readers: list[Run], images: int, left: int) -> str:
    """What students that read it save: each would have the teacher see its training images in each of its epochs.

    In so few words that the plan of the demo fits 24 lines of 80 columns.
    """
    shown = ((run.train, parts.split({"train": images, "test": 0}, run.data)["train"]) for run in readers)
    alone = sum(course.epochs(train, number) for train, number in shown if train)
    if not readers:
        return ""
    if not left:
        return f"; all there, which saves {count(alone, 'teacher pass')}"
    passes = f"; {count(left, 'teacher pass')}"
    return f"{passes}, not {alone}" if left < alone else f"{passes}, none for more seeds, students and trials"


def _too_large(missing: int, root: Path) -> Iterator[str]:
    """A warning where there is not room for so many bytes more."""
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if missing > free:
        yield (
            f"warning: the teacher's logits need {size(missing)} more, and {there} has {size(free)} free: students "
            f"would compute what does not fit, and may not be able to save; make room, or take fewer views (--set "
            f"data.views=N), none (--set distill.logits=computed) or another --runs-dir"
        )
