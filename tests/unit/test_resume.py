"""Crash at every write of a run, go on, and end with the same bits; checkpoints that are cut, altered or gone."""

import errno
import logging
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcluster import files, saved
from kdcluster.errors import KdclusterError
from kdcluster.files import write_json
from kdcluster.launch import submission
from kdcluster.launch.outcome import outcome as why_it_ended
from kdcluster.results.measured import measure
from kdcluster.runs import RunDir
from kdcluster.train import checkpoint, evaluate, models, tracking, weights, worker
from kdcluster.train.distributed import World
from kdcluster.train.publish import Publisher
from kdcluster.train.trainer import Progress, train
from tests import tiny
from tests.disk import fill, small_disk

pytestmark = pytest.mark.usefixtures("one_thread")

CHANGES = {
    "train.epochs": 2,
    "train.checkpoint_every": "3steps",
    "train.ema_decay": 0.9,
    "student.model_args": {**tiny.VIT["model_args"], "drop_path_rate": 0.2, "proj_drop_rate": 0.1},  # random numbers
}
"""2 epochs of 4 steps: checkpoints after steps 3, 4, 6 and 8."""


class Crash(BaseException):
    """The machine is gone; nothing may catch it."""


@pytest.fixture
def run(tmp_path):
    tiny.put_images(tmp_path / "data")
    return tiny.make_run(tmp_path, "baseline", CHANGES)


def attempt(root, run, data_dir, progress=None):
    run_dir = tiny.prepare(root, run)
    train(run_dir, run_dir.start_attempt({}), World(0, 1, torch.device("cpu")), data_dir, progress or Progress())
    return run_dir


def outcome(run_dir, run):
    """What must not depend on where a run was interrupted."""
    result = run_dir.result()
    measured = measure(run, run_dir, "best")
    assert measured.problems == ()
    assert measured.damage == ()
    numbers = {key: result[key] for key in ("best", "last", "steps", "epochs", "params")}
    return numbers, measured.top1, load_file(run_dir.weights("best")), load_file(run_dir.weights("last"))


def assert_same(run_dir, run, undisturbed):
    ours = outcome(run_dir, run)
    assert ours[:2] == undisturbed[:2]
    for mine, theirs in zip(ours[2:], undisturbed[2:], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


os_fdopen = os.fdopen


class Sabotaged:
    """An open file whose writes are counted."""

    def __init__(self, file, saboteur):
        self.file = file
        self.write = saboteur.wrap(file.write, "write")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


class Saboteur:
    """Counts fsyncs, renames and writes aside, and crashes at one of them, before or after it has happened."""

    def __init__(self, monkeypatch, at, after):
        self.seen, self.at, self.after, self.names = 0, at, after, []
        for owner, name in ((os, "fsync"), (Path, "replace")):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name), name))
        monkeypatch.setattr(os, "fdopen", lambda *args: Sabotaged(os_fdopen(*args), self))

    def wrap(self, original, name):
        def call(*args):
            self.seen += 1
            self.names.append(name)
            mine = self.seen == self.at
            if mine and not self.after:
                raise Crash(name)
            result = original(*args)
            if mine:
                raise Crash(name)
            return result

        return call


