"""A folder of images as people have them, looked at without torch: train/<class>/… beside test/<class>/… or val/….

What counts as an image of it, and in which order, is said here alone: the run's id, the labels and the decoded
pixels follow from it. Paths are relative to the folder, with slashes.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdcluster.errors import ConfigError
from kdcluster.wording import count

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
VALIDATION = ("val", "valid", "validation")
"""What people call the folder that ImageNet has beside train/: it is tested on where there is no test/."""
LAYOUT = "an image_folder has train/<class>/ and test/<class>/, or val/<class>/"
SHOWN = 5
"""So many names stand in a message."""


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds."""

    folders: Mapping[str, str]
    """The split (train, test) -> the sub-folder that plays its role."""
    classes: tuple[str, ...]
    """Sorted: a class's place is its label."""
    images: Mapping[str, tuple[str, ...]]
    """The split -> its images' paths, sorted."""
    digest: str
    """SHA-256 over the names and sizes in bytes of all images in the folder, also in sub-folders that play no role."""
    notes: tuple[str, ...]
    """What somebody who looks at the folder may not expect, in words."""


_seen: ContextVar[dict[Path, ImageFolder] | None] = ContextVar("_seen", default=None)


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Within, a folder is walked once however often it is asked for: a command sees one state of it throughout."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def look(root: Path) -> ImageFolder:
    """Walk a folder and understand it.

    Raises:
        ConfigError: it is no image folder; says what it lacks.
        OSError: something in it cannot be read.
    """
    seen = _seen.get()
    if seen is not None and root in seen:
        return seen[root]
    for folder in (root, root / "train"):
        if not folder.is_dir():
            raise ConfigError(f"no such folder: {folder} ({LAYOUT})")
    found = _understood(root, walked(root))
    if seen is not None:
        seen[root] = found
    return found


@dataclass
class _Walk:
    """Everything below a folder."""

    images: list[tuple[str, int]] = field(default_factory=list)
    """(path, bytes)"""
    classes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Sub-folder -> its own sub-folders."""
    others: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Sub-folder -> how many files of a kind are no images for us."""
    hidden: list[str] = field(default_factory=list)
    """Of those the paths that would be images but for their name."""
    loops: list[str] = field(default_factory=list)
    """Links that lead back to a folder above them."""


def walked(root: Path) -> _Walk:
    """Every image below a folder, and what else is there: one scandir of each folder, one stat of each image."""
    found = _Walk()
    _walk(str(root), "", (), found)
    found.images.sort()
    return found


def _walk(folder: str, inside: str, above: tuple[tuple[int, int], ...], found: _Walk) -> None:
    """Add what is below `folder`, at the path `inside` (with a slash at its end) of the whole.

    Links are followed, as class folders are often links, but none into one of the folders `above` it (their device
    and inode).
    """
    here = os.stat(folder)  # noqa: PTH116
    if (here.st_dev, here.st_ino) in above:
        found.loops.append(inside.rstrip("/"))
        return
    split, _, rest = inside.partition("/")
    try:
        entries = os.scandir(folder)
    except PermissionError:
        if split in ("train", "test", *VALIDATION):
            raise
        return  # lost+found, say, where the folder is a disk
    with entries:
        for entry in entries:
            name = entry.name
            hidden = name.startswith(".") or name == "__MACOSX"  # of a Mac's zip
            if entry.is_dir():
                if not hidden:
                    if split and not rest:
                        found.classes[split].add(name)
                    _walk(entry.path, f"{inside}{name}/", (*above, (here.st_dev, here.st_ino)), found)
            elif not name.lower().endswith(IMAGE_SUFFIXES):
                if not hidden:
                    found.others[split][Path(name).suffix.lower() or "without suffix"] += 1
            elif hidden:  # ._a.png: what a Mac has to say about a.png
                found.others[split]["hidden"] += 1
                found.hidden.append(inside + name)
            else:
                found.images.append((inside + name, entry.stat().st_size))


def _understood(root: Path, found: _Walk) -> ImageFolder:
    tested = _tested(root, found)
    folders = {"train": "train", "test": tested}
    images: dict[str, tuple[str, ...]] = {}
    held: dict[str, set[str]] = {}
    for split, folder in folders.items():
        images[split] = tuple(name for name, _ in found.images if name.startswith(f"{folder}/"))
        held[split] = {name.split("/")[1] for name in images[split]}
        _refuse_flat(root, folder, images[split], found)
    classes = tuple(sorted(found.classes["train"]))
    _refuse_classes(folders, found.classes, held)
    digest = hashlib.sha256()
    for name, size in found.images:
        digest.update(os.fsencode(f"{name}\0{size}\n"))
    return ImageFolder(folders, classes, images, digest.hexdigest(), tuple(_notes(root, folders, found, held)))


def _tested(root: Path, found: _Walk) -> str:
    """The sub-folder that is tested on: test/ where it has classes, as ImageNet's has not, else val/."""
    others = [name for name in VALIDATION if found.classes.get(name)]
    if found.classes.get("test"):
        return "test"
    if len(others) > 1:
        both = " and ".join(f"{name}/" for name in others)
        raise ConfigError(f"{both} stand in {root}, and no test/: which is to be tested on? Rename that one to test/")
    if not others and not (root / "test").is_dir():
        raise ConfigError(f"no such folder: {root / 'test'} ({LAYOUT})")
    return others[0] if others else "test"


