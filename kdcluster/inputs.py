"""What the models will see, as far as it is known: classes, images of each split, the size at which they are stored,
and the size at which each model takes them. Needs no torch.

What timm alone can say is remembered (`remember`) when a process that has timm has built the model; before, it is said
that it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdcluster import files, imagefolder, parts
from kdcluster.errors import ConfigError, Damaged
from kdcluster.experiment.config import Model
from kdcluster.experiment.images import DATASETS, Data
from kdcluster.run import STORE, Run
from kdcluster.wording import count

ARRAYS = "kdcluster.arrays/1"
"""The schema of meta.json beside decoded images."""
DEFAULT_SIZE = 224
"""Side in pixels at which a folder's images are kept where their sizes differ and none was asked for."""
SAMPLE = 64
"""Of so many images of a folder the size is looked up before they are decoded: all would take minutes in a big one."""
TWICE = 2.0
"""Images that a model enlarges more than so are worth a word: the work grows with the square, what is seen does not."""


def arrays_folder(run: Run, data_dir: Path) -> Path:
    """Where the run's decoded images lie."""
    name: str = run.data.name
    if run.data.path is not None:
        name += f"-{run.digests[run.data.path][:8]}-{run.data.image_size or 'auto'}"
        name += "-sound" if run.data.skip_broken else ""
    return data_dir / "arrays" / name


def fingerprint(run: Run) -> str:
    """What decides the content of the arrays; the number after the slash is raised when a source changes."""
    if run.data.path is None:
        return f"{run.data.name}/1"
    broken = " skip_broken" if run.data.skip_broken else ""
    return f"image_folder/1 {run.digests[run.data.path]} {run.data.image_size or 'auto'}{broken}"


@dataclass(frozen=True)
class Images:
    """A data set as far as it is known."""

    classes: int
    counts: Mapping[str, int]
    """Images of each split."""
    size: tuple[int, int]
    """(H, W) at which they are stored."""
    looked_at: int = 0
    """The size is that of so many images, and of the others it is not known; 0: of all."""
    notes: tuple[str, ...] = ()
    labelled: int | None = None
    """So many of the training images have labels; None: all."""

    @classmethod
    def stored(cls, meta: Mapping[str, Any], classes: int, data: Data) -> Images:
        """Decoded images, by their meta.json."""
        shapes = {split: meta["shapes"][f"{split}_images"] for split in ("train", "test")}
        counts = parts.split({split: shape[0] for split, shape in shapes.items()}, data)
        notes = (*_size_note(meta["image_rule"]), *_stored_notes(meta))
        return cls(classes, counts, tuple(shapes["train"][2:]), notes=notes, labelled=data.labelled)


def kept_at(sizes: set[tuple[int, int]], asked: int | None = None) -> tuple[tuple[int, int], str]:
    """The (H, W) at which a folder's images are kept that have these sizes, and in words what is done to get there."""
    rule = "shorter side resized to {0} px (bicubic, antialias), then {0}×{0} px cropped at the centre"
    if asked is not None:
        return (asked, asked), rule.format(asked)
    if len(sizes) == 1:
        ((height, width),) = sizes
        return (height, width), f"as they are: all images have {height}×{width} px (height × width)"
    short = sorted({min(size) for size in sizes})
    among = f" (shorter sides of {' to '.join(map(str, dict.fromkeys((short[0], short[-1]))))} px)" if short else ""
    return (DEFAULT_SIZE, DEFAULT_SIZE), f"{_DIFFER}{among}: {rule.format(DEFAULT_SIZE)}"


_DIFFER = "sizes differ"


def _size_note(rule: str) -> list[str]:
    return [f"{rule}; data.image_size sets another size"] if rule.startswith(_DIFFER) else []


def _stored_notes(meta: Mapping[str, Any]) -> Iterator[str]:
    for split in ("train", "test"):
        if names := meta.get("skipped", {}).get(split):
            more = " …" if len(names) > imagefolder.SHOWN else ""
            which = ", ".join(names[: imagefolder.SHOWN]) + more
            yield f"{count(len(names), 'broken image')} of {split} left out (data.skip_broken): {which}"
    same = meta.get("in_both") or {"count": 0}
    if same["count"]:
        test, train = same["example"]
        yield in_both(same["count"], f", pixel by pixel ({test} is {train})")


