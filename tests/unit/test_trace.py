"""`debug --profile`: a trace that other tools read, and the dearest operations in a table."""

from __future__ import annotations

import json

import pytest
import torch

from kdcluster.train import trace, trainer
from kdcluster.train.distributed import World
from kdcluster.train.trainer import Progress
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("steps", "traced"), [(4, 2), (2, 1)])
def test_a_trace_of_the_steps_after_the_first_two(tmp_path, data_dir, capsys, steps, traced):
    run_dir = tiny.prepare(tmp_path, tiny.make_run(tmp_path, "baseline"))
    world = World(0, 1, torch.device("cpu"))
    trainer.train(run_dir, None, world, data_dir, Progress(), steps, profile=True)
    events = json.loads((run_dir.path / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep#") for name in names) == traced
    assert {"aten::addmm", "aten::index_select", "aten::_fused_adamw_"} <= set(names)
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["self", "time", "on", "the", "CPU", "ms/step", "share", "calls"]
    assert len(rows) == trace.DEAREST
    times = [float(row.split()[-4]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert {len(row) for row in rows} == {len(head)}
    assert len(head) <= 80
    assert last == f"trace of {traced} step{'s' * (traced > 1)}: {run_dir.path / 'trace.json'}"


def test_the_evaluation_of_an_epoch_and_steps_that_the_run_has_not(tmp_path, data_dir, capsys):
    run_dir = tiny.prepare(tmp_path, tiny.make_run(tmp_path, "baseline", {"train.epochs": 1}))
    trainer.train(run_dir, None, World(0, 1, torch.device("cpu")), data_dir, Progress(), 9, profile=True)
    assert "trace of 2 steps" in capsys.readouterr().out  # 4 of 4, without the first two


def test_a_long_name_leaves_the_numbers_their_place(tmp_path):
    found = trace.Trace(tmp_path, torch.device("cpu"), 2)
    found.step()
    with torch.profiler.record_function("a name of " + "very " * 20 + "many letters"):
        sum(torch.ones(9).sum() for _ in range(99))
    found.step()
    head, *rows, _ = found.finish().splitlines()
    assert any(row.startswith("a name of very") and "..." in row for row in rows)
    assert {len(row) for row in rows} == {len(head)}
