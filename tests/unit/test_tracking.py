"""What rank 0 leaves behind: events in one file of an attempt, its heartbeat, weights and result.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from torch import nn

from kdcluster.errors import KdclusterError
from kdcluster.experiment.config import Model
from kdcluster.plan import Run
from kdcluster.results import events, frames
from kdcluster.runs import RunDir
from kdcluster.train import tracking
from kdcluster.train.distributed import World
from kdcluster.train.evaluate import Evaluation
from kdcluster.train.models import Classifier, build, parameters
from kdcluster.train.publish import Publisher, batchnorm_batch
from kdcluster.train.tracking import Tracker, hparams
from tests import tiny

TAGS = ("_hparams_/experiment", "_hparams_/session_start_info")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny.make_run(tmp_path, "distilled", {"distill.alpha": 0.3, "train.schedule": "cosine"})


@pytest.fixture
def run_dir(tmp_path: Path, run: Run) -> RunDir:
    return tiny.prepare(tmp_path / "runs", run)


def start(run_dir: RunDir, run: Run, *, active: bool = True, first_step: int = 0) -> Tracker:
    return Tracker(run_dir, run_dir.start_attempt({}), run, active=active, first_step=first_step)


def records(run_dir: RunDir) -> list[event_pb2.Event]:
    """Every record of the run's only event file."""
    (path,) = run_dir.events.iterdir()
    return [event_pb2.Event.FromString(record) for record in frames.split(path.read_bytes()).records]


def plugin_data(run_dir: RunDir) -> dict[str, plugin_data_pb2.HParamsPluginData]:
    values = [value for record in records(run_dir) for value in record.summary.value]
    found = {v.tag: v.metadata.plugin_data for v in values if v.metadata.plugin_data.plugin_name == "hparams"}
    return {tag: plugin_data_pb2.HParamsPluginData.FromString(data.content) for tag, data in found.items()}


def test_scalars_come_back_as_they_were_returned(run_dir, run):
    tracker = start(run_dir, run)
    stored = tracker.scalars({"test/top1": 100 / 3, "test/loss": 1e-3}, 7)
    tracker.close(success=True)
    assert stored == {"test/top1": float(np.float32(100 / 3)), "test/loss": float(np.float32(1e-3))}
    found = events.read_scalars(run_dir.events)
    assert {tag: [(p.step, p.value, p.attempt) for p in points] for tag, points in found.points.items()} == {
        "test/top1": [(7, stored["test/top1"], 1)],
        "test/loss": [(7, stored["test/loss"], 1)],
    }
    assert not found.problems
    assert not found.incomplete


def test_flush_puts_them_on_disk(run_dir, run):
    tracker = start(run_dir, run)
    tracker.scalars({"test/top1": 1.0}, 1)
    tracker.flush()
    assert events.read_scalars(run_dir.events).points["test/top1"][0].value == 1.0
    tracker.close(success=True)


def test_one_file_of_an_attempt_that_voids_what_came_after_its_start(run_dir, run):
    tracker = start(run_dir, run)
    tracker.scalars({"test/top1": 10.0}, 4)
    tracker.scalars({"test/top1": 20.0}, 8)
    tracker.close(success=False)
    (first,) = run_dir.events.iterdir()
    assert first.name.endswith(".a1")
    tracker = start(run_dir, run, first_step=5)
    tracker.close(success=True)
    assert len(list(run_dir.events.iterdir())) == 2  # and no folder, as add_hparams and add_scalars make
    assert [(p.step, p.value) for p in events.read_scalars(run_dir.events).points["test/top1"]] == [(4, 10.0)]


@pytest.mark.parametrize(("success", "status"), [(True, "STATUS_SUCCESS"), (False, "STATUS_FAILURE")])
def test_hparams_lie_in_the_runs_own_file(run_dir, run, success, status):
    tracker = start(run_dir, run)
    tracker.scalars({"test/top1": 1.0}, 1)
    tracker.close(success=success)
    found = plugin_data(run_dir)
    assert set(found) == {*TAGS, "_hparams_/session_end_info"}
    session = found[TAGS[1]].session_start_info
    assert session.group_name == run.hash[:8]
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in session.hparams.items()}
    assert values == {name: value for name, value in hparams(run).items() if value is not None}
    experiment = found[TAGS[0]].experiment
    assert [info.name for info in experiment.hparam_infos] == list(hparams(run))
    assert {info.name for info in experiment.hparam_infos if info.differs} == set(tracking.FIRST)
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags == ["test/top1", "best/top1", "test/loss", "val/top1", "val/loss"]
    end = found["_hparams_/session_end_info"].session_end_info
    assert api_pb2.Status.Name(end.status) == status
    assert end.end_time_secs > session.start_time_secs - 1 > 0


