"""What a person sees while runs go on: plain lines off a terminal, one calm screen on one."""

from __future__ import annotations

import codecs
import fcntl
import io
import logging
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

from kdcluster import terminal
from kdcluster.commands import progress
from kdcluster.commands.cells import short_name, time_left
from kdcluster.commands.progress import Shown, as_known, drawn, follow, line
from kdcluster.errors import WaitTimeout
from kdcluster.launch.status import Status, statuses
from kdcluster.plan import Plan
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.terminal import Screen
from tests import fabricated
from tests.fabricated import BEAT, LIVE, STATES, ended, evaluated, publish, put, started
from tests.tiny import make_plan

HANG_S = 300


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    """Teacher, baseline, student; no store."""
    return make_plan(tmp_path, {"distill.logits": "computed"})


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
    found = statuses(made, root)
    for run_id, status in found.items():
        assert line(run_id, status).startswith(f"{run_id}  {status.state}")
    shown = "\n".join(drawn(Shown.all(made, root), found, os.terminal_size((200, 40))))
    assert all(f"{run_id} " in shown and status.state in shown for run_id, status in found.items())


def test_a_run_that_came_or_went_during_a_watch_is_said(made: Plan, root: Path, script: Callable[..., None]) -> None:
    first, second, third = made.runs
    put(root, first, "running")
    put(root, second, "queued")

    def look(shown: Shown) -> Shown:
        there = tuple(run.id for run in made.runs if (root / run.id).exists())
        return shown if there == shown.ids else Shown(made, root, there)

    def come() -> None:
        put(root, third, "queued")

    def go() -> None:
        (root / second.id).rename(root / ".gone")
        publish(RunDir(root, first.id), 50.0)
        ended(RunDir(root, first.id).attempt(1), "done")
        (root / third.id / "ticket.json").unlink()

    script(come, go)
    stream = io.StringIO()
    follow(Shown(made, root, (first.id, second.id)), root, stream, look=look)
    assert [words.split("  ")[:2] for words in stream.getvalue().splitlines()] == [
        [first.id, "running"],
        [second.id, "queued"],
        [third.id, "queued"],
        [second.id, "gone: its directory was deleted"],
        [first.id, "done"],
        [third.id, "planned"],
    ]


class Glass:
    """What a terminal shows of the sequences that `Screen` writes; a line that is too long is an error."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.at, self.column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.at += 1
                self.column = 0
                self.lines += [""] * (self.at + 1 - len(self.lines))
            elif not part.startswith("\x1b"):
                before = self.lines[self.at][: self.column].ljust(self.column)
                self.lines[self.at] = before + part + self.lines[self.at][self.column + len(part) :]
                self.column += len(part)
                assert self.column <= self.columns, self.lines[self.at]
            else:
                self._do(part[2:-1], part[-1])

    def _do(self, number: str, letter: str) -> None:
        if letter in "AB":
            self.at += int(number or 1) * (1 if letter == "B" else -1)
        elif letter == "H":
            self.at = self.column = 0
        elif letter == "J":
            self.lines[self.at :] = [self.lines[self.at][: self.column]]
        elif (number, letter) == ("2", "K"):
            self.lines[self.at] = ""
        else:
            assert letter == "m" or number == "?25", f"unknown: {number}{letter}"

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines]


class Tty(io.StringIO):
    """A stream that says it is a terminal; the size is patched in."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    monkeypatch.setattr(terminal, "size", lambda _: os.terminal_size((20, 10)))
    return Tty()


FRAMES = [
    ["a", "b", "c"], ["a", "B", "c"], ["a", "B", "c", "d", "e"], ["a", "e"], ["a", "e"], ["x" * 20], ["1"], [], ["z"],
]  # fmt: skip


