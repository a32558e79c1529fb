"""Runs as a screen: their groups, what is folded when it is short, what gives way when it is narrow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdcluster.columns import in_ascii
from kdcluster.commands.cells import short_name
from kdcluster.commands.curves import Curves
from kdcluster.commands.overview import Group, grouped, rows, screen, total, waited_for
from kdcluster.commands.remaining import Left, in_words, until_done
from kdcluster.experiment import configfile
from kdcluster.launch.status import Status, statuses
from kdcluster.plan import Plan, Run, plan, trial
from kdcluster.runs import RunDir, find_run
from kdcluster.states import State
from tests.fabricated import BEAT, evaluated, put
from tests.tiny import make_plan, write_experiment

OTHER = {"distill.alpha": 0.9, "seeds": [0, 1]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def made(tmp_path: Path, root: Path) -> Plan:
    """Two experiments that share teacher and baseline, and three trials of the first one's sweep."""
    files = [write_experiment(tmp_path, {}, "one"), write_experiment(tmp_path, OTHER, "two")]
    both = plan([configfile.load(str(path)) for path in files])
    trials = []
    for alpha in (0.1, 0.2, 0.3):
        (run,) = trial(configfile.load(str(files[0]), [f"distill.alpha={alpha}"]), [0], 0.1)
        run_dir = put(root, run, "done" if alpha < 0.3 else "running")
        run_dir.add_experiments(["one"])
        run_dir.note_trial("one", {"distill.alpha": alpha})
        trials.append(run)
    return both.joined(trials)


def text_of(made: Plan, root: Path, columns: int, lines: int, **how: object) -> list[str]:
    groups = grouped(made, root, [run.id for run in made.runs])
    found = statuses(made, root)
    return screen(groups, found, os.terminal_size((columns, lines)), **{"colour": False, **how})  # type: ignore[arg-type]


def test_every_run_stands_once_under_who_wants_it(made: Plan, root: Path) -> None:
    first = next(run for run in made.runs if run.role == "distilled")
    put(root, first, "running")
    groups = grouped(made, root, [run.id for run in made.runs])
    assert [(group.title, len(group.runs), group.above) for group in groups] == [
        ("one", 4, 0),
        ("sweep of one", 3, 0),
        ("two", 3, 3),
    ]
    assert list(groups[1].differs.values()) == ["α 0.1", "α 0.2", "α 0.3"]
    lines = rows(groups, statuses(made, root))
    assert [line for line in lines if line.endswith(")") or (" done" in line and ":" in line)] == [
        "one: 0 of 4 done",
        "sweep of one: 2 of 3 done",
        "two: 0 of 3 done (3 more runs of it in another group)",
    ]
    assert lines[2].split()[:2] == [first.id, "running"]  # what runs comes first


def test_runs_that_nobody_wants_any_more_stand_under_what_they_were_submitted_for(made: Plan, root: Path) -> None:
    old, alone = made.runs[:2]
    put(root, old, "done").add_experiments(["old"])
    put(root, alone, "done")
    groups = grouped(Plan((), {}, {}).joined([old, alone]), root, [old.id, alone.id])
    assert [(group.title, [run.id for run in group.runs]) for group in groups] == [
        ("old", [old.id]),
        ("other runs", [alone.id]),
    ]


@pytest.mark.parametrize(("lines", "folded"), [(40, 0), (15, 2), (10, 9), (5, 9), (2, 10)])
def test_a_short_screen_folds_what_does_not_run(made: Plan, root: Path, lines: int, folded: int) -> None:
    shown = text_of(made, root, 120, lines)
    assert len(shown) <= lines
    names = {run.id for run in made.runs} & {line.split()[0] for line in shown if line}
    assert len(names) == max(0, 10 - folded)
    if lines >= 5:
        assert "sweep of one: 2 of 3 done" in shown
        assert ("  2 done, best student 50.00 %" in " ".join(shown)) == (folded > 0)
    if lines == 5:
        assert shown[-1] == "2 other groups: 0 of 7 done; 7 planned"
    if lines == 2:
        assert shown[-1].startswith("more lines than the window has")


