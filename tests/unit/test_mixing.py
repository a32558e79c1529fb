"""Mixup and cutmix: partners that no split separates, Beta's shares, and pixels and labels as timm mixes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from kdcluster import parts
from kdcluster.errors import ConfigError
from kdcluster.experiment.images import Augment, Crop, Cutmix, Data, Mixup
from kdcluster.train import feed, mixing, views
from kdcluster.train.mixing import GRID, Mix
from kdcluster.train.shown import shown
from tests import tiny
from tests.standin import PLACE, StandIn, cuda_refuses_to_wait

N = 20_000
BOTH = Augment(mixup=Mixup(alpha=0.8, share=0.4), cutmix=Cutmix(alpha=1.0, share=0.5))
some_view = st.fixed_dictionaries({"view_seed": st.integers(0, 2**31 - 1), "epoch": st.integers(0, 10_000)})
any_count = st.one_of(st.integers(1, 60), st.integers(1, 3000), st.just(10_007))


def drawn(augment: Augment = BOTH, n: int = N, view_seed: int = 0, epoch: int = 0) -> Mix:
    return mixing.draw(augment, torch.arange(n), n, view_seed=view_seed, epoch=epoch)


def is_boxed(mix: Mix) -> Tensor:
    return (mix.box != 0).any(1)


def random_images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


# Strata


@given(n=st.one_of(st.integers(0, 5000), st.integers(9_900, 10_100), st.integers(0, 2_000_000)))
@settings(deadline=None, max_examples=300)
def test_strata_are_even_and_none_has_a_lonely_image(n: int):
    ends = parts.strata(n)
    sizes = [after - before for before, after in itertools.pairwise(ends)]
    assert (ends[0], ends[-1]) == (0, n)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, n)
    assert len(sizes) == (100 if n >= 10_000 else 20 if n >= 40 else len(sizes))
    assert max(sizes) <= max(3, math.ceil(n / len(sizes)))


@given(n=st.one_of(st.integers(40, 3000), st.integers(10_000, 2_000_000)))
@settings(deadline=None, max_examples=300)
def test_every_whole_share_ends_a_stratum_as_the_file_writes_it(n: int):
    for percent in range(0, 100, 1 if n >= 10_000 else 5):
        parts.check_strata(n, float(f"0.{percent:02}"), None)  # as a YAML file's digits are read


@pytest.mark.parametrize(
    ("n", "fraction", "labelled", "problem"),
    [
        (50_000, 0.005, None, r"data\.val_fraction: 0\.005 of 50,000: .* the same 1 %, .*; take 0 or 0\.01"),
        (50_000, 0.995, None, r"take 0\.99$"),
        (5_000, 0.12, None, r"data\.val_fraction: 0\.12 of 5,000: .* the same 5 %, .*; take 0\.1 or 0\.15"),
        (40, 0.12, None, r"take 0\.1 or 0\.15"),
        (3, 0.4, None, r"the same 100 %, which it would cut; take 0$"),
        (50_000, 0.1, 4_600, r"data\.labelled: 4,600 of 50,000: .*; take 5,000 or 4,500 or null for all"),
        (50_000, 0.1, 44_900, r"take 45,000 or 44,500 or null for all"),
        (50_000, 0.1, 100, r"take 500 or null for all"),
    ],
)
def test_what_cuts_a_stratum_is_refused_with_the_nearest_that_do_not(n, fraction, labelled, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        parts.check_strata(n, fraction, labelled)
    assert caught.value.exit_code == 2


def test_what_is_suggested_is_taken():
    for n in (3, 17, 40, 333, 9_999, 12_345):
        for share in (0.013, 0.111, 0.5001, 0.777):
            for change in (
                {"val_fraction": share, "labelled": None},
                {"val_fraction": 0.0, "labelled": int(share * n)},
            ):
                try:
                    parts.check_strata(n, **change)
                except ConfigError as error:
                    (key,) = [key for key in change if str(error).startswith(f"data.{key}: ")]
                    offers = str(error).partition("; take ")[2].replace(" or null for all", "").split(" or ")
                    for offer in offers if offers != ["null for all"] else []:
                        parts.check_strata(
                            n, **{**change, key: (float if key == "val_fraction" else int)(offer.replace(",", ""))}
                        )


def test_a_run_that_cuts_a_stratum_does_not_train(tmp_path):
    tiny.put_images(tmp_path / "data")
    run = tiny.make_run(tmp_path, "baseline", {"data.val_fraction": 0.12, "data.augment.cutmix": {}})
    with pytest.raises(ConfigError, match=r"data\.val_fraction: 0\.12 of 64: .*; take 0\.1 or 0\.15"):
        tiny.train_here(tmp_path, run, tmp_path / "data")


# Partners


@given(n=any_count, view=some_view)
@settings(deadline=None, max_examples=100)
def test_each_image_is_one_images_partner_and_never_its_own(n: int, view: dict[str, int]):
    partner = mixing.partners(n, **view)
    assert partner.dtype == torch.int64
    assert partner.sort().values.tolist() == list(range(n))
    assert n < 2 or not (partner == torch.arange(n)).any()


@given(n=st.integers(2, 3000), fraction=st.floats(0, 0.95), labels=st.floats(0, 1), view=some_view)
@settings(deadline=None, max_examples=200)
def test_no_split_that_is_taken_separates_partners(n, fraction, labels, view):
    """Whatever fraction and count a file asks for: either they are refused, or no partner is from beyond."""
    count = len(parts.strata(n)) - 1
    near = round(fraction * count) / count
    for share, labelled in ((fraction, None), (near, None), (near, n - parts.strata(n)[round(labels * count)])):
        try:
            parts.check_strata(n, share, labelled)
            train, val = views.held_out(n, share)
            known = views.labelled(n, labelled, share) if labelled else torch.arange(0)
        except ConfigError:
            continue
        partner = mixing.partners(n, **view)
        for part in (train, val, known):
            assert set(partner[part].tolist()) == set(part.tolist())


@pytest.mark.parametrize("n", [40, 4_000, 15_000, 50_000])
def test_no_held_out_image_is_mixed_into_one_that_trains(n: int):
    percents = (1, 2, 10, 29, 57, 99) if n >= 10_000 else range(5, 100, 5)
    partner = [drawn(Augment(mixup=Mixup(share=1.0)), n, epoch=epoch).partner for epoch in range(3)]
    for percent in percents:
        parts.check_strata(n, percent / 100, None)
        train, val = views.held_out(n, percent / 100)
        is_held_out = torch.zeros(n, dtype=torch.bool).index_fill(0, val, True)
        for one in partner:
            assert not is_held_out[one[train]].any()
            assert is_held_out[one[val]].all()


def test_without_the_check_a_split_would_leak():
    """What is refused is refused for a reason."""
    train, val = views.held_out(N, 0.005)
    mixed_in = mixing.partners(N, view_seed=0, epoch=0)[train]
    assert 0 < torch.isin(mixed_in, val).sum() < len(val)
    with pytest.raises(ConfigError):
        parts.check_strata(N, 0.005, None)


def test_partners_change_with_epoch_and_view_seed_and_are_spread_over_the_stratum():
    several = [mixing.partners(N, view_seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0), (7, 300))]
    for at, one in enumerate(several):
        for other in several[:at]:
            assert (one == other).float().mean() < 3 / 199  # 200 images a stratum
    order = views.fixed_order(N)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(N))
    apart = (rank[several[0][order]] - rank[order]).view(100, 200)
    assert apart.sum() == 0
    counts = torch.bincount((apart % 200).flatten(), minlength=200)[1:].double()  # 1 to 199, each as often
    expected = N / 199
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 198) < 5 * (2 * 198) ** 0.5


# What is drawn


@given(order=st.permutations(range(64)), size=st.integers(1, 64), view=some_view)
@settings(deadline=None, max_examples=30)
def test_what_is_drawn_does_not_depend_on_batch_or_order(order, size, view):
    whole = drawn(n=64, **view)
    for index in torch.tensor(order).split(size):
        for got, want in zip(mixing.draw(BOTH, index, 64, **view), whole, strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got, want[index])


def test_nothing_in_an_empty_batch():
    mix = mixing.draw(BOTH, torch.arange(0), 64, view_seed=0, epoch=0)
    assert [tuple(one.shape) for one in mix] == [(0,), (0,), (0, 4)]
    assert mixing.blend(*random_images(0, 2, 3, 8, 8).unbind(1), mix.share, mix.box).shape == (0, 3, 8, 8)


def test_each_way_has_its_share_and_neither_moves_the_other():
    mix, mixup = drawn(), drawn(Augment(mixup=BOTH.mixup))
    cutmix, full = drawn(Augment(cutmix=BOTH.cutmix)), drawn(Augment(mixup=Mixup(share=0.3), cutmix=Cutmix(share=0.7)))
    boxed = is_boxed(mix)
    blended = (mix.share < 1) & ~boxed
    assert torch.equal(blended, mixup.share < 1)
    assert torch.equal(mix.share[blended], mixup.share[blended])
    assert torch.equal(boxed, is_boxed(cutmix))
    assert torch.equal(mix.share[boxed], cutmix.share[boxed])
    assert not is_boxed(mixup).any()
    for share, want in (
        (boxed.float().mean(), 0.5),
        (blended.float().mean(), 0.4),
        ((full.share < 1).float().mean(), 1),
    ):
        assert abs(share - want) < 5 * 0.5 / N**0.5
    alone = mix.share == 1
    assert torch.equal(mix.partner[alone], torch.arange(N)[alone])
    assert torch.equal(mix.partner[~alone], mixing.partners(N, view_seed=0, epoch=0)[~alone])


def test_ways_shares_boxes_and_partners_are_unrelated():
    index = torch.arange(N)
    streams = [mixing.PARTNER, mixing.WAY, mixing.SHARE, mixing.BOX]
    bits = [views.counter_bits(0, 0, index, stream) for stream in streams]
    low, middle = (((bits[-1] >> shift) & GRID - 1).double() for shift in (0, 16))
    assert (
        abs(torch.corrcoef(torch.stack([*(one.double() for one in bits), low, middle])) - torch.eye(6)).max()
        < 5 / N**0.5
    )
    others = {getattr(views, name) for name in vars(views) if name.isupper() and isinstance(getattr(views, name), int)}
    assert not others & set(streams)


# λ


def cdf_of_the_table(alpha: float, at: Any) -> Any:
    """The share of the table that is at most so many 1/GRID."""
    return np.searchsorted(mixing.shares(alpha).numpy(), at, side="right") / mixing.QUANTILES


CLOSED: dict[float, Callable[[Any], Any]] = {
    0.5: lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: x**2 * (3 - 2 * x),
    3.0: lambda x: x**3 * (10 - 15 * x + 6 * x**2),
}


@pytest.mark.parametrize("alpha", CLOSED)
def test_the_table_has_the_quantiles_of_the_closed_form(alpha: float):
    upper = np.arange(GRID) + 0.5  # what is below it is rounded to this multiple of 1/GRID or to less
    assert abs(cdf_of_the_table(alpha, np.arange(GRID)) - CLOSED[alpha](upper / GRID)).max() <= 1 / 8192 + 1e-12


@given(alpha=st.one_of(st.floats(1e-6, 100), st.floats(0.05, 2)))
@settings(deadline=None, max_examples=60)
def test_a_table_is_ascending_and_the_same_from_both_sides(alpha: float):
    table = mixing.shares(alpha)
    assert table.dtype == torch.int64
    assert table.shape == (4096,)
    assert (table.diff() >= 0).all()
    assert (table >= 0).all()
    assert torch.equal(table + table.flip(0), torch.full_like(table, GRID))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 8.0, 100.0])
def test_shares_are_distributed_as_numpys_beta(alpha: float):
    """Kolmogorov and Smirnov: of the table, and of what is drawn with it."""
    sample = np.sort(np.rint(np.random.default_rng(0).beta(alpha, alpha, 200_000) * GRID))
    at = np.arange(GRID + 1)
    of_numpy = np.searchsorted(sample, at, side="right") / len(sample)
    assert abs(of_numpy - cdf_of_the_table(alpha, at)).max() < 1 / 8192 + 2 / len(sample) ** 0.5
    share = drawn(Augment(mixup=Mixup(alpha=alpha, share=1.0))).share.double().sort().values.numpy() * GRID
    of_ours = np.searchsorted(share, at, side="right") / N
    assert abs(of_numpy - of_ours).max() < 1 / 8192 + 2 / N**0.5


GOLDEN_SHARES = {
    0.1: [0, 0, 0, 56, 2452, 28487, 32723],
    0.2: [0, 0, 50, 1564, 9648, 30389, 32743],
    0.4: [0, 8, 1337, 7250, 17411, 31370, 32753],
    0.8: [1, 465, 6145, 14380, 22762, 31894, 32759],
    1.0: [8, 1032, 8200, 16392, 24008, 32008, 32760],
    2.0: [419, 4870, 14495, 21394, 26864, 32261, 32763],
    8.0: [7829, 16133, 23402, 27200, 29931, 32526, 32765],
}
"""alpha -> entries 0, 64, 512, 1024, 1500, 2000, 2047 of its table: scipy's betaincinv, rounded to 1/GRID."""


