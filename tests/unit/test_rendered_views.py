"""Resampled views: the same boxes, distributed as torchvision's, and the pixels of PIL and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from kdcluster.experiment.images import Augment, Color, Crop, Data, Erase, Rand
from kdcluster.train import feed, render, shown, views
from kdcluster.train.draw import View, draw
from tests.standin import PLACE, StandIn, cuda_refuses_to_wait

N = 20_000
CROP = Augment(crop=Crop())
COLOR = Color(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
ALL = Augment(crop=Crop(), color=COLOR, policy="trivial", erase=Erase(probability=0.5))
SMALL = [(8, 8, 8), (28, 28, 28), (32, 32, 32), (32, 32, 48), (40, 56, 64), (56, 56, 160)]
"""H, W, S that a CPU makes by matrices."""
SIZES = [*SMALL, (48, 40, 24), (64, 64, 32), (96, 96, 72)]
"""The others by torch's resize."""
GOLDEN = [[0, 5, 27, 21], [8, 4, 23, 19], [18, 2, 12, 10], [4, 6, 28, 26]]


def photos(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 (N, C, H, W): edges, smooth parts and noise, seldom black or white, where PIL clips between its passes."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    made = []
    for _ in range(count * channels):
        a, b, c = random.uniform(-1, 1, 3)
        wave = 90 + 50 * np.sin((a * y + b * x) * 0.7 + 6 * c) + 60 * ((a * y - b * x + 9 * c) > 0)
        made.append(wave + random.normal(0, 12, wave.shape))
    pixels = np.stack(made).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(pixels.reshape(count, channels, height, width))


def some(count: int, height: int, width: int, augment: Augment = CROP) -> tuple[Tensor, View]:
    return photos(count, height, width), draw(augment, 0, 0, torch.arange(count), (height, width))


def on_host(images: Tensor, view: View, size: int | None) -> Tensor:
    return render.render(images, render.place(view, feed.HOST), size)


def rows_of(view: View, at: Tensor) -> View:
    return View(**{name: None if one is None else one[at] for name, one in vars(view).items()})


def each(images: Tensor, view: View):
    assert view.box is not None
    assert view.mirror is not None
    return zip(images, view.box.tolist(), view.mirror.tolist(), strict=True)


# --- what is drawn ---


def test_golden_boxes() -> None:
    """Moving these moves every cropped view: raise run.RECIPES."""
    view = draw(CROP, 7, 3, torch.tensor([0, 1, 49_999, 2**40]), (32, 32))
    assert view.box is not None
    assert view.box.tolist() == GOLDEN


@pytest.mark.parametrize("ratio", [(60, 70), (0.01, 0.011)])
def test_a_box_of_any_ratio_has_a_pixel(ratio: tuple[float, float]) -> None:
    view = draw(Augment(crop=Crop(scale=(0.2, 1.0), ratio=ratio)), 0, 0, torch.arange(50), (16, 16))
    assert view.box is not None
    assert (view.box[:, 2:] >= 1).all()


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Kolmogorov and Smirnov's, of two samples."""
    places = torch.cat([ours, theirs]).unique()
    below = [torch.searchsorted(one.sort().values, places, right=True).double() / len(one) for one in (ours, theirs)]
    return float((below[0] - below[1]).abs().max())


@pytest.mark.parametrize(
    ("crop", "shape"),
    [
        (Crop(), (32, 32)),
        (Crop(), (224, 224)),
        (Crop(scale=(0.5, 0.6), ratio=(0.5, 2.0)), (30, 50)),
        (Crop(scale=(0.8, 1.0), ratio=(1.5, 2.0)), (64, 64)),  # of ten some fit now and then, else the last resort
        (Crop(scale=(0.9, 1.0), ratio=(0.2, 0.3)), (64, 64)),
        (Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0)), (40, 20)),
        (Crop(scale=(0.0001, 0.0002)), (8, 8)),
    ],
    ids=["CIFAR", "ImageNet", "oblong", "seldom fits", "never fits", "too high", "too small"],
)
def test_boxes_are_distributed_as_torchvisions(crop: Crop, shape: tuple[int, int]) -> None:
    ours = draw(Augment(crop=crop), 1, 0, torch.arange(N), shape).box
    assert ours is not None
    torch.manual_seed(0)
    image = torch.zeros(1, *shape)
    few = N // 4
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [*crop.scale], [*crop.ratio]) for _ in range(few)])
    limit = 2.0 * ((N + few) / (N * few)) ** 0.5  # 1.95 is passed once in 1,000
    for axis in range(4):
        assert distance(ours[:, axis].double(), theirs[:, axis].double()) < limit
    for both in (ours, theirs):
        assert ((both[:, :2] >= 0) & (both[:, 2:] > 0) & (both[:, :2] + both[:, 2:] <= torch.tensor(shape))).all()
    area, slant = ((one[:, 2] * one[:, 3]).double() for one in (ours, theirs))
    assert distance(area, slant) < limit
    assert distance((ours[:, 2] - ours[:, 3]).double(), (theirs[:, 2] - theirs[:, 3]).double()) < limit


