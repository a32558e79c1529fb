"""The logits that a run keeps beside its weights: of the same evaluation, whatever happened in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from kdcluster import predictions
from kdcluster.errors import Damaged
from kdcluster.results import index, recount, scores
from kdcluster.results.measured import measure
from kdcluster.runs import RunDir
from kdcluster.train import checkpoint, data, feed, models, publish, views
from kdcluster.train.distributed import World
from kdcluster.train.evaluate import evaluate
from kdcluster.train.trainer import Progress, train
from tests import tiny

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
STEP_FILES = "step-*.safetensors"


@pytest.fixture(autouse=True)
def images(data_dir):
    """Every test needs them."""


def of_weights(run_dir: RunDir, which: str, split: str = "test") -> np.ndarray:
    """float16 logits that weights on disk give now."""
    run = run_dir.load()
    arrays = data.open_arrays(run, run_dir.root.parent / "data")
    found = feed.to_device(arrays, "test" if split == "test" else "train", CPU)
    index = torch.arange(len(found.labels))
    if split == "val":
        _, index = views.held_out(len(found.labels), run.data.val_fraction)
    net = models.build(run.model, run.num_classes, run.channels, start=False)
    models.load_saved(net.net, run_dir.weights(which))
    _, logits = evaluate(net, run, found, index, ALONE)
    assert logits is not None
    return logits.numpy()


def kept(run_dir: RunDir) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in sorted((run_dir.path / "predictions").glob(STEP_FILES))]


def holds(run_dir: RunDir, which: str) -> dict[str, predictions.Predictions]:
    """Those that belong to a finished run's weights, held against what these predict and against its events."""
    result = run_dir.result()
    path = predictions.path_of(run_dir.path, result[which]["step"])
    found = predictions.load(path)
    np.testing.assert_array_equal(found["test"].logits, of_weights(run_dir, which))
    assert result["predictions"][which]["bytes"] == path.stat().st_size
    low, high = scores.right(found["test"].logits, found["test"].labels)
    n = len(found["test"].labels)
    assert 100 * low / n <= result[which]["test/top1"] + 1e-4
    assert result[which]["test/top1"] - 1e-4 <= 100 * high / n
    return found


@pytest.mark.parametrize("changes", [{}, {"train.ema_decay": 0.9}, {"data.val_fraction": 0.25}], ids=str)
def test_a_run_keeps_what_its_counted_weights_predict(tmp_path, changes):
    run = tiny.make_run(tmp_path, "baseline", {"train.epochs": 5, "train.lr": 0.05, **changes})
    run_dir = tiny.train_here(tmp_path / "runs", run, tmp_path / "data")
    result = run_dir.result()
    assert kept(run_dir) == sorted({result["best"]["step"], result["last"]["step"]})
    found, _ = (holds(run_dir, which) for which in ("best", "last"))
    test = np.load(tmp_path / "data" / "arrays" / "cifar10" / "test_labels.npy")
    np.testing.assert_array_equal(found["test"].labels, test)
    assert set(found) == ({"test", "val"} if changes.get("data.val_fraction") else {"test"})
    if "val" in found:
        labels = np.load(tmp_path / "data" / "arrays" / "cifar10" / "train_labels.npy")
        np.testing.assert_array_equal(found["val"].labels, labels[found["val"].index])
        np.testing.assert_array_equal(found["val"].logits, of_weights(run_dir, "best", "val"))


def test_a_teacher_that_is_taken_as_it_is_has_them_too(tmp_path):
    trained = tiny.train_here(tmp_path / "runs", tiny.make_run(tmp_path, "teacher"), tmp_path / "data")
    taken = {"teacher.train": "none", "teacher.pretrained": str(trained.weights("best"))}
    run_dir = tiny.train_here(tmp_path / "runs", tiny.make_run(tmp_path, "teacher", taken), tmp_path / "data")
    assert kept(run_dir) == [0]
    holds(run_dir, "best")


class Killed(BaseException):
    """In the place of a SIGKILL."""


@pytest.mark.parametrize("place", ["write_weights", "write_predictions", "save"])
@pytest.mark.parametrize("time", [1, 2, 3, 4])
def test_a_killed_run_has_those_of_its_weights(tmp_path, monkeypatch, place, time):
    """Killed before the n-th time that it writes weights, predictions or a checkpoint, and begun again."""
    run = tiny.make_run(tmp_path, "baseline", {"train.epochs": 4, "train.lr": 0.05})
    undisturbed = tiny.train_here(tmp_path / "other", run, tmp_path / "data")
    module = checkpoint if place == "save" else publish
    original, calls = getattr(module, place), []

    def dies(*args, **kwargs):
        calls.append(args)
        if len(calls) == time:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, dies)
        with pytest.raises(Killed):
            tiny.train_here(tmp_path / "runs", run, tmp_path / "data")
    again = tiny.train_here(tmp_path / "runs", run, tmp_path / "data")
    assert len(calls) == time
    assert kept(again) == kept(undisturbed)
    for step in kept(again):
        ours, theirs = (predictions.path_of(one.path, step).read_bytes() for one in (again, undisturbed))
        assert ours == theirs
    holds(again, "best")