@pytest.mark.parametrize("alpha", GOLDEN_SHARES)
def test_golden_shares(alpha: float):
    """Moving these moves every mixed view: raise plan.RECIPE."""
    assert mixing.shares(alpha)[[0, 64, 512, 1024, 1500, 2000, 2047]].tolist() == GOLDEN_SHARES[alpha]


def test_golden_mix():
    assert mixing.partners(12, view_seed=0, epoch=0).tolist() == GOLDEN_PARTNERS
    mix = mixing.draw(BOTH, torch.tensor([0, 1, 2, 3, 49_999]), 50_000, view_seed=3, epoch=7)
    assert mix.partner.tolist() == GOLDEN_MIX[0]
    assert [share.hex() for share in mix.share.tolist()] == GOLDEN_MIX[1]
    assert mix.box.tolist() == GOLDEN_MIX[2]


GOLDEN_PARTNERS = [2, 8, 0, 1, 9, 7, 11, 5, 3, 4, 6, 10]
GOLDEN_MIX = (
    [5602, 1, 42138, 5568, 15644],
    [
        "0x1.33f96c0000000p-2",
        "0x1.0000000000000p+0",
        "0x1.91ea000000000p-1",
        "0x1.9e6c5a0000000p-1",
        "0x1.fb8a3c0000000p-1",
    ],
    [[0, 49082, 4348, 65536], [0, 0, 0, 0], [0, 0, 0, 0], [39980, 65536, 33507, 65536], [11467, 18142, 0, 5605]],
)