@pytest.mark.integration  # a minute, though in one process
def test_a_crash_at_any_write_ends_in_the_same_numbers(tmp_path, run, monkeypatch):
    undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    with monkeypatch.context() as patch:
        counter = Saboteur(patch, at=0, after=False)
        attempt(tmp_path / "count", run, tmp_path / "data")
    files = counter.names.count("replace")
    assert files > 12  # checkpoints, weights, result, attempt records
    # Every fsync and rename, before and after it; of each file's writes the first and some in the middle.
    points = [(at, after) for at, name in enumerate(counter.names, 1) for after in (False, True) if name != "write"]
    points += [(at, False) for at, name in enumerate(counter.names, 1) if name == "write" and at % 61 == 0]
    points += [(at + 1, False) for at, name in enumerate(counter.names[:-1], 1) if name == "replace"]
    for number, (at, after) in enumerate(points):
        root = tmp_path / str(number)
        with monkeypatch.context() as patch:
            Saboteur(patch, at, after)
            with pytest.raises(Crash):
                attempt(root, run, tmp_path / "data")
        assert_same(attempt(root, run, tmp_path / "data"), run, undisturbed)
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"optimizer": "lamb", "ema_warmup": True, "schedule": "cosine", "min_lr": 1e-4, "warmup_steps": 3},
        {"optimizer": "adan", "betas": [0.9, 0.9, 0.99], "layer_decay": 0.8, "label_loss": "bce"},
        {"grad_checkpointing": True},
    ],
    ids=["adamw", "lamb, EMA with warm-up", "adan, layer decay, bce", "gradient checkpointing"],
)
def test_a_run_that_is_stopped_at_any_step_goes_on_there(tmp_path, run, train):
    run = tiny.make_run(tmp_path, "baseline", {**CHANGES, **{f"train.{key}": value for key, value in train.items()}})
    undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    root = tmp_path / "stopped"
    for number in range(1, 9):
        run_dir = attempt(root, run, tmp_path / "data", Progress(stop=True))  # one step an attempt
        assert run_dir.newest().read("preempted") == {"step": number}
        assert run_dir.result() is None
    assert_same(attempt(root, run, tmp_path / "data"), run, undisturbed)
    assert len(list(run_dir.events.iterdir())) == 9


class Evaluations:
    """Evaluations of 4 images a batch, 8 batches; counts them, and calls `then` after batch number `at`."""

    def __init__(self, monkeypatch, at=0, then=None):
        self.seen = 0
        original = evaluate.evaluation_sums

        def count(*given):
            self.seen += 1
            if self.seen == at:
                then()
            return original(*given)

        monkeypatch.setattr(evaluate, "BATCH", 4)
        monkeypatch.setattr(evaluate, "evaluation_sums", count)


@pytest.mark.parametrize(("batch", "step"), [(3, 4), (7, 4), (11, 8)])
def test_a_stop_in_an_evaluation_ends_it_there_and_only_the_evaluation_is_done_again(
    tmp_path, run, monkeypatch, batch, step
):
    with monkeypatch.context() as patch:
        Evaluations(patch)
        undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    progress = Progress()
    with monkeypatch.context() as patch:
        evaluations = Evaluations(patch, batch, lambda: setattr(progress, "stop", True))
        run_dir = attempt(tmp_path / "stopped", run, tmp_path / "data", progress)
    assert evaluations.seen == batch
    assert run_dir.newest().read("preempted") == {"step": step}
    assert run_dir.newest().read("heartbeat")["epochs"] == 2
    assert run_dir.result() is None
    assert run_dir.saved_step() == step
    with monkeypatch.context() as patch:
        evaluations = Evaluations(patch)
        attempt(tmp_path / "stopped", run, tmp_path / "data")
    assert evaluations.seen == (16 if step == 4 else 8)
    trainer = run_dir.newest().read("trainer")
    assert (trainer["resumed_at_step"], trainer["images"]) == (step, {"test": 32})
    assert_same(run_dir, run, undisturbed)


def test_a_run_is_heard_of_in_an_evaluation_and_notices_there_that_it_was_overtaken(tmp_path, run, monkeypatch):
    monkeypatch.setattr(tracking, "HEARTBEAT_S", 0)
    run_dir = tiny.prepare(tmp_path, run)
    first = run_dir.start_attempt({})
    beats = []

    def overtake():
        run_dir.start_attempt({})

    def hear(*given, original=evaluate.evaluation_sums):
        beats.append(first.read("heartbeat")["time"])
        return original(*given)

    monkeypatch.setattr(evaluate, "evaluation_sums", hear)
    Evaluations(monkeypatch, 5, overtake)
    with pytest.raises(KdclusterError, match="overtaken by attempt 2"):
        train(run_dir, first, World(0, 1, torch.device("cpu")), tmp_path / "data", Progress())
    assert len(beats) == 5
    assert beats == sorted(set(beats))


