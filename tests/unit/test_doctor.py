"""`kdcluster doctor` says what `kdcluster submit` would do: where, whether, and with which words it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdcluster.cli import main
from kdcluster.commands import doctor
from kdcluster.inputs import arrays_folder
from tests.fabricated import put
from tests.tiny import make_plan
from tests.unit.test_inputs import pictures
from tests.unit.test_slurm import fake as fake

UNCONFIGURED = "echo 'x: error: fetch_config: DNS SRV lookup failed\nx: fatal: no configuration source' >&2; exit 1"
WARNING = "running on this machine: SLURM is not configured here"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of CPU runs, on a machine without GPUs where no backend was named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDCLUSTER_BACKEND")
    monkeypatch.setattr("kdcluster.launch.local.backend.visible_gpus", list)
    found: dict[str, Any] = {"torch": {"version": "2", "devices": ""}, "notes": []}
    for place in (doctor, "kdcluster.commands.submit"):
        name = place if isinstance(place, str) else place.__name__
        monkeypatch.setattr(f"{name}.preflight", lambda runs, data_dir, fetch: found)
    make_plan(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def told(*words: str) -> dict[str, str]:
    """What -> how and what was found, of the lines about the place."""
    lines = [line.split(": ", 1) for line in run("doctor", *words).stdout.splitlines()]
    found = {line[0][6:]: f"{line[0][:4]} {line[1]}" for line in lines if len(line) == 2}
    return {what: found[what] for what in ("backend", "slurm", "submit") if what in found}


def test_sbatch_without_a_slurm_is_a_warning_and_runs_stay_on_this_machine(folder: Path, fake: Any) -> None:
    fake(sbatch="exit 1", **dict.fromkeys(("scontrol", "sinfo"), UNCONFIGURED))
    said = run("submit", "tiny.yaml", "--dry-run")
    assert (said.exit_code, said.stderr.count("running on this machine")) == (0, 1)
    assert said.stderr.startswith(f"{WARNING} (see kdcluster doctor)\n")
    found = told("tiny.yaml")
    assert found["backend"].startswith(f"ok   local, {WARNING}: x: fatal: no configuration source; SLURM_CONF says")
    assert found["submit"] == "ok   4 of 4 runs would be started"


@pytest.mark.parametrize("means", ["--backend", "--cluster", "profile", "SLURM_CONF"])
def test_who_means_slurm_is_told_that_there_is_none(
    folder: Path, fake: Any, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    fake(**dict.fromkeys(("sbatch", "scontrol", "sinfo"), UNCONFIGURED))
    words: tuple[str, ...] = ()
    (folder / "mine.yaml").write_text("gpus_per_node: 8\n")
    if means.startswith("--"):
        words = (means, "slurm" if means == "--backend" else "mine.yaml")
    elif means == "profile":
        (folder / "slurm" / "profiles").mkdir(parents=True)
        (folder / "mine.yaml").rename(folder / "slurm" / "profiles" / "mine.yaml")
    else:
        monkeypatch.setenv("SLURM_CONF", str(folder / "gone.conf"))
    why = "SLURM is installed here, but not configured"
    assert why in run("submit", "tiny.yaml", *words).stderr
    found = told("tiny.yaml", *words)
    assert found["backend"].startswith("ok   slurm, running in SLURM")
    assert found["slurm"].startswith(f"FAIL {why}")
    assert found["submit"].startswith(f"FAIL {why}")
    assert run("doctor", "tiny.yaml", *words).exit_code == 1


def test_what_submit_refuses_the_doctor_refuses_in_the_same_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for words in (("--gpus", "2"), ("--nodes", "2"), ("--cluster", "nope")):
        refused = run("submit", "tiny.yaml", *words)
        assert refused.exit_code != 0
        said = run("doctor", "tiny.yaml", *words)
        assert said.exit_code == 1
        assert f"FAIL  {'submit' if words[0] == '--gpus' else 'backend'}: {refused.stderr.strip()}" in said.stdout


def test_the_doctor_counts_what_would_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    teacher, store, baseline, distilled = make_plan(folder).runs
    put(folder / "runs", teacher, "done").weights("best").touch()
    put(folder / "runs", store, "done")
    put(folder / "runs", baseline, "cancelled")
    assert told("tiny.yaml") == {
        "backend": "ok   local, running on this machine",
        "submit": "ok   1 of 4 runs would be started; 2 done; 1 cancelled is left out (--retry)",
    }
    put(folder / "runs", distilled, "running")
    assert told("tiny.yaml")["submit"] == (
        "ok   none of 4 runs would be started; 2 done, 1 running; 1 cancelled is left out (--retry)"
    )
    for one in (baseline, distilled):
        put(folder / "runs", one, "done").weights("best").touch()
    assert told("tiny.yaml")["submit"] == "ok   none of 4 runs would be started; all are done"
    assert "submit" not in told()
    assert "on this machine there are no jobs" in run("doctor", "--with-job").stderr


def test_images_that_nobody_has_read_yet_are_no_promise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`7 of 7 runs would be started`, and submit then named an image that cannot be read."""
    monkeypatch.setenv("PATH", "/nowhere")
    data = {"name": "image_folder", "path": str(pictures(folder / "pets", train=2))}
    made = make_plan(folder, {"data": data})
    unread = "; its images are not read yet: submit reads all of them first, and refuses what it cannot read"
    assert told("tiny.yaml")["submit"] == f"ok   4 of 4 runs would be started{unread}"
    arrays_folder(made.runs[0], folder / "data").mkdir(parents=True)
    assert told("tiny.yaml")["submit"] == "ok   4 of 4 runs would be started"


def test_a_submit_says_that_it_takes_some_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was to be seen for nine."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("kdcluster.launch.submission.check", lambda *_: [])
    monkeypatch.setattr("kdcluster.launch.local.backend.Local.start", lambda *_: "here", raising=True)
    assert "trying the models and looking at the data; that takes some seconds\n" in run("submit", "tiny.yaml").stderr
