"""What TensorBoard shows at the end of a run: which images, which cells, how large; and that it shows it once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto import event_pb2

from kdcluster import predictions
from kdcluster.errors import KdclusterError
from kdcluster.plan import Plan
from kdcluster.results import events, frames, scores, table
from kdcluster.runs import RunDir
from kdcluster.train import board, trainer
from kdcluster.train.pictures import GAP, LINE, PAPER, RIGHT_HUE, TILE, WRONG_HUE, confusion, misclassified, shades
from tests import tiny

MEGABYTE = 1_000_000
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def log_p(labels: np.ndarray, guesses: np.ndarray, sure: np.ndarray, classes: int = 10) -> np.ndarray:
    """(N, C): the guess has probability `sure`, the label half of the rest, unless they are the same."""
    found = np.full((len(labels), classes), 0.5 * (1 - sure)[:, None] / classes)
    found[np.arange(len(labels)), labels] = (1 - sure) / 2
    found[np.arange(len(labels)), guesses] = sure
    return np.log(found)


def png(picture: Image.Image) -> int:
    """Bytes."""
    there = io.BytesIO()
    picture.save(there, "PNG", optimize=True)
    return len(there.getvalue())


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 300)])
def test_the_least_right_images_stand_first(channels, size):
    labels, guesses = np.array([0, 1, 2, 3]), np.array([5, 1, 5, 4])
    images = np.array([10, 60, 110, 160], np.uint8)[:, None, None, None] * np.ones((1, channels, size, size), np.uint8)
    page = misclassified(images, labels, log_p(labels, guesses, np.array([0.7, 0.9, 0.8, 0.9])), NAMES)
    middle = 2 * GAP + LINE + TILE // 2
    shown = [page.getpixel((GAP + number * (TILE + GAP) + 5, middle)) for number in range(4)]
    assert shown == [(160,) * 3, (110,) * 3, (10,) * 3, PAPER]


def test_no_page_where_nothing_is_wrong():
    labels = np.arange(4)
    assert (
        misclassified(np.zeros((4, 3, 8, 8), np.uint8), labels, log_p(labels, labels, np.full(4, 0.9)), NAMES) is None
    )


@pytest.mark.parametrize("size", [28, 112, 500])
def test_a_page_of_noise_is_small(size):
    random = np.random.default_rng(0)
    labels = np.zeros(40, int)
    images = random.integers(0, 256, (40, 3, size, size), dtype=np.uint8)
    page = misclassified(images, labels, log_p(labels, labels + 1, random.uniform(0.5, 0.9, 40)), NAMES)
    assert png(page) < 0.8 * MEGABYTE


def test_a_cell_is_as_dark_as_its_share():
    found = shades(np.array([[100, 0, 0], [100, 0, 0], [0, 0, 0]]))
    assert found.shape == (3, 3, 3)
    wanted = [[RIGHT_HUE, PAPER, PAPER], [WRONG_HUE, PAPER, PAPER], [PAPER, PAPER, PAPER]]
    np.testing.assert_array_equal(found, np.array(wanted))
    faint = shades(np.array([[99, 1], [0, 100]]))[0, 1]
    assert max(PAPER - faint) >= 20  # one in a hundred can be seen


@pytest.mark.parametrize(("classes", "cell"), [(21, 12), (100, 12), (101, 9), (1000, 1)])
def test_every_class_has_its_cells(classes, cell):
    counts = np.eye(classes, dtype=int)
    counts[1, [0, 1]] = 1, 0
    shown = confusion(counts, [f"class {label}" for label in range(classes)])
    found = {color: number for number, color in shown.getcolors(1 << 16)}
    assert found[tuple(RIGHT_HUE)] == (classes - 1) * cell**2
    assert found[tuple(WRONG_HUE)] == cell**2


def test_few_classes_have_their_counts_and_any_name_is_written():
    names = ["a name that is longer than there is room for, and more", "Blätter", "犬", "\x1b[2J"]
    assert confusion(np.eye(4, dtype=int), names).tobytes() != confusion(2 * np.eye(4, dtype=int), names).tobytes()
    labels = np.arange(4)
    assert misclassified(np.zeros((4, 1, 8, 8), np.uint8), labels, log_p(labels, labels[::-1], np.full(4, 0.9)), names)


def test_a_matrix_of_a_thousand_classes_is_small():
    random = np.random.default_rng(0)
    labels = random.integers(0, 1000, 50_000)
    guesses = np.where(random.random(50_000) < 0.6, labels, random.integers(0, 1000, 50_000))
    counts = scores.confusion(labels, guesses, 1000)
    assert png(confusion(counts, [f"class {label}" for label in range(1000)])) < 0.2 * MEGABYTE


# --- in the event file of a run ---


def values(run_dir: RunDir) -> list[tuple[str, int, event_pb2.Summary.Value]]:
    """(tag, step, value) of whatever is no scalar, over all attempts."""
    found = [event_pb2.Event.FromString(r) for p in events.event_files(run_dir.events) for r in records(p)]
    shown = (board.CONFIG, board.CONFUSION, board.WRONG)
    return [(value.tag, one.step, value) for one in found for value in one.summary.value if value.tag in shown]


def records(path: Path) -> list[bytes]:
    return frames.split(path.read_bytes()).records


def rows(plan: Plan, root: Path) -> object:
    return [(one.rows, one.problems) for one in table.build(plan, root).experiments]


CHANGES = {"train.epochs": 3, "train.lr": 0.05}


def test_a_run_shows_what_its_counted_weights_get_wrong(tmp_path, data_dir):
    run = tiny.make_run(tmp_path, "baseline", CHANGES)
    run_dir = tiny.train_here(tmp_path / "runs", run, data_dir)
    step = run_dir.result()["best"]["step"]
    found = {tag: value for tag, at, value in values(run_dir) if at == step}
    assert list(found) == [board.CONFIG, board.WRONG, board.CONFUSION]
    test = predictions.load(predictions.path_of(run_dir.path, step))["test"]
    names = [f"class {label}" for label in range(10)]
    images = np.load(data_dir / "arrays" / "cifar10" / "test_images.npy")
    page = misclassified(images, test.labels, scores.log_softmax(test.logits), names)
    matrix = confusion(scores.confusion(test.labels, scores.predicted(test.logits), 10), names)
    for tag, wanted in ((board.WRONG, page), (board.CONFUSION, matrix)):
        shown = found[tag].image
        assert Image.open(io.BytesIO(shown.encoded_image_string)).tobytes() == wanted.tobytes()
        assert (shown.width, shown.height) == wanted.size
    (text,) = found[board.CONFIG].tensor.string_val
    assert [line[4:] for line in text.decode().splitlines()] == run_dir.config.read_text().splitlines()


def test_neither_table_nor_scalars_change_and_little_is_added(tmp_path, data_dir, monkeypatch):
    plan = tiny.make_plan(tmp_path, CHANGES)
    run = next(run for run in plan.runs if run.role == "baseline")
    run_dir = tiny.train_here(tmp_path / "runs", run, data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "show_end", lambda *_: None)
        plain = tiny.train_here(tmp_path / "plain", run, data_dir)
    assert values(plain) == []
    assert rows(plan, run_dir.root) == rows(plan, plain.root)
    ours, theirs = (events.read_scalars(one.events, ("",)) for one in (run_dir, plain))
    assert (ours.problems, ours.incomplete) == ((), ())
    assert {tag: [p.step for p in points] for tag, points in ours.points.items()} == {
        tag: [p.step for p in points] for tag, points in theirs.points.items()
    }
    ours, theirs = (sum(p.stat().st_size for p in one.events.iterdir()) for one in (run_dir, plain))
    assert 0 < ours - theirs < MEGABYTE


@pytest.mark.parametrize("lr", [1e-9, 0.05])
def test_a_done_run_that_is_begun_again_does_not_show_it_twice(tmp_path, data_dir, lr):
    """As submit does where its best weights are gone: from its checkpoint, which lies behind the counted epoch."""
    run = tiny.make_run(tmp_path, "baseline", {**CHANGES, "train.lr": lr})
    run_dir = tiny.train_here(tmp_path / "runs", run, data_dir)
    assert run_dir.result()["best"]["step"] < run_dir.result()["last"]["step"] or lr == 0.05
    before = [(tag, step) for tag, step, _ in values(run_dir)]
    tiny.train_here(tmp_path / "runs", run, data_dir)
    assert len(events.event_files(run_dir.events)) == 2
    assert [(tag, step) for tag, step, _ in values(run_dir)] == before


def test_a_run_that_loses_its_counted_epoch_shows_it_again(tmp_path, data_dir):
    run = tiny.make_run(tmp_path, "baseline", CHANGES)
    run_dir = tiny.train_here(tmp_path / "runs", run, data_dir)
    before = [(tag, step) for tag, step, _ in values(run_dir)]
    for path in run_dir.checkpoints.iterdir():
        path.unlink()
    tiny.train_here(tmp_path / "runs", run, data_dir)  # from the first step on: what the first attempt wrote is void
    assert [(tag, step) for tag, step, _ in values(run_dir)] == before * 2


def test_an_attempt_that_was_overtaken_shows_nothing(tmp_path, data_dir, monkeypatch):
    run = tiny.make_run(tmp_path, "baseline", CHANGES)
    original = trainer.Publisher.result

    def result(publish, more):
        publish.run_dir.start_attempt({})
        original(publish, more)

    monkeypatch.setattr(trainer.Publisher, "result", result)
    with pytest.raises(KdclusterError, match="overtaken"):
        tiny.train_here(tmp_path / "runs", run, data_dir)
    assert values(RunDir(tmp_path / "runs", run.id)) == []


def test_what_an_earlier_version_trained_shows_its_configuration(tmp_path, data_dir, monkeypatch):
    run = tiny.make_run(tmp_path, "baseline", CHANGES)
    monkeypatch.setattr(board.predictions, "path_of", lambda run, step: run / "nothing")
    with monkeypatch.context() as patch:
        patch.setattr("kdcluster.train.publish.write_predictions", lambda *_: None)
        run_dir = tiny.train_here(tmp_path / "runs", run, data_dir)
    assert [tag for tag, *_ in values(run_dir)] == [board.CONFIG]