def test_a_run_that_is_only_evaluated_is_preempted_as_often_as_it_is_stopped(tmp_path, run, monkeypatch):
    weights = tmp_path / "teacher.pth"
    torch.save(models.build(models.Model(**tiny.VIT), 10, 3).net.state_dict(), weights)
    taken = tiny.make_run(tmp_path, "teacher", {"teacher": {**tiny.VIT, "train": "none", "pretrained": str(weights)}})
    for number in (1, 2):
        progress = Progress()
        with monkeypatch.context() as patch:
            evaluations = Evaluations(patch, 2, partial(setattr, progress, "stop", True))
            run_dir = attempt(tmp_path / "runs", taken, tmp_path / "data", progress)
        assert evaluations.seen == 2
        ended = why_it_ended(run_dir, run_dir.attempt(number), 0, told_to_stop=True)
        assert (ended["state"], ended["reason"]) == ("preempted", "stopped at step 0")
        beat = run_dir.attempt(number).read("heartbeat")
        assert (beat["step"], beat["steps"], beat["epoch"], beat["epochs"]) == (0, 0, 0, 0)
    attempt(tmp_path / "runs", taken, tmp_path / "data")
    assert run_dir.result()["attempt"] == 3


def test_last_two_and_best_are_kept_and_the_last_once_it_is_done(tmp_path, run, monkeypatch):
    seen = []

    def look(self, more, original=Publisher.result):
        self.writer.wait()
        seen.append(saved.steps(self.run_dir.checkpoints))
        original(self, more)

    monkeypatch.setattr(Publisher, "result", look)
    run_dir = attempt(tmp_path, run, tmp_path / "data")
    best = run_dir.result()["best"]["step"]
    assert seen == [sorted({6, 8, best, 4 if best == 4 else 8})]
    assert saved.steps(run_dir.checkpoints) == [8]
    assert weights.weights_step(run_dir.weights("best")) == best


def test_a_result_that_is_lost_comes_back_from_the_last_checkpoint(tmp_path, run):
    run_dir = attempt(tmp_path, run, tmp_path / "data")
    undisturbed = outcome(run_dir, run)
    (run_dir.path / "result.json").unlink()
    attempt(tmp_path, run, tmp_path / "data")
    assert run_dir.attempt(2).read("trainer")["resumed_at_step"] == 8
    assert_same(run_dir, run, undisturbed)


def test_no_checkpoint_goes_where_none_of_them_can_be_loaded(tmp_path):
    for step in (4, 8):
        saved.path_of(tmp_path, step).write_bytes(b"cut")
    checkpoint.keep_last(tmp_path)
    assert saved.steps(tmp_path) == [4, 8]


