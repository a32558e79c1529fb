"""Images a second of CPU of the two ways to cut and resize a box, and of PIL; and what the other operations add.

    PYTHONPATH=. python benchmarks/views.py [ROUNDS]

One thread; every round does all in turns. `by matrices` and `one by one` are those of train/render.py, of which it
takes one by sizes and device (MULTIPLIED); PIL crops, resizes and mirrors each image and makes a float tensor of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcluster.experiment.images import Augment, Color, Crop, Erase, Rand
from kdcluster.train import render, views
from kdcluster.train.draw import View, draw

SIZES = ((32, 32), (32, 64), (48, 48), (64, 64), (64, 224), (96, 96), (256, 224), (32, 224))
"""Side as stored, and side that is made."""
MOST = {
    "nothing but pad and mirror": Augment(),
    "crop": Augment(crop=Crop()),
    "crop, colour": Augment(crop=Crop(), color=Color(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
    "crop, erase": Augment(crop=Crop(), erase=Erase()),
    "crop, trivial": Augment(crop=Crop(), policy="trivial"),
    "crop, rand": Augment(crop=Crop(), policy="rand", rand=Rand()),
}


def with_pil(images: Tensor, view: View, size: int) -> Tensor:
    assert view.box is not None
    assert view.mirror is not None
    made = []
    for image, (top, left, height, width), mirror in zip(
        images.permute(0, 2, 3, 1).numpy(), view.box.tolist(), view.mirror.tolist(), strict=True
    ):
        box = (left, top, left + width, top + height)
        seen = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
        if mirror:
            seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        made.append(torch.from_numpy(np.array(seen)).permute(2, 0, 1))
    return torch.stack(made).float() / 255


def speeds(ways: dict[str, Callable[[], object]], images: int, rounds: int) -> None:
    """Print images a second of CPU of each, median and range, measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first one warms up
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                found[name].append(images / (time.process_time() - began))
    for name, each in found.items():
        print(f"  {name}: {statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    for stored, size in SIZES:
        count = 128 if max(stored, size) <= 64 else 32
        images = torch.randint(0, 256, (count, 3, stored, stored), dtype=torch.uint8, generator=random)
        view = draw(MOST["crop"], 0, 0, torch.arange(count), (stored, stored))
        box, mirror = view.box, view.mirror
        assert box is not None
        assert mirror is not None
        ours = (render._by_matrices, render._one_by_one)
        apart = float((ours[0](images, box, mirror, size) - ours[1](images, box, mirror, size)).abs().max())
        print(f"{stored} -> {size} px, {count} images, which differ by {apart:.1g} at most:")
        ways: dict[str, Callable[[], object]] = {
            "by matrices": lambda a=(images, box, mirror, size): render._by_matrices(*a),
            "one by one": lambda a=(images, box, mirror, size): render._one_by_one(*a),
            "PIL": lambda a=(images, view, size): with_pil(*a),
        }
        speeds(ways, count, rounds)
    index = torch.arange(128)
    for side in (32, 224):
        images = torch.randint(0, 256, (128, 3, side, side), dtype=torch.uint8, generator=random)

        def seen(augment: Augment, images: Tensor = images, side: int = side) -> Tensor:
            if not augment.is_drawn:
                return views.augment(images, index, epoch=0, augment=augment, view_seed=0)
            view = draw(augment, 0, 0, index, (side, side))
            return render.render(images, render.place(view, render.HOST), side)

        print(f"drawn and made, {side} px:")
        speeds({name: lambda a=augment: seen(a) for name, augment in MOST.items()}, len(index), rounds)


if __name__ == "__main__":
    main()