def test_a_screen_shows_what_it_was_given(tty: Tty) -> None:
    glass = Glass(20)
    glass.feed("$ kdcluster\n")
    with Screen(tty) as screen:
        for frame in FRAMES:
            screen.show(frame)
            glass.feed(tty.getvalue())
            tty.truncate(0)
            tty.seek(0)
            assert glass.shown == ["$ kdcluster", *frame, ""]
        screen.above("said")
        glass.feed(tty.getvalue())
        assert glass.shown == ["$ kdcluster", "said", *FRAMES[-1], ""]


def test_only_what_changed_is_written(tty: Tty) -> None:
    with Screen(tty) as screen:
        screen.show([f"line {number}" for number in range(8)])
        before = len(tty.getvalue())
        screen.show([f"line {number}" if number != 3 else "other" for number in range(8)])
        written = tty.getvalue()[before:]
        assert "line" not in written
        assert "other" in written
        before = len(tty.getvalue())
        screen.show([f"line {number}" if number != 3 else "other" for number in range(8)])
        assert len(tty.getvalue()) == before


def test_a_terminal_that_changed_its_size_is_drawn_anew(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    with Screen(tty) as screen:
        screen.show(["a", "b"])
        monkeypatch.setattr(terminal, "size", lambda _: os.terminal_size((10, 10)))
        screen.show(["a", "b"])
    assert tty.getvalue().endswith("\x1b[H\x1b[Ja\nb\n\x1b[?25h")


def test_a_warning_stands_above_the_screen(tty: Tty) -> None:
    glass = Glass(20)
    with Screen(tty) as screen:
        screen.show(["a", "b"])
        terminal.Warnings().emit(logging.LogRecord("x", logging.WARNING, "", 0, "no\x1b[2J", None, None))
        glass.feed(tty.getvalue())
    assert glass.shown == ["no\\x1b[2J", "a", "b", ""]


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
        self.text, self._decoder = "", codecs.getincrementaldecoder("utf-8")()

    def wait_for(self, pattern: str) -> None:
        """Read until what was shown has this."""
        deadline = time.monotonic() + HANG_S
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            assert self.read(), self.text

    def read(self) -> bool:
        """One byte: a screen is written at once, yet nobody promises that it comes at once."""
        try:
            data = os.read(self.master, 1)
        except OSError:  # Linux' way to say that nobody holds the other side any more
            return False
        self.text += self._decoder.decode(data)
        return bool(data)

    def end(self) -> str:
        """What stood on stdout once it was over."""
        while self.read():
            pass
        os.close(self.master)
        out, _ = self.process.communicate(timeout=HANG_S)
        assert self.process.returncode == 0
        return out.decode()


@pytest.mark.parametrize(("columns", "variables"), [(80, {}), (140, {}), (80, {"NO_COLOR": "1"})])
def test_on_a_terminal(made: Plan, root: Path, tmp_path: Path, columns: int, variables: dict[str, str]) -> None:
    teacher, baseline, student = (put(root, run, "queued") for run in made.runs)
    started(teacher, agent=LIVE).write("heartbeat", {**BEAT, "time": time.time(), "steps": 6030})
    evaluated(teacher, [{"step": step, "test/top1": top1} for step, top1 in ((603, 20.0), (1206, 41.25))])
    fabricated.done(baseline, 55.5)
    terminal = Terminal(tmp_path / "tiny.yaml", root, columns, **variables)
    terminal.wait_for(r" min left; .*\n")
    first = Glass(columns)
    first.feed(terminal.text)
    ended(teacher.attempt(1), "failed", "rank 1, step 7: ValueError: no")
    student.drop_ticket()
    out = terminal.end()
    assert out.splitlines()[-1] == "1 of 3 done; 1 failed, 1 blocked"
    assert "ValueError: no" in out
    last = Glass(columns)
    last.feed(terminal.text.partition("next: ")[0])
    steps = terminal.text.split("next: ")[1:]  # below the last screen; a terminal may wrap what is to be copied
    assert [step.split()[1] for step in steps] == ["logs", "submit"]
    safe, head, title, way, *body = first.shown
    assert safe == "Ctrl-C ends this; the runs go on"
    wide = columns > 80
    known = ["run", "state", "epoch", "left", "best", "accuracy", "images/s"]
    assert head.split() == [*known, *["progress", "why"] * wide]
    assert title == "tiny: 1 of 3 done"
    assert way == "  teacher running ─▶ distilled queued; baseline done"
    curve = "▁▇" + "─" * 8
    name = {one: [one.id] if wide else short_name(one.id).split() for one in (teacher, student, baseline)}
    assert [line.split() for line in body[:3]] == [
        [*name[teacher], "running", "3/10", "10:00", "41.25", "%", curve, "160", *["─" * 12] * wide],
        [*name[student], "queued", *["waits", "for", "its", "turn"] * wide],
        [*name[baseline], "done", "55.50", "%"],
    ]
    assert re.fullmatch(r"\d\d:\d\d:\d\d  1 of 3 done, at least 10 min left; 1 running, 1 queued", first.shown[-2])
    shown = " ".join(map(str.strip, last.shown))
    assert f"failed: {teacher.id}: rank 1, step 7: ValueError: no; nothing is saved yet" in shown
    assert ("\x1b[32m" in terminal.text) == (not variables)
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor is back


def test_a_dumb_terminal_gets_lines(made: Plan, root: Path, tmp_path: Path) -> None:
    put(root, made.runs[0], "done")
    terminal = Terminal(tmp_path / "tiny.yaml", root, 80, TERM="dumb")
    terminal.end()
    assert "\x1b" not in terminal.text
    assert f"{made.runs[0].id}  done" in terminal.text


def test_the_run_directory_is_left_as_it_was(made: Plan, root: Path) -> None:
    run_dir: RunDir = put(root, made.runs[0], "lost")
    before = sorted(root.rglob("*"))
    follow(made, root, io.StringIO())
    assert sorted(root.rglob("*")) == before
    assert run_dir.newest() is not None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59, "0:59"), (3599, "59:59"), (3600, "1:00:00")])