def test_closed_once_and_for_all(run_dir, run):
    tracker = start(run_dir, run)
    tracker.close(success=True)
    before = records(run_dir)
    tracker.close(success=False)
    tracker.flush()
    assert records(run_dir) == before


def test_other_ranks_are_silent(run_dir, run):
    tracker = start(run_dir, run, active=False)
    assert tracker.scalars({"test/top1": 1 / 3}, 1) == {"test/top1": float(np.float32(1 / 3))}
    tracker.heartbeat(force=True, step=1)
    tracker.flush()
    tracker.close(success=True)
    assert not run_dir.events.exists()
    assert run_dir.newest().read("heartbeat") == {}


def test_a_debug_run_has_events_but_no_heartbeat(run_dir, run):
    tracker = Tracker(run_dir, None, run, active=True, first_step=0)
    tracker.heartbeat(force=True, step=1)
    tracker.close(success=True)
    (path,) = run_dir.events.iterdir()
    assert path.name.endswith(".a0")
    assert not (run_dir.path / "attempts").exists()


def test_heartbeat_at_most_once_a_second(run_dir, run, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    tracker = start(run_dir, run)
    beat = run_dir.newest()
    tracker.heartbeat(step=1, epoch=0)
    assert beat.read("heartbeat")["step"] == 1
    now[0] += 0.9
    tracker.heartbeat(step=2)
    assert beat.read("heartbeat")["step"] == 1
    tracker.heartbeat(force=True, step=3)
    assert beat.read("heartbeat")["step"] == 3
    now[0] += 1.1
    tracker.heartbeat(top1=5.0)
    found = beat.read("heartbeat")
    assert (found["step"], found["epoch"], found["top1"]) == (3, 0, 5.0)  # what is not given stays
    assert isinstance(found["time"], float)
    tracker.close(success=True)


def test_every_run_has_the_same_columns_whatever_its_role(tmp_path, run):
    (tmp_path / "w.safetensors").touch()
    taken = tiny.make_run(tmp_path, "teacher", {"teacher.train": "none", "teacher.pretrained": "w.safetensors"})
    others = [tiny.make_run(tmp_path, role) for role in ("teacher", "baseline")]
    assert {tuple(hparams(one)) for one in (run, taken, *others)} == {tuple(hparams(run))}
    found = hparams(run)
    assert set(tracking.FIRST) < set(found)
    assert (found["role"], found["model"], found["seed"]) == ("distilled", "vit_tiny_patch16_224", 0)
    assert (found["distill.alpha"], found["distill.temperature"], found["train.lr"]) == (0.3, 4.0, 0.01)
    assert (found["teacher"], found["data.augment.pad"]) == ("vit_tiny_patch16_224", 2)
    assert found["model_args"].startswith('{"patch_size": 8')
    assert hparams(others[1])["distill.alpha"] is hparams(taken)["train.lr"] is None


# --- weights and result.json ---

CPU = torch.device("cpu")


def publisher(tmp_path: Path, changes: dict[str, Any] | None = None, *, rank: int = 0) -> tuple[Publisher, Classifier]:
    run = tiny.make_run(tmp_path, "baseline", changes)
    run_dir = tiny.prepare(tmp_path / "runs", run)
    attempt = run_dir.newest() or run_dir.start_attempt({})
    net = build(run.model, 10, 3)
    return Publisher(run_dir, run, attempt, World(rank, 1, CPU), net, steps_per_epoch=4), net


def evaluated(top1: float, **more: float) -> Evaluation:
    """Of four images of ten classes."""
    found = {"test": torch.zeros(4, 10, dtype=torch.float16), "test_labels": torch.arange(4, dtype=torch.int32)}
    return Evaluation({"test/top1": top1, "test/top5": 90.0, "test/loss": 1.0, **more}, found)


def mark(net: Classifier, value: float) -> None:
    nn.init.constant_(net.net.head.bias, value)


def marked(path: Path) -> float:
    return load_file(path)["head.bias"][0].item()


def test_the_first_of_the_best_epochs_is_kept(tmp_path):
    publish, net = publisher(tmp_path)
    for epoch, top1 in enumerate((50.0, 70.0, 70.0, 60.0), 1):
        mark(net, epoch)
        publish.epoch(epoch, 4 * epoch, evaluated(top1), net)
        mark(net, 99)  # what is saved is as it was
        publish.writer.wait()
        assert marked(publish.run_dir.weights("last")) == epoch
        assert marked(publish.run_dir.weights("best")) == min(epoch, 2)
    assert publish.run_dir.result() is None
    publish.result({})
    publish.tracker.close(success=True)
    best = events.read_scalars(publish.run_dir.events, ("best/",)).points["best/top1"]
    assert [point.value for point in best] == [50.0, 70.0, 70.0, 70.0]
    result = publish.run_dir.result()
    assert (result["best"]["epoch"], result["last"]["epoch"], result["selected_on"]) == (2, 4, "test")
    assert result["params"] == parameters(net)
    beat = publish.attempt.read("heartbeat")
    assert (beat["top1"], beat["best_top1"], beat["step"], beat["steps"]) == (60.0, 70.0, 16, 8)


def test_best_is_by_validation_where_there_is_a_split(tmp_path):
    publish, net = publisher(tmp_path, {"data.val_fraction": 0.1})
    for epoch, (val, test) in enumerate(((40.0, 90.0), (60.0, 50.0)), 1):
        publish.epoch(epoch, 4 * epoch, evaluated(test, **{"val/top1": val}), net)
    publish.result({})
    publish.tracker.close(success=True)
    result = publish.run_dir.result()
    assert (result["best"]["epoch"], result["selected_on"]) == (2, "val")
    assert result["best"]["test/top1"] == 50.0


def test_weights_are_timms_whatever_the_layout_in_memory(tmp_path):
    publish, net = publisher(tmp_path, {"student": tiny.CNN})
    plain = {key: value.clone() for key, value in net.net.state_dict().items()}
    net.in_channels_last()
    publish.epoch(1, 4, evaluated(50.0), net)
    publish.writer.wait()
    publish.tracker.close(success=True)
    saved = load_file(publish.run_dir.weights("best"))
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[key], plain[key]) and saved[key].is_contiguous() for key in plain)
    assert not list(publish.run_dir.path.glob(".*.aside"))


