"""Views depend on (view seed, epoch, image index) alone; orders and splits come from the same generator."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcluster.errors import ConfigError
from kdcluster.experiment.images import Augment
from kdcluster.train import feed, views
from tests.standin import PLACE, StandIn, cuda_refuses_to_wait

N = 20_000
GOLDEN_FIRST = [-592002589467784176, -4173711985663314437, 4437306630329540544, -5502598453543694284]
GOLDEN_LATER = [5977988722683634473, 7743052256840584680, 7852581870721690048, 6280433366097810522]
GOLDEN_ORDER = [6, 3, 4, 0, 7, 1, 2, 5]
GOLDEN_HELD_OUT = [5, 7, 12, 15]
some_view = st.builds(dict, epoch=st.integers(0, 10_000), view_seed=st.integers(0, 2**31 - 1))


def random_images(count: int, shape: tuple[int, int, int] = (3, 6, 5), seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def fractions(bits: Tensor) -> Tensor:
    """64 random bits as a number in [-0.5, 0.5)."""
    return bits.double() / 2.0**64


def test_splitmix64_gives_the_published_stream():
    # The first outputs of the authors' C code (prng.di.unimi.it/splitmix64.c) started at 1234567.
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in views.splitmix64(1234567, torch.arange(5)).tolist()] == known


@given(key=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 2**62))
@settings(deadline=None, max_examples=50)
def test_splitmix64_is_the_arithmetic_modulo_2_64(key: int, index: int):
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    assert int(views.splitmix64(key, torch.tensor(index))) % 2**64 == z ^ z >> 31


def test_golden_bits():
    """Moving these moves every view, order and split: raise plan.RECIPE."""
    index = torch.tensor([0, 1, 49_999, 2**40])
    assert views.counter_bits(0, 0, index, views.CROP_ROW).tolist() == GOLDEN_FIRST
    assert views.counter_bits(7, 299, index, views.FLIP).tolist() == GOLDEN_LATER
    assert views.epoch_order(8, seed=0, epoch=0).tolist() == GOLDEN_ORDER
    assert views.held_out(20, 0.2)[1].tolist() == GOLDEN_HELD_OUT


def test_bits_are_even_and_unrelated():
    index = torch.arange(N)
    base = views.counter_bits(0, 0, index, 0)
    ones = torch.stack([(base >> bit) & 1 for bit in range(64)]).double().mean(1)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / N**0.5
    others = [(0, 1, 0), (1, 0, 0), (0, 0, 1), (2**31 - 1, 0, 0), (1, 1, 0)]
    several = torch.stack([fractions(views.counter_bits(s, e, index, k)) for s, e, k in others])
    correlation = torch.corrcoef(torch.cat([fractions(base)[None], fractions(base.roll(1))[None], several]))
    assert (correlation - torch.eye(len(others) + 2)).abs().max() < 5 / N**0.5


@pytest.mark.parametrize("pad", [1, 2, 4])
def test_crops_are_uniform_and_half_are_mirrored(pad: int):
    # Images whose every pixel names its place, so that a view tells its own crop and flip.
    size = 2 * pad + 3
    image = torch.arange(1, size * size + 1, dtype=torch.uint8).view(1, 1, size, size)
    view = views.augment(
        image.expand(N, 1, size, size), torch.arange(N), epoch=3, augment=Augment(pad=pad), view_seed=5
    )
    centre = view[:, 0, size // 2, size // 2].long() - 1  # pad < size / 2: never a zero
    mirrored = (view[:, 0, size // 2, size // 2 + 1].long() - 1 < centre).long()
    row, column = centre // size - size // 2 + pad, centre % size - size // 2 + pad
    places = (2 * pad + 1) ** 2
    counts = torch.bincount((row * (2 * pad + 1) + column) * 2 + mirrored, minlength=2 * places).double()
    expected = N / (2 * places)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = 2 * places - 1
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / N**0.5


def plain_view(image: Tensor, index: int, pad: int, flip: bool, epoch: int, seed: int) -> Tensor:
    """One view, pixel by pixel."""

    def number(stream: int, limit: int) -> int:
        bits = int(views.counter_bits(seed, epoch, torch.tensor(index), stream)) % 2**64
        return (bits >> 33) * limit >> 31

    top, left = number(views.CROP_ROW, 2 * pad + 1) - pad, number(views.CROP_COLUMN, 2 * pad + 1) - pad
    mirror = flip and number(views.FLIP, 2) == 1
    channels, height, width = image.shape
    view = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = y + top, left + (width - 1 - x if mirror else x)
                if 0 <= row < height and 0 <= column < width:
                    view[c, y, x] = image[c, row, column]
    return view


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    pad=st.integers(0, 7),
    flip=st.booleans(),
    view=some_view,
    start=st.integers(0, 2**40),
)
def test_augment_is_the_plain_crop_and_flip(shape, pad, flip, view, start):
    images = random_images(4, shape)
    index = torch.arange(start, start + 4)
    got = views.augment(images, index, augment=Augment(pad=pad, flip=flip), **view)
    want = [plain_view(images[i], start + i, pad, flip, view["epoch"], view["view_seed"]) for i in range(4)]
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.stack(want))


@settings(deadline=None, max_examples=40)
@given(
    order=st.permutations(range(12)),
    batch_size=st.integers(1, 12),
    world=st.integers(1, 5),
    augment=st.builds(Augment, pad=st.integers(0, 4), flip=st.booleans()),
    view=some_view,
)
def test_a_view_does_not_depend_on_batch_order_or_rank(order, batch_size, world, augment, view):
    images = random_images(12)
    whole = views.augment(images, torch.arange(12), augment=augment, **view)
    for start in range(0, 12, batch_size):
        batch = torch.tensor(order[start : start + batch_size])
        for rank in range(world):
            mine = feed.share(len(batch), rank, world)
            index = batch[mine.start : mine.stop]  # may be empty
            got = views.augment(images[index], index, augment=augment, **view)
            assert torch.equal(got, whole[index])


def test_view_changes_with_epoch_and_view_seed_and_leaves_its_input_alone():
    images, index = random_images(64, (3, 8, 8)), torch.arange(64)
    before = images.clone()
    one, epoch, seed = (
        views.augment(images, index, epoch=e, augment=Augment(), view_seed=s) for e, s in ((0, 0), (1, 0), (0, 1))
    )
    for other in (epoch, seed, images):
        assert (one != other).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(images, before)


def test_mirroring_does_not_move_the_crops():
    images, index = random_images(64, (3, 8, 8)), torch.arange(64)
    crop, both = (
        views.augment(images, index, epoch=0, augment=Augment(flip=flip), view_seed=0) for flip in (False, True)
    )
    same = (crop == both).flatten(1).all(1)
    turned = (crop.flip(-1) == both).flatten(1).all(1)
    assert (same | turned).all()
    assert 16 < int(same.sum()) < 48


def test_nothing_off_is_nothing_done():
    images = random_images(3)
    still = Augment(pad=0, flip=False)
    assert torch.equal(views.augment(images, torch.arange(3), epoch=0, augment=still, view_seed=0), images)


def test_augment_never_waits():
    with StandIn() as device:
        images, index = random_images(8).to(PLACE), torch.arange(8).to(PLACE)
        device.watching = True
        views.augment(images, index, epoch=0, augment=Augment(), view_seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_makes_the_same_views_without_waiting():
    images, index = random_images(256, (3, 32, 32)), torch.arange(1000, 1256)
    on_gpu = images.cuda(), index.cuda()
    with cuda_refuses_to_wait():
        got = views.augment(*on_gpu, epoch=2, augment=Augment(), view_seed=1)
    assert torch.equal(got.cpu(), views.augment(images, index, epoch=2, augment=Augment(), view_seed=1))


@given(n=st.integers(0, 200), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_epoch_order_is_a_permutation(n, seed, epoch):
    order = views.epoch_order(n, seed=seed, epoch=epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))


def test_epoch_order_depends_on_seed_and_epoch_and_mixes():
    orders = [views.epoch_order(N, seed=s, epoch=e).double() for s, e in ((0, 0), (0, 1), (1, 0))]
    correlation = torch.corrcoef(torch.stack([*orders, torch.arange(N).double()]))
    assert (correlation - torch.eye(4)).abs().max() < 5 / N**0.5


@given(n=st.integers(2, 300), fraction=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50)
def test_held_out_splits_without_loss(n, fraction):
    if not 0 < round(n * fraction) < n:
        with pytest.raises(ConfigError, match=r"data\.val_fraction"):
            views.held_out(n, fraction)
        return
    train, val = views.held_out(n, fraction)
    assert train.dtype == val.dtype == torch.int64
    assert len(val) == round(n * fraction)
    assert sorted(train.tolist() + val.tolist()) == list(range(n))
    assert train.tolist() == sorted(train.tolist())
    assert val.tolist() == sorted(val.tolist())


def test_nothing_held_out():
    train, val = views.held_out(10, 0.0)
    assert train.tolist() == list(range(10))
    assert val.shape == (0,)
    assert val.dtype == torch.int64


@pytest.mark.parametrize(("n", "fraction", "sizes"), [(10, 0.01, "0 for validation"), (10, 0.99, "0 for training")])
def test_too_small_or_large_a_share_is_refused(n, fraction, sizes):
    with pytest.raises(ConfigError, match=rf"data\.val_fraction: .* {sizes}") as caught:
        views.held_out(n, fraction)
    assert caught.value.exit_code == 2


@given(n=st.integers(1, 300), count=st.integers(1, 300), fraction=st.floats(0, 0.9), other=st.floats(0, 0.9))
@settings(deadline=None, max_examples=100)
def test_the_labelled_images_are_never_held_out_and_depend_on_nothing_else(n, count, fraction, other):
    for one in (fraction, other):
        if one > 0 and not 0 < round(n * one) < n:
            return
        if count > n - round(n * one):
            with pytest.raises(ConfigError, match=r"data\.labelled: there are .* not .*; take fewer, or null for all"):
                views.labelled(n, count, one)
            return
    known = views.labelled(n, count, fraction)
    assert torch.equal(known, views.labelled(n, count, other))
    assert known.dtype == torch.int64
    assert known.tolist() == sorted(set(known.tolist()))
    assert len(known) == count
    train, val = (set(part.tolist()) for part in views.held_out(n, fraction))
    assert set(known.tolist()) <= train
    assert not set(known.tolist()) & val


def test_fewer_labels_are_some_of_more():
    every = [set(views.labelled(200, count, 0.1).tolist()) for count in (1, 20, 100, 180)]
    assert all(fewer < more for fewer, more in itertools.pairwise(every))
    assert every[-1] == set(views.held_out(200, 0.1)[0].tolist())


def test_golden_labelled():
    """The same images for ever: a run's id says no more than how many."""
    assert views.labelled(64, 8, 0.0).tolist() == [0, 2, 13, 22, 33, 43, 44, 45]