def interrupted(tmp_path, run, steps):
    """A run that was killed after so many steps, with its checkpoints."""
    run_dir = tiny.prepare(tmp_path / "runs", run)
    progress = Progress()

    class Killed(BaseException):
        pass

    original = checkpoint.Saver.due

    def due(self, step):
        if step == steps:
            raise Killed
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Saver, "due", due)
        world = World(0, 1, torch.device("cpu"))
        with pytest.raises(Killed):
            train(run_dir, run_dir.start_attempt({}), world, tmp_path / "data", progress)
    return run_dir


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, run, damage, caplog):
    undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    run_dir = interrupted(tmp_path, run, 7)
    path = saved.path_of(run_dir.checkpoints, 6)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(
        {"cut": data[: len(data) // 2], "flipped": bytes(data), "empty": b"", "foreign": b"x" * 4096}[damage]
    )
    (run_dir.checkpoints / "step-old.ckpt").touch()
    assert run_dir.saved_step() == (6 if damage == "flipped" else 4)  # nobody reads it all to say how far a run is
    with caplog.at_level(logging.INFO):
        attempt(tmp_path / "runs", run, tmp_path / "data")
    assert "passing over a damaged checkpoint" in caplog.text
    assert "resuming at step 4" in caplog.text
    assert_same(run_dir, run, undisturbed)


def test_all_checkpoints_gone_is_a_start_from_the_beginning(tmp_path, run):
    undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    run_dir = interrupted(tmp_path, run, 7)
    for path in (run_dir.path / "checkpoints").iterdir():
        path.unlink()
    assert_same(attempt(tmp_path / "runs", run, tmp_path / "data"), run, undisturbed)


def test_best_weights_that_are_gone_come_back(tmp_path, run):
    run_dir = interrupted(tmp_path, run, 7)
    before = {name: value.clone() for name, value in load_file(run_dir.weights("best")).items()}
    run_dir.weights("best").write_bytes(b"cut")
    saver = checkpoint.Saver(run_dir, run, World(0, 1, torch.device("cpu")))
    assert saver.newest()["step"] == 6
    after = load_file(run_dir.weights("best"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_weights_are_the_same_bytes(tmp_path, run):
    """Else a store would be made again for a teacher that is what it was."""
    path, state, found = tmp_path / "best.safetensors", {"b": torch.rand(3), "a": torch.ones(2, 2).bfloat16()}, set()
    for _ in range(20):
        weights.write_weights(path, state, run, 7)
        found.add(path.read_bytes())
    assert len(found) == 1
    assert weights.weights_step(path) == 7
    loaded = load_file(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("damage", ["gone", "cut", "altered", "foreign"])
def test_weights_of_a_finished_run_that_are_damaged_are_made_again(tmp_path, run, damage):
    run_dir = attempt(tmp_path, run, tmp_path / "data")
    undisturbed = outcome(run_dir, run)
    for which in ("best", "last"):
        path = run_dir.weights(which)
        data = path.read_bytes()
        path.unlink()  # a new file: `undisturbed` is the old one, mapped into memory
        if damage == "foreign":
            save_file({"x": torch.zeros(1)}, path)
        elif damage != "gone":
            path.write_bytes(data[:-9] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        assert run_dir.weights_problem(which).startswith("gone" if damage == "gone" else "damaged")
    attempt(tmp_path, run, tmp_path / "data")
    assert run_dir.result()["attempt"] == 2
    assert [run_dir.weights_problem(which) for which in ("best", "last")] == ["", ""]
    assert_same(run_dir, run, undisturbed)


def test_what_a_killed_attempt_left_half_written_goes_when_the_next_one_starts(tmp_path, run):
    run_dir = interrupted(tmp_path, run, 7)
    old, new = run_dir.newest(), run_dir.path / "attempts" / "2"
    new.mkdir()
    write_json(new / "start.json", {"started": 1.0, "host": "here"})
    left = {
        run_dir.path: ["best.safetensors", "last.safetensors", "result.json"],
        run_dir.checkpoints: ["step-00000007.ckpt"],
        old.path: ["heartbeat.json", "trainer.json"],
    }
    stale = [folder / f".{name}.abcd_123.aside" for folder, names in left.items() for name in names]
    others = [  # a launcher's, who may be at it
        run_dir.path / ".ticket.json.abcd_123.aside",
        old.path / ".outcome.json.abcd_123.aside",
        new / ".heartbeat.json.abcd_123.aside",
        run_dir.path / "notes.aside",
    ]
    for path in (*stale, *others):
        path.touch()
    attempt_at = run_dir.attempt(2)
    train(run_dir, attempt_at, World(0, 1, torch.device("cpu")), tmp_path / "data", Progress())
    assert not [path for path in stale if path.exists()]
    assert all(path.exists() for path in others)


def test_a_file_of_code_is_no_checkpoint(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("true",))

    path = checkpoint.save(tmp_path / "checkpoints", 3, {"x": Evil()})
    with pytest.raises(checkpoint.Damaged, match=r"weights_only|Weights only|Unsupported"):
        checkpoint.load(path)


def test_an_attempt_that_was_overtaken_publishes_nothing(tmp_path, run):
    run_dir = tiny.prepare(tmp_path, run)
    old = run_dir.start_attempt({})
    run_dir.start_attempt({})
    with pytest.raises(Exception, match="overtaken by attempt 2"):
        train(run_dir, old, World(0, 1, torch.device("cpu")), tmp_path / "data", Progress())
    assert run_dir.result() is None
    assert not (run_dir.path / "checkpoints").exists()


def test_a_file_system_without_locks_is_said_and_the_attempts_protect(tmp_path, run, monkeypatch, caplog):
    def no_locks(*args, **kwargs):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    monkeypatch.setenv("RANK", "0")
    run_dir = tiny.prepare(tmp_path, run)
    with caplog.at_level(logging.WARNING), worker._lock(run_dir, run_dir.start_attempt({})):
        pass
    assert "going on with attempt numbers alone" in caplog.text
    with caplog.at_level(logging.WARNING), submission.one_at_a_time(tmp_path, "submit"):
        pass
    assert "do not submit twice at the same moment" in caplog.text


@pytest.fixture(name="small_disk")
def small_disk_(tmp_path):
    with small_disk(tmp_path / "disk") as place:
        yield place


@pytest.mark.filterwarnings("ignore:Exception in thread")  # TensorBoard's raises it, too, where it was writing
@pytest.mark.parametrize(
    "kind", ["ckpt", "best.safetensors", "last.safetensors", "events", "trainer.json", "result.json"]
)
def test_a_full_disk_fails_the_run_and_room_heals_it(tmp_path, run, small_disk, monkeypatch, kind):
    undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    root = small_disk / "runs"
    original, seen = files.tempfile.mkstemp, []

    def mkstemp(*args, **kwargs):
        seen.append(kwargs["prefix"])
        if kind in kwargs["prefix"] and sum(kind in name for name in seen) == (
            2 if kind in ("ckpt", "last.safetensors") else 1
        ):
            fill(small_disk)
        return original(*args, **kwargs)

    scalars = tracking.Tracker.scalars

    def write(self, values, step):
        if kind == "events" and step == 5:
            fill(small_disk)
        return scalars(self, values, step)

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkstemp", mkstemp)
        patch.setattr(tracking.Tracker, "scalars", write)
        with pytest.raises(OSError, match="No space left"):
            attempt(root, run, tmp_path / "data")
        worker_failure(RunDir(root, run.id), monkeypatch)
    (small_disk / "filler").unlink()
    assert_same(attempt(root, run, tmp_path / "data"), run, undisturbed)


def worker_failure(run_dir, monkeypatch):
    """The reason is written though the disk is full."""
    monkeypatch.setenv("RANK", "0")
    newest = run_dir.newest()
    worker.attempt_failed(newest, run_dir, OSError(errno.ENOSPC, "No space left on device"), Progress())
    newest.write_last("outcome", {"state": "failed", "reason": newest.failures()[0]["message"]})
    assert "the disk is full" in newest.read("outcome")["reason"]


def test_a_mount_that_becomes_read_only_fails_the_run_and_writing_heals_it(tmp_path, run, monkeypatch):
    undisturbed = outcome(attempt(tmp_path / "whole", run, tmp_path / "data"), run)
    root = tmp_path / "runs"
    place = tiny.prepare(root, run).path / "checkpoints"
    place.mkdir()
    original, seen = files.tempfile.mkstemp, []

    def mkstemp(*args, **kwargs):
        seen.append(kwargs["prefix"])
        if sum("ckpt" in name for name in seen) == 2 and not os.path.ismount(place):
            for words in (("--bind", place, place), ("-o", "remount,bind,ro", place)):
                mounted = subprocess.run(["mount", *words], capture_output=True, check=False)
                if mounted.returncode != 0:
                    pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkstemp", mkstemp)
        try:
            with pytest.raises(OSError, match="Read-only file system") as caught:
                attempt(root, run, tmp_path / "data")
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
    message = worker.explain(caught.value, run)
    assert "what was saved is safe" in message
    assert "--retry" in message
    assert_same(attempt(root, run, tmp_path / "data"), run, undisturbed)