def test_time_left(seconds: int, text: str) -> None:
    assert time_left(Status("running", heartbeat={"step": 10, "steps": 10 + seconds, "steps_per_s": 1.0})) == text
    assert time_left(Status("failed", heartbeat={"step": 10, "steps": 99, "steps_per_s": 1.0})) == ""
    assert time_left(Status("running", heartbeat={"step": 0, "steps": 99, "steps_per_s": 0.0})) == ""


@pytest.mark.parametrize(
    ("reason", "teacher", "said"),
    [
        ("waits for 2 cores, held by t-s0-1", "running", "waits for 2 cores, held by t-s0-1"),
        ("waits for 2 cores, held by t-s0-1", "done", "waits for 2 cores"),
        ("waits for 2 cores, held by t-s0-1 and 1 other; heard of 3 s ago", "failed",
         "waits for 2 cores; heard of 3 s ago"),
        ("waits for 2 cores, held by stranger (pid 7)", "done", "waits for 2 cores, held by stranger (pid 7)"),
        ("waits for t-s0-1", "queued", "waits for t-s0-1"),
        ("waits for t-s0-1", "done", "waits for its turn"),
        ("waits for its turn", "done", "waits for its turn"),
    ],
)  # fmt: skip
def test_no_run_waits_for_one_that_is_known_to_be_done(reason: str, teacher: str, said: str) -> None:
    """The word of its place is a few seconds old."""
    found = {"t-s0-1": Status(State(teacher)), "x": Status(State.QUEUED, reason)}
    assert as_known(found["x"], found).reason == said


def test_a_line_goes_on_deeper_than_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that no line that goes on looks like the next item of a list."""
    monkeypatch.setattr(terminal, "size", lambda _: os.terminal_size((20, 24)))
    with pytest.raises(SystemExit):
        terminal.leave("  item of many words\nno item, but words", 1)
    assert capsys.readouterr().err == "  item of many words\nno item, but words\n"
    with pytest.raises(SystemExit):
        terminal.leave("  item of so many words\nno item, but many words", 1)
    assert capsys.readouterr().err == "  item of so many\n    words\nno item, but many\n  words\n"