def test_the_best_of_what_is_folded_is_a_student(tiny: list[Run]) -> None:
    """A teacher is better than them, and not what one wants to know."""
    groups = [Group("tiny", tuple(tiny), dict.fromkeys((run.id for run in tiny), ""))]
    tops = (93.9, 50.0, 52.5)
    found = {run.id: Status(State.QUEUED) for run in tiny}
    for run, top1 in zip(tiny, tops, strict=False):
        found[run.id] = Status(State.DONE, top1=top1)
        folded = screen(groups, found, os.terminal_size((80, 3)), colour=False)[-1].strip()
        done = sum(one.state == State.DONE for one in found.values())
        best = "teacher 93.90 %" if done == 1 else f"student {top1:.2f} %"
        assert folded.startswith(f"{done} done, best {best}")


def test_runs_keep_the_order_of_the_plan(tiny: list[Run]) -> None:
    groups = [Group("tiny", tuple(tiny), dict.fromkeys((run.id for run in tiny), ""))]

    def order(*states: str) -> list[int]:
        found = {run.id: Status(State(state)) for run, state in zip(tiny, states, strict=True)}
        names = [line.split()[0] for line in rows(groups, found)[2:]]
        return [next(at for at, run in enumerate(tiny) if run.id == name) for name in names]

    assert order(*["queued"] * 7) == order(*["done"] * 7) == order("queued", *["planned"] * 6) == list(range(7))
    assert order("planned", "queued", "cancelled", *["queued"] * 4) == list(range(7))
    assert order("failed", "running", *["blocked"] * 5) == [1, 0, 2, 3, 4, 5, 6]
    assert order("done", "queued", "running", "done", *["queued"] * 3) == [2, 1, 4, 5, 6, 0, 3]


def test_nothing_is_folded_or_left_out_without_a_screen(made: Plan, root: Path) -> None:
    put(root, made.runs[0], "failed")
    lines = rows(grouped(made, root, [run.id for run in made.runs]), statuses(made, root))
    assert {run.id for run in made.runs} <= {line.split()[0] for line in lines if line}
    assert sum("rank 1, step 7: ValueError: no" in line for line in lines) == 5  # and four that it blocks
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_every_line_fits(made: Plan, root: Path, columns: int) -> None:
    curves = Curves(root)
    for run, state in zip(made.runs, ("failed", "done", "running", "lost"), strict=False):
        attempt = put(root, run, state).newest()
        assert attempt is not None
        attempt.write("heartbeat", BEAT)
        evaluated(RunDir(root, run.id), [{"step": step, "test/top1": step} for step in (10, 20, 30)])
    for lines in (99, 20, 8):
        shown = text_of(made, root, columns, lines, curve_of=curves.of)
        assert max(map(len, shown)) <= columns
        assert any("▁▄▇──" in line for line in shown) == (columns >= 80)
        assert any(line.startswith("baseline") and "running" in line for line in shown)


def test_ids_are_short_where_they_would_take_the_room_of_how_far_runs_are(made: Plan, root: Path) -> None:
    run = made.runs[2]
    attempt = put(root, run, "running").newest()
    assert attempt is not None
    attempt.write("heartbeat", BEAT)
    (line,) = [one for one in text_of(made, root, 60, 99) if one.startswith("baseline") and "running" in one]
    assert line.split()[:6] == ["baseline", "s0", run.id[-8:], "running", "0:07", "41.25"]
    assert find_run(root, run.id[-8:]) == RunDir(root, run.id)
    assert short_name("foo") == "foo"
    assert short_name("teacher-logits-resnet18-s0-52e1ab07").split() == ["logits", "s0", "52e1ab07"]


