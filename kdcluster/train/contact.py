"""A contact sheet of what models will see: training images, and some views of each. A child process of the launcher.

Reads run configurations on stdin, writes a PNG, answers with one JSON document on stdout, as preflight.py does.

Letters: K channels (1 or 3), H W pixels.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from kdcluster.experiment.images import Augment
from kdcluster.processes import die_with
from kdcluster.run import Run
from kdcluster.train import data, feed, models, views
from kdcluster.train.finished.model import told
from kdcluster.train.losses import Labels
from kdcluster.train.pictures import FRAME, GAP, INK, LINE, TILE, cut, font, name_of, paper, tile_of
from kdcluster.train.preflight import answer_about
from kdcluster.train.shown import shown
from kdcluster.wording import spelt

IMAGES, VIEWS = 8, 6
"""Rows, and views in a row behind the image as it is stored."""
HEAD = 2 * LINE + 2 * GAP
SIGNS = 130
"""Of a line of settings."""
WIDTH = GAP + (VIEWS + 1) * (TILE + GAP) + GAP


def main() -> None:
    """`python -m kdcluster.train.contact --data-dir DIR --into FILE --parent PID < runs.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True, help="the pid of who waits, and whom it does not outlive")
    given = parser.parse_args()
    die_with(given.parent, "the kdcluster that asked")
    answer_about(lambda runs: told(lambda: make(runs, given.data_dir, given.into)))


def make(runs: Sequence[Run], data_dir: Path, into: Path) -> dict[str, Any]:
    """Write the sheet of an experiment's runs; says what stands on it: {"sections": [text], "images": [index]}.

    Raises:
        KdclusterError: the images are not here, or are damaged.
    """
    for run in runs:
        models.import_files(run.imports)
    found = sections(runs)
    arrays = data.open_arrays(found[0].run, data_dir)
    split = feed.to_device(arrays, "train", feed.HOST)
    train_index, _ = views.held_out(len(split.labels), max(one.run.data.val_fraction for one in found))
    index = chosen(split.labels, train_index)
    pages = [one.drawn(split, index, arrays.classes) for one in found]
    sheet = paper(WIDTH, sum(page.height for page in pages))
    top = 0
    for page in pages:
        sheet.paste(page, (0, top))
        top += page.height
    sheet.save(into, format="PNG", optimize=True)
    return {"sections": [one.caption for one in found], "images": index.tolist()}


def chosen(labels: Tensor, train_index: Tensor) -> Tensor:
    """Images of as many classes as there is room for, int64 (at most IMAGES,)."""
    order = train_index[views.epoch_order(len(train_index), seed=0, epoch=0)]
    by_class: dict[int, list[int]] = {}
    for at, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        by_class.setdefault(label, []).append(at)
    rounds = max(map(len, by_class.values()))
    turns = [those[turn] for turn in range(min(rounds, IMAGES)) for those in by_class.values() if turn < len(those)]
    return torch.tensor(turns[:IMAGES])


@dataclass(frozen=True)
class Section:
    """Models that see the same views."""

    run: Run
    """One of them."""
    size: int
    """Side at which it sees them."""
    caption: str

    def drawn(self, split: feed.Split, index: Tensor, classes: Sequence[str]) -> Image.Image:
        """Its images, as they are stored and in each view."""
        several = range(min(VIEWS, self.run.data.views or VIEWS))
        placed = feed.Index.placed(index, split.device)
        seen = [shown(split, placed, self.run.data, view, [self.size]) for view in several]
        columns = {
            "as stored": split.images[index],
            **{f"view {at}": one[self.size] for at, (one, _) in enumerate(seen)},
        }
        names = [[name_of(classes, label) for label in split.labels[index].tolist()]]
        names += [list(_mixed(labels, classes)) for _, labels in seen]
        settings = textwrap.wrap(f"augment: {spelt(_plain(self.run.data.augment))}", SIGNS)
        head = HEAD + LINE * len(settings)
        tiles = [[tile_of(pixels.numpy()) for pixels in _levels(images)] for images in columns.values()]
        wide, high = (max(getattr(tile, side) for those in tiles for tile in those) for side in ("width", "height"))
        page = paper(WIDTH, head + len(index) * (high + LINE + GAP) + GAP)
        draw = ImageDraw.Draw(page)
        draw.text((GAP, GAP), cut(self.caption, WIDTH - 2 * GAP), INK, font(12))
        draw.multiline_text((GAP, GAP + LINE), "\n".join(settings), INK, font(11))
        for column, (title, those) in enumerate(zip(columns, tiles, strict=True)):
            x = GAP + column * (wide + GAP) + (GAP if column else 0)
            draw.text((x, head - LINE - 3), title, INK, font(12))
            for row, tile in enumerate(those):
                y = head + row * (high + LINE + GAP)
                page.paste(tile, (x, y))
                draw.rectangle((x - 1, y - 1, x + tile.width, y + tile.height), outline=FRAME)
                draw.text((x, y + high), cut(names[column][row], wide), INK, font(12 if not column else 11))
        return page


def _mixed(labels: Labels, classes: Sequence[str]) -> Iterator[str]:
    """`cat: 0.70, dog: 0.30` of images that are mixed, else nothing: the name stands at the beginning of the row."""
    if labels.second is None or labels.share is None:
        yield from ("" for _ in labels.first)
        return
    for first, second, share in zip(labels.first.tolist(), labels.second.tolist(), labels.share.tolist(), strict=True):
        both = ((first, share), (second, 1 - share)) if first != second else ((first, 1.0),)
        yield ", ".join(f"{name_of(classes, label)}: {part:.2f}" for label, part in both) if share < 1 else ""


def _levels(images: Tensor) -> Tensor:
    """uint8, whether or not they are."""
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)


def _plain(augment: Augment) -> Mapping[str, Any]:
    """What is on in an augmentation, as a file would have it."""
    values = augment.model_dump(mode="json", exclude_none=True)
    off = {"pad"} if augment.crop else set()
    off |= {"rand"} if augment.policy != "rand" else set()
    off |= {key for key in ("color", "policy") if getattr(augment, key) == Augment.model_fields[key].default}
    return {key: value for key, value in values.items() if key not in off}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Each kind of views of an experiment once: those of the students, and of the teacher where it has its own."""
    by_role = {run.role: run for run in runs}
    teacher, student = by_role["teacher"], by_role["baseline"]
    sizes = {role: models.image_size(by_role[role].model) for role in ("teacher", "baseline")}
    own = teacher.train is not None
    same = own and (teacher.data.augment, teacher.data.view_seed) == (student.data.augment, student.data.view_seed)
    text = f"What the students see, at {sizes['baseline']} px"
    if same:
        text = f"What all models see: the students at {sizes['baseline']} px, the teacher at {sizes['teacher']} px"
    elif "distilled" in by_role:
        text += f", and the teacher that they learn from, at {sizes['teacher']} px"
    found = [Section(student, sizes["baseline"], text)]
    if own and not same:
        text = f"What the teacher is trained on, at {sizes['teacher']} px"
        found.append(Section(teacher, sizes["teacher"], text))
    return found


if __name__ == "__main__":
    main()
