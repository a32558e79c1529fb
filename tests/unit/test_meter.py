"""What the log says of a run: its first lines, a line an epoch, and on a terminal alone a bar."""

from __future__ import annotations

import io
import logging
import os
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdcluster.course import Course
from kdcluster.experiment.config import Model
from kdcluster.train import bar, meter, models
from kdcluster.train.bar import Bar, duration
from kdcluster.train.distributed import World
from kdcluster.train.meter import say_epoch, say_start
from kdcluster.train.worker import Stamped
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_first_lines_say_what_is_trained_where_and_how_long(tmp_path, data_dir, caplog):
    caplog.set_level(logging.INFO)
    teacher, _, distilled = tiny.make_plan(tmp_path, {"train.epochs": 1}).only(["distilled"]).runs
    tiny.train_here(tmp_path, teacher, data_dir)
    caplog.clear()
    tiny.train_here(tmp_path, distilled, data_dir)
    assert caplog.messages[:4] == [
        "10 classes, 64 train, 32 test, 16×16 px; vit_tiny_patch16_224 sees 16 px",
        "distilled: vit_tiny_patch16_224, 6,666 parameters; from vit_tiny_patch16_224 (alpha 0.5, T 4)",
        "on cpu: 1 process with 1 thread; precision float32",
        "4 steps an epoch, 4 in 1 epoch; batch of 16; lr 0.01, constant",
    ]


@pytest.mark.parametrize("train", [{"epochs": 50}, {"steps": 50_000}])
def test_a_line_of_an_epoch_fits_a_narrow_terminal(tmp_path, caplog, train):
    caplog.set_level(logging.INFO)
    run = tiny.make_run(tmp_path, "baseline", {"train": train})
    measured = SimpleNamespace(said=lambda: ["loss 1.1234", "lr 9.7e-05", "12345 images/s"])
    say_epoch(*train.values(), run, {"test/top1": 98.76}, measured)
    assert len("08:15:00 " + caplog.messages[-1]) <= 80


@pytest.mark.parametrize("val_fraction", [0.0, 0.25])
def test_a_line_an_epoch(tmp_path, data_dir, caplog, val_fraction):
    caplog.set_level(logging.INFO)
    changes = {"data.val_fraction": val_fraction, "train.schedule": "cosine"}
    run_dir = tiny.train_here(tmp_path, tiny.make_run(tmp_path, "baseline", changes), data_dir)
    lines = [line for line in caplog.messages if line.startswith("epoch")]
    val = r"  val \d+\.\d\d %" if val_fraction else ""
    pattern = rf"epoch (\d)/2  loss \d\.\d{{4}}  test (\d+\.\d\d) %{val}  lr (\S+)  \d+ images/s"
    first, last = (re.fullmatch(pattern, line) for line in lines)
    assert (first[1], last[1]) == ("1", "2")
    assert last[2] == f"{run_dir.result()['last']['test/top1']:.2f}"
    assert float(first[3]) > float(last[3])


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps(tmp_path, data_dir, caplog):
    caplog.set_level(logging.INFO)
    run = tiny.make_run(tmp_path, "baseline", {"train.epochs": 1})
    tiny.train_here(tmp_path / "debug", run, data_dir, max_steps=4)
    losses = [float(found[1]) for line in caplog.messages if (found := re.match(r"step \d: loss (\S+),", line))]
    tiny.train_here(tmp_path / "runs", run, data_dir)
    (line,) = [line for line in caplog.messages if line.startswith("epoch")]
    assert len(losses) == 4
    assert float(re.search(r"loss (\S+)", line)[1]) == pytest.approx(sum(losses) / 4, abs=2e-4)


def test_a_teacher_that_is_taken_as_it_is(tmp_path, data_dir, caplog):
    save_file(models.build(Model(**tiny.VIT), 10, 3).net.state_dict(), tmp_path / "w.safetensors")
    changes = {"teacher": {**tiny.VIT, "pretrained": "w.safetensors", "train": "none"}}
    caplog.set_level(logging.INFO)
    run_dir = tiny.train_here(tmp_path, tiny.make_run(tmp_path, "teacher", changes), data_dir)
    assert caplog.messages[-3:] == [
        "teacher: vit_tiny_patch16_224, 6,666 parameters, taken as it is",
        "on cpu: 1 process with 1 thread; precision float32",
        f"test {run_dir.result()['last']['test/top1']:.2f} %",
    ]


def test_other_ranks_say_nothing_of_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    net = models.build(Model(**tiny.VIT), 10, 3)
    say_start(tiny.make_run(tmp_path, "baseline"), World(1, 2, torch.device("cpu")), net, 4)
    assert caplog.messages == []


