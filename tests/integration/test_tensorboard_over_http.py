"""`kdcluster tensorboard` as a process of its own, asked over HTTP for what its page would ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from kdcluster.commands.bands import WHAT
from kdcluster.experiment import configfile
from kdcluster.plan import Run, plan
from kdcluster.sweep.points import Point, Space
from kdcluster.train import board
from kdcluster.train.tracking import FIRST, METRICS, Tracker, hparams
from tests.desk import wait_until
from tests.fabricated import put
from tests.tiny import make_run, put_images, train_here, write_experiment

pytestmark = pytest.mark.integration


def train(root: Path, run: Run, top1: float, point: Point | None = None) -> None:
    """A run that was evaluated twice, as its trainer leaves it."""
    run_dir = put(root, run, "planned")
    run_dir.add_experiments(["tiny"])
    if point:
        run_dir.note_trial("tiny", point.values)
    tracker = Tracker(run_dir, run_dir.start_attempt({}), run, active=True, first_step=0)
    for step, value in ((4, top1), (8, top1 - 1)):
        tracker.scalars({"test/top1": value, "test/loss": 1.0}, step)
        tracker.scalars({"best/top1": top1}, step)
    tracker.close(success=True)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "kdcluster.cli", "tensorboard", *words]
    env = {**os.environ, "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(argv, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def asked(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_runs_have_readable_names_and_come_in_while_it_runs(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    (tmp_path / "tmp").mkdir()
    write_experiment(tmp_path, {"sweep": {"trials": 1}})
    loaded = configfile.load(str(tmp_path / "tiny.yaml"))
    (point,) = Space(loaded).drawn(1)
    teacher, _, baseline, distilled = plan([loaded]).runs
    train(root, teacher, 90.0)
    train(root, point.runs[0], 70.0, point)
    train(root, distilled, 80.0)
    train(root / "debug", baseline, 10.0)
    process = start(tmp_path, "tiny")
    try:
        assert process.stdout is not None
        plain, pins = process.stdout.readline().strip(), process.stdout.readline()
        page = urllib.parse.urlsplit(pins.split(" ")[-1].strip())
        assert plain == f"http://{page.netloc}/"
        pinned = json.loads(urllib.parse.parse_qs(page.query)["pinnedCards"][0])
        assert pinned[0] == {"plugin": "scalars", "tag": "test/top1"}
        url = f"http://{page.netloc}/data"
        names = {"teacher s0", "distilled α 0.5 T 4 s0", "trial α 0.81 T 8.178 s0"}
        means = {"teacher, mean", "distilled α 0.5 T 4, mean"}
        wait_until(lambda: set(asked(f"{url}/runs")) == names | means)
        shown = {key: ["best/top1", "test/loss", "test/top1"] for key in names}
        shown |= {key: [f"over seeds/tiny {what}" for what in sorted(WHAT)] for key in means}
        wait_until(lambda: {run: sorted(tags) for run, tags in asked(f"{url}/plugin/scalars/tags").items()} == shown)

        about = asked(f"{url}/plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
        columns = [info["name"] for info in about["hparamInfos"]]
        assert columns[:5] == sorted(FIRST)
        assert set(columns) == set(hparams(teacher)) == set(hparams(distilled))
        assert {info["name"]["tag"] for info in about["metricInfos"]} == set(METRICS)
        wanted = [{"hparam": name} for name in columns]
        wanted += [{"metric": {"group": "", "tag": tag}} for tag in METRICS]
        listed = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": wanted, "sliceSize": 9}
        groups = asked(f"{url}/plugin/hparams/session_groups", listed)["sessionGroups"]
        found = {group["name"]: group for group in groups}
        assert set(found) == {run.hash[:8] for run in (teacher, distilled, point.runs[0])}
        assert "distill.alpha" not in found[teacher.hash[:8]]["hparams"]
        assert found[distilled.hash[:8]]["hparams"]["distill.alpha"] == 0.5
        values = {one["name"]["tag"]: one["value"] for one in found[distilled.hash[:8]]["metricValues"]}
        assert values == {"test/top1": 79.0, "best/top1": 80.0, "test/loss": 1.0}

        train(root, baseline, 60.0)
        wait_until(lambda: "baseline s0" in asked(f"{url}/runs"))
        listening = [one.laddr for one in psutil.Process(process.pid).net_connections() if one.status == "LISTEN"]
        assert {one.ip for one in listening} == {"127.0.0.1"}
        again = start(tmp_path, "--port", str(page.port))
        _, err = again.communicate(timeout=60)
        assert again.returncode == 1
        assert f"{page.port}" in err.splitlines()[-1]
        assert "--port takes another one" in err
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert f"ssh -N -L {page.port}:127.0.0.1:{page.port} " in err
        assert [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("kdcluster")] == []
    finally:
        process.kill()


def test_a_chart_has_all_roles_with_bands_over_their_seeds(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    (tmp_path / "tmp").mkdir()
    write_experiment(tmp_path, {"seeds": [0, 1], "distill.logits": "computed"})
    teacher, *baselines, distilled, _ = plan([configfile.load(str(tmp_path / "tiny.yaml"))]).runs
    for run, top1 in ((teacher, 90.0), (baselines[0], 60.0), (distilled, 70.0)):
        train(root, run, top1)
    process = start(tmp_path, "tiny")
    try:
        assert process.stdout is not None
        url = f"{process.stdout.readline().strip()}data/plugin"

        def band(run: str) -> list[list[tuple[int, float]]]:
            """(step, value) of mean, lowest, highest."""
            urls = (f"{url}/scalars/scalars?{urllib.parse.urlencode({'run': run, 'tag': tag})}" for tag in tags)
            return [[(step, value) for _, step, value in asked(one)] for one in urls]

        ((chart,),) = (one["chart"] for one in wait_until(lambda: asked(f"{url}/custom_scalars/layout"))["category"])
        ((series,), tags) = chart["margin"]["series"], [f"over seeds/tiny {what}" for what in WHAT]
        assert [series[key] for key in ("value", "lower", "upper")] == tags
        wait_until(lambda: sum(tags[0] in found for found in asked(f"{url}/scalars/tags").values()) == 3)
        for name, top1 in (("teacher", 90.0), ("baseline", 60.0), ("distilled α 0.5 T 4", 70.0)):
            assert band(f"{name}, mean") == [[(4, top1), (8, top1 - 1)]] * 3
        train(root, baselines[1], 64.0)
        wait_until(lambda: band("baseline, mean")[0] == [(4, 62.0), (8, 61.0)])
        assert band("baseline, mean")[1:] == [[(4, 60.0), (8, 59.0)], [(4, 64.0), (8, 63.0)]]
    finally:
        process.kill()
        process.communicate()


def test_a_done_run_has_its_configuration_and_what_it_gets_wrong(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    put_images(tmp_path / "data")
    run = make_run(tmp_path, "baseline")
    run_dir = train_here(tmp_path / "runs", run, tmp_path / "data")
    run_dir.add_experiments(["tiny"])
    step = run_dir.result()["best"]["step"]  # type: ignore[index]
    process = start(tmp_path, "tiny")
    try:
        assert process.stdout is not None
        url = f"{process.stdout.readline().strip()}data/plugin"
        shown = {board.WRONG, board.CONFUSION}
        wait_until(lambda: shown == set(asked(f"{url}/images/tags").get("baseline s0", ())))
        for tag in shown:
            (one,) = asked(f"{url}/images/images?run=baseline+s0&tag={tag}&sample=0")
            assert one["step"] == step
            with urllib.request.urlopen(f"{url}/images/individualImage?{one['query']}", timeout=60) as answer:
                assert Image.open(answer).format == "PNG"
        assert asked(f"{url}/text/tags") == {"baseline s0": [board.CONFIG]}
        (text,) = asked(f"{url}/text/text?run=baseline+s0&tag={board.CONFIG}")
        assert text["step"] == step
        assert run.hash in text["text"]
        assert text["text"].startswith("<pre><code>")
    finally:
        process.kill()
        process.communicate()
