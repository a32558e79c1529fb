"""What a person sees while runs go on: plain lines off a terminal, one calm screen on one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcluster.commands import progress
from kdcluster.commands.progress import cells, follow, line, time_left
from kdcluster.errors import WaitTimeout
from kdcluster.launch.status import Status, statuses
from kdcluster.plan import Plan
from kdcluster.runs import RunDir
from tests import fabricated
from tests.fabricated import BEAT, LIVE, STATES, ended, publish, put, started
from tests.tiny import make_plan

RUNNING = Status("running", heartbeat=BEAT)


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return make_plan(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What happens between two looks, one step each."""

    def set_up(*steps: Callable[[], object]) -> None:
        left = list(steps)
        monkeypatch.setattr(progress.time, "sleep", lambda _: left.pop(0)())

    return set_up


def test_off_a_terminal_one_line_for_each_change_of_state(made: Plan, root: Path, script: Callable[..., None]) -> None:
    teacher, baseline, student = (put(root, run, "queued") for run in made.runs)

    def start() -> None:
        started(teacher, agent=LIVE)
        started(baseline, agent=LIVE)

    def beat() -> None:  # no change of state: no line
        teacher.attempt(1).write("heartbeat", BEAT)

    def end() -> None:
        publish(teacher, 61.5)
        ended(teacher.attempt(1), "done")
        ended(baseline.attempt(1), "failed", "rank 1, step 7: ValueError: no")
        fabricated.done(student, 44.0)

    script(start, beat, end)
    stream = io.StringIO()
    found = follow(made, root, stream)
    assert {run_id: status.state for run_id, status in found.items()} == {
        teacher.id: "done",
        baseline.id: "failed",
        student.id: "done",
    }
    queued = "queued  (waits for its turn)"
    assert stream.getvalue().splitlines() == [
        f"{teacher.id}  {queued}",
        f"{baseline.id}  {queued}",
        f"{student.id}  {queued}",
        f"{teacher.id}  running",
        f"{baseline.id}  running",
        f"{teacher.id}  done  best test top-1 61.50 %",
        f"{baseline.id}  failed  (rank 1, step 7: ValueError: no; nothing is saved yet)",
        f"{student.id}  done  best test top-1 44.00 %",
    ]


def test_what_nobody_starts_is_not_waited_for(made: Plan, root: Path) -> None:
    put(root, made.runs[0], "lost")
    found = follow(made, root, io.StringIO())
    assert [status.state for status in found.values()] == ["lost", "planned", "planned"]


def test_a_wait_that_times_out_says_what_goes_on(made: Plan, root: Path, script: Callable[..., None]) -> None:
    going = put(root, made.runs[0], "running")
    put(root, made.runs[1], "done")
    queued = put(root, made.runs[2], "queued")
    script(lambda: None)
    with pytest.raises(
        WaitTimeout, match=f"still going after the time-out: {going.id}, {queued.id}; they go on"
    ) as caught:
        follow(made, root, io.StringIO(), timeout_min=0)
    assert caught.value.exit_code == 3


def test_runs_that_have_ended_do_not_time_out(made: Plan, root: Path) -> None:
    for run in made.runs:
        put(root, run, "done")
    assert len(follow(made, root, io.StringIO(), timeout_min=0)) == 3


@pytest.mark.parametrize("state", STATES)
def test_a_missing_heartbeat_is_no_reason_to_crash(made: Plan, root: Path, state: str) -> None:
    put(root, made.runs[0], state)
    for run_id, status in statuses(made, root).items():
        assert cells(run_id, status)[:3] == (run_id, status.state, "")
        assert line(run_id, status).startswith(f"{run_id}  {status.state}")
    assert progress.screen(statuses(made, root)).renderables[0].row_count == 3


def test_the_cells_of_a_run() -> None:
    assert cells("x", RUNNING) == ("x", "running", "3/10", "160", "41.25 %", "0:07")
    ended = Status("done", heartbeat={**BEAT, "epoch": 10}, top1=50.0)
    assert cells("x", ended) == ("x", "done", "10/10", "", "50.00 %", "")
    young = Status("running", heartbeat={key: BEAT[key] for key in ("epoch", "epochs", "step", "steps")})
    assert cells("x", young) == ("x", "running", "3/10", "", "", "")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59, "0:59"), (3599, "59:59"), (3600, "1:00:00")])