def test_an_epoch_that_an_earlier_attempt_trained(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    say_epoch(1, tiny.make_run(tmp_path, "baseline"), {"test/top1": 50.0}, None)
    assert caplog.messages == ["epoch 1/2  test 50.00 %"]


def test_durations():
    given = (0, 89.4, 90, 5369, 5399, 7500)
    assert [duration(seconds) for seconds in given] == ["0 s", "89 s", "2 min", "89 min", "1 h 30 min", "2 h 05 min"]


# --- the bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal of 40 columns."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bar, "sys", SimpleNamespace(stderr=stream))  # pytest has sys.stderr to itself
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    return stream


@pytest.fixture
def log_of(terminal: Terminal):
    """A logger's handler that writes to the terminal, and is gone after the test."""
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_the_bar_stays_in_its_line_and_makes_way_for_the_log(terminal, log_of):
    one = Bar(active=True)
    one.draw("epoch 1/2", 0.5, "2/4 loss 1.000 and more than there is room for")
    assert terminal.getvalue() == "\repoch 1/2 " + "━" * 10 + "─" * 10 + " 2/4 loss\x1b[K"
    one.draw("epoch 1/2", 0.75, "3/4")  # too soon
    assert terminal.getvalue().count("epoch 1/2") == 1
    logging.getLogger().warning("a word")
    assert terminal.getvalue().endswith("\x1b[K\r\x1b[Ka word\n")
    one.clear()  # nothing is shown any more
    assert terminal.getvalue().endswith("a word\n")


def test_the_bar_in_ascii(terminal):
    terminal.encoding = "ascii"
    Bar(active=True).draw("epoch 1/2", 0.5, "")
    assert terminal.getvalue().isascii()


def test_no_bar_without_a_cursor_or_on_another_rank(terminal, monkeypatch):
    Bar(active=False).draw("epoch 1/2", 0.5, "")
    assert terminal.getvalue() == ""
    monkeypatch.setenv("TERM", "dumb")
    Bar(active=True).draw("epoch 1/2", 0.5, "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Terminal, "isatty", lambda _: False)
    Bar(active=True).draw("epoch 1/2", 0.5, "")
    assert terminal.getvalue() == ""


def test_a_run_on_a_terminal_leaves_no_bar_behind(tmp_path, data_dir, terminal, monkeypatch):
    monkeypatch.setattr(bar, "BAR_S", 0.0)
    run = tiny.make_run(tmp_path, "baseline", {"train.epochs": 1})
    tiny.train_here(tmp_path, run, data_dir, max_steps=3)
    shown = terminal.getvalue()
    assert [f"{done}/3" in shown for done in (1, 2, 3)] == [True] * 3  # of the steps that are asked for
    assert shown.endswith("\r\x1b[K")


# --- the speed


def test_the_speed_is_the_attempts_mean_without_its_first_step(tmp_path, monkeypatch):
    """Of one step an epoch after an evaluation it would be anything; a slow first step would spoil minutes of it."""
    now = 0.0
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now, monotonic=lambda: now))
    run, beats = tiny.make_run(tmp_path, "baseline", {"train.epochs": 3}), []
    publish = SimpleNamespace(
        attempt=1,
        beat=lambda epoch, step, **values: beats.append(values.get("steps_per_s")),
        tracker=SimpleNamespace(scalars=lambda *_: None),
    )
    training = SimpleNamespace(run=run, lr=0.1)
    saver = SimpleNamespace(take_seconds=lambda: 0.0)
    trained = (0, 0.0)
    for epoch, seconds in enumerate(((60.0, 1.0, 1.0, 1.0), (5.0, 1.0, 1.0, 1.0))):
        one = meter.Meter(
            training, publish, Bar(active=False), [], Course(4, [4, 8, 12]), 4 * epoch, 0, 4, trained, started=now
        )
        for at, took in enumerate(seconds, 1):
            now += took
            one.read((4 * epoch + at, [1.0, 1.0, 0.0, 16.0]))
        one.finish(4 * epoch + 4, saver)
        trained, now = one.before, now + 100.0  # an evaluation
    assert beats[:4] == [None, 1.0, 1.0, 1.0]
    assert beats[4:] == pytest.approx([4 / 8, 5 / 9, 6 / 10, 7 / 11])
    assert one.images_per_s == pytest.approx(4 * run.train.batch_size / 8)  # the epoch's own, for its line


# --- the lines themselves


def record(message: str, at: float, level: int = logging.INFO) -> Any:
    made = logging.LogRecord("kdcluster", level, __file__, 1, message, None, None)
    made.created = at
    return made


def test_lines_bear_the_time_and_where_it_changes_the_date(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    stamped, day = Stamped(), 20_000 * 86_400
    lines = [
        stamped.format(record("begins", day + 1)),
        stamped.format(record("goes on", day + 2, logging.WARNING)),
        stamped.format(record("the next day", day + 86_400)),
    ]
    assert [line.partition(" ")[0] for line in lines] == ["2024-10-04", "00:00:02", "2024-10-05"]
    assert lines[1] == "00:00:02 WARNING goes on"
    assert lines[2].endswith(" 00:00:00 the next day")
