"""Each operation of a view against torchvision's: what is drawn, and the pixels that it makes."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
import torchvision.transforms as theirs
import torchvision.transforms.functional as tv
from timm.data import auto_augment
from torch import Tensor
from torchvision.transforms import InterpolationMode

from kdcluster.experiment import recipes
from kdcluster.experiment.images import Augment, Color, Crop, Erase, Rand
from kdcluster.train import feed, operations, render
from kdcluster.train.draw import View, draw, policy
from tests.unit.test_rendered_views import distance, photos

N, FEW = 20_000, 5_000
LIMIT = 2.0 * ((N + FEW) / (N * FEW)) ** 0.5
INDEX = torch.arange(N)
TOP_LEFT = {"translate": [0, 0], "scale": 1.0, "interpolation": InterpolationMode.BILINEAR, "center": [0, 0]}


def degrees(by: float) -> float:
    return math.degrees(math.atan(by))


WANTED = {
    "brightness": (lambda x, s: tv.adjust_brightness(x, s), [0.0, 0.3, 1.0, 1.9]),
    "contrast": (lambda x, s: tv.adjust_contrast(x, s), [0.0, 0.3, 1.0, 1.9]),
    "saturation": (lambda x, s: tv.adjust_saturation(x, s), [0.0, 0.3, 1.0, 1.9]),
    "hue": (lambda x, s: tv.adjust_hue(x, s), [-0.5, -0.1, 0.0, 0.33, 0.5]),
    "sharpness": (lambda x, s: tv.adjust_sharpness(x, s), [0.0, 0.3, 1.0, 1.9]),
    "solarize": (lambda x, s: tv.solarize(x, s), [0.0, 0.37, 1.0]),
    "autocontrast": (lambda x, s: tv.autocontrast(x), [0.0]),
    "posterize": (lambda x, s: tv.posterize((x * 255).to(torch.uint8), int(s)) / 255, [2, 3, 5, 8]),
    "equalize": (lambda x, s: tv.equalize((x * 255).to(torch.uint8)) / 255, [0.0]),
    "shear_x": (lambda x, s: tv.affine(x, 0.0, shear=[degrees(s), 0.0], **TOP_LEFT), [-0.99, -0.1, 0.0, 0.3]),
    "shear_y": (lambda x, s: tv.affine(x, 0.0, shear=[0.0, degrees(s)], **TOP_LEFT), [-0.99, -0.1, 0.0, 0.3]),
    "translate_x": (
        lambda x, s: tv.affine(x, 0.0, [int(s * x.shape[-1]), 0], 1.0, [0.0, 0.0]),
        [-0.25, 0.0, 0.5],
    ),
    "translate_y": (
        lambda x, s: tv.affine(x, 0.0, [0, int(s * x.shape[-2])], 1.0, [0.0, 0.0]),
        [-0.25, 0.0, 0.5],
    ),
    "rotate": (lambda x, s: tv.rotate(x, s, InterpolationMode.BILINEAR), [-135, -30, 0, 10, 90]),
}
"""Operation -> torchvision's, and strengths."""


def test_no_operation_is_left_out() -> None:
    assert set(WANTED) == {operation.__name__ for operation in operations.OPERATIONS if operation}


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 24, 40)])
def test_pixels_are_torchvisions(name: str, channels: int, height: int, width: int) -> None:
    """To 1 in 255 at most: colours are the same arithmetic, places are rounded in another order."""
    wanted, strengths = WANTED[name]
    images = photos(len(strengths), height, width, channels).float() / 255
    images[0, :, 3:, 5:] = images[0, :, 3:4, 5:6]  # much of one level
    made = getattr(operations, name)(images, torch.tensor(strengths, dtype=torch.float64))
    for image, strength, one in zip(images, strengths, made, strict=True):
        apart = (wanted(image, strength) - one).abs()
        assert apart.max() <= (1 / 255 if name in ("shear_x", "shear_y", "rotate") else 2e-4)


@pytest.mark.parametrize("name", WANTED)
def test_a_flat_image_stays_finite(name: str) -> None:
    images = torch.full((1, 3, 8, 8), 0.5)
    made = getattr(operations, name)(images, torch.tensor([WANTED[name][1][0]], dtype=torch.float64))
    assert made.isfinite().all()
    assert made.shape == images.shape


# --- what is drawn ---


def given(augment: Augment) -> tuple[Tensor, Tensor]:
    view = draw(augment, 3, 1, INDEX, (32, 32))
    assert view.operations is not None
    assert view.strengths is not None
    return view.operations, view.strengths