def test_half_are_mirrored_as_without_a_crop_and_not_where_that_is_off() -> None:
    index = torch.arange(N)
    view = draw(CROP, 5, 2, index, (32, 32))
    assert view.mirror is not None
    assert torch.equal(view.mirror, views.counter_bits(5, 2, index, views.FLIP) < 0)
    still = draw(Augment(crop=Crop(), flip=False), 5, 2, index, (32, 32))
    assert still.mirror is not None
    assert not still.mirror.any()
    assert torch.equal(still.box, view.box)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(20)), count=st.integers(0, 20), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0))
def test_a_view_is_drawn_for_each_image_alone(order, count, seed, epoch) -> None:
    for augment in (ALL, Augment(policy="rand", rand=Rand(ops=3))):
        whole = draw(augment, seed, epoch, torch.arange(20), (32, 24))
        at = torch.tensor(order[:count], dtype=torch.int64)
        part, same = vars(draw(augment, seed, epoch, at, (32, 24))), vars(rows_of(whole, at))
        assert all(torch.equal(part[name], one) for name, one in same.items() if one is not None)
        assert {name for name, one in same.items() if one is None} == {
            name for name, one in part.items() if one is None
        }


def test_what_is_switched_on_moves_nothing_else() -> None:
    index = torch.arange(100)
    views_of = [draw(one, 1, 2, index, (32, 32)) for one in (CROP, ALL, ALL.model_copy(update={"policy": "none"}))]
    assert torch.equal(views_of[0].box, views_of[1].box)  # type: ignore[arg-type]
    assert torch.equal(views_of[1].operations[:, :4], views_of[2].operations)  # type: ignore[index, arg-type]
    assert torch.equal(views_of[1].strengths[:, :4], views_of[2].strengths)  # type: ignore[index, arg-type]
    assert torch.equal(views_of[1].erased, views_of[2].erased)  # type: ignore[arg-type]


# --- its pixels ---


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_pixels_are_torchvisions(height: int, width: int, size: int) -> None:
    images, view = some(40, height, width)
    got = on_host(images, view, size)
    assert got.dtype == torch.float32
    for image, ((top, left, h, w), mirror), made in zip(
        images, [(box, mirror) for _, box, mirror in each(images, view)], got, strict=True
    ):
        want = tv.resized_crop(image.float() / 255, top, left, h, w, [size, size], antialias=True, interpolation=3)
        want = (want.flip(-1) if mirror else want).clamp(0, 1)
        assert (made - want).abs().max() <= 1e-4


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_pixels_are_pils_but_for_its_rounding_between_two_passes(height: int, width: int, size: int) -> None:
    images, view = some(40, height, width)
    got = on_host(images, view, size) * 255
    apart = []
    for (image, (top, left, h, w), mirror), made in zip(each(images, view), got, strict=True):
        box = (left, top, left + w, top + h)
        shown = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(box).resize((size, size), Image.Resampling.BICUBIC)
        want = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
        apart.append(((want.flip(-1) if mirror else want) - made).abs())
    assert torch.stack(apart).mean() <= 0.5
    assert torch.stack(apart).max() <= 8


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_both_ways_give_the_same_numbers(height: int, width: int, size: int) -> None:
    images, view = some(40, height, width)
    ways = [way(images, view.box, view.mirror, size) for way in (render._by_matrices, render._one_by_one)]
    assert (ways[0] - ways[1]).abs().max() <= 3e-5


