"""Where the time of an attempt went, in the last line of its log."""

from __future__ import annotations

import logging
import re

import pytest

from kdcluster.train import parts
from kdcluster.train.parts import Parts
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """The module `time`, standing still between steps of the hand."""

    now = 1000.0

    def time(self) -> float:
        return 5e8 + self.now

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(parts, "time", made)
    return made


class Started:
    """An attempt's start.json."""

    def __init__(self, started: float) -> None:
        self.started = started

    def read(self, name: str) -> dict[str, float]:
        return {"started": self.started}


def test_the_parts_are_the_whole(clock):
    found = Parts(Started(clock.time() - 3))
    clock.now += 7
    found.begin("training")
    clock.now += 160
    found.waited(2)
    with found.during("evaluation"):
        clock.now += 20
        with found.during("saving"):
            clock.now += 8
        clock.now += 1
    clock.now += 1
    line = found.line()
    assert found.seconds == {"start-up": 10, "training": 159, "data": 2, "evaluation": 21, "saving": 8}
    assert line == "of 3 min: training 80 %, evaluation 10 %, start-up 5 %, saving 4 %"


def test_the_line_fits_and_leaves_out_what_is_small(clock):
    found = Parts(None)
    for part, seconds in (("training", 37_000), ("evaluation", 4_400), ("saving", 1_000), ("data", 500)):
        found.begin(part)
        clock.now += seconds
    assert found.line() == "of 11 h 55 min: training 86 %, evaluation 10 %, saving 2 %, data 1 %"
    assert len("08:15:00 " + found.line()) <= 80


def test_a_clock_that_is_behind_counts_nothing(clock):
    found = Parts(Started(clock.time() + 60))
    clock.now += 5
    assert found.line() == "of 5 s: start-up 100 %"


def test_a_run_ends_its_log_with_its_parts(tmp_path, data_dir, caplog):
    caplog.set_level(logging.INFO)
    tiny.train_here(tmp_path, tiny.make_run(tmp_path, "baseline"), data_dir)
    assert re.fullmatch(r"of \d+ s: (training|evaluation|saving|start-up) \d+ %, .* %", caplog.messages[-1])
