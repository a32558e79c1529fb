"""`--notify` with real processes: a detached submit tells of its end, and of a failure while others go on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.test_submit import TINY, Place, Places, places, wait_until  # noqa: F401

pytestmark = pytest.mark.integration


def told(place: Place) -> dict[str, dict[str, Any]]:
    """By event, what the command got."""
    return {one["event"]: one for one in map(json.loads, map(_read, place.folder.glob("told-*")))}


def _read(path: Any) -> str:
    text: str = path.read_text()
    return text


def command(place: Place) -> str:
    """Keeps what it gets, each time in a file of its own, which is there as a whole."""
    return f"cat > '{place.folder}/'.$$ && mv '{place.folder}/'.$$ '{place.folder}/'told-$$"


def test_a_detached_submit_tells_when_all_has_ended(places: Places) -> None:  # noqa: F811
    place = places(**TINY, train__epochs=1)
    code, out, err = place.run("submit", "tiny.yaml", "--notify", command(place))
    assert (code, out) == (0, ""), err
    wait_until(lambda: told(place))
    [found] = told(place).values()
    assert (found["schema"], found["event"], found["experiments"]) == ("kdcluster.notify/1", "ended", ["tiny"])
    assert (found["counts"], found["subject"], found["problems"]) == ({"done": 4}, "tiny: 4 done", [])
    code, out, _ = place.run("results", "tiny.yaml", "--json")
    assert [{"experiment": "tiny", **row} for row in json.loads(out)["experiments"][0]["rows"]] == found["rows"]
    secret = command(place).encode()  # as a password in it would be
    assert not any(secret in path.read_bytes() for path in place.root.rglob("*") if path.is_file())

    code, _, err = place.run("submit", "tiny.yaml", "--wait", "--notify", "echo sent; exit 3")  # nothing to start
    assert code == 0
    assert "sent\n" in err
    assert "the command of --notify failed: exit code 3" in err


def test_a_failure_is_told_at_once_and_from_the_users_own_file(places: Places, tmp_path: Any) -> None:  # noqa: F811
    place = places(imports=["moody.py", TINY["imports"][0]], teacher={"model": "tiny_net"}, student={"model": "moody"},
                   train__epochs=2, resources={"device": "cpu", "procs": 2, "threads": 1}, seeds=[0, 1])  # fmt: skip
    own = tmp_path / "config" / "kdcluster"
    own.mkdir(parents=True)
    (own / "notify").write_text(command(place))
    place.mood.write_text("raise")
    code, _, err = place.run("submit", "tiny.yaml", "--wait", XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert code == 1, err
    wait_until(lambda: "ended" in told(place))
    found = told(place)["ended"]
    assert found["counts"]["failed"] >= 1
    reasons = [problem["reason"] for problem in found["problems"] if problem["state"] == "failed"]
    assert reasons
    assert all("rank one is broken" in reason for reason in reasons)
    assert "rank one is broken" in found["text"]
