"""A sweep with a real Ray: trials are runs, stopped early, never trained twice, confirmed, and go on after any kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdcluster.files import read_json
from kdcluster.processes import is_alive
from kdcluster.runs import RunDir, run_dirs
from kdcluster.states import State
from tests.desk import SLOW_MODEL, processes_of, wait_until
from tests.disk import fill, small_disk
from tests.tiny import VIT, put_images, write_experiment

pytestmark = pytest.mark.integration

SLOW = {
    "imports": ["models.py"],
    "teacher": {**VIT, "train": {"epochs": 2, "lr": 1e-2}},
    "student": {"model": "slow"},
}
"""0.2 s a step while the file SLOW is there; the teacher is another model, and of its own."""


BROKEN = """
import os
import torch
from timm.models import register_model

class Broken(torch.nn.Linear):
    def forward(self, x):
        if "RANK" in os.environ:  # not while it is tried before the sweep
            raise ValueError("as it is")
        return super().forward(x.mean((2, 3)))

@register_model
def broken(pretrained=False, num_classes=10, in_chans=3, **_):
    return Broken(in_chans, num_classes)
"""


class Desk:
    """A folder from which somebody sweeps."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.folder, self.root = folder, folder / "runs"
        put_images(folder / "data")
        (folder / "models.py").write_text(SLOW_MODEL)
        self.slow = folder / "SLOW"
        self.slow.touch()
        write_experiment(folder, changes)
        (folder / "my venv").symlink_to(sys.prefix)  # Ray takes no blank in it by itself
        self.python = folder / "my venv" / "bin" / "python"
        self.env = {**os.environ, "SLOW": str(folder / "SLOW"), "KDCLUSTER_BACKEND": "local"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        argv = [str(self.python), "-m", "kdcluster.cli", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(argv, cwd=self.folder, env=self.env, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def run(self, *words: str, expect: int = 0) -> tuple[str, str]:
        out, err = (process := self.start(*words)).communicate(timeout=1800)
        assert process.returncode == expect, err
        return out, err

    def ended_attempts(self) -> dict[str, list[str]]:
        """Of each run: how its attempts ended."""
        return {one.id: [a.read("outcome").get("state", "") for a in one.attempts()] for one in run_dirs(self.root)}

    def trains(self, process: subprocess.Popen[str]) -> RunDir:
        """Wait for a trial that does steps now, and that has saved an epoch."""

        def found() -> RunDir | None:
            assert process.poll() is None, process.communicate()
            for run_dir in run_dirs(self.root):
                newest = run_dir.newest()
                if newest and newest.number and run_dir.id.startswith("distilled") and run_dir.saved_step():
                    beat, start = newest.read("heartbeat"), newest.read("start")
                    if beat and beat["step"] > start["from_step"] and is_alive(newest.read("agent")):
                        return run_dir
            return None

        return wait_until(found)  # type: ignore[no-any-return]

    def processes(self) -> list[int]:
        """Every process that knows this folder's SLOW file: drivers, Ray, torchruns and ranks."""
        return processes_of(self.env["SLOW"])


@pytest.fixture
def nothing_left() -> Iterator[list[Desk]]:
    """Desks whose processes must all be gone within two minutes of their last command."""
    desks: list[Desk] = []
    yield desks
    for desk in desks:
        wait_until(lambda desk=desk: not desk.processes())  # type: ignore[misc]


def readme_commands() -> list[list[str]]:
    """What README.md's section on sweeps has a newcomer type."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    section = text.partition("## Search alpha and temperature")[2].partition("\n## ")[0]
    block = section.split("```")[1]
    lines = [line.partition("#")[0].split() for line in block.strip().splitlines()]
    return [words[1:] for words in lines if words[0] == "kdcluster"]


def test_what_the_readme_has_a_newcomer_type(tmp_path: Path, nothing_left: list[Desk]) -> None:
    """From the file to the confirmed winner, with a demo of ours that takes seconds."""
    sweep = {
        "space": {"train.lr": {"grid": [0.03, 1e-3, 1e-4, 1e-5, 1e-6]}, "distill.alpha": {"uniform": [0.4, 0.6]}},
        "trials": 5,
        "metric": "val/loss",
        "scheduler": "asha",
    }
    desk = Desk(tmp_path, {**SLOW, "imports": ["../models.py"], "train.epochs": 9, "sweep": sweep})
    nothing_left.append(desk)
    (tmp_path / "configs").mkdir()
    (tmp_path / "tiny.yaml").rename(tmp_path / "configs" / "demo.yaml")
    dry, whole, results = readme_commands()
    assert (dry, whole, results) == (
        ["sweep", "demo", "--dry-run"],
        ["sweep", "demo"],
        ["results", "demo", "--sweep"],
    )
    out, _ = desk.run(*dry)
    counted, how_long = out.splitlines()[-2:]
    assert counted == "5 trials, 1 teacher (1 to be trained), 12 runs to confirm the best; nothing was started"
    assert how_long == f"how long that takes is not known yet: no run of these models is done in {desk.root}"
    assert not desk.root.exists()

    process = desk.start(*whole, "--write-best")
    assert process.stderr is not None
    wait_until(lambda: (read_json(desk.root / ".sweeps/demo/processes.json") or {}).get("processes"))
    assert _listening(desk.processes()) <= {"127.0.0.1"}
    err = ""
    while "best of 5 trials, selected on held-out images: train.lr=0.03" not in err:
        err += (line := process.stderr.readline())
        assert line, err
    desk.slow.unlink()
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    assert re.search(r"^trial 1/5  train\.lr=0\.03 distill\.alpha=0\.\d+  running$", err, re.MULTILINE)
    lines = out.splitlines()
    assert lines[0].split() == ["train.lr", "distill.alpha", "val/loss", "epochs", "state", "runs"]
    trials = [line.split() for line in lines[1:6]]
    states = [words[5] for words in trials]
    assert states[0] == "done"
    assert states.count("stopped") >= 3  # at most one of the worse ones can be the first to report
    assert set(states) <= {"done", "stopped"}
    for title in ("demo: best test/top1 in percent", "demo-best: best test/top1 in percent"):
        assert re.match(r"baseline: slow +3 ", lines[lines.index(title) + 5])
    assert (tmp_path / "configs" / "demo-best.yaml").is_file()
    shared = [run_dir for run_dir in run_dirs(desk.root) if run_dir.id.startswith("teacher")]
    assert [len(run_dir.attempts()) for run_dir in shared] == [1, 1]  # the store of its logits, and the teacher
    for words in trials:
        if words[5] == "stopped":
            attempt = RunDir(desk.root, words[6]).attempt(1)
            assert attempt.read("outcome")["reason"].endswith("others were better after as many evaluations")
            assert not is_alive(attempt.read("agent"))

    # Again: everything is known, nothing is trained, and the table is the same.
    before = desk.ended_attempts()
    assert {len(states) for states in before.values()} == {1}
    again, _ = desk.run("sweep", "demo", "--confirm", "0")
    assert again.splitlines()[:6] == lines[:6]
    assert desk.ended_attempts() == before
    document = json.loads(desk.run("status", "--json")[0])
    assert {row["state"] for row in document["runs"] if row["attempts"]} == {"done", "stopped"}
    shown, _ = desk.run(*results)
    assert shown.splitlines()[:6] == lines[:6]

    # Its report has what was tried, and what the confirmation says.
    desk.run("report", "demo", "--output", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"5 trials: {states.count('done')} done, {states.count('stopped')} stopped early." in page
    assert len(re.findall(r'aria-label="(?:Where the trials lie|Trials by all keys|How each trial rose)', page)) == 3
    without = ("no distillation", "no distillation, otherwise as the winner")  # which has another learning rate
    for arm in (*without, "the file&#x27;s own settings", "the winner"):
        assert re.search(rf"<tr><th [^>]*>{arm}</th><td[^>]*>slow\b", page)
    assert "On 3 fresh seeds, the winner is " in page
    assert str(tmp_path) not in page

    # A trial that was stopped early goes on by its id.
    stopped = trials[states.index("stopped")][6]
    desk.run("submit", stopped, "--wait")
    assert desk.ended_attempts()[stopped] == ["stopped", "done"]


def test_both_arms_are_searched_in_one_ray_and_confirmed_against_each_other(
    tmp_path: Path, nothing_left: list[Desk]
) -> None:
    sweep = {"space": {"train.lr": {"grid": [0.03, 1e-5]}, "distill.alpha": {"uniform": [0.4, 0.6]}}, "trials": 2}
    changes = {"teacher.train": {"epochs": 1, "lr": 1e-2}, "train.epochs": 2, "control": "label_smoothing"}
    desk = Desk(tmp_path, {**changes, "sweep": sweep})
    nothing_left.append(desk)
    out, err = desk.run("sweep", "tiny.yaml", "--both", "--confirm", "2")
    assert out.count("the baseline with the same chance:") == 1
    assert [re.findall(r"train\.lr=(\S+)", line)[0] for line in err.splitlines() if line.startswith("best of 2")] == [
        "0.03",
        "0.03",
    ]
    table = out[out.index("tiny-best: best test/top1") :]
    found = [line.partition(":")[0] for line in table.splitlines() if re.match(r"[a-z, ]+: vit_tiny", line)]
    assert found == ["teacher", "baseline", "baseline, tuned", "label smoothing", "distilled"]
    assert "distilled - the tuned baseline is" in " ".join(table.split())
    assert "the tuned baseline: " in err
    before = desk.ended_attempts()
    again, _ = desk.run("sweep", "tiny.yaml", "--both", "--confirm", "2")
    assert again == out
    assert desk.ended_attempts() == before
    shown, said = desk.run("results", "tiny.yaml", "--sweep")
    assert table.rstrip() in shown
    assert "kdcluster sweep tiny.yaml --both" in said or "recommended: " in said


def _listening(pids: list[int]) -> set[str]:
    """The IPv4 addresses on which processes listen, as far as they are not a rank's."""
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = fields[1].split(":")[0][-8:]
    found = set()
    for pid in pids:
        try:
            if b"jobs/train.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue  # torchrun's own store
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115
        except OSError:
            continue
        found |= {inodes[link[8:-1]] for link in links if link[8:-1] in inodes}
    return {".".join(str(byte) for byte in reversed(bytes.fromhex(address))) for address in found}


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "runs"):
        yield tmp_path


def states_shown(out: str, trials: int) -> list[str]:
    """The states in the first rows of the table that a sweep ends with."""
    return [next(word for word in line.split() if word in set(State)) for line in out.splitlines()[1 : trials + 1]]


def test_kills_of_driver_trial_and_ray_and_a_full_disk_lose_nothing(
    on_a_small_disk: Path, nothing_left: list[Desk]
) -> None:
    sweep = {"space": {"distill.alpha": {"grid": [0.2, 0.4, 0.6, 0.8]}}}
    desk = Desk(on_a_small_disk, {**SLOW, "train.epochs": 8, "sweep": sweep})
    nothing_left.append(desk)
    words = ("sweep", "tiny.yaml", "--confirm", "0")

    driver = desk.start(*words)
    desk.trains(driver)
    driver.kill()
    driver.communicate()

    driver = desk.start(*words)
    run_dir = desk.trains(driver)
    newest = run_dir.newest()
    assert newest is not None
    os.kill(newest.read("start")["supervisor"]["pid"], signal.SIGKILL)  # the trial's process, and torchrun with it
    wait_until(lambda: run_dir.newest() != newest)  # Tune has started it again
    desk.trains(driver)
    filler = fill(desk.root)
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 1
    assert "the disk is full" in err.splitlines()[-1]
    assert "stopped" not in [state for states in desk.ended_attempts().values() for state in states]  # they go on
    filler.unlink()

    driver = desk.start(*words)
    desk.trains(driver)
    recorded = read_json(desk.root / ".sweeps" / "tiny" / "processes.json")["processes"]
    raylets = [record["pid"] for record in recorded if _name(record["pid"]) == "raylet"]
    assert len(raylets) == 1
    os.kill(raylets[0], signal.SIGKILL)
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 1
    assert "Ray has died under the sweep" in err

    out, _ = desk.run(*words)
    assert states_shown(out, 4) == ["done"] * 4
    ended = desk.ended_attempts()
    assert [len(states) for run_id, states in ended.items() if run_id.startswith("teacher")] == [1, 1]
    trials = [RunDir(desk.root, run_id) for run_id in ended if run_id.startswith("distilled")]
    assert [(trial.result() or {})["views"] for trial in trials] == [{"read": 8}] * 4  # of a store that was made once
    for states in ended.values():
        assert states[-1] == "done"
        assert "done" not in states[:-1]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_ctrl_c_has_trials_save_and_one_that_fails_ends_nothing_else(tmp_path: Path, nothing_left: list[Desk]) -> None:
    sweep = {"space": {"student.model": {"choice": ["slow", "broken"]}}, "trials": 2, "search": "optuna"}
    desk = Desk(tmp_path, {**SLOW, "imports": ["models.py", "broken.py"], "train.epochs": 8, "sweep": sweep})
    (tmp_path / "broken.py").write_text(BROKEN)
    nothing_left.append(desk)
    driver = desk.start("sweep", "tiny.yaml", "--confirm", "0")
    run_dir = desk.trains(driver)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 130, err
    assert "interrupted: the sweep was told to stop by SIGINT\nnext: kdcluster sweep tiny.yaml" in err
    assert desk.ended_attempts()[run_dir.id] == ["preempted"]
    saved = run_dir.saved_step()

    def failures() -> list[str]:
        return next(states for run_id, states in desk.ended_attempts().items() if "broken" in run_id)

    before = failures()
    out, err = desk.run("sweep", "tiny.yaml", "--confirm", "0")
    assert states_shown(out, 2) == ["done", "failed"]
    assert re.search("broken.*: failed: .*ValueError: as it is", out.splitlines()[3])
    assert run_dir.attempt(2).read("start")["from_step"] == saved
    assert failures() == [*before, "failed", "failed"]  # once more than once, as sweep.max_failures says
