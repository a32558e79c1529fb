"""Real torchrun processes over gloo: the same gradient, counts and files on any number of them.

A start costs 6 to 8 seconds here, so each is used for many checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from safetensors.torch import load_file
from tensorboard.compat.proto import event_pb2
from torch import Tensor

from kdcluster.launch.torchrun import Layout, command, environment
from kdcluster.plan import Run
from kdcluster.results import events, frames
from kdcluster.runs import RunDir
from kdcluster.train import data, feed, models
from kdcluster.train.distributed import World
from kdcluster.train.evaluate import evaluate
from tests import ranks, tiny

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
CNN = {"student": tiny.CNN, "teacher": tiny.CNN}
DIST = {"distill": {"loss": "dist", "dist_gamma": 5.0}, "train.micro_batch": None}
TAGS = {"train/loss", "train/ce", "train/kd", "train/lr", "test/top1", "test/top5", "test/loss"}
TAGS |= {"best/top1", "perf/images_per_s", "perf/data_wait_pct", "perf/checkpoint_pct"}
VAL_TAGS = {"val/top1", "val/top5", "val/loss"}


class Measured(NamedTuple):
    """What `ranks.py` found on some number of processes."""

    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, dict[str, dict[str, float]]]
    out: Path
    trained: RunDir


def torchrun(processes: int, *argv: str) -> None:
    """Run a script under torchrun as the launcher would."""
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *argv]
    env = environment(os.environ, Layout("cpu", processes, 1))
    done = subprocess.run(launched, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-6000:]


def one_process(argv: list[str]) -> None:
    """`ranks.py` in this process: what the others are compared with."""
    given = sys.argv
    sys.argv = ["ranks.py", *argv]
    try:
        ranks.main()
    finally:
        sys.argv = given


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have; and tiny tensors are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    tiny.put_images(folder / "data")
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Run]:
    """A distilled run of a ViT, without BatchNorm, and one of a CNN with; their teachers are trained. And one of the
    ViTs whose loss relates the images of a batch to each other."""
    settings = {"teacher.train": {"epochs": 1}, "train.epochs": 5, "train.micro_batch": 5, "train.label_smoothing": 0.1}
    found = {}
    for name, changes in (("vit", {}), ("cnn", CNN)):
        teacher, _, found[name] = tiny.make_plan(folder, {**settings, **changes}).only(["distilled"]).runs
        tiny.train_here(folder / "runs", teacher, folder / "data")
    found["dist"] = tiny.make_plan(folder, {**settings, **DIST}).only(["distilled"]).runs[-1]
    assert found["dist"].needs == found["vit"].needs
    return found


@pytest.fixture(scope="module")
def measured(folder: Path, runs: dict[str, Run]) -> dict[int, Measured]:
    """The same on 1, 2 and 3 processes."""
    found = {}
    ids = [run.id for run in runs.values()]
    for processes in (1, 2, 3):
        root, out = folder / str(processes), folder / f"out{processes}"
        root.mkdir()
        out.mkdir()
        (root / "data").symlink_to(folder / "data")
        for run in runs.values():
            tiny.prepare(root / "runs", run)
        for teacher in {run.needs[0] for run in runs.values()}:
            (root / "runs" / teacher).symlink_to(folder / "runs" / teacher)
        trained = RunDir(root / "runs", runs["vit"].id)
        trained.start_attempt({})
        argv = [str(root), str(out), "cpu", *ids]
        if processes == 1:
            one_process(argv)
        else:
            torchrun(processes, ranks.__file__, *argv)
        found[processes] = Measured(
            {name: load_file(out / f"{run.id}.safetensors") for name, run in runs.items()},
            {name: json.loads((out / f"{run.id}.json").read_text()) for name, run in runs.items()},
            out,
            trained,
        )
    return found


def close(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "micro_batch"), ranks.CASES)
def test_the_gradient_of_a_global_batch(measured, processes, batch_size, micro_batch):
    """Compared with one process that takes the whole batch at once."""
    found, whole = measured[processes].tensors["vit"], measured[1].tensors["vit"]
    key, plain = f"{batch_size}/{micro_batch}", f"{batch_size}/None"
    assert close(found[f"gradient/{key}"], whole[f"gradient/{plain}"]) < 1e-5
    torch.testing.assert_close(found[f"sums/{key}"], whole[f"sums/{plain}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("batch_size", "micro_batch"), [case for case in ranks.CASES if case[1] is None])
def test_the_gradient_of_a_loss_of_the_whole_batch(measured, processes, batch_size, micro_batch):
    """Also where ranks have unequal shares, or none."""
    found, whole = measured[processes].tensors["dist"], measured[1].tensors["dist"]
    key = f"{batch_size}/{micro_batch}"
    assert close(found[f"gradient/{key}"], whole[f"gradient/{key}"]) < 1e-5
    torch.testing.assert_close(found[f"sums/{key}"], whole[f"sums/{key}"], rtol=1e-5, atol=1e-5)


def test_batchnorm_is_over_each_processs_own_images(measured):
    """What sets it apart on the CPU; the log and the table say so."""
    found, whole = measured[2].tensors["cnn"], measured[1].tensors["cnn"]
    assert close(found["gradient/10/None"], whole["gradient/10/None"]) > 0.1


@pytest.mark.parametrize("count", ranks.EVALUATED)
@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_each_test_image_is_evaluated_once(runs, measured, name, count):
    for processes, found in measured.items():
        taken = [
            json.loads((found.out / f"taken-{runs[name].id}-{count}-{r}.json").read_text()) for r in range(processes)
        ]
        assert [i for each in taken for i in each] == list(range(count))
        assert max(map(len, taken)) - min(map(len, taken)) <= 1


@pytest.mark.parametrize("count", ranks.EVALUATED)
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_evaluation_counts_the_same_on_any_number_of_processes(folder, runs, measured, name, processes, count):
    """One process with the weights and buffers of rank 0 counts what all counted together."""
    run, found = runs[name], measured[processes]
    net = models.build(run.model, 10, 3, start=False)
    state = found.tensors[name]
    net.net.load_state_dict({key.removeprefix("state/"): v for key, v in state.items() if key.startswith("state/")})
    test = feed.to_device(data.open_arrays(run, folder / "data"), "test", CPU)
    alone, logits = evaluate(net, run, test, torch.arange(count), World(0, 1, CPU))
    assert found.numbers[name][str(count)] == {
        "test/top1": alone["top1"],
        "test/top5": alone["top5"],
        "test/loss": pytest.approx(alone["loss"], rel=1e-6),
    }
    kept = load_file(found.out / f"predictions-{run.id}-{count}.safetensors")
    torch.testing.assert_close(kept["test"], logits, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(kept["test_labels"], test.labels[:count].int())


@pytest.mark.parametrize("processes", [2, 3])
def test_a_whole_training_follows_that_of_one_process(measured, processes):
    """Loosely: the last bits differ in every step, and AdamW magnifies them (FACTS.md)."""
    loss = {
        n: [p.value for p in events.read_scalars(measured[n].trained.events, ("train/loss",)).points["train/loss"]]
        for n in (1, processes)
    }
    assert len(loss[1]) == 20
    assert set(events.read_scalars(measured[processes].trained.events, ("",)).points) == TAGS  # no split, no val/*
    assert loss[processes] == pytest.approx(loss[1], rel=1e-3)
    results = {n: measured[n].trained.result() for n in (1, processes)}
    for key in ("id", "hash", "epochs", "steps", "params", "batchnorm_batch"):
        assert results[processes][key] == results[1][key]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, RunDir]:
    """Teacher (taken as it is) and distilled student, the student through jobs/train.py on 2 ranks."""
    folder = tmp_path_factory.mktemp("train")
    tiny.put_images(folder / "data")
    torch.manual_seed(3)
    net = models.build(models.Model(**tiny.VIT), 10, 3).net
    weights = folder / "teacher.pth"
    torch.save({"state_dict": net.state_dict()}, weights)
    changes = {
        "teacher": {**tiny.VIT, "train": "none", "pretrained": str(weights)},
        "student": tiny.CNN,
        "data.val_fraction": 0.25,
        "train.epochs": 3,
    }
    made = tiny.make_plan(folder, changes)
    teacher, _, student = made.only(["distilled"]).runs
    teacher_dir = tiny.train_here(folder / "runs", teacher, folder / "data")
    run_dir = tiny.prepare(folder / "runs", student)
    layout = Layout("cpu", 2, 1)
    attempt = run_dir.start_attempt({})
    argv = command(run_dir.path, folder / "data", layout, attempt=attempt.number)
    env = environment(os.environ, layout)
    # As in a container that cleans the environment: what a run is stands in its arguments.
    argv = ["env", "-i", *(f"{name}={env[name]}" for name in ("PATH", "PYTHONPATH") if name in env), *argv]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240)
    logs = "\n".join(f"--- {name}\n{path.read_text()}" for name, path in attempt.logs() if path.exists())
    assert done.returncode == 0, done.stderr[-3000:] + logs
    return teacher_dir, run_dir


def test_the_events_of_a_run_on_two_ranks(trained):
    _, run_dir = trained
    (path,) = run_dir.events.iterdir()  # rank 0's alone
    assert path.name.endswith(".a1")
    found = events.read_scalars(run_dir.events, ("",))
    assert not found.problems
    assert not found.incomplete
    assert set(found.points) == TAGS | VAL_TAGS
    steps = {tag: [point.step for point in points] for tag, points in found.points.items()}
    per_epoch = 48 // 16
    for tag in ("train/loss", "train/ce", "train/kd", "train/lr"):
        assert steps[tag] == list(range(1, 3 * per_epoch + 1))
    for tag in TAGS - {"train/loss", "train/ce", "train/kd", "train/lr"} | VAL_TAGS:
        assert steps[tag] == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    for point in found.points["perf/data_wait_pct"]:
        assert 0 <= point.value <= 100
    plugins = set()
    for record in frames.split(path.read_bytes()).records:
        for value in event_pb2.Event.FromString(record).summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                plugins.add(value.tag)
    assert plugins == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}


def test_the_result_of_a_run_on_two_ranks(trained):
    _, run_dir = trained
    result, run = run_dir.result(), run_dir.load()
    points = events.read_scalars(run_dir.events).points
    measured = [
        {"epoch": i + 1, "step": 3 * (i + 1), **{tag: points[tag][i].value for tag in points}} for i in range(3)
    ]
    assert result["last"] == measured[-1]
    assert result["best"] == max(measured, key=lambda epoch: epoch["val/top1"])
    assert result["selected_on"] == "val"
    assert (result["id"], result["hash"], result["attempt"]) == (run.id, run.hash, 1)
    assert (result["epochs"], result["steps"]) == (3, 9)
    assert result["params"] == models.parameters(timm.create_model("test_resnet", num_classes=10))
    assert result["batchnorm_batch"] == 8  # half of the batch
    assert result["schema"] == "kdcluster.result/1"


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_weights_are_in_timms_layout(trained, which):
    _, run_dir = trained
    arguments = {"num_classes": 10, "checkpoint_path": str(run_dir.weights(which))}
    net = models.Classifier(timm.create_model("test_resnet", **arguments), models.pretrained_cfg("test_resnet"), 3, 16)
    run = run_dir.load()
    test = feed.to_device(data.open_arrays(run, run_dir.root.parent / "data"), "test", CPU)
    found, _ = evaluate(net, run, test, torch.arange(32), World(0, 1, CPU))
    assert found["top1"] == run_dir.result()[which]["test/top1"]


def test_the_logs_and_records_of_two_ranks(trained):
    _, run_dir = trained
    attempt = run_dir.newest()
    log = attempt.log(0).read_text()
    assert "WARNING BatchNorm does not sync over CPU processes: statistics are over 8 images each" in log
    assert "epoch 3/3  loss " in log
    assert "BatchNorm" not in attempt.log(1).read_text()
    assert attempt.failures() == []
    record = attempt.read("trainer")
    assert {key: record[key] for key in ("procs", "device", "threads", "batchnorm_batch", "steps_per_epoch")} == {
        "procs": 2,
        "device": "cpu",
        "threads": 1,
        "batchnorm_batch": 8,
        "steps_per_epoch": 3,
    }
    assert record["versions"]["timm"] == timm.__version__
    beat = attempt.read("heartbeat")
    assert (beat["step"], beat["steps"], beat["epoch"], beat["epochs"]) == (9, 9, 3, 3)
    assert beat["best_top1"] == run_dir.result()["best"]["test/top1"]


def test_a_teacher_taken_as_it_is_is_only_evaluated(trained):
    run_dir, _ = trained
    result = run_dir.result()
    found = events.read_scalars(run_dir.events, ("",)).points
    assert set(found) == {"test/top1", "test/top5", "test/loss", "best/top1"} | VAL_TAGS
    assert {point.step for points in found.values() for point in points} == {0}
    assert result["best"] == result["last"]
    assert (result["epochs"], result["steps"], result["last"]["epoch"]) == (0, 0, 0)
    assert result["batchnorm_batch"] is None
    given = torch.load(run_dir.root.parent / "teacher.pth", weights_only=True)["state_dict"]
    kept = load_file(run_dir.weights("best"))
    assert given.keys() == kept.keys()
    assert all(torch.equal(kept[key], given[key]) for key in given)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: SyncBatchNorm over NCCL")
def test_on_gpus_batchnorm_is_over_the_global_batch(folder, runs, tmp_path):
    run, found = runs["cnn"], []
    for processes in (1, 2):
        root, out = tmp_path / str(processes), tmp_path / f"out{processes}"
        root.mkdir()
        out.mkdir()
        (root / "data").symlink_to(folder / "data")
        tiny.prepare(root / "runs", run).start_attempt({})
        (root / "runs" / run.needs[0]).symlink_to(folder / "runs" / run.needs[0])
        torchrun(processes, ranks.__file__, str(root), str(out), "cuda", run.id)
        found.append(load_file(out / f"{run.id}.safetensors"))
    assert close(found[1]["gradient/10/None"], found[0]["gradient/10/None"]) < 0.01  # TF32; unsynced it is above 0.1