def in_both(number: int, how: str = "") -> str:
    """What test images are worth that were trained on, in words."""
    are = f"{count(number, 'test image')} {'is' if number == 1 else 'are'}"
    return f"{are} among the training images, too{how}: the test accuracy counts what was learnt by heart"


def images(run: Run, data_dir: Path) -> Images:
    """A run's data set: as it was decoded, else as its folder shows it, else as published.

    Raises:
        ConfigError: an image folder that is not decoded yet, and that is none (any more).
    """
    path, labelled = run.data.path, run.data.labelled
    meta = _meta(arrays_folder(run, data_dir))
    if path is None:
        if meta:
            return Images.stored(meta, run.num_classes, run.data)
        known = DATASETS[run.data.name]
        counts = parts.split({"train": known.train, "test": known.test}, run.data)
        return Images(run.num_classes, counts, (known.side, known.side), labelled=labelled)
    try:
        folder = imagefolder.look(Path(path))
    except (ConfigError, OSError) as error:
        if meta is None:
            raise ConfigError(f"data.path: {error}") from error
        return Images.stored(meta, run.num_classes, run.data)  # decoded, and not needed any more
    if meta:
        stored = Images.stored(meta, run.num_classes, run.data)
        return replace(stored, notes=(*folder.notes, *stored.notes))
    counts = parts.split({split: len(names) for split, names in folder.images.items()}, run.data)
    asked = run.data.image_size
    every = [name for names in folder.images.values() for name in names]
    some = [] if asked else every[:: -(-len(every) // SAMPLE)]
    sizes = {found for name in some if (found := imagefolder.size_of(Path(path) / name))}
    size, rule = kept_at(sizes, asked)
    of_some = len(some) if len(sizes) < 2 and len(some) < len(every) and not asked else 0  # two tell of them all
    return Images(run.num_classes, counts, size, of_some, (*_size_note(rule), *folder.notes), labelled)


def _meta(folder: Path) -> dict[str, Any] | None:
    """meta.json of decoded images; None where there is none that can be used (whoever opens them says why)."""
    try:
        meta = files.read_json(folder / "meta.json")
    except Damaged:
        return None
    sound = isinstance(meta, dict) and meta.get("schema") == ARRAYS and "shapes" in meta
    return meta if sound else None


# What each model takes


@dataclass(frozen=True)
class Eye:
    """A model of an experiment, and the size at which it sees the images."""

    role: str
    """teacher or student: its block in the file."""
    name: str
    size: int | None
    """Side in pixels; None: timm's own, which is not known here yet."""
    patch: int
    """What the size has to be a multiple of."""
    is_set: bool
    """Whether the file says it."""


Sized = Callable[[Model, Sequence[str]], tuple[int | None, int]]
"""A model, and the digests of files that may register it -> the side of its images, and of its patches, in pixels."""


def recalled(model: Model, imports: Sequence[str]) -> tuple[int | None, int]:
    """What is known of a model without timm."""
    known = files.recall("inputs", _key(model, imports))
    size, patch = json.loads(known) if known else (None, 1)
    return model.image_size or size, patch


def remember(run: Run, size: int, patch: int) -> None:
    """Keep what was learnt of a run's model for commands that have no timm."""
    files.remember("inputs", _key(run.model, [run.digests[path] for path in run.imports]), json.dumps([size, patch]))


def _key(model: Model, imports: Sequence[str]) -> str:
    try:
        timm = version("timm")
    except PackageNotFoundError:
        timm = "none"
    return json.dumps([timm, model.model, model.image_size, model.model_args, imports], sort_keys=True)


# In words


@dataclass(frozen=True)
class Told:
    """One data set and those who see it: a line, and what there is to know besides."""

    line: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """All of it."""
        notes = [f"note: {note}" for note in self.notes]
        return [self.line, *notes, *(f"warning: {warning}" for warning in self.warnings)]


def told(runs: Iterable[Run], data_dir: Path) -> list[Told]:
    """What the models of some runs will see, a line for each data set.

    Raises:
        ConfigError: as `images`.
    """
    groups: dict[Any, list[Run]] = {}
    runs = list(runs)
    for run in [run for run in runs if run.role != STORE] or runs:  # a store sees what its teacher and students see
        groups.setdefault((arrays_folder(run, data_dir), run.data.val_fraction, run.data.labelled), []).append(run)
    found = []
    for group in groups.values():
        strictest = max(group, key=lambda run: run.data.augment.mixes)  # the teacher may see other views
        seen, there = images(strictest, data_dir), eyes(group)
        parts.check_runs(group, seen.counts["train"])
        name = f"{group[0].data.name}: " if len(groups) > 1 else ""
        notes = (*seen.notes, *_mirrored(group), *_unknown(there))
        found.append(Told(name + line(seen, there), notes, (*_enlarging(seen, there), *_unequal(group))))
    return found


def eyes(runs: Iterable[Run], sized: Sized = recalled) -> list[Eye]:
    """The models of some runs, each once, the teachers first."""
    models: dict[tuple[bool, str], tuple[Model, list[str]]] = {}
    for run in runs:
        imports = [run.digests[path] for path in run.imports]
        seeing = [(run.role in ("teacher", STORE), run.model), *([(True, run.teacher.model)] if run.teacher else [])]
        for is_teacher, model in seeing:
            models.setdefault((is_teacher, f"{model!r} {imports}"), (model, imports))
    found = []
    for (is_teacher, _), (model, imports) in sorted(models.items(), key=lambda item: not item[0][0]):
        name, role = model.model.partition(".")[0], "teacher" if is_teacher else "student"
        found.append(Eye(role, name, *sized(model, imports), model.image_size is not None))
    return list(dict.fromkeys(found))


def line(seen: Images, eyes: Sequence[Eye]) -> str:
    """`10 classes, 4,000 train, 1,000 test, 28×28 px; resnet18 sees 224 px, test_vit 160 px`."""
    counts = parts.with_labels(seen.counts, seen.labelled)
    height, width = seen.size
    size = f"{height}×{width} px" + ("" if height == width else " (height × width)")
    size += f" ({seen.looked_at} looked at)" if seen.looked_at else ""
    each = {(one.name, one.size): one.role for one in reversed(eyes)}
    names = [name for name, _ in each]
    takes: list[str] = []
    for (name, side), role in reversed(each.items()):
        who = f"{role} {name}" if names.count(name) > 1 else name
        takes.append(f"{who}{'' if takes else ' sees'} {f'{side} px' if side else 'its default size'}")
    return f"{count(seen.classes, 'class')}, {counts}, {size}; {', '.join(takes)}"


def _enlarging(seen: Images, eyes: Iterable[Eye]) -> Iterator[str]:
    """Who enlarges the images without having been told to."""
    side = max(seen.size)
    for one in eyes:
        if one.size and not one.is_set and one.size > TWICE * side:
            fits = -(-side // one.patch) * one.patch
            times = one.size / side
            how = f"{times:.2g} times, about {times * times:.0f} times the work"
            yield (
                f"{one.name} enlarges {side} px to {one.size} px ({how}): set {one.role}.image_size to {fits}, or to "
                f"{one.size} if that is meant"
            )


def _unequal(runs: Sequence[Run]) -> Iterator[str]:
    """Of students with and without the images that have no labels, that their epochs are not as long."""
    unlabelled = {run.role for run in runs if run.data.labelled and run.train and run.train.steps is None}
    if {"baseline", "distilled"} <= unlabelled:
        yield "an epoch of distilled has more images than one of baseline: train.steps gives both as many steps"


def _mirrored(runs: Iterable[Run]) -> Iterator[str]:
    """Of images that nobody but their owner knows, what the default makes of them."""
    if any(run.train and run.data.path is not None and run.data.augment.flip for run in runs):
        yield "half of the training images are mirrored; data.augment.flip: false where left and right matter"


def _unknown(eyes: Iterable[Eye]) -> Iterator[str]:
    """Of whom it is not known yet."""
    if unknown := dict.fromkeys(one.name for one in eyes if one.size is None):
        yield (
            f"the default size of {' and '.join(unknown)}, often 224 px, is known once doctor, plan --check, prefetch "
            f"or submit has built it; image_size sets another"
        )