def test_the_columns_of_progress_stand_while_something_runs(made: Plan, root: Path) -> None:
    """They came and went with each heartbeat of a run that had just started."""
    assert text_of(made, root, 120, 99)[0].split() == ["run", "settings", "state", "epoch", "left", "best", "accuracy"]
    (running,) = (run for run in made.runs if statuses(made, root)[run.id].state == "running")
    RunDir(root, running.id).attempt(1).write("outcome", {"state": "done", "reason": "", "time": 1.0})
    assert not {"left", "accuracy"} & set(text_of(made, root, 120, 99)[0].split())


def test_a_copy_of_a_file_does_not_take_its_runs(tmp_path: Path, root: Path) -> None:
    """A file that was added took those of another one out of their group, and α went from their rows."""
    first = configfile.load(str(write_experiment(tmp_path, {}, "one")))
    for run in plan([first]).runs:
        put(root, run, "done").add_experiments(["one"])
    copy = configfile.load(str(write_experiment(tmp_path, {}, "a-copy")))
    groups = grouped(plan([copy, first]), root, [run.id for run in plan([first]).runs])
    assert [(group.title, len(group.runs), group.above) for group in groups] == [("a-copy", 0, 4), ("one", 4, 0)]
    (alone,) = grouped(plan([copy]), root, [run.id for run in plan([copy]).runs])  # as it is named
    assert (alone.title, len(alone.runs)) == ("a-copy", 4)


def test_a_reason_of_many_runs_is_said_once(made: Plan, root: Path) -> None:
    put(root, made.runs[0], "failed")
    shown = text_of(made, root, 80, 99)
    assert sum("4 runs: " in line for line in shown) == 1
    assert sum(line.startswith("failed: ") for line in shown) == 1


def test_the_seed_stands_in_the_name_alone_on_a_terminal(tiny: list[Run]) -> None:
    groups = [Group("tiny", tuple(tiny), {run.id: f"α 0.5 seed {run.seed}" for run in tiny})]
    found = {run.id: Status(State.QUEUED) for run in tiny}
    assert sum("α 0.5 seed 2" in line.replace("\xa0", " ") for line in rows(groups, found)) == 2
    assert not any("seed" in line for line in screen(groups, found, os.terminal_size((120, 40))))


def test_a_screen_without_unicode(made: Plan, root: Path) -> None:
    assert all(line.isascii() for line in text_of(made, root, 80, 99, spell=in_ascii))
    assert any("alpha 0.1" in line for line in text_of(made, root, 80, 99, spell=in_ascii))


def test_the_last_line() -> None:
    states = [Status(State(state)) for state in ("done", "running", "queued", "queued")]
    assert total(states, "about 4 min left", "2 GPU-hours").replace("\xa0", " ") == (
        "1 of 4 done, about 4 min left; 1 running, 2 queued; 2 GPU-hours"
    )
    assert (total(states[:1], ""), total([], "")) == ("1 of 1 done", "0 runs")


# What waits for what


def way_of(runs: list[Run], states: str) -> str:
    groups = [Group("tiny", tuple(runs), dict.fromkeys((run.id for run in runs), ""))]
    found = {run.id: Status(State(state)) for run, state in zip(runs, states.split(), strict=True)}
    shown = screen(groups, found, os.terminal_size((120, 40)), colour=False)
    assert shown[1].startswith("tiny: ")
    return shown[2].strip() if shown[2].startswith("  ") else ""


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("running " + "queued " * 6, "teacher running ─▶ distilled 0/3; baseline 0/3"),
        ("done done done running done queued queued", "teacher done ─▶ distilled 1/3; baseline 2/3"),
        ("done failed done done lost failed failed",
         "teacher done ─▶ distilled 0/3, 2 failed, 1 lost; baseline 2/3, 1 failed"),
        ("failed done done done blocked blocked blocked", "teacher failed ─▶ distilled 0/3, 3 blocked; baseline 3/3"),
        ("done " * 7, ""),
    ],
)  # fmt: skip
def test_what_waits_for_what(tiny: list[Run], states: str, said: str) -> None:
    assert way_of(tiny, states) == said


def test_students_wait_for_a_store(tmp_path: Path) -> None:
    runs = list(make_plan(tmp_path).runs)
    assert way_of(runs, "done running queued queued") == (
        "teacher done ─▶ logits running ─▶ distilled queued; baseline queued"
    )
    assert way_of(runs[2:], "queued queued") == ""  # what they wait for stands in another group


