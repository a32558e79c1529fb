"""A run's log: every line labelled with attempt and rank, followed while it grows. Each poll does the next thing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.commands import logs
from kdcluster.launch.status import Status
from kdcluster.plan import Plan
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import State
from tests import fabricated
from tests.fabricated import DEAD, LIVE, ended, put, started
from tests.tiny import make_plan, make_run

Script = Callable[..., None]


def lines(run_dir: RunDir, **options: Any) -> Iterator[str]:
    """Of one run alone."""
    return logs.lines({run_dir: ""}, **options)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return put(tmp_path / "runs", make_run(tmp_path, "teacher"), "planned")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """What happens between two looks, a second apart, one step each; a look more than there are steps fails."""

    def set_up(*steps: Callable[[], object], apart_s: float = 1.0) -> None:
        left, now = list(steps), [0.0]

        def sleep(_: float) -> None:
            now[0] += apart_s
            left.pop(0)()

        monkeypatch.setattr(logs, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))

    return set_up


def say(path: Path, text: str) -> Callable[[], object]:
    def append() -> None:
        with path.open("a") as file:
            file.write(text)

    return append


def test_labels_and_order(run_dir: RunDir) -> None:
    for _ in range(2):
        attempt = started(run_dir, agent=DEAD)
        attempt.log().write_text(f"banner {attempt.number}\n")
        for rank in (1, 0, 10, 2):
            attempt.log(rank).write_text(f"a\nb {rank}\n")
    found = list(lines(run_dir))
    assert found.pop(0).startswith("[attempt 1] on ")
    assert found[:5] == [
        "[attempt 1 torchrun] banner 1",
        "[attempt 1 rank 0] a",
        "[attempt 1 rank 0] b 0",
        "[attempt 1 rank 1] a",
        "[attempt 1 rank 1] b 1",
    ]
    assert [line for line in found if " b " in line][3:5] == ["[attempt 1 rank 10] b 10", "[attempt 2 rank 0] b 0"]
    assert len(found) == 2 * (1 + 4 * 2) + 1


def test_what_a_terminal_need_not_be_told(run_dir: RunDir) -> None:
    """An attempt and a rank that are alone, and today's date."""
    attempt = started(run_dir, agent=DEAD)
    attempt.log(0).write_text(f"{time.strftime('%Y-%m-%d')} 08:00:00 a\n1999-12-31 09:00:00 b\n")
    assert list(lines(run_dir, short=True)) == ["08:00:00 a", "1999-12-31 09:00:00 b"]
    attempt.log().write_text("banner\n")
    assert list(lines(run_dir, short=True))[:2] == ["[torchrun] banner", "08:00:00 a"]
    attempt.log().unlink()
    attempt.log(1).write_text("c\n")
    assert list(lines(run_dir, short=True))[-1] == "[rank 1] c"
    assert next(lines(run_dir, short=True)) == "[rank 0] 08:00:00 a"
    started(run_dir, agent=DEAD).log(0).write_text("d\n")
    assert list(lines(run_dir, short=True))[-1] == "[attempt 2] d"


def test_the_last_lines_alone(run_dir: RunDir, script: Script) -> None:
    attempt = started(run_dir, agent=LIVE)
    log = attempt.log(0)
    log.write_text("one\ntwo\nthree\n")
    assert list(lines(run_dir, last=2)) == ["[attempt 1 rank 0] two", "[attempt 1 rank 0] three"]
    assert list(lines(run_dir, last=0)) == []
    script(say(log, "four\nfive\n"), lambda: ended(attempt, "done"))
    found = list(lines(run_dir, last=1, follow=True))
    assert found == [f"[attempt 1 rank 0] {number}" for number in ("three", "four", "five")]


def test_one_rank_alone(run_dir: RunDir) -> None:
    attempt = started(run_dir, agent=DEAD)
    attempt.log().write_text("banner\n")
    for rank in (1, 11):
        attempt.log(rank).write_text(f"from {rank}\n")
    assert list(lines(run_dir, rank=1)) == ["[attempt 1 rank 1] from 1"]
    assert list(lines(run_dir, rank=7)) == []