def test_tied_weights_are_saved_under_both_names(tmp_path):
    publish, net = publisher(tmp_path)
    net.net.twin = nn.Linear(16, 10)
    net.net.twin.weight = net.net.head.weight
    publish.epoch(1, 4, evaluated(50.0), net)
    publish.writer.wait()
    publish.tracker.close(success=True)
    saved = load_file(publish.run_dir.weights("last"))
    assert torch.equal(saved["twin.weight"], saved["head.weight"])


def test_an_attempt_that_was_overtaken_publishes_nothing_more(tmp_path):
    publish, net = publisher(tmp_path)
    mark(net, 1)
    publish.epoch(1, 4, evaluated(50.0), net)
    publish.writer.wait()
    publish.run_dir.start_attempt({})
    mark(net, 2)
    with pytest.raises(KdclusterError, match="attempt 1 was overtaken by attempt 2, which goes on"):
        publish.epoch(2, 8, evaluated(60.0), net)
    with pytest.raises(KdclusterError, match="overtaken"):
        publish.result({})
    publish.tracker.close(success=False)
    assert marked(publish.run_dir.weights("last")) == marked(publish.run_dir.weights("best")) == 1
    assert publish.run_dir.result() is None
    assert len(events.read_scalars(publish.run_dir.events).points["test/top1"]) == 1


def test_other_ranks_publish_nothing(tmp_path):
    publish, net = publisher(tmp_path, rank=1)
    publish.epoch(1, 4, evaluated(50.0), net)
    publish.writer.wait()
    publish.result({})
    publish.tracker.close(success=True)
    assert {path.name for path in publish.run_dir.path.iterdir()} == {"config.yaml", "attempts"}
    assert publish.best["test/top1"] == 50.0  # all ranks know it


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "ranks", "device", "images"),
    [
        (16, None, 1, "cpu", 16),
        (16, None, 3, "cpu", 6),
        (16, 4, 1, "cpu", 4),
        (10, 6, 1, "cpu", 5),  # two pieces of five, not six and four
        (16, None, 3, "cuda", 16),  # synced: 6 + 5 + 5
        (16, 4, 2, "cuda", 8),
        (2, None, 3, "cpu", 1),
    ],
)
def test_how_many_images_batchnorm_sees(tmp_path, batch_size, micro_batch, ranks, device, images):
    changes = {"student": tiny.CNN, "train.batch_size": batch_size, "train.micro_batch": micro_batch}
    run = tiny.make_run(tmp_path, "baseline", changes)
    net = build(run.model, 10, 3)
    assert batchnorm_batch(net, run, World(0, ranks, torch.device(device))) == images
    assert batchnorm_batch(build(Model(**tiny.VIT), 10, 3), run, World(0, ranks, CPU)) is None
    assert batchnorm_batch(net, run.model_copy(update={"train": None}), World(0, ranks, CPU)) is None
