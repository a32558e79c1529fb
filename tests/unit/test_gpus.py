"""Which GPUs there are, with a driver made for the test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pynvml
import pytest

from kdcluster.errors import KdclusterError
from kdcluster.launch.local import gpus
from kdcluster.launch.local.gpus import visible_gpus

CARDS = ("GPU-aaaa1111-0", "GPU-aabb2222-0", "GPU-cccc3333-0")
SLICES = ("MIG-dddd4444-0", "MIG-dddd5555-0")
NOT_OURS = "another job's"


@dataclass
class Card:
    """A card as NVML knows it."""

    uuid: str
    model: str = "H100"
    slices: tuple[str, ...] | None = None
    """Its MIG instances; None: it is whole."""


@dataclass
class Driver:
    """What the machine of a test has; pynvml asks it."""

    cards: list[Card] = field(default_factory=list)
    asked: int = 0
    open: int = 0
    fails: int | None = None
    """With which of NVML's errors it answers."""

    def init(self) -> None:
        self.asked += 1
        if self.fails is not None:
            raise pynvml.NVMLError(self.fails)
        self.open += 1

    def shutdown(self) -> None:
        self.open -= 1

    def card(self, index: int) -> Card:
        if self.cards[index].uuid == NOT_OURS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return self.cards[index]

    def mode(self, card: Card) -> list[int]:
        if card.model == "old":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.slices is not None), 0]

    def slice(self, card: Card, index: int) -> Card:
        assert card.slices is not None
        if index >= len(card.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        if card.slices[index] == NOT_OURS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return Card(card.slices[index], f"{card.model} MIG 1g.10gb")


Machine = Callable[..., Driver]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with these cards (UUIDs, or whole Cards), by PCI bus."""

    def make(*cards: str | Card, fails: int | None = None, chosen: str | None = None) -> Driver:
        driver = Driver([card if isinstance(card, Card) else Card(card) for card in cards], fails=fails)
        answers = {
            "nvmlInit": driver.init,
            "nvmlShutdown": driver.shutdown,
            "nvmlDeviceGetCount": lambda: len(driver.cards),
            "nvmlDeviceGetHandleByIndex": driver.card,
            "nvmlDeviceGetUUID": lambda card: card.uuid,
            "nvmlDeviceGetName": lambda card: card.model,
            "nvmlDeviceGetMigMode": driver.mode,
            "nvmlDeviceGetMaxMigDeviceCount": lambda card: 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": driver.slice,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)
        if chosen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        return driver

    return make


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, CARDS),
        ("", ()),
        ("  ", ()),
        ("0", CARDS[:1]),
        ("2,0", (CARDS[2], CARDS[0])),
        (" 1 , 2 ", CARDS[1:]),
        (CARDS[1], CARDS[1:2]),
        ("GPU-aab", CARDS[1:2]),
        ("GPU-c,0", (CARDS[2], CARDS[0])),
        ("GPU-a,2", ()),  # of which of two?
        ("MIG-12345678-90ab", ()),
        ("0,7,1", CARDS[:1]),  # CUDA ignores what stands behind an entry that it does not know
        ("0,,1", CARDS[:1]),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1,1", CARDS[1:2]),  # one card twice is one card: a run would wait for the second for ever
    ],
)
def test_cuda_visible_devices_limits_the_choice(
    machine: Machine, variable: str | None, expected: tuple[str, ...]
) -> None:
    driver = machine(*CARDS, chosen=variable)
    assert visible_gpus() == list(expected)
    assert driver.open == 0


def test_no_driver_is_no_gpu(machine: Machine) -> None:
    machine(fails=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, chosen="0")
    assert visible_gpus() == []


MIXED = (Card("GPU-slow", "T4"), Card("GPU-fast", "H100"))
"""CUDA has the fast one first."""


@pytest.mark.parametrize(
    ("cards", "chosen", "order", "expected"),
    [
        (MIXED, None, None, ["GPU-slow", "GPU-fast"]),
        (MIXED, "1", "PCI_BUS_ID", ["GPU-fast"]),
        (MIXED, "GPU-fast", None, ["GPU-fast"]),
        (
            MIXED,
            "1",
            None,
            "cards that differ, and which ones CUDA means .*; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name",
        ),
        (MIXED, "0,1", "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES=0,1: this machine has cards that differ"),
        (MIXED[:1], "0", None, ["GPU-slow"]),
        ([Card(NOT_OURS, "T4"), *map(Card, CARDS)], "1", None, [CARDS[1]]),
    ],
)
def test_an_index_means_the_card_that_cuda_means_or_is_refused(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    cards: Sequence[Card],
    chosen: str | None,
    order: str | None,
    expected: list[str] | str,
) -> None:
    machine(*cards, chosen=chosen)
    if order:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    if isinstance(expected, list):
        assert visible_gpus() == expected
    else:
        with pytest.raises(KdclusterError, match=expected):
            visible_gpus()


CUT_UP = Card("GPU-cut", slices=(SLICES[0], NOT_OURS, SLICES[1]))


@pytest.mark.parametrize(
    ("cards", "chosen", "expected"),
    [
        ([CUT_UP], None, list(SLICES)),
        ([Card("GPU-old", "old"), CUT_UP], None, ["GPU-old", *SLICES]),
        ([CUT_UP], f"{SLICES[1]},{SLICES[0]}", [SLICES[1], SLICES[0]]),
        ([CUT_UP], "MIG-GPU-cut/7/0", ["MIG-GPU-cut/7/0"]),
        ([CUT_UP], "0", r"has MIG instances, .* cannot be told; name them by their UUIDs \(`nvidia-smi -L`\)"),
        ([Card("GPU-cut", slices=SLICES[:1])], "0", [SLICES[0]]),
        ([Card("GPU-cut", slices=())], None, []),
    ],
)
def test_of_a_card_that_is_cut_up_its_instances_are_the_gpus(
    machine: Machine, cards: Sequence[Card], chosen: str | None, expected: list[str] | str
) -> None:
    machine(*cards, chosen=chosen)
    if isinstance(expected, list):
        assert visible_gpus() == expected
    else:
        with pytest.raises(KdclusterError, match=expected):
            visible_gpus()


def test_a_broken_driver_is_an_error_and_not_a_machine_without_gpus(machine: Machine) -> None:
    machine(fails=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(KdclusterError, match=r"driver failed: .*ersion.*; mend the driver, or run on the CPU"):
        visible_gpus()


def test_a_driver_that_hangs_is_an_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(*CARDS)
    let_go = threading.Event()
    monkeypatch.setattr(pynvml, "nvmlInit", let_go.wait)
    monkeypatch.setattr(gpus, "ANSWER_S", 0.01)
    with pytest.raises(KdclusterError, match=r"driver did not answer within 0\.01 s; mend the driver"):
        visible_gpus()
    let_go.set()


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_who_hides_the_gpus_needs_no_driver(machine: Machine, hidden: str) -> None:
    """As the message about a broken one advises."""
    driver = machine(fails=pynvml.NVML_ERROR_DRIVER_NOT_LOADED, chosen=hidden)
    assert visible_gpus() == []
    assert driver.asked == 0


def seen_by_torch(variable: str | None) -> list[str]:
    """UUIDs of the cards that CUDA gives a process, in its order."""
    code = """
        import torch
        for index in range(torch.cuda.device_count()):
            print(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    """
    env = os.environ if variable is None else {**os.environ, "CUDA_VISIBLE_DEVICES": variable}
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(argv, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


@pytest.mark.gpu
def test_cuda_means_the_same_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real machine, without MIG."""
    here = visible_gpus()
    assert sorted(here) == sorted(seen_by_torch(None)) != []
    for variable in ("0", str(len(here) - 1), "0,99", here[-1], here[-1][:12], ",".join(reversed(here)), "", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert visible_gpus() == seen_by_torch(variable), variable
