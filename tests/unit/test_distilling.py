"""What is said of a loss in a row, a card and a log, and what a sweep searches of it unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcluster.experiment import configfile
from kdcluster.experiment.distilling import Distill
from kdcluster.sweep.points import Space
from tests import tiny


@pytest.mark.parametrize(
    ("distill", "words", "formula"),
    [
        ({}, "α 0.5, T 4", "loss = (1-α)·CE + α·T²·KL(teacher‖student)"),
        ({"standardise": True, "temperature": 2.0}, "α 0.5, T 2, standardised", None),
        ({"loss": "dkd", "dkd_beta": 2.0}, "α 0.5, dkd 1 + 2, T 4", "loss = (1-α)·CE + α·DKD"),
        ({"loss": "dist", "alpha": 0.9}, "α 0.9, dist 2 + 2, T 4", "loss = (1-α)·CE + α·DIST"),
        ({"loss": "hard"}, "α 0.5, hard", "loss = (1-α)·CE + α·CE(teacher's first choice)"),
    ],
)
def test_a_loss_in_words(distill: dict[str, Any], words: str, formula: str | None) -> None:
    assert Distill(**distill).in_words() == words
    assert formula in (None, Distill(**distill).formula())


@pytest.mark.parametrize(("loss", "searched"), [("kd", ["alpha", "temperature"]), ("hard", ["alpha"])])
def test_a_sweep_that_names_no_key_searches_those_that_the_loss_has(
    tmp_path: Path, loss: str, searched: list[str]
) -> None:
    path = tiny.write_experiment(tmp_path, {"distill": {"loss": loss}})
    domains = Space(configfile.load(str(path))).domains
    assert list(domains) == [f"distill.{key}" for key in searched]
