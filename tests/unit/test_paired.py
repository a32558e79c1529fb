"""Distilled against baseline image by image, from predictions made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from kdcluster import predictions
from kdcluster.results import index
from kdcluster.results.paired import Paired, in_words
from kdcluster.results.render import render
from kdcluster.results.seeds import cells
from kdcluster.results.table import build
from tests.unit.test_table import TEACHER, fabricate, of, planned

N = 20
"""Test images."""
BEGINS = "over the 20 test images (McNemar's exact test)"


def done(root, run, right, labels=None, keeps=True):
    """A run that has just these test images right, after its one evaluation."""
    directory = fabricate(root, run, [100 * len(right) / N])
    labels = np.zeros(N, np.int32) if labels is None else labels
    logits = np.zeros((N, 3), np.float16)
    logits[np.arange(N), [labels[i] if i in right else (labels[i] + 1) % 3 for i in range(N)]] = 1
    if keeps:
        path = predictions.path_of(directory.path, directory.result()["best"]["step"])
        path.parent.mkdir()
        save_file({"test": logits, "test_labels": labels}, path)
    return directory


@pytest.fixture
def plan(tmp_path):
    """Seed 0: 10 images fixed, none broken; seed 1: 3 and 2; seed 2: none and 6."""
    made = planned(tmp_path, "train.epochs=1")
    fabricate(tmp_path, of(made, "teacher"), TEACHER[:1])
    for seed, (baseline, distilled) in enumerate(
        [(range(10), range(20)), (range(6), range(2, 9)), (range(8), range(2))]
    ):
        done(tmp_path, of(made, "baseline", seed), baseline)
        done(tmp_path, of(made, "distilled", seed), distilled)
    return made


def counts(table):
    return {row.seed: (row.fixed, row.broken, row.p) for row in table.experiments[0].seeds if row.role == "distilled"}


def sentences(table):
    return [note for note in table.experiments[0].notes if "McNemar" in note]


def test_each_seed_by_hand(plan, tmp_path):
    table = build(plan, tmp_path)
    assert not [problem for problem in table.experiments[0].problems if problem.state == "done"]
    assert counts(table) == {0: (10, 0, 2 / 1024), 1: (3, 2, 1.0), 2: (0, 6, 2 / 64)}
    assert {row.p for row in table.experiments[0].seeds if row.role != "distilled"} == {None}
    words = f"{BEGINS}, each seed by itself, distilled is better in 1 and worse in 1 of 3 seeds at p < 0.05"
    assert sentences(table) == [words]
    head, *rows = cells(table.experiments[0].seeds, "best")
    assert head[:6] == ["run", "best test", "gain", "fixed", "broken", "p"]
    assert [row[3:6] for row in rows[-3:]] == [["10", "0", "0.002"], ["3", "2", "1.000"], ["0", "6", "0.031"]]
    assert rows[0][3:6] == ["–"] * 3
    row = json.loads(render(table, "json"))["experiments"][0]["seeds"][4]
    assert (row["fixed"], row["broken"], row["p"]) == (10, 0, 2 / 1024)
    assert render(table, "csv", per_seed=True).splitlines()[0].endswith("wall_s,fixed,broken,p")


def test_without_predictions_nothing_is_said_of_images(plan, tmp_path):
    for seed in (0, 1):
        predictions.keep(tmp_path / of(plan, "baseline", seed).id, [])
    table = build(plan, tmp_path)
    assert counts(table) == {0: (None, None, None), 1: (None, None, None), 2: (0, 6, 2 / 64)}
    assert "of 1 seed (2 without predictions) at p < 0.05" in sentences(table)[0]
    predictions.keep(tmp_path / of(plan, "baseline", 2).id, [])
    table = build(plan, tmp_path)
    assert sentences(table) == []
    assert "broken" not in render(table, per_seed=True)


def test_predictions_of_other_images_are_not_compared(tmp_path):
    """Of another test set, or in another order."""
    made = planned(tmp_path, "train.epochs=1", seeds=[0])
    fabricate(tmp_path, of(made, "teacher"), TEACHER[:1])
    done(tmp_path, of(made, "baseline"), range(5))
    done(tmp_path, of(made, "distilled"), range(9), labels=np.arange(N, dtype=np.int32) % 3)
    assert counts(build(made, tmp_path)) == {0: (None, None, None)}


def test_predictions_that_contradict_the_table_are_not_compared(plan, tmp_path):
    directory = tmp_path / of(plan, "baseline", 0).id
    for path in (directory / "predictions").iterdir():
        path.write_bytes((tmp_path / of(plan, "distilled", 0).id / "predictions" / path.name).read_bytes())
    table = build(plan, tmp_path)
    assert counts(table)[0] == (None, None, None)
    assert any("contradict the event files" in problem.reason for problem in table.experiments[0].problems)


def test_one_seed_has_its_counts_in_the_sentence():
    (said,) = in_words({0: Paired(12, 3, 1000)}, 1)
    assert said.startswith("over the 1,000 test images (McNemar's exact test) distilled alone is right on 12, ")
    assert said.endswith("baseline alone on 3: p = 0.035")
    (small,) = in_words({0: Paired(500, 300, 10000)}, 1)
    assert small.endswith("p < 0.001")


def test_a_second_look_reads_no_predictions(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "is_settled", lambda _: True)
    first = counts(build(plan, tmp_path))
    monkeypatch.setattr(predictions, "load", lambda _: pytest.fail("it was read again"))
    assert counts(build(plan, tmp_path)) == first
