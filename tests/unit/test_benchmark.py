"""What a model costs: measured once, kept beside the run, and never shown without device and date."""

from __future__ import annotations

import json
import shutil
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from kdcluster import records
from kdcluster.cli import main
from kdcluster.commands import costs
from kdcluster.files import file_digest, write_json
from kdcluster.launch import finished
from kdcluster.processes import processor
from kdcluster.results import render, table
from kdcluster.train.finished import benchmark as child
from kdcluster.train.finished.model import told
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """In this process, with ten passes each."""

    def made(module, runs, root, data_dir, options, what):
        answer = told(lambda: [child.benchmark(run, root, data_dir) for run in runs])
        return finished.found_in(json.loads(json.dumps(answer)))

    monkeypatch.setattr(finished, "_made", made)
    monkeypatch.setattr(child, "ENOUGH_S", 0.0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def trained(folder, changes=None):
    run = tiny.make_run(folder, "baseline", changes)
    return tiny.train_here(folder / "runs", run, folder / "data")


def command(folder, *arguments):
    where = ["--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]
    return CliRunner().invoke(main, [*map(str, arguments), *where], catch_exceptions=False)


@pytest.mark.parametrize("student", [tiny.VIT, tiny.CNN], ids=["ViT", "CNN"])
def test_it_is_measured_once(tmp_path, data_dir, student, monkeypatch):
    run_dir = trained(tmp_path, {"student": student})
    result = command(tmp_path, "export", run_dir.id, "--benchmark")
    assert result.exit_code == 0, result.output
    record = records.read(run_dir.path / "benchmark.json")
    weights = run_dir.weights("best")
    assert (record["schema"], record["weights"]) == ("kdcluster.benchmark/1", file_digest(weights))
    assert record["bytes"]["fp32"] == weights.stat().st_size
    assert weights.stat().st_size * 0.45 < record["bytes"]["fp16"] < weights.stat().st_size * 0.7
    assert record["bytes"]["int8"] > 0
    assert record["int8_top1"] == pytest.approx(run_dir.result()["best"]["test/top1"], abs=15)
    assert [(speed["device"], speed["precision"]) for speed in record["speeds"]] == [("cpu", "fp32"), ("cpu", "int8")]
    for speed in record["speeds"]:
        assert (speed["name"], speed["threads"]) == (processor(), 1)
        for of in (speed["batch1_ms"], speed["batch64_images_per_s"]):
            assert 0 < of["p10"] <= of["p50"] <= of["p90"]
    day = time.strftime("%Y-%m-%d", time.localtime(record["time"]))
    assert f"cpu: {processor()}, 1 thread, onnxruntime" in result.stdout
    assert day in result.stdout

    monkeypatch.setattr(child, "_measured", lambda *_: pytest.fail("it was measured before"))
    again = command(tmp_path, "export", run_dir.id, "--benchmark")
    assert again.stdout == result.stdout


@pytest.mark.parametrize("change", ["weights", "device", "damage"])
def test_it_is_measured_again(tmp_path, data_dir, change, monkeypatch):
    run_dir = trained(tmp_path)
    path = run_dir.path / "benchmark.json"
    put_cost(run_dir, 1, 1.0, name=processor())
    measured = {**records.read(path), "without": {}}
    monkeypatch.setattr(child, "_measured", lambda *_: {**measured, "bytes": {"int8": None}})
    command(tmp_path, "export", run_dir.id, "--benchmark")
    before = records.read(path)
    if change == "damage":
        path.write_text(path.read_text()[:-9])
    else:
        other = (
            {"weights": "0" * 64} if change == "weights" else {"speeds": [{**before["speeds"][0], "name": "a phone"}]}
        )
        write_json(path, {**before, **other})
    assert records.found(path) != before
    command(tmp_path, "export", run_dir.id, "--benchmark")
    after = records.read(path)
    assert (after["weights"], after["speeds"][0]["name"]) == (before["weights"], processor())


def test_int8_is_as_good_as_its_calibration(tmp_path, data_dir, monkeypatch):
    """The ranges come from training images: from noise of another range they would be wrong."""
    run_dir = trained(tmp_path, {"train.epochs": 12, "student": tiny.CNN})
    command(tmp_path, "export", run_dir.id, "--benchmark")
    good = records.read(run_dir.path / "benchmark.json")
    assert good["calibrated_on"] == 64  # of 200 that are wanted, all that there are
    own = run_dir.result()["best"]["test/top1"]
    assert own > 60
    assert good["int8_top1"] > own - 10
    (run_dir.path / "benchmark.json").unlink()
    images = child.portable.some_images
    monkeypatch.setattr(
        child.portable, "some_images", lambda *a: (images(*a)[0] // 64 if "train" in a else images(*a)[0], True)
    )
    command(tmp_path, "export", run_dir.id, "--benchmark")
    assert records.read(run_dir.path / "benchmark.json")["int8_top1"] < good["int8_top1"]


def test_without_the_images_there_is_no_int8(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    shutil.rmtree(data_dir)
    result = command(tmp_path, "export", run_dir.id, "--benchmark")
    assert "no int8: no training images to calibrate on" in result.stdout
    record = records.read(run_dir.path / "benchmark.json")
    assert (record["bytes"]["int8"], record["int8_top1"]) == (None, None)
    assert [speed["precision"] for speed in record["speeds"]] == ["fp32"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra(tmp_path, data_dir, monkeypatch, package):
    run_dir = trained(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    result = command(tmp_path, "export", run_dir.id, "--benchmark")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{package} is not installed: pip install 'kdcluster[export]'" in result.stderr
    assert not (run_dir.path / "benchmark.json").exists()


def test_percentiles_by_hand():
    assert child.spread([float(n) for n in range(1, 12)]) == {"p10": 2.0, "p50": 6.0, "p90": 10.0}


def test_a_pass_is_timed_after_a_warm_up(monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 0.5))
    monkeypatch.setattr(child.time, "perf_counter", lambda: next(clock))
    passes = []
    assert child.timed(lambda: passes.append(0)) == [0.5] * child.LEAST
    assert len(passes) == child.WARM_UP + child.LEAST


def test_neither_folder_nor_benchmark(tmp_path, data_dir):
    result = command(tmp_path, "export", trained(tmp_path).id)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--output is missing" in result.stderr


def test_the_card_has_what_was_measured(tmp_path, data_dir, monkeypatch):
    run_dir = trained(tmp_path)
    record = put_cost(run_dir, 2_000_000, 1.25)
    monkeypatch.setattr(finished, "benchmark", lambda *_: [record])
    monkeypatch.setattr(finished, "export", written)
    assert command(tmp_path, "export", run_dir.id, "--output", tmp_path / "out", "--benchmark").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    own = run_dir.result()["best"]["test/top1"]
    assert f"| fp32 | cpu | 1.9 MiB | {own:.2f} | 1.25 [1.12–1.5] | 640 [576–768] |" in card
    assert "| fp16 | – | 976.6 KiB | – | – | – |" in card
    assert "- cpu: a chip, 1 thread, onnxruntime 1, 2026-01-02" in card


def test_it_fits_a_terminal_of_80_columns():
    of = {"p10": 11_284.0, "p50": 43_937.0, "p90": 48_228.0}
    speeds = [
        {"precision": kind, "device": "cpu", "batch1_ms": {key: value / 1e6 for key, value in of.items()}}
        for kind in ("fp32", "int8")
    ]
    record = {"bytes": {"fp32": 44_774_195, "fp16": 22_334_668, "int8": 11_324_620}, "int8_top1": 95.8}
    record["speeds"] = [{**speed, "batch64_images_per_s": of} for speed in speeds]
    names = ["teacher-vit_base_patch16_224-s0-d8195cc5", "distilled-test_vit-s0-e9b50c39"]
    rows = list(costs.rows([(name, record, 96.0) for name in names]))
    lines = list(costs.for_terminal(rows, 80))
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if not line.startswith(" ")] == names
    fp32 = next(line for line in lines if "fp32" in line)
    assert " ".join(fp32.split()) == "fp32 cpu 42.7 MiB 96.00 0.0439 [0.0113–0.0482] 43,937 [11,284–48,228]"
    assert all(line.startswith(("model", *names)) for line in costs.for_terminal(rows, None))


def written(runs, root, data_dir, into):
    """As the child's, without its work."""
    (into / runs[0].id).mkdir()
    facts = {
        "id": runs[0].id,
        "params": 1,
        "image_size": 16,
        "interpolation": "bicubic",
        "input": [3, 16, 16],
        "classes": [],
        "license": None,
    }
    facts |= {"images": {}, "image_rule": None, "data": "", "timm": "", "missing": {}}
    return [{**facts, "checked": {"images": 0, "real": True, "gaps": {}}}]


# The table


def put_cost(run_dir, size, latency, name="a chip", day="2026-01-02"):
    """A benchmark.json of a run's weights."""
    spreads = {"batch1_ms": latency, "batch64_images_per_s": 640.0}
    of = {key: {"p10": 0.9 * value, "p50": value, "p90": 1.2 * value} for key, value in spreads.items()}
    speed = {"device": "cpu", "name": name, "engine": "onnxruntime 1", "precision": "fp32", "threads": 1, **of}
    record = {
        "schema": "kdcluster.benchmark/1",
        "weights": run_dir.result()["weights"]["best"]["sha256"],
        "time": time.mktime(time.strptime(f"{day} 12", "%Y-%m-%d %H")),
        "bytes": {"fp32": size, "fp16": size // 2, "int8": None},
        "int8_top1": None,
        "speeds": [speed],
    }
    write_json(run_dir.path / "benchmark.json", record)
    return record


@pytest.fixture
def three(tmp_path, data_dir):
    """The runs of an experiment, all done, and its plan."""
    made = tiny.make_plan(tmp_path)
    runs = {run.role: run for run in made.runs if run.role != "teacher-logits"}
    return made, {role: tiny.train_here(tmp_path / "runs", run, data_dir) for role, run in runs.items()}


def shown(made, root):
    built = table.build(made, root)
    return built, render.render(built, "md")


def test_the_columns_are_there_where_they_were_measured(tmp_path, three):
    made, dirs = three
    built, text = shown(made, tmp_path / "runs")
    assert "latency" not in text
    assert [row.latency_ms for row in built.experiments[0].rows] == [None] * 3
    put_cost(dirs["teacher"], 40_000_000, 4.0)
    put_cost(dirs["distilled"], 400_000, 0.5, day="2026-01-05")
    built, text = shown(made, tmp_path / "runs")
    rows = built.experiments[0].rows
    assert [(row.size_bytes, row.latency_ms) for row in rows] == [(40_000_000, 4.0), (400_000, 0.5), (400_000, 0.5)]
    assert "| size | latency |" in text
    assert "| 38.1 MiB | 4 ms |" in text
    assert "median of one image in fp32 on a chip, 1 thread, onnxruntime 1, 2026-01-02 to 2026-01-05" in text


def test_only_one_model_was_measured(tmp_path, three):
    made, dirs = three
    put_cost(dirs["baseline"], 400_000, 0.5)
    rows = table.build(made, tmp_path / "runs").experiments[0].rows
    assert [row.size_bytes for row in rows] == [None, 400_000, 400_000]


def test_several_devices_are_not_compared(tmp_path, three):
    made, dirs = three
    put_cost(dirs["teacher"], 40_000_000, 4.0)
    put_cost(dirs["distilled"], 400_000, 0.5, name="a phone")
    _, text = shown(made, tmp_path / "runs")
    assert "| latency" not in text
    assert "size and latency are left out: they were measured on a chip with onnxruntime 1 and a phone with" in text


@pytest.mark.parametrize("what", ["other weights", "damaged"])
def test_a_record_that_does_not_hold_is_none(tmp_path, three, what):
    made, dirs = three
    record = put_cost(dirs["teacher"], 40_000_000, 4.0)
    path = dirs["teacher"].path / "benchmark.json"
    if what == "damaged":
        path.write_text(path.read_text().replace("4.0", "3.0"))
    else:
        write_json(path, {**record, "weights": "0" * 64})
    built, _ = shown(made, tmp_path / "runs")
    assert built.experiments[0].rows[0].size_bytes is None
    assert built.experiments[0].problems == ()