def test_who_waits_for_what_stands_before_it_is_not_said_again(tiny: list[Run]) -> None:
    groups = [Group("tiny", tuple(tiny), dict.fromkeys((run.id for run in tiny), ""))]
    found = {run.id: Status(State.DONE) for run in tiny}
    teacher, *_, one, two, three = (run.id for run in tiny)
    found[teacher] = Status(State.RUNNING)
    found[one] = Status(State.QUEUED, f"waits for {teacher}")
    found[two] = Status(State.QUEUED, "waits for elsewhere-s0-1")
    found[three] = Status(State.QUEUED, "waits for its turn")

    def shown(lines: int) -> str:
        return " ".join(" ".join(screen(groups, found, os.terminal_size((60, lines)), colour=False)).split())

    for reason in ("waits for its turn", "waits for elsewhere-s0-1"):
        assert reason in shown(40)
    assert f"waits for {teacher}" not in shown(40)
    assert waited_for(found[one]) == [teacher]
    assert waited_for(found[three]) == []


def test_a_short_screen_leaves_it_out_before_it_folds_runs(tiny: list[Run]) -> None:
    groups = [Group("tiny", tuple(tiny), dict.fromkeys((run.id for run in tiny), ""))]
    found = {run.id: Status(State.QUEUED) for run in tiny}
    shown = [screen(groups, found, os.terminal_size((120, lines)), colour=False) for lines in (10, 9)]
    assert [len(lines) for lines in shown] == [10, 9]
    assert [any("─▶" in line for line in lines) for lines in shown] == [True, False]
    assert all(run.id in "\n".join(shown[1]) for run in tiny)


def test_a_file_has_rows_alone(made: Plan, root: Path) -> None:
    lines = rows(grouped(made, root, [run.id for run in made.runs]), statuses(made, root))
    assert not any("▶" in line for line in lines)


# How long it takes


def beat(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "steps": 100, "epochs": 2, "steps_per_s": 1.0, **more}


@pytest.fixture
def tiny(tmp_path: Path) -> list[Run]:
    """Teacher, three baselines, three distilled students, of two epochs; no store."""
    return list(make_plan(tmp_path, {"seeds": [0, 1, 2], "distill.logits": "computed"}).runs)


@pytest.mark.parametrize(
    ("states", "seconds"),
    [
        ("planned " * 7, None),
        ("done " * 7, None),
        ("running:0 " + "planned " * 6, 100.0),
        ("running:40 running:20 running:90 " + "planned " * 4, 80.0),
        ("done running:0 queued queued " + "planned " * 3, 300.0),  # one at a time
        ("done running:0 running:0 queued " + "planned " * 3, 200.0),  # two at a time
        ("done running:50 planned planned queued planned planned", "150.0+"),  # of its role nothing is known
        ("running:0 queued " + "planned " * 5, "100.0+"),  # of students nothing is known
        ("running:0 done planned planned queued planned planned", "200.0+"),  # waits for its teacher
        ("done done queued " + "planned " * 4, 100.0),  # as fast as before
        ("failed blocked lost stopped cancelled preempted done", None),
    ],
)
def test_the_time_that_is_left(tiny: list[Run], states: str, seconds: float | str | None) -> None:
    found = {}
    for run, word in zip(tiny, states.split(), strict=True):
        state, _, step = word.partition(":")
        heartbeat = beat(int(step or 100)) if state in ("running", "done") else {}
        found[run.id] = Status(State(state), heartbeat=heartbeat)
    left = until_done(tiny, found)
    assert (left and (left.seconds if left.whole else f"{left.seconds}+")) == seconds