def test_without_follow_the_unfinished_last_line_is_shown(run_dir: RunDir) -> None:
    attempt = started(run_dir, agent=LIVE)
    attempt.log(0).write_text("whole\nhalf")
    assert list(lines(run_dir)) == ["[attempt 1 rank 0] whole", "[attempt 1 rank 0] half"]


@pytest.mark.parametrize("follow", [False, True])
def test_a_run_without_attempts_has_no_log(run_dir: RunDir, follow: bool) -> None:
    assert list(lines(run_dir, follow=follow)) == []


def test_follow_waits_for_the_end_of_a_line(run_dir: RunDir, script: Script) -> None:
    attempt = started(run_dir, agent=LIVE)
    log = attempt.log(0)
    log.write_text("one\ntw")
    script(
        say(log, "o\nthr"),
        say(log, ""),
        say(log, "ee, and no more"),  # a killed rank does not finish its line
        lambda: ended(attempt, "failed", "killed"),
    )
    label = "[attempt 1 rank 0] "
    assert list(lines(run_dir, follow=True)) == [label + "one", label + "two", label + "three, and no more"]


def test_follow_shows_lines_as_they_come(run_dir: RunDir, script: Script) -> None:
    attempt = started(run_dir, agent=LIVE)
    log = attempt.log(0)
    script(say(log, "one\n"), say(attempt.log(1), "other\n"), lambda: ended(attempt, "done"))
    following = lines(run_dir, follow=True)
    assert next(following) == "[attempt 1 rank 0] one"
    assert next(following) == "[attempt 1 rank 1] other"
    assert list(following) == []


