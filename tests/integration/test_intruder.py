"""Somebody who reaches the machine attacks a run while it trains, and has nothing executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcluster.launch.torchrun import Layout, command, environment
from tests import tiny

pytestmark = pytest.mark.integration

KEEP_ALIVES_S = 12
"""A c10d agent reads its state every 5 s: `--standalone` executes the intruder's pickle within one or two of them."""


def test_nobody_has_code_run_through_the_ports_of_a_run(tmp_path: Path) -> None:
    tiny.put_images(tmp_path / "data")
    run_dir = tiny.prepare(tmp_path / "runs", tiny.make_run(tmp_path, "baseline", {"train.epochs": 10**5}))
    layout, attempt, marker = Layout("cpu", 2, 1), run_dir.start_attempt({}), tmp_path / "executed"
    argv = command(run_dir.path, tmp_path / "data", layout, attempt=attempt.number)
    with attempt.log().open("wb") as log:
        torchrun = subprocess.Popen(argv, env=environment(os.environ, layout), stdout=log, stderr=log)
    try:
        while not (beat := attempt.read("heartbeat")):
            assert torchrun.poll() is None, attempt.log().read_text()
            time.sleep(0.1)
        intruder = [sys.executable, "-m", "tests.intruder", str(torchrun.pid), str(marker), str(KEEP_ALIVES_S)]
        said = subprocess.run(intruder, capture_output=True, text=True, timeout=120, check=True).stdout
        found = json.loads(said)
        assert not marker.exists()
        assert len(found["stores"]) == 1  # torchrun's, which the ranks use, too
        assert found["keys"] > 0
        assert {address for address, _ in found["ports"]} == {"127.0.0.1"}  # and none from another machine
        assert torchrun.poll() is None
        assert attempt.read("heartbeat")["step"] > beat["step"]
    finally:
        torchrun.terminate()
        torchrun.wait(60)
    assert attempt.read("torchrun-node0")["signal"] == 15
    assert not marker.exists()
