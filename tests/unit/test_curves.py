"""The accuracy of runs in a few signs: where they stand, on which scale, and what a look reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcluster.columns import in_ascii
from kdcluster.commands.curves import SIGNS, WIDTH, Curves, drawn
from kdcluster.launch.status import Status
from kdcluster.results.events import Point
from kdcluster.states import State
from tests.fabricated import evaluated, put
from tests.tiny import make_run


def curve(*values: float, every: int = 10) -> list[Point]:
    return [Point(every * number, 1.0, value, 1) for number, value in enumerate(values, 1)]


def of(points: list[Point], steps: int = 100, state: str = "running") -> str:
    return drawn({"a": points}, {"a": Status(State(state), heartbeat={"steps": steps})})["a"]


@pytest.mark.parametrize(
    ("points", "steps", "state", "shown"),
    [
        ([], 100, "running", ""),
        (curve(1.0), 0, "done", ""),  # only evaluated
        (curve(50.0), 100, "running", "▁─────────"),
        (curve(*range(7)), 100, "running", "▁▂▃▄▅▆▇───"),
        (curve(*range(7)), 100, "failed", "▁▂▃▄▅▆▇───"),
        (curve(*range(7)), 100, "done", "▁▂▃▄▅▆▇"),  # stopped early by who took it for done
        (curve(*range(10)), 100, "done", "▁▂▂▃▄▄▅▆▆▇"),
        (curve(10.0, 90.0, every=50), 100, "done", "▁▁▁▁▁▇▇▇▇▇"),
        (curve(*range(100), every=1), 100, "done", "▂▂▃▃▄▅▅▆▆▇"),  # the last of each ten
        (curve(3.0, 3.0, 3.0), 30, "done", "▁▁▁▁▁▁▁▁▁▁"),
        ([Point(0, 1.0, 5.0, 1), Point(10, 1.0, 6.0, 1)], 100, "running", "▇─────────"),
        (curve(1.0, 2.0, every=90), 100, "running", "▁▁▁▁▁▁▁▁▁▇"),  # more than it said it had
    ],
)
def test_a_curve_stands_where_its_run_is(points: list[Point], steps: int, state: str, shown: str) -> None:
    assert of(points, steps, state) == shown


def test_curves_that_stand_together_have_one_scale() -> None:
    found = dict.fromkeys("ab", Status(State.DONE, heartbeat={"steps": 20}))
    assert drawn({"a": curve(0.0, 50.0), "b": curve(50.0, 100.0)}, found) == {"a": "▁▁▁▁▁▄▄▄▄▄", "b": "▄▄▄▄▄▇▇▇▇▇"}


def test_a_curve_in_ascii_has_as_many_levels() -> None:
    shown = in_ascii(SIGNS + "─")
    assert shown.isascii()
    assert len(set(shown)) == len(shown) == len(SIGNS) + 1 <= WIDTH


def test_a_look_has_what_was_written_since(tmp_path: Path) -> None:
    run_dir = put(tmp_path / "runs", make_run(tmp_path, "baseline"), "running")
    curves = Curves(run_dir.root)
    assert curves.of(run_dir.id) == ()
    evaluated(run_dir, [{"step": 4, "test/top1": 10.0}])
    assert [point.value for point in curves.of(run_dir.id)] == [10.0]
    evaluated(run_dir, [{"step": 8, "test/top1": 20.0}], attempt=2)
    assert [point.value for point in curves.of(run_dir.id)] == [10.0, 20.0]


def test_a_folder_that_cannot_be_read_has_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of another user's run, or of one that is deleted at this moment."""
    run_dir = put(tmp_path / "runs", make_run(tmp_path, "baseline"), "running")
    evaluated(run_dir, [{"step": 4, "test/top1": 10.0}])

    def closed(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", closed)
    assert Curves(run_dir.root).of(run_dir.id) == ()