def test_both_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_by_matrices", "_one_by_one"):
        monkeypatch.setattr(render, name, lambda images, *_, name=name: taken.append(name) or images.float())
    for height, width, size in SIZES:
        on_host(*some(2, height, width), size)
    assert taken == ["_by_matrices"] * len(SMALL) + ["_one_by_one"] * (len(SIZES) - len(SMALL))


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
@pytest.mark.parametrize("augment", [CROP, ALL], ids=["crop", "all"])
def test_a_row_has_the_same_bits_in_any_batch(height, width, size, augment, monkeypatch) -> None:
    """Else stored and computed logits would differ."""
    images, view = some(130, height, width, augment)  # more than a pass of the teacher
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = on_host(images, view, size)
    monkeypatch.setattr(render, "AT_ONCE", 50 * 3 * max(height, width, size) ** 2)
    try:
        for count in (1, 2, 7, 64, 129):
            at = torch.randperm(130, generator=torch.Generator().manual_seed(count))[:count]
            torch.set_num_threads(1 + (count == 64))
            assert torch.equal(on_host(images[at], rows_of(view, at), size), whole[at])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("side", [40, 60])
def test_models_of_different_sizes_see_the_same_region(side: int) -> None:
    """In an image whose pixels name their place the middle of each view is where the middle of its box is."""
    ramp = (torch.arange(side) * 4).to(torch.uint8).expand(1, side, side)
    images = torch.stack([torch.cat([ramp, ramp.transpose(1, 2), ramp])] * 30)
    view = draw(CROP, 3, 1, torch.arange(30), (side, side))
    assert view.box is not None
    middle = view.box[:, :2] + (view.box[:, 2:] - 1) / 2
    for size in (16, 31, 64):
        seen = on_host(images, view, size).mean((-1, -2)) * 255 / 4
        assert (seen[:, 1] - middle[:, 0]).abs().max() < 0.5
        assert (seen[:, 0] - middle[:, 1]).abs().max() < 0.5


def test_a_whole_box_at_its_own_size_is_the_image() -> None:
    images = photos(3, 32, 32)
    box = torch.tensor([[0, 0, 32, 32]] * 3)
    made = on_host(images, View(box, torch.tensor([False, True, False])), 32) * 255
    assert torch.allclose(made[0], images[0].float(), atol=1e-4)
    assert torch.allclose(made[1], images[1].flip(-1).float(), atol=1e-4)


def test_equal_sizes_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spy(images: Tensor, placed: render.Placed, size: int) -> Tensor:
        sizes.append(size)
        return render.render(images, placed, size)

    monkeypatch.setattr(shown, "render", spy)
    split = feed.Split(photos(6, 32, 32), torch.arange(6), feed.HOST)
    index = feed.Index.placed(torch.tensor([4, 1]), feed.HOST)
    data = Data(name="cifar10", augment=CROP)
    for asked, made in (((16, 16), [16]), ((16, 24), [16, 24]), ((24,), [24])):
        sizes.clear()
        pixels, labels = shown.shown(split, index, data, 2, asked)
        assert sizes == made
        assert {size: one.shape for size, one in pixels.items()} == {size: (2, 3, size, size) for size in made}
        assert labels.first.tolist() == [4, 1]
    plain = Data(name="cifar10")
    pixels, _ = shown.shown(split, index, plain, 2, (16, 24))
    assert pixels[16] is pixels[24]
    assert pixels[16].dtype == torch.uint8
    want = views.augment(split.images[[4, 1]], index.host, epoch=2, augment=plain.augment, view_seed=0)
    assert torch.equal(pixels[16], want)


EVERY = [CROP, ALL, Augment(policy="rand", rand=Rand(ops=16, magnitude=20)), Augment(erase=Erase())]


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("augment", EVERY, ids=["crop", "all", "rand", "erase"])
def test_no_view_waits_for_the_device(side: int, augment: Augment) -> None:
    draw(augment, 0, 0, torch.arange(1), (side, side))  # keeps its tables
    with StandIn() as device:
        index = torch.from_numpy(np.arange(8))  # of the host, whatever the guard may think of an arange
        placed = feed.Index.placed(index, PLACE)
        split = feed.Split(photos(8, side, side).to(PLACE), torch.arange(8).to(PLACE), PLACE)
        device.watching = True
        pixels, _ = shown.shown(split, placed, Data(name="cifar10", augment=augment), 0, (24, 32))
        assert {device.where(one) for one in pixels.values()} == {"device"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_gpu_makes_the_same_views_without_waiting(height: int, width: int, size: int) -> None:
    images, view = some(40, height, width, ALL.model_copy(update={"policy": "none"}))  # some jump at a level
    on_gpu = images.cuda()
    with cuda_refuses_to_wait():
        got = render.render(on_gpu, render.place(view, on_gpu.device), size)
    assert (got.cpu() - on_host(images, view, size)).abs().max() <= 5e-5
