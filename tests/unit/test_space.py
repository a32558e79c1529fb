"""Search spaces: what is refused, and that what is drawn lies inside."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcluster.experiment import space


@pytest.mark.parametrize(
    ("domain", "said"),
    [
        (0.5, "must be one of {uniform: …}"),
        ({"uniform": [0, 1], "grid": [1]}, "must be one of"),
        ({"normal": [0, 1]}, "there is no 'normal'; there are uniform, loguniform"),
        ({"choice": []}, "choice takes a list of values (got [])"),
        ({"grid": 3}, "grid takes a list of values, each of which is tried (got 3)"),
        ({"uniform": [1, 0]}, "low must be less than high"),
        ({"uniform": [0, "1"]}, "uniform takes [low, high]"),
        ({"uniform": [0, 1, 2]}, "uniform takes [low, high]"),
        ({"loguniform": [0, 1]}, "low must be above 0 (got 0)"),
        ({"quniform": [0, 1]}, "quniform takes [low, high, step]"),
        ({"quniform": [0, 1, 0]}, "the step must be above 0"),
        ({"randint": [0, 1.5]}, "whole numbers"),
        ({"randint": [False, True]}, "whole numbers"),
    ],
)
def test_what_is_no_domain_is_said(domain: Any, said: str) -> None:
    assert said in (space.domain_problem(domain) or "")


ENDS = st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)).map(sorted).filter(lambda ends: ends[0] < ends[1])


@given(ends=ENDS, seed=st.integers(0, 99), kind=st.sampled_from(["uniform", "loguniform"]))
def test_what_is_drawn_lies_inside(ends: list[float], seed: int, kind: str) -> None:
    domain = {"x": {kind: ends}}
    assert space.domain_problem(domain["x"]) is None
    drawn = [point["x"] for point in islice(space.points(domain, seed), 10)]
    assert all(ends[0] <= value <= ends[1] for value in drawn)
    assert drawn == [point["x"] for point in islice(space.points(domain, seed), 10)]


def test_steps_and_whole_numbers_reach_both_ends() -> None:
    drawn = list(islice(space.points({"q": {"quniform": [0.1, 0.3, 0.1]}, "n": {"randint": [1, 3]}}, 0), 100))
    assert {point["q"] for point in drawn} == {0.1, 0.2, 0.3}
    assert {point["n"] for point in drawn} == {1, 2, 3}


def test_a_grid_is_gone_through_as_a_whole() -> None:
    both = {"a": {"grid": [1, 2]}, "x": {"uniform": [0, 1]}, "b": {"grid": ["u", "v", "w"]}}
    assert space.grid_size(both) == 6
    drawn = list(islice(space.points(both, 0), 6))
    assert {(point["a"], point["b"]) for point in drawn} == {(a, b) for a in (1, 2) for b in "uvw"}
    assert list(drawn[0]) == ["a", "x", "b"]
    assert space.corners({"choice": [1, 2, 3]}) == [1, 2, 3]
    assert space.corners({"quniform": [0, 1, 0.5]}) == [0, 1]