def test_a_run_that_begins_at_the_end_of_a_shorter_one_takes_them_over(tmp_path):
    changes = {"train.epochs": 2, "train.schedule": "constant", "train.lr": 0.05}
    short = tiny.train_here(tmp_path / "runs", tiny.make_run(tmp_path, "baseline", changes), tmp_path / "data")
    longer = tiny.make_run(tmp_path, "baseline", {**changes, "train.epochs": 3})
    run_dir = tiny.prepare(tmp_path / "runs", longer)
    attempt = run_dir.start_attempt({})
    train(run_dir, attempt, ALONE, tmp_path / "data", Progress())
    assert run_dir.attempt(1).read("trainer")["resumed_at_step"] == short.result()["steps"]
    result = run_dir.result()
    assert kept(run_dir) == sorted({result["best"]["step"], result["last"]["step"]})
    holds(run_dir, "best")


@pytest.fixture
def finished(tmp_path):
    run = tiny.make_run(tmp_path, "baseline")
    return run, tiny.train_here(tmp_path / "runs", run, tmp_path / "data")


def test_a_result_without_them_is_that_of_an_earlier_version(finished):
    run, run_dir = finished
    predictions.keep(run_dir.path, [])
    assert measure(run, run_dir, "best", recounted=True).problems == ()


@pytest.mark.parametrize("protocol", ["best", "last"])
def test_the_table_is_held_against_them(finished, protocol):
    run, run_dir = finished
    assert measure(run, run_dir, protocol, recounted=True).problems == ()
    path = predictions.path_of(run_dir.path, run_dir.result()[protocol]["step"])
    arrays = load_file(path)
    save_file({**arrays, "test_labels": (arrays["test_labels"] + 1) % 10}, path)
    (problem,) = measure(run, run_dir, protocol, recounted=True).problems
    assert "its predictions contradict the event files" in problem
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = measure(run, run_dir, protocol, recounted=True).problems
    assert problem.startswith("its predictions are damaged: ")


def test_what_was_counted_is_looked_up(finished, monkeypatch):
    _, run_dir = finished
    monkeypatch.setattr(index, "is_settled", lambda _: True)
    path = predictions.path_of(run_dir.path, run_dir.result()["best"]["step"])
    known = index.Index(run_dir.root)
    first = recount.counted(path, known)
    known.save()
    monkeypatch.setattr(predictions, "load", lambda _: pytest.fail("it was read again"))
    assert recount.counted(path, index.Index(run_dir.root)) == first
    path.touch()
    with pytest.raises(pytest.fail.Exception, match="read again"):
        recount.counted(path, index.Index(run_dir.root))


def test_a_result_says_how_many_of_each_class_are_right(finished):
    _, run_dir = finished
    result = run_dir.result()
    test = predictions.load(predictions.path_of(run_dir.path, result["best"]["step"]))["test"]
    table = scores.confusion(test.labels, scores.predicted(test.logits), 10)
    assert result["per_class"] == {"images": table.sum(1).tolist(), "right": table.diagonal().tolist()}


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"test": np.zeros((2, 3), np.float32), "test_labels": np.zeros(2, np.int32)}, "not float16"),
        ({"test": np.zeros(3, np.float16), "test_labels": np.zeros(3, np.int32)}, "not float16"),
        ({"test": np.zeros((2, 3), np.float16), "test_labels": np.zeros(3, np.int32)}, "not float16"),
        ({"test": np.zeros((2, 3), np.float16), "test_labels": np.full(2, 3, np.int32)}, "below C"),
        ({"test": np.zeros((2, 3), np.float16)}, "test_labels"),
        ({"val": np.zeros((2, 3), np.float16), "val_labels": np.zeros(2, np.int32)}, "no test"),
        (None, "header"),
    ],
)
def test_what_is_not_predictions_is_refused(tmp_path, arrays, problem):
    path = tmp_path / "step-00000001.safetensors"
    save_file(arrays, path) if arrays else path.write_bytes(b"no header of it")
    with pytest.raises(Damaged, match=problem):
        predictions.load(path)


def test_those_of_no_step_are_not_there(tmp_path):
    assert predictions.record(tmp_path, 3) is None
    with pytest.raises(FileNotFoundError):
        predictions.load(predictions.path_of(tmp_path, 3))