def test_the_files_are_looked_at_often_and_the_state_is_asked_for_once_a_second(
    run_dir: RunDir, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a question to SLURM."""
    attempt = started(run_dir, agent=LIVE)
    asked: list[State] = []
    ask = logs.statuses_of

    def statuses_of(run_dirs: Iterable[RunDir], within_s: float = 0.0) -> Mapping[RunDir, Status]:
        found = ask(run_dirs)
        asked.extend(status.state for status in found.values())
        return found

    monkeypatch.setattr(logs, "statuses_of", statuses_of)
    steps = [say(attempt.log(0), f"{number}\n") for number in range(12)]
    script(*steps, lambda: ended(attempt, "done"), *[lambda: None] * 5, apart_s=logs.POLL_S)
    following = lines(run_dir, follow=True)
    for number in range(12):
        assert next(following) == f"[attempt 1 rank 0] {number}"
        assert len(asked) <= 1 + (number + 1) * logs.POLL_S / logs.ASK_S
    assert list(following) == []
    assert asked[-1] == State.DONE


def test_follow_goes_on_into_the_next_attempt(run_dir: RunDir, script: Script) -> None:
    """A preempted run that was queued again before anyone looked has not ended."""
    first = started(run_dir, agent=LIVE)
    first.log(0).write_text("first\n")

    def again() -> None:
        ended(first, "preempted", "SIGUSR2")
        run_dir.write_ticket("local", LIVE)

    def second() -> None:
        started(run_dir, agent=LIVE).log(0).write_text("second\n")

    script(again, second, lambda: ended(run_dir.attempt(2), "done"))
    found = [re.sub("on .* steps", "steps", line) for line in lines(run_dir, follow=True)]
    assert found == [
        "[attempt 1 rank 0] first",
        "[attempt 1] steps 0 to 0; preempted: SIGUSR2",
        "[attempt 2] steps 0 to 0",
        "[attempt 2 rank 0] second",
        "[attempt 2] steps 0 to 0; done",
    ]


def test_follow_waits_for_a_run_that_is_queued(run_dir: RunDir, script: Script) -> None:
    run_dir.write_ticket("local", LIVE)

    def start() -> None:
        started(run_dir, agent=LIVE).log(0).write_text("at last\n")

    script(lambda: None, start, lambda: ended(run_dir.attempt(1), "done"))
    assert list(lines(run_dir, follow=True)) == ["[attempt 1 rank 0] at last"]


def test_what_was_written_just_before_the_end_is_not_missed(run_dir: RunDir, script: Script) -> None:
    attempt = started(run_dir, agent=LIVE)

    def end() -> None:
        attempt.log(0).write_text("ValueError: the last word\n")
        ended(attempt, "failed", "no")

    script(end)
    assert list(lines(run_dir, follow=True)) == ["[attempt 1 rank 0] ValueError: the last word"]


def test_bytes_that_are_no_text_do_not_matter(run_dir: RunDir) -> None:
    started(run_dir, agent=DEAD).log(0).write_bytes("größer\n".encode() + b"\xff\n")
    assert list(lines(run_dir)) == ["[attempt 1 rank 0] größer", "[attempt 1 rank 0] \ufffd"]


# Of an experiment


@pytest.fixture
def made(empty_folder: Path) -> Plan:
    """The runs of `tiny`, planned."""
    made = make_plan(empty_folder)
    for run in made.runs:
        put(empty_folder / "runs", run, "planned").add_experiments(["tiny"])
    return made


def typed(*arguments: str) -> tuple[list[str], list[str]]:
    """stdout and stderr of `kdcluster logs`, in lines."""
    result = CliRunner().invoke(main, ["logs", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr.splitlines()


def begin(run_id: str, at: float, state: str = "") -> Attempt:
    """An attempt with a line in its log, last heard of at a time."""
    attempt = started(RunDir(Path("runs").absolute(), run_id), agent=DEAD if state else LIVE)
    attempt.write("heartbeat", {**fabricated.BEAT, "time": at})
    attempt.log(0).write_text(f"of {run_id}\n")
    if state:
        ended(attempt, state, "why")
    return attempt


def test_of_an_experiment_all_that_run_each_line_with_its_run(made: Plan) -> None:
    teacher, _, baseline, distilled = (run.id for run in made.runs)
    begin(teacher, 3.0, "failed")
    assert begin(baseline, time.time()).number == begin(distilled, time.time()).number == 1
    shown, said = typed("tiny")
    assert said == ["2 runs of tiny are running:", f"  baseline s0  {baseline}", f"  distilled s0  {distilled}"]
    assert [line for line in shown if "] of " in line] == [
        f"[baseline s0 attempt 1 rank 0] of {baseline}",
        f"[distilled s0 attempt 1 rank 0] of {distilled}",
    ]
    document = json.loads("\n".join(typed("tiny", "--json")[0]))
    assert (document["run"], document["runs"]) == (None, [baseline, distilled])


def test_where_none_runs_the_last_that_failed_then_the_last(made: Plan) -> None:
    teacher, _, baseline, distilled = (run.id for run in made.runs)
    assert typed("tiny") == ([], ["no run of tiny has begun"])
    begin(teacher, 3.0, "done")
    begin(baseline, 1.0, "done")
    shown, said = typed("tiny")
    assert said == [f"no run of tiny is running, and none has failed; the last: {teacher}"]
    begin(baseline, 1.0, "failed")
    begin(distilled, 2.0, "failed")
    shown, said = typed("tiny")
    assert said == [f"no run of tiny is running; the last that failed: {distilled}"]
    assert shown == [f"[attempt 1 rank 0] of {distilled}"]


def test_an_experiment_is_followed_into_the_runs_that_wait(made: Plan, script: Script, empty_folder: Path) -> None:
    baseline, distilled = (RunDir(empty_folder / "runs", run.id) for run in made.runs[2:])
    first = begin(baseline.id, time.time())
    distilled.write_ticket("local", LIVE)
    script(
        lambda: ended(first, "done"),
        lambda: begin(distilled.id, time.time()),
        lambda: ended(distilled.attempt(1), "done"),
    )
    shown, said = typed("tiny", "-f")
    assert said[0] == "2 runs of tiny are running or queued:"
    assert [line for line in shown if "] of " in line] == [
        f"[baseline s0 attempt 1 rank 0] of {baseline.id}",
        f"[distilled s0 attempt 1 rank 0] of {distilled.id}",
    ]


def test_runs_of_one_role_and_seed_are_told_apart_by_their_ids(empty_folder: Path) -> None:
    """Trials of a sweep."""
    trials = [make_plan(empty_folder, {"distill.alpha": alpha}).runs[-1].id for alpha in (0.1, 0.2)]
    labels = logs._labels([RunDir(empty_folder, run_id) for run_id in trials])
    assert list(labels.values()) == [f"distilled s0 {run_id[-8:]}" for run_id in trials]
