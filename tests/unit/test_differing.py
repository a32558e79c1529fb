"""In what runs differ, in words for one column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcluster.differing import differing, in_words, settings, short
from kdcluster.experiment import configfile
from kdcluster.plan import Run, trial
from tests.tiny import make_run, write_experiment


def point(folder: Path, *overrides: str) -> Run:
    (run,) = trial(configfile.load(str(write_experiment(folder)), overrides), [0], 0.1)
    return run


def test_trials_differ_in_what_is_searched(tmp_path: Path) -> None:
    runs = [
        point(tmp_path, "distill.alpha=0.4312345", "distill.temperature=2.05"),
        point(tmp_path, "distill.alpha=0.9"),
        point(tmp_path, "train.lr=0.00025"),
    ]
    old, new = (run.needs[0][-8:] for run in runs[1:])
    assert list(in_words(runs).values()) == [
        f"α 0.431 T 2.05 lr 0.01 teacher {old}",
        f"α 0.9 T 4 lr 0.01 teacher {old}",
        f"α 0.5 T 4 lr 2.5e-4 teacher {new}",
    ]


def test_numbers_that_differ_look_different(tmp_path: Path) -> None:
    runs = [point(tmp_path, f"distill.alpha={alpha}") for alpha in (0.43001, 0.43002)]
    assert list(in_words(runs).values()) == ["α 0.43001", "α 0.43002"]


def test_roles_are_held_against_one_another_and_a_missing_key_says_nothing(tmp_path: Path) -> None:
    teacher, student = (make_run(tmp_path, role) for role in ("teacher", "distilled"))
    assert in_words([teacher, student], leave_out=("role", "teacher", "recipe")) == {
        teacher.id: "embed_dim 24",
        student.id: "embed_dim 16 α 0.5 T 4",
    }
    found = differing([teacher, student])
    assert list(found[teacher.id]) == list(found[student.id])
    assert (found[teacher.id]["teacher"], found[student.id]["teacher"]) == (None, teacher.id)


def test_one_run_differs_in_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, "teacher")
    assert in_words([run]) == {run.id: ""}
    assert in_words([]) == {}


def test_two_keys_of_the_same_end_are_named_whole(tmp_path: Path) -> None:
    one = make_run(tmp_path, "distilled", {"seeds": [1], "data.view_seed": 3, "data.image_size": None})
    other = one.model_copy(update={"id": "b", "model": one.model.model_copy(update={"image_size": 8})})
    sized = other.data.model_copy(update={"image_size": 32})
    assert in_words([one, other.model_copy(update={"data": sized})]) == {
        one.id: "image_size 16",
        "b": "image_size 8 data.image_size 32",
    }


def test_what_is_not_hashed_is_left_out(tmp_path: Path) -> None:
    assert "train.micro_batch" not in settings(make_run(tmp_path, "baseline", {"train.micro_batch": 4}))


@pytest.mark.parametrize(
    ("value", "said"),
    [(1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.43, "0.43"), (0.0, "0"), (2e6, "2e6"), (True, "yes"), ((1, 2), "1 2"),
     (None, "none"), (20, "20"), ("sgd", "sgd"), (float("inf"), "inf")],
)  # fmt: skip
def test_short_values(value: Any, said: str) -> None:
    assert short(value) == said


def test_of_a_loss_only_what_it_uses_and_what_is_not_the_default(tmp_path: Path) -> None:
    ways = ({"loss": "hard"}, {"loss": "dkd", "dkd_beta": 2.0}, {"standardise": True})
    runs = [make_run(tmp_path, "distilled", {"distill": way}) for way in ways]
    assert list(in_words(runs).values()) == [
        "loss hard",
        "loss dkd T 4 standardise no dkd_beta 2",
        "loss kd T 4 standardise yes",
    ]
    assert list(in_words([make_run(tmp_path, "baseline"), runs[0]], ("role", "teacher", "recipe")).values()) == [
        "",
        "α 0.5 loss hard",
    ]
