"""What is written beside the training: in order, with what is in it as it was, and never lost in silence."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdcluster.train import checkpoint, trainer
from kdcluster.train.distributed import World
from kdcluster.train.writer import WAITING, Writer, on_host
from tests import tiny

HANG_S = 60


def test_nobody_waits_for_a_disk_until_too_much_waits_to_be_written():
    writer, gate, done = Writer(), threading.Event(), []

    def slow(number: int) -> None:
        assert gate.wait(HANG_S)
        done.append(number)

    for number in range(WAITING):
        writer.do(lambda number=number: slow(number))
    assert done == []
    more = threading.Thread(target=lambda: writer.do(lambda: slow(WAITING)))
    more.start()
    more.join(0.05)
    assert more.is_alive()
    gate.set()
    more.join(HANG_S)
    writer.wait()
    assert done == list(range(WAITING + 1))
    writer.close()


def test_nothing_is_written_behind_what_is_not():
    """A checkpoint of a step whose weights and predictions are not on disk: the next attempt began behind them."""
    writer, gate, done = Writer(), threading.Event(), []

    def full() -> None:
        assert gate.wait(HANG_S)
        raise OSError(28, "No space left on device")

    writer.do(full)
    writer.do(lambda: done.append("checkpoint"))
    gate.set()
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.close()
    assert done == []


def test_what_goes_wrong_is_raised_to_who_asks_next(caplog):
    def full() -> None:
        raise OSError(28, "No space left on device")

    writer = Writer()
    writer.do(full)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.do(full)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("writer")]
    writer._thread.submit(lambda: None).result()  # by now it has gone wrong
    with pytest.raises(OSError, match="No space left"):
        writer.do(lambda: None)
    writer.do(full)
    writer._thread.submit(lambda: None).result()
    writer.close()
    assert "what was to be saved is not: [Errno 28] No space left on device" in caplog.text
    assert not any(thread.is_alive() for thread in threads)


def test_what_was_asked_for_before_a_failure_is_written():
    """A checkpoint that waits for the disk is of steps that need not be done again."""
    writer, gate, done = Writer(), threading.Event(), []
    writer.do(lambda: gate.wait(HANG_S))
    writer.do(lambda: done.append("checkpoint"))
    leaving = threading.Thread(target=writer.close)
    leaving.start()
    leaving.join(0.05)
    gate.set()
    leaving.join(HANG_S)
    assert done == ["checkpoint"]


def test_what_is_kept_stays_as_it_was():
    weight, epochs = torch.ones(2), [{"top1": 1.0}]
    kept = on_host({"student": {"weight": weight}, "epochs": epochs, "ema": None, "step": 3})
    weight.zero_()
    epochs.append({"top1": 2.0})
    assert kept["student"]["weight"].tolist() == [1.0, 1.0]
    assert (kept["epochs"], kept["ema"], kept["step"]) == ([{"top1": 1.0}], None, 3)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.put_images(tmp_path / "data")
    run = tiny.make_run(tmp_path, "baseline", {"train.checkpoint_every": "1steps"})
    undisturbed = tiny.train_here(tmp_path / "undisturbed", run, tmp_path / "data")
    moved, progress = threading.Condition(), Progress()
    held: list[int] = []

    def slow(folder: Path, step: int, *given: object, save=checkpoint.save) -> Path:
        within = step % 4
        with moved:
            held.append(step)
            assert not within or moved.wait_for(lambda: progress.step > step, HANG_S), "the steps wait for the disk"
        return save(folder, step, *given)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(progress, "moved", moved)
    run_dir = tiny.prepare(tmp_path / "runs", run)
    attempt = run_dir.start_attempt({})
    trainer.train(run_dir, attempt, World(0, 1, torch.device("cpu")), tmp_path / "data", progress)
    assert held == list(range(1, 9))
    ours, theirs = (load_file(one.weights("last")) for one in (run_dir, undisturbed))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


class Progress(trainer.Progress):
    """Tells who waits that a step was done."""

    moved: threading.Condition | None = None

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "step" and self.moved:
            with self.moved:
                self.moved.notify_all()