GOLDEN = {
    "color": (
        [[2, 4, 3, 1], [1, 3, 2, 4], [3, 4, 2, 1]],
        [[0.8005, -0.0647, 1.1097, 0.699], [1.3975, 0.8277, 1.2835, -0.0358], [0.8351, 0.002, 0.7452, 0.6509]],
    ),
    "trivial": ([[12], [2], [10]], [[-0.0048], [1.099], [0.891]]),
    "rand": ([[12, 11], [2, 11], [10, 0]], [[-0.136, -0.09], [1.27, -0.09], [0.09, 0.3]]),
    "erase": [[0.5648, 0.0159, 0.4242, 0.7608], [0.6497, 0.4222, 0.1982, 0.1429], [0.1209, 0.029, 0.3477, 0.8769]],
}
"""Operations and strengths, or erased boxes, of three images."""
DRAWN = {
    "color": Augment(color=Color(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)),
    "trivial": Augment(policy="trivial"),
    "rand": Augment(policy="rand"),
    "erase": Augment(erase=Erase(probability=1.0)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_draws(name: str) -> None:
    """Moving these moves every such view, and with it what a store's logits are of: raise run.RECIPES."""
    view = draw(DRAWN[name], 7, 3, torch.tensor([0, 1, 49_999]), (32, 32))
    if view.operations is None or view.strengths is None:
        assert view.erased is not None
        assert view.erased.numpy() == pytest.approx(numpy.array(GOLDEN[name]), abs=1e-4)
    else:
        numbers, strengths = GOLDEN[name]
        assert view.operations.tolist() == numbers
        assert view.strengths.numpy() == pytest.approx(numpy.array(strengths), abs=1e-4)


def test_colours_are_drawn_as_torchvisions() -> None:
    numbers, strengths = given(Augment(color=Color(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)))
    jitter = theirs.ColorJitter(0.4, 1.5, 0.2, 0.1)
    torch.manual_seed(0)
    drawn = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(FEW)]
    assert (numbers.sort(1).values == torch.tensor([1, 2, 3, 4])).all()
    for number in range(1, 5):
        want = torch.tensor([one[number] for one in drawn], dtype=torch.float64)
        assert distance(strengths[numbers == number], want) < LIMIT
        at = (numbers == number).int().argmax(1)  # where in the order
        assert (at.bincount(minlength=4) - N / 4).abs().max() < 5 * (N * 3 / 16) ** 0.5
    orders = (numbers * torch.tensor([1000, 100, 10, 1])).sum(1).unique(return_counts=True)[1]
    assert len(orders) == 24
    assert (orders - N / 24).abs().max() < 5 * (N / 24) ** 0.5


def test_a_colour_that_is_off_is_not_touched() -> None:
    numbers, _ = given(Augment(color=Color(contrast=0.5)))
    assert set(numbers.unique().tolist()) == {0, 2}
    assert (numbers > 0).sum() == N


NAMES = {
    "Identity": None,
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}
"""torchvision's name -> ours."""
NAMED = [operation and operation.__name__ for operation in operations.OPERATIONS]
NO_STRENGTH = {None, "autocontrast", "equalize"}


@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_the_operations_of_a_policy_are_torchvisions(name: str) -> None:
    numbers, strengths, away = policy(name)
    side = {"trivial": 224, "rand": 331}[name]
    space = (
        theirs.TrivialAugmentWide()._augmentation_space(31)
        if name == "trivial"
        else theirs.RandAugment()._augmentation_space(31, (side, side))
    )
    assert [NAMED[number] for number in numbers] == [NAMES[one] for one in space]
    for number, ours, (zero, signed), (magnitudes, is_signed) in zip(
        numbers, strengths, away.tolist(), space.values(), strict=True
    ):
        ours_name = NAMED[number]
        assert bool(signed) == is_signed
        assert zero == (ours_name in ("brightness", "contrast", "saturation", "sharpness"))
        if ours_name not in NO_STRENGTH:
            unit = side if str(ours_name).startswith("translate") else 255 if ours_name == "solarize" else 1
            assert torch.allclose(ours * unit, magnitudes.double(), atol=1e-4)


@pytest.mark.parametrize(("recipe", "level"), [("deit", 9), ("a2", 7)])
def test_the_strength_of_a_recipe_is_that_of_timms_rand_augment(recipe: recipes.Name, level: int) -> None:
    """rand-m9 and rand-m7, of 10 there."""
    numbers, strengths, _ = policy("rand")
    magnitude = recipes.RECIPES[recipe].keys["data.augment.rand.magnitude"]
    ours = {NAMED[number]: float(strength) for number, strength in zip(numbers, strengths[:, magnitude], strict=True)}
    for name, timms in (("rotate", "Rotate"), ("shear_x", "ShearX"), ("translate_x", "TranslateXRel")):
        assert ours[name] == pytest.approx(abs(auto_augment.LEVEL_TO_ARG[timms](level, {})[0]), rel=0.01)
    enhanced = abs(auto_augment.LEVEL_TO_ARG["BrightnessIncreasing"](level, {})[0] - 1)
    assert [ours[name] for name in ("brightness", "contrast", "saturation", "sharpness")] == pytest.approx(
        [enhanced] * 4
    )
    (above,) = auto_augment.LEVEL_TO_ARG["SolarizeIncreasing"](level, {})
    assert ours["solarize"] * 255 == pytest.approx(above, abs=1)


def test_a_policy_draws_each_operation_strength_and_side_as_often() -> None:
    numbers, strengths = given(Augment(policy="trivial"))
    assert numbers.shape == (N, 1)
    counts = torch.bincount(numbers[:, 0], minlength=len(NAMED))
    listed = policy("trivial")[0]
    assert (counts[listed] - N / 14).abs().max() < 5 * (N / 14) ** 0.5
    assert counts[NAMED.index("hue")] == 0
    turned = strengths[numbers == NAMED.index("rotate")]
    values, each = turned.unique(return_counts=True)
    assert torch.allclose(values, torch.linspace(-135, 135, 61, dtype=torch.float64))  # 0 counts for both sides
    of_one = len(turned) / 62
    assert (each[values != 0] - of_one).abs().max() < 5 * of_one**0.5
    bright = strengths[numbers == NAMED.index("brightness")]
    assert abs(bright.mean() - 1) < 0.05
    assert (bright.min(), bright.max()) == (pytest.approx(0.01), pytest.approx(1.99))


def test_rand_has_so_many_operations_of_one_strength() -> None:
    numbers, strengths = given(Augment(policy="rand", rand=Rand(ops=3, magnitude=9)))
    assert numbers.shape == strengths.shape == (N, 3)
    assert set(strengths[numbers == NAMED.index("rotate")].round(decimals=6).tolist()) == {-9.0, 9.0}
    listed = policy("rand")[0]
    for slot in numbers.unbind(1):
        assert (torch.bincount(slot, minlength=len(NAMED))[listed] - N / 14).abs().max() < 5 * (N / 14) ** 0.5
    pairs = torch.bincount(numbers[:, 0] * len(NAMED) + numbers[:, 1])
    assert int((pairs > 0).sum()) == 14 * 14  # with repetition, as torchvision draws them


@pytest.mark.parametrize(
    "erase",
    [Erase(probability=1.0), Erase(probability=1.0, scale=(0.5, 1.0), ratio=(0.2, 4.0))],
    ids=["default", "seldom fits"],
)
def test_boxes_are_erased_as_torchvisions(erase: Erase) -> None:
    ours = draw(Augment(erase=erase), 0, 0, INDEX, (32, 32)).erased
    assert ours is not None
    side = 1000
    image = torch.zeros(1, 1, 1).expand(1, side, side)
    torch.manual_seed(0)
    get = theirs.RandomErasing.get_params
    drawn = [get(image, [*erase.scale], [*erase.ratio], [0.0])[:4] for _ in range(FEW)]
    want = torch.tensor([(i, j, h, w) if h < side else (0, 0, 0, w) for i, j, h, w in drawn]).double() / side
    is_some = ours[:, 2] > 0
    assert abs(is_some.double().mean() - (want[:, 2] > 0).double().mean()) < LIMIT
    ours, want = ours[is_some], want[want[:, 2] > 0]
    for axis in range(4):
        assert distance((ours[:, axis] * side).round(), want[:, axis] * side) < LIMIT * 1.2
    assert (ours[:, :2] + ours[:, 2:] <= 1).all()


def test_erased_is_grey_and_of_a_share_of_images() -> None:
    augment = Augment(pad=0, flip=False, erase=Erase(probability=0.3))
    view = draw(augment, 0, 0, INDEX[:500], (40, 40))
    assert view.erased is not None
    made = render.render(torch.zeros(500, 1, 40, 40, dtype=torch.uint8), render.place(view, feed.HOST), None)
    grey = made == render.GREY
    assert (grey | (made == 0)).all()
    assert abs(grey.flatten(1).any(1).double().mean() - 0.3) < 5 * (0.3 * 0.7 / 500) ** 0.5
    share = grey.flatten(1).double().mean(1)
    assert (share - view.erased[:, 2] * view.erased[:, 3]).abs().max() < 0.05


def test_each_image_gets_its_own() -> None:
    """In the order of the slots, each with its own strength, and one that gets nothing stays as it is."""
    images = photos(4, 8, 8)
    numbers = torch.tensor([[1, 7], [0, 0], [7, 1], [3, 0]])
    strengths = torch.tensor([[0.5, 0.5], [9.0, 9.0], [0.3, 1.5], [0.0, 0.0]], dtype=torch.float64)
    made = render.render(images, render.place(View(operations=numbers, strengths=strengths), feed.HOST), None)
    for row, image in enumerate(images.float() / 255):
        want = image[None]
        for number, strength in zip(numbers[row].tolist(), strengths[row], strict=True):
            if operation := operations.OPERATIONS[number]:
                want = operation(want, strength[None])
        assert torch.equal(made[row], want[0])


def test_a_crop_is_cut_first() -> None:
    images, augment = photos(30, 32, 32), Augment(crop=Crop(), erase=Erase(probability=1.0))
    plain = draw(Augment(crop=Crop()), 0, 0, INDEX[:30], (32, 32))
    view = draw(augment, 0, 0, INDEX[:30], (32, 32))
    cut, both = (render.render(images, render.place(one, feed.HOST), 24) for one in (plain, view))
    is_grey = (both == render.GREY).all(1, keepdim=True).expand_as(both)
    assert torch.equal(torch.where(is_grey, cut, both), cut)
    assert 0.02 < is_grey.double().mean() < 0.33