def test_the_time_that_is_left_of_a_length_in_steps(tmp_path: Path) -> None:
    """Of as many steps, whatever an epoch has: baselines of few images go round more often."""
    train = {"steps": 100, "batch_size": 16}
    runs = list(make_plan(tmp_path, {"seeds": [0, 1], "train": train, "data.labelled": 20}).runs)
    assert [run.role for run in runs[2:4]] == ["baseline", "baseline"]
    found = {run.id: Status(State.PLANNED) for run in runs}
    found[runs[2].id] = Status(State.DONE, heartbeat=beat(100, epochs=100, steps_per_s=2.0))
    found[runs[3].id] = Status(State.QUEUED)
    assert until_done(runs, found) == Left(50.0, True)
    found[runs[4].id] = Status(State.QUEUED, heartbeat={"step": 60, "steps": 100, "epochs": 3})  # at least as long
    assert until_done(runs, found) == Left(70.0, False)


def test_a_store_takes_its_time_and_students_wait_for_it(tmp_path: Path) -> None:
    """It trains nothing, but its views are as many passes over the images."""
    runs = list(make_plan(tmp_path, {"seeds": [0, 1]}).runs)
    teacher, store, *baselines, other, student = (run.id for run in runs)
    found = dict.fromkeys([teacher, *baselines], Status(State.DONE))
    found[other] = Status(State.DONE, heartbeat=beat(100))
    waiting = {store: Status(State.QUEUED), student: Status(State.QUEUED)}
    assert until_done(runs, {**found, **waiting}) == Left(100.0, False)  # as the other student; the store is unknown
    going = {store: Status(State.RUNNING, heartbeat=beat(40)), student: Status(State.QUEUED)}
    assert until_done(runs, {**found, **going}, at_once=2) == Left(60.0 + 100.0, True)


def test_a_run_that_goes_on_has_less_left(tiny: list[Run]) -> None:
    found = {run.id: Status(State.DONE, heartbeat=beat(100)) for run in tiny}
    found[tiny[1].id] = Status(State.QUEUED, heartbeat={"step": 75, "steps": 100, "epochs": 2})
    assert until_done(tiny, found) == Left(25.0, True)
    found[tiny[2].id] = Status(State.RUNNING)  # it starts
    assert until_done(tiny, found) == Left(125.0, True)
    found = {**dict.fromkeys(found, Status(State.PLANNED)), tiny[1].id: Status(State.RUNNING)}  # the first of all
    assert until_done(tiny, found) is None
    found[tiny[0].id] = Status(State.RUNNING, heartbeat=beat(40))
    assert until_done(tiny, found) == Left(60.0, False)


def test_a_place_between_two_runs_is_not_gone(tiny: list[Run]) -> None:
    found = {run.id: Status(State.PLANNED) for run in tiny}
    found[tiny[1].id] = Status(State.RUNNING, heartbeat=beat(0))
    found |= {run.id: Status(State.QUEUED) for run in tiny[2:4]}
    assert [until_done(tiny, found, at_once) for at_once in (1, 2)] == [Left(300.0, True), Left(200.0, True)]


def test_finished_runs_tell_how_fast_the_next_are(tiny: list[Run]) -> None:
    speeds = (1.0, 1.0, 1.0, 0.01)
    found = {run.id: Status(State.PLANNED) for run in tiny}
    for run, speed in zip(tiny, speeds, strict=False):
        found[run.id] = Status(State.DONE, heartbeat=beat(100, steps_per_s=speed))
    found[tiny[4].id] = Status(State.QUEUED)
    assert until_done(tiny, found) == Left(100.0, False)  # the median: one slow one is no rule


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.0, "less than a minute left"), (50.0, "about 1 min left"), (240.0, "about 4 min left"),
     (7000.0, "about 117 min left"), (9000.0, "about 2 h left")],
)  # fmt: skip
def test_time_in_words(seconds: float, said: str) -> None:
    assert in_words(Left(seconds, True)) == said


@pytest.mark.parametrize(("seconds", "said"), [(3.0, ""), (38.0, "at least 30 s left"), (240.0, "at least 4 min left")])
def test_time_of_which_a_part_is_known(seconds: float, said: str) -> None:
    assert (in_words(Left(seconds, False)), in_words(None)) == (said, "")