# As timm


def centred(monkeypatch: pytest.MonkeyPatch, places: list[int]) -> None:
    """Make numpy draw these places next, where timm asks for the centre of a box."""
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: places.pop(0))


def test_boxes_are_those_of_timm_in_an_image_of_the_grids_size(monkeypatch):
    share = torch.cat([mixing.shares(1.0)[::40], torch.tensor([0, 1, GRID - 1, GRID])])
    row, column = (torch.randint(0, GRID, share.shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    row[:4], column[2:6] = torch.tensor([0, GRID - 1, 0, 1]), torch.tensor([0, GRID - 1, 0, 1])
    boxes = mixing._boxes(share, row, column)
    for lam, y, x, box in zip(share.tolist(), row.tolist(), column.tolist(), boxes, strict=True):
        centred(monkeypatch, [y, x])
        edges, left = timm_mixup.cutmix_bbox_and_lam((3, GRID, GRID), lam / GRID)
        assert [int(edge) for edge in edges] == box.tolist()
        assert left == 1 - int(mixing._area(box[None])) / GRID**2


@pytest.mark.parametrize(
    ("augment", "timms"),
    [
        (Augment(mixup=Mixup(alpha=0.2, share=0.7)), {"mixup_alpha": 0.2, "prob": 0.7}),
        (Augment(cutmix=Cutmix(share=1.0)), {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}),
        (Augment(mixup=Mixup(), cutmix=Cutmix()), {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}),
    ],
    ids=["mixup", "cutmix", "DeiT"],
)
def test_shares_are_distributed_as_timms(augment, timms, monkeypatch):
    """Ours against what timm gives the labels of as many images, each with its own λ."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(np.random, "rand", rng.random)
    monkeypatch.setattr(np.random, "beta", rng.beta)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: rng.integers(low, high, size))
    lam, use_cutmix = timm_mixup.Mixup(**timms, mode="elem")._params_per_elem(N)
    for at in np.flatnonzero(use_cutmix & (lam < 1)):
        _, lam[at] = timm_mixup.cutmix_bbox_and_lam((3, 1024, 1024), lam[at])
    mix = drawn(augment)
    at = np.arange(4097)
    ours, theirs = (
        np.searchsorted(np.sort(np.rint(one * 4096)), at, side="right") / N for one in (mix.share.numpy(), lam)
    )
    assert abs(ours - theirs).max() < 2 * (2 / N) ** 0.5
    assert abs(is_boxed(mix).numpy().mean() - (use_cutmix & (lam < 1)).mean()) < 5 * 0.5 * (2 / N) ** 0.5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pixels_and_labels_are_mixed_as_timm_mixes_them(smoothing, monkeypatch):
    """The same λ, partner and box: blend's pixels, and the cross-entropy of two labels and a share."""
    count, classes, size = 48, 7, 32
    images, labels = random_images(count, 3, size, size), torch.arange(count) * 5 % classes
    mix = mixing.draw(BOTH, torch.arange(count), count, view_seed=0, epoch=0)
    boxed = is_boxed(mix)
    assert 5 < int(boxed.sum()) < 35
    lam = np.where(boxed, 0.05 + 0.9 * np.random.default_rng(0).random(count), mix.share).astype(np.float32)
    centres = np.random.default_rng(1).integers(0, size, (count, 2)).tolist()
    share, box = mix.share.clone(), torch.zeros_like(mix.box)
    for at in boxed.nonzero().flatten().tolist():
        centred(monkeypatch, list(centres[at]))
        edges, left = timm_mixup.cutmix_bbox_and_lam((3, size, size), lam[at])
        share[at], box[at] = float(left), torch.tensor([int(edge) * GRID // size for edge in edges])
    theirs = timm_mixup.Mixup(mode="elem", label_smoothing=smoothing, num_classes=classes)
    monkeypatch.setattr(theirs, "_params_per_elem", lambda count: (lam.copy(), boxed.numpy()))
    centred(monkeypatch, [place for at in boxed.nonzero().flatten().tolist() for place in centres[at]])
    pixels, target = theirs(images.clone(), labels)

    ours = mixing.blend(images, images.flip(0), share, box)  # timm's partner is the image at the same place from behind
    assert (ours - pixels).abs().max() <= 2**-23
    assert same_bits(ours[boxed], pixels[boxed])
    first, second, own = labels, labels.flip(0), share[:, None]
    smooth = [F.one_hot(one, classes) * (1 - smoothing) + smoothing / classes for one in (first, second)]
    assert torch.allclose(own * smooth[0] + (1 - own) * smooth[1], target, rtol=0, atol=1e-6)
    logits = random_images(count, classes, seed=1) * 4
    each = [F.cross_entropy(logits, one, reduction="none", label_smoothing=smoothing) for one in (first, second)]
    loss = (share * each[0] + (1 - share) * each[1]).mean()
    assert torch.allclose(loss, SoftTargetCrossEntropy()(logits, target), rtol=0, atol=1e-6)


# Pixels


@st.composite
def batches(draw: Any) -> tuple[Tensor, Tensor, Mix]:
    """Images, their partners' pixels, and how they are mixed, of any size and in all ways at once."""
    count, channels = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    height, width, epoch = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 1000))
    images, others = (random_images(count, channels, height, width, seed=2 * epoch + at) for at in (0, 1))
    return images, others, drawn(n=count, epoch=epoch)


@given(batches())
@settings(deadline=None, max_examples=100)
def test_a_row_has_the_same_bits_in_any_batch(batch):
    images, others, mix = batch
    whole = mixing.blend(images, others, mix.share, mix.box)
    turned = mixing.blend(*(one.flip(0) for one in (images, others, mix.share, mix.box))).flip(0)
    assert same_bits(whole, turned)
    for at in range(len(images)):
        alone = slice(at, at + 1)
        assert same_bits(mixing.blend(images[alone], others[alone], mix.share[alone], mix.box[alone]), whole[alone])


def test_a_row_has_the_same_bits_on_any_number_of_threads():
    images, others = (random_images(37, 3, 45, 47, seed=seed) for seed in (0, 1))
    mix = drawn(n=37)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(mixing.blend(images, others, mix.share, mix.box))
    torch.set_num_threads(before)
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


@given(batches())
@settings(deadline=None, max_examples=100)
def test_each_pixel_is_the_weighted_mean_and_the_mean_weight_is_the_share(batch):
    images, others, mix = batch
    before = images.clone(), others.clone()
    got = mixing.blend(images, others, mix.share, mix.box)
    assert torch.equal(images, before[0])
    assert torch.equal(others, before[1])
    height, width = images.shape[-2:]
    for at, (share, box) in enumerate(zip(mix.share.double(), mix.box.tolist(), strict=True)):
        top, bottom, left, right = (edge / GRID for edge in box)
        down, along = (torch.arange(side + 1, dtype=torch.float64) / side for side in (height, width))
        inside = [edges.clamp(low, high).diff() for edges, low, high in ((down, top, bottom), (along, left, right))]
        covered = torch.outer(inside[0] * height, inside[1] * width)
        own = 1 - covered if any(box) else share.expand(height, width)
        assert torch.allclose(got[at].double(), own * images[at] + (1 - own) * others[at], rtol=0, atol=3e-7)
        assert abs(own.mean() - share) < 1e-6
        if share == 1:
            assert same_bits(got[at], images[at])
    assert (got >= torch.minimum(images, others) - 2**-23).all()
    assert (got <= torch.maximum(images, others) + 2**-23).all()
    assert got.max() <= 1


@pytest.mark.parametrize(("size", "count"), [(32, 200), (28, 200), (224, 16)])
def test_inside_a_box_are_the_partners_own_pixels_and_outside_the_images(size: int, count: int):
    images, others = (random_images(count, 3, size, size, seed=seed) for seed in (0, 1))
    mix = drawn(Augment(cutmix=Cutmix(share=1.0)), count)
    got = mixing.blend(images, others, mix.share, mix.box)
    own, other = (got == images).all(1), (got == others).all(1)
    edges = mix.box.double() * size / GRID
    pixel = torch.arange(size)
    for at, (top, bottom, left, right) in enumerate(edges.tolist()):
        within = torch.outer((pixel >= top) & (pixel + 1 <= bottom), (pixel >= left) & (pixel + 1 <= right))
        without = ~torch.outer((pixel + 1 > top) & (pixel < bottom), (pixel + 1 > left) & (pixel < right))
        assert other[at][within].all()
        assert own[at][without].all()
        assert int((~within & ~without).sum()) <= 4 * size  # nothing but what an edge crosses


def test_teacher_and_student_see_the_same_box_at_their_sizes():
    """What the larger one sees, seen at the smaller size: the share of each pixel is the same, and so is its mean."""
    mix = drawn(n=100)
    large, small = (
        mixing.blend(torch.ones(100, 1, side, side), torch.zeros(100, 1, side, side), mix.share, mix.box)
        for side in (224, 32)
    )
    assert (F.avg_pool2d(large, 7) - small).abs().max() < 1e-6
    for one in (large, small):
        assert (one.mean((1, 2, 3)) - mix.share).abs().max() < 1e-6


def test_blend_never_waits():
    images, mix = random_images(2, 16, 3, 8, 8), drawn(n=16)
    with StandIn() as device:
        given = [one.to(PLACE) for one in (*images, mix.share, mix.box)]
        device.watching = True
        mixing.blend(*given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_mixes_to_the_same_bits_without_waiting():
    images, others, mix = random_images(64, 3, 45, 47), random_images(64, 3, 45, 47, seed=1), drawn(n=64)
    on_gpu = [one.cuda() for one in (images, others, mix.share, mix.box)]
    with cuda_refuses_to_wait():
        got = mixing.blend(*on_gpu)
    assert same_bits(got.cpu(), mixing.blend(images, others, mix.share, mix.box))


# --- what a view shows ---


@pytest.mark.parametrize("crop", [None, Crop(scale=(0.3, 1.0))])
@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_a_view_shows_each_image_mixed_with_its_partners_own_view(crop: Crop | None, way: str):
    """At the size of each model; the labels go with it, whoever asks."""
    random = np.random.RandomState(0)
    pixels = torch.from_numpy(random.randint(0, 256, (80, 3, 16, 16), dtype=np.uint8))
    images = feed.Split(pixels, torch.arange(80) % 7, feed.HOST)
    block = {"mixup": Mixup(share=1.0)} if way == "mixup" else {"cutmix": Cutmix(share=1.0)}
    mixed = Data(name="cifar10", augment=Augment(crop=crop, **block))
    plain = Data(name="cifar10", augment=Augment(crop=crop))
    index = torch.tensor([3, 40, 77, 12])
    mix = mixing.draw(mixed.augment, index, 80, view_seed=0, epoch=5)
    seen, labels = shown(images, feed.Index.placed(index, feed.HOST), mixed, 5, [12, 24])
    own, others = (
        shown(images, feed.Index.placed(some, feed.HOST), plain, 5, [12, 24])[0] for some in (index, mix.partner)
    )
    assert labels.second is not None
    assert labels.share is not None
    assert labels.first.tolist() == (index % 7).tolist()
    assert labels.second.tolist() == (mix.partner % 7).tolist()
    assert torch.equal(labels.share, mix.share)
    for size in (12, 24):
        ours, theirs = (some[size].float() / (255 if some[size].dtype == torch.uint8 else 1) for some in (own, others))
        assert torch.equal(seen[size], mixing.blend(ours, theirs, mix.share, mix.box))
        assert not torch.equal(seen[size], ours)