def test_time_left(seconds: int, text: str) -> None:
    assert time_left(Status("running", heartbeat={"step": 10, "steps": 10 + seconds, "steps_per_s": 1.0})) == text
    assert time_left(Status("failed", heartbeat={"step": 10, "steps": 99, "steps_per_s": 1.0})) == ""
    assert time_left(Status("running", heartbeat={"step": 0, "steps": 99, "steps_per_s": 0.0})) == ""


class Terminal:
    """`kdcluster status --watch` with its stderr on a pseudo-terminal of so many columns."""

    def __init__(self, experiment: Path, root: Path, columns: int, **variables: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdcluster.cli", "status", str(experiment), "--runs-dir", str(root), "--watch"],
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            env={**plain, "TERM": "xterm-256color", **variables},
        )
        os.close(slave)
        self.text = ""

    def wait_for(self, words: str) -> str:
        """All that was shown, once it has `words`."""
        deadline = time.monotonic() + 30
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            self.read()
        return self.text

    def read(self) -> bool:
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux' way to say that nobody holds the other side any more
            return False
        self.text += data.decode()
        return bool(data)

    def end(self) -> str:
        """What stood on stdout once it was over."""
        while self.read():
            pass
        os.close(self.master)
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return out.decode()


def frames(text: str) -> list[list[str]]:
    """The screens that were drawn one over the other, without escape sequences."""
    drawn = re.split(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+", text)
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).replace("\r", "") for frame in drawn]
    return [frame.rstrip("\n").split("\n") for frame in plain if frame.strip()]


@pytest.mark.parametrize(("columns", "variables"), [(80, {}), (140, {}), (80, {"NO_COLOR": "1"})])
def test_on_a_terminal(made: Plan, root: Path, tmp_path: Path, columns: int, variables: dict[str, str]) -> None:
    teacher, baseline, student = (put(root, run, "queued") for run in made.runs)
    started(teacher, agent=LIVE).write("heartbeat", {**BEAT, "steps": 6030})
    fabricated.done(baseline, 55.5)
    terminal = Terminal(tmp_path / "tiny.yaml", root, columns, **variables)
    terminal.wait_for("41.25 %")
    ended(teacher.attempt(1), "failed", "rank 1, step 7: ValueError: no")
    student.drop_ticket()
    out = terminal.end()
    assert out.splitlines()[-1] == "3 runs: 1 failed, 1 done, 1 blocked"
    assert "ValueError: no" in out
    screens, *steps = terminal.text.split("next: ")  # below the last screen; a terminal may wrap what is to be copied
    assert [step.split()[1] for step in steps] == ["logs", "submit"]
    shown = frames(screens)
    assert max(len(row) for frame in shown for row in frame) <= columns
    wide = ("progress",) if columns >= progress.BAR_FROM else ()
    assert {tuple(frame[0].split()) for frame in shown} == {
        ("run", "state", "epoch", "images/s", "best", "left", *wide)
    }
    first, last = ([_without_bars(row) for row in frame[1:]] for frame in (shown[0], shown[-1]))
    assert any("━" in row for row in shown[0]) == bool(wide)
    assert first == [
        [teacher.id, "running", "3/10", "160", "41.25", "%", "10:00"],
        [baseline.id, "done", "55.50", "%"],
        [student.id, "queued"],
    ]
    assert last[:3] == [
        [teacher.id, "failed", "3/10", "41.25", "%"],
        [baseline.id, "done", "55.50", "%"],
        [student.id, "blocked"],
    ]
    why = " ".join(word for row in last[3:] for word in row)
    assert f"{teacher.id}: rank 1, step 7: ValueError: no" in why
    if variables:
        assert not re.search(r"\x1b\[[0-9;]*[349][0-9]m", terminal.text)  # bold is not a colour
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor is back


def _without_bars(row: str) -> list[str]:
    return [word for word in row.split() if not set(word) <= set("━╸╺")]


def test_the_run_directory_is_left_as_it_was(made: Plan, root: Path) -> None:
    run_dir: RunDir = put(root, made.runs[0], "lost")
    before = sorted(root.rglob("*"))
    follow(made, root, io.StringIO())
    assert sorted(root.rglob("*")) == before
    assert run_dir.newest() is not None