def _refuse_flat(root: Path, folder: str, images: tuple[str, ...], found: _Walk) -> None:
    """Refuse a split without images, and images outside the class folders."""
    if stray := [name for name in images if name.count("/") == 1]:
        more = f" ({len(stray)} images do)" if len(stray) > 1 else ""
        raise ConfigError(f"{root / stray[0]} lies outside the class folders{more}; move it into one")
    if not images:
        kinds = _kinds(found.others[folder])
        raise ConfigError(f"no images below {root / folder}" + (f", but {kinds}; {_READ}" if kinds else ""))


_READ = f"images are {' '.join(IMAGE_SUFFIXES)}"


def _refuse_classes(folders: Mapping[str, str], classes: Mapping[str, set[str]], held: Mapping[str, set[str]]) -> None:
    """Refuse class folders that differ, that are empty, or of which there is one alone."""
    train, test = (classes[folder] for folder in folders.values())
    if train != test:
        only = [
            f"only in {folder}/: {_some(names)}"
            for folder, names in ((folders["train"], train - test), (folders["test"], test - train))
            if names
        ]
        raise ConfigError(
            f"train/ has {count(len(train), 'class')} and {folders['test']}/ has {len(test)}; {'; '.join(only)}"
        )
    if empty := train - held["train"] - held["test"]:
        raise ConfigError(
            f"{count(len(empty), 'class folder')} without an image in train/ and in {folders['test']}/: "
            f"{_some(empty)}; delete the folder, or put its images there"
        )
    if len(train) == 1:
        raise ConfigError(f"there is a single class, {min(train)}: nothing is to be told apart; two are the least")


def _notes(root: Path, folders: Mapping[str, str], found: _Walk, held: Mapping[str, set[str]]) -> Iterator[str]:
    tested = folders["test"]
    if tested != "test":
        why = "has no class folders" if (root / "test").is_dir() else "is not there"
        yield f"{tested}/ is what is tested on, since test/ {why}"
    elif others := [name for name in VALIDATION if found.classes.get(name)]:
        names = " and ".join(f"{name}/" for name in others)
        yield f"{names} is not used: test/ is tested on; data.val_fraction holds out validation images from train/"
    for split, folder in folders.items():
        if empty := set(found.classes[folder]) - held[split]:
            yield f"no images in {folder}/ of {count(len(empty), 'class')}: {_some(empty)}"
    ignored = found.others["train"] + found.others[tested]
    if ignored:
        hidden = min((name for name in found.hidden if name.startswith(("train/", f"{tested}/"))), default="")
        kinds = _kinds(ignored, f"as {hidden}" if ignored["hidden"] > 1 else hidden)
        yield f"left out of train/ and {tested}/: {kinds} ({_READ})"
    if loops := [name for name in found.loops if name.startswith(("train/", f"{tested}/"))]:
        yield f"not followed, since it leads back to a folder above it: {_some(loops)}"


def _kinds(files: Counter[str], hidden: str = "") -> str:
    """`3 .heic, 2 hidden (as train/cat/._a.png), 1 .txt`; `hidden`: what to say of those."""
    more = {"hidden": f" ({hidden})" if hidden else ""}
    ordered = sorted(files.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{n} {kind}{more.get(kind, '')}" for kind, n in ordered)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def of_classes(root: Path, known: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A folder with a sub-folder for each class, of which a model knows some: its images' paths, sorted, and in words
    what somebody who looks at it may not expect.

    Raises:
        ConfigError: it is no such folder, or has images of classes that the model does not know.
    """
    wanted = f"a sub-folder for each class ({_some(known)}) with its images"
    if not root.is_dir():
        what = f"{root} is a file: name a folder" if root.exists() else f"no such folder: {root}"
        raise ConfigError(f"{what}; it is to have {wanted}")
    found = walked(root)
    names = tuple(name for name, _ in found.images)
    if stray := [name for name in names if "/" not in name]:
        raise ConfigError(
            f"{root / stray[0]} lies outside the class folders; its folder is to say its class: {root} is to have "
            f"{wanted}"
        )
    ignored = _kinds(sum(found.others.values(), Counter()))
    if not names:
        but = f", but {ignored} ({_READ})" if ignored else ""
        raise ConfigError(f"no images below {root}{but}; it is to have {wanted}")
    there = {name.split("/")[0] for name in names}
    if unknown := sorted(there - set(known)):
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = (
            f"; is {unknown[0]} {close[0]!r}?"
            if close
            else f"; rename or remove {'it' if len(unknown) < 2 else 'them'}"
        )
        if splits := [name for name in ("test", *VALIDATION) if name in unknown]:
            hint = f"; to take its {splits[0]}/ name {root / splits[0]}"
        what = "are no classes" if len(unknown) > 1 else "is no class"
        raise ConfigError(f"{root}: {_some(unknown)} {what} of this run, which knows {_some(known)}{hint}")
    notes = [f"left out: {ignored} ({_READ})"] if ignored else []
    if absent := set(known) - there:
        notes.append(f"no image of {count(len(absent), 'class')}: {_some(absent)}; top-1 is over the others")
    return names, tuple(notes)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) after the camera's rotation was undone; of most formats only the header is read."""
    from PIL import ExifTags  # 0.06 s, and only where images are looked into

    turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # EXIF 2.32, tag 0x0112: 5 to 8 swap the sides
    return image.size if turned else (image.height, image.width)


def size_of(path: Path) -> tuple[int, int] | None:
    """`upright_size` of a file; None for one that is no image, which whoever decodes it says."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return upright_size(image)
    except Exception:  # for a broken file PIL raises OSError, SyntaxError, ValueError, struct.error, …
        return None
