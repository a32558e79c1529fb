"""Text from outside: whatever a name, a reason or a log holds, a screen shows it and does nothing else."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from kdcluster.cli import main
from kdcluster.columns import aligned, as_csv, as_json, escaped, markdown
from kdcluster.commands import overview, progress
from kdcluster.experiment import configfile, yamlfile
from kdcluster.launch import submission
from kdcluster.launch.status import Status
from kdcluster.plan import plan
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.sweep.points import Space
from kdcluster.sweep.screen import screen
from kdcluster.wording import SUBMIT_OPTIONS, command, one_line, printable, quoted, submit_words
from tests.fabricated import DEAD, put, started
from tests.tiny import make_plan, write_experiment

ORDERS = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202e\b\x7f\ud800"
"""What a terminal obeys: a title, a cleared screen, a colour, the other direction, a step back."""
EVIL = f"no{ORDERS}\r\nforged-run  done  100.00 %\n|[red]`x`|<b>\ttab"


def is_clean(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


def run(*words: str) -> Result:
    """A command whose output is clean, and in which no line was forged."""
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert is_clean(result.stdout + result.stderr), (result.stdout, result.stderr)
    assert not re.search(r"^ {0,4}(forged|\|\[red\])", result.output, re.MULTILINE)  # a traceback has more blanks
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def end(run_dir: RunDir, **changes: Any) -> None:
    """The newest attempt has failed, with this text as the reason and as the traceback of rank 0."""
    newest = run_dir.newest()
    assert newest is not None
    outcome = {"state": "failed", "reason": EVIL, "rank": 0, "time": 2e9, **changes}
    failure = {"rank": 0, "step": 1, "traceback": EVIL, "time": 1.0, "host": "node1", "message": EVIL}
    failure |= {"collective": False, "out_of_memory": False}
    for name, values in (("outcome", outcome), ("failure-rank0", failure)):
        (newest.path / f"{name}.json").write_text(json.dumps(values))


@pytest.fixture
def failed(folder: Path) -> RunDir:
    made = make_plan(folder)
    for one in made.runs:
        started(put(folder / "runs", one, "planned"), agent=DEAD)
        end(RunDir(folder / "runs", one.id))
    return RunDir(folder / "runs", made.runs[0].id)


# What everything is built of


def test_what_shows_nothing_is_spelt_out() -> None:
    assert printable("a\x1b[1m\rb\tc\nd") == "a\\x1b[1m\\rb\tc\nd"
    assert printable("\u202e\u2028\x9b\x00\udcff") == "\\u202e\\u2028\\x9b\\x00\\udcff"
    assert printable("größe α\xa0± 模型") == "größe α\xa0± 模型"


def test_a_value_never_breaks_its_row() -> None:
    assert one_line("  two\r\n\n  lines\tand a tab\n") == "  two lines and a tab"
    assert one_line("a\x85b\u2029c\vd") == "a\\x85b\\u2029c\\x0bd"


@pytest.mark.parametrize("word", ["a b", "$(x)", "a\nb'c\\", "\x1b[2J", os.fsdecode(b"\xff"), "plain", "\u202e"])
def test_bash_reads_a_quoted_word_as_it_was(word: str) -> None:
    assert is_clean(quoted(word))
    assert "\n" not in quoted(word)
    done = subprocess.run(["bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == word


def test_columns_of_whatever_text() -> None:
    lines = aligned([["a", "b"], [EVIL, "1"]], right=[1])
    assert len(lines) == 2
    assert is_clean("".join(lines))
    assert len(lines[0]) == len(lines[1])


def test_markdown_is_text() -> None:
    head, rule, row = markdown([["a|b", "n"], [f"![x](http://tracks)\n{EVIL}", "1"]], right=[1])
    assert (head, rule) == ("| a\\|b | n |", "| :--- | ---: |")
    assert is_clean(row)
    assert "![x]\\(http" in row
    assert "\\|[red]\\`x\\`\\|\\<b> tab" in row
    assert escaped("[5.9, 7.0] (log: x)") == "[5.9, 7.0] (log: x)"


def test_no_spreadsheet_takes_text_for_a_formula() -> None:
    cells = ["=cmd|' /C calc'!A0", "+1+1", "-1-1", "@SUM(1)", "\t=1", "\r=1", "-1.5", "+2e-3", "x=1", -1.5, None]
    (row,) = csv.reader(io.StringIO(as_csv([cells])))
    assert row[:5] == ["'=cmd|' /C calc'!A0", "'+1+1", "'-1-1", "'@SUM(1)", "'=1"]
    assert row[5:] == ["'=1", "-1.5", "+2e-3", "x=1", "-1.5", ""]


def test_json_is_json_whatever_it_holds() -> None:
    text = as_json({"x": EVIL})
    assert is_clean(text)
    assert text.isascii()
    assert json.loads(text) == {"x": EVIL}


# The words of a submit


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("mine.yaml --set 'variant=a b' --gpus 2", "mine.yaml --set 'variant=a b' --gpus 2"),
        (["a b.yaml", "--set", "x=$(id)"], "'a b.yaml' --set 'x=$(id)'"),
        (["tiny.yaml; curl x|sh"], "'tiny.yaml; curl x|sh'"),
        (["tiny.yaml\nx\x1b"], "$'tiny.yaml\\x0ax\\x1b'"),
        ("tiny.yaml; curl x|sh", None),
        ("tiny.yaml $(id)", None),
        ("tiny.yaml 'open", None),
        (["tiny.yaml", "--cleanup"], None),
        (["tiny.yaml", "--gpus"], None),
        (["tiny.yaml", 3], None),
        ({"tiny.yaml": 1}, None),
        (7, None),
        ([], None),
        ("", None),
    ],
)
def test_only_words_of_a_submit_are_told_again(folder: Path, failed: RunDir, stored: Any, words: str | None) -> None:
    if words:
        (folder / (shlex.split(stored) if isinstance(stored, str) else stored)[0]).touch()
    (failed.path / "submit.json").write_text(json.dumps({"words": stored}))
    assert (command(failed.submitted()) or None) == words
    told = run("status", failed.id).stderr.splitlines()[-1]
    assert told == f"next: kdcluster submit {words or failed.id} --retry"


def test_the_words_that_a_submit_writes_are_read_again(failed: RunDir) -> None:
    typed = shlex.join(["mine.yaml", "--set", "variant=a 'b", "--procs", "2"])
    failed.note_submit(typed)
    assert command(failed.submitted()) == typed


def test_every_option_that_a_run_remembers_is_one_of_submit() -> None:
    known = {name for option in main.commands["submit"].params for name in option.opts}
    assert set(SUBMIT_OPTIONS) < known
    assert submit_words(["exp1", *(word for name in SUBMIT_OPTIONS for word in (name, "1"))])


# Through the commands


def test_status_of_runs_with_hostile_reasons(failed: RunDir) -> None:
    rows = run("status", "tiny.yaml").stdout.splitlines()
    assert (len(rows), rows[1]) == (7, "tiny: 0 of 4 done")
    assert "no\\x1b]0;mine\\x07\\x1b[2J\\x9b31m\\u202e\\x08\\x7f\\ud800 forged-run  done  100.00 % |[red]" in rows[2]


def test_all_of_a_run_whose_reason_settings_and_files_are_hostile(failed: RunDir) -> None:
    (failed.path / "a\x1b[2J\nforged 1.0 KiB").touch()
    values = yamlfile.parse(failed.config.read_text())
    values["model"]["model_args"][EVIL.replace("\ud800", "")] = EVIL.replace("\ud800", "")
    failed.config.write_text(json.dumps(values))
    failed.add_experiments([EVIL])
    alone = run("show", failed.id).stdout.splitlines()
    begun = next(at for at, line in enumerate(alone) if line.startswith("  attempt 1"))
    assert [line for line in alone[begun:] if line.startswith("      ")][1:4] == [
        f"      {line}" for line in printable(EVIL.replace("\r\n", "\n")).replace("\t", " ").split("\n")
    ]
    other = next(path.name for path in failed.root.iterdir() if path.name.startswith("baseline"))
    for words in (["diff", failed.id, other], ["diff", failed.id, "tiny.yaml"], ["logs", EVIL], ["rm", EVIL]):
        run(*words)
    for words in (["show", failed.id], ["diff", failed.id, other]):
        assert run(*words, "--json").exit_code == 0


def test_status_of_a_run_that_another_version_wrote(failed: RunDir) -> None:
    failed.config.write_text(f"id: {json.dumps(EVIL)}\n")
    answer = run("status")
    assert "config.yaml" in answer.stdout
    assert "\x1b" not in answer.stdout + answer.stderr


def test_an_experiment_with_a_hostile_name(folder: Path) -> None:
    (folder / "configs").mkdir()
    name = "a\x1b]0;x\x07\nforged \u202e|[red]"
    write_experiment(folder / "configs").rename(folder / "configs" / f"{name}.yaml")
    (folder / "tiny.yaml").write_text(write_experiment(folder, {"seeds": [1]}).read_text())
    assert "  a\\x1b]0;x\\x07 forged \\u202e|[red], tiny\n" in run("plan", name, "tiny.yaml").stdout
    for words in (["list"], ["status", name], ["results", name], ["submit", name, "--dry-run"], ["plan", f"{name}x"]):
        run(*words)
    for form in ("md", "csv"):
        run("results", name, "--format", form)


def test_class_names_in_what_plan_and_doctor_say(folder: Path) -> None:
    for split, name in (("train", "cat\x1b[2J\nforged: ok"), ("test", "dog\r\u202e")):
        image = folder / "images" / split / name / "a.png"
        image.parent.mkdir(parents=True)
        image.touch()
    write_experiment(folder, {"data": {"name": "image_folder", "path": "images", "image_size": 16}})
    for name in ("plan", "doctor"):
        said = run(name, "tiny.yaml")
        assert said.exit_code == 2
        assert "only in train/: cat\\x1b[2J forged: ok; only in test/: dog\\r\\u202e\n" in said.stderr


def test_a_key_that_no_experiment_has(folder: Path) -> None:
    path = write_experiment(folder)
    path.write_text(path.read_text() + '"x\\e[2J\\nforged": 1\n')
    assert "x\\x1b[2J forged: unknown key" in run("plan", "tiny.yaml").stderr


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_results_with_hostile_reasons(failed: RunDir, form: str) -> None:
    shown = run("results", "tiny.yaml", "--format", form).stdout
    run("results", "tiny.yaml", "--format", form, "--output", "table.txt")
    assert Path("table.txt").read_text(encoding="utf-8") == shown
    if form == "md":
        assert "\\|[red]\\`x\\`\\|\\<b> tab" in shown


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_trials_with_hostile_reasons(folder: Path, form: str) -> None:
    write_experiment(folder, {"sweep": {"trials": 2}})
    for point in Space(configfile.load("tiny.yaml")).drawn(2):
        run_dir = put(folder / "runs", point.runs[0], "failed")
        run_dir.note_trial("tiny", point.values)
        end(run_dir, reason=f"=1+1{EVIL}")
    shown = run("results", "tiny.yaml", "--sweep", "--format", form).stdout
    if form == "csv":
        assert [row["reason"][:5] for row in csv.DictReader(io.StringIO(shown))] == ["'=1+1"] * 2


def test_a_log_on_a_terminal_and_in_a_pipe(failed: RunDir) -> None:
    """A bar that draws itself over and over is many lines, each with its label."""
    attempt = failed.attempt(1)
    attempt.log(0).write_bytes(b"\x1b[2Jone\xff\n 10%|#\r 100%|####\r\n\x9b31m two\t2\n")
    words = [sys.executable, "-m", "kdcluster.cli", "logs", failed.id, "--rank", "0"]
    expected = ["\\x1b[2Jone\ufffd", " 10%|#", " 100%|####", "\ufffd31m two\t2"]
    assert on_terminal(words) == expected
    piped = subprocess.run(words, capture_output=True, check=True).stdout.decode()
    assert "one\ufffd\n[attempt 1 rank 0]  10%|#\n" in piped


def on_terminal(words: list[str]) -> list[str]:
    """What a command shows on a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        text = b"".join(_chunks(master))
    assert process.returncode == 0
    return text.decode().replace("\r\n", "\n").splitlines()


def _chunks(master: int) -> Iterator[bytes]:
    try:
        while chunk := os.read(master, 65536):
            yield chunk
    except OSError:  # Linux' way to say that nobody holds the other side any more
        pass
    os.close(master)


def test_a_long_line_on_a_terminal_is_broken_at_words(failed: RunDir) -> None:
    attempt, text = failed.attempt(1), " ".join(["syllables"] * 12)
    attempt.log(0).write_text(text + "\n")
    words = [sys.executable, "-m", "kdcluster.cli", "logs", failed.id, "--rank", "0"]
    shown = on_terminal(words)
    assert [len(line) <= 80 for line in shown] == [True, True]
    assert " ".join(map(str.strip, shown)) == text
    assert subprocess.run(words, capture_output=True, check=True).stdout.decode() == f"[attempt 1 rank 0] {text}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{'words ' * 11}and kdcluster results demo --seeds 0,1; then more",
            [f"ok    {'words ' * 11}and", "      kdcluster results demo --seeds 0,1; then more"],
        ),
        (
            f"next: kdcluster submit demo {'--set train.epochs=6 ' * 3}",
            [
                "ok    next: kdcluster submit demo --set train.epochs=6 --set train.epochs=6 \\",
                "        --set train.epochs=6",
            ],
        ),
        (  # an option and its value stand in one line
            f"next: kdcluster submit {'d' * 42} --set train.epochs=6 --wait",
            [f"ok    next: kdcluster submit {'d' * 42} \\", "        --set train.epochs=6 --wait"],
        ),
        (  # so it does where a value is quoted, but not where it holds a blank
            f"next: kdcluster submit {'d' * 40} --set 'seeds=[0,1]' --wait",
            [f"ok    next: kdcluster submit {'d' * 40} \\", "        --set 'seeds=[0,1]' --wait"],
        ),
        (
            f"next: kdcluster submit {'d' * 30} --set 'variant=of two'",
            [f"ok    next: kdcluster submit {'d' * 30} --set 'variant=of two'"],
        ),
        (  # what introduces a command in a sentence stays with that
            "to delete these runs, which are needed by no other run any more, too: kdcluster rm one",
            [
                "ok    to delete these runs, which are needed by no other run any more, too:",
                "      kdcluster rm one",
            ],
        ),
        ("no\tcommand", ["ok    no command"]),
    ],
)
def test_a_command_on_a_terminal_can_be_copied(text: str, expected: list[str]) -> None:
    script = "import sys; from kdcluster.terminal import show_wrapped; show_wrapped('ok    ', sys.argv[1])"
    assert on_terminal([sys.executable, "-c", script, text]) == expected
    piped = subprocess.run([sys.executable, "-c", script, text], capture_output=True, check=True, text=True).stdout
    assert piped.splitlines() == [f"ok    {text}".replace("\t", " ")]


def test_what_is_long_is_broken_at_words_by_diff_and_for_a_pipe_by_schema(folder: Path) -> None:
    command = [sys.executable, "-m", "kdcluster.cli"]
    shown = on_terminal([*command, "diff", "exp1", "--set", "distill.alpha=0.75"])
    both = next(at for at, line in enumerate(shown) if line.startswith("both want"))
    assert len(shown) > both + 1
    assert max(map(len, shown[both:])) <= 80
    told = subprocess.run([*command, "schema"], capture_output=True, check=True, text=True).stdout.splitlines()
    assert max(len(line) for line in told if line.startswith("    ")) <= 80  # `schema | head`, on a terminal


def test_where_an_attempt_ran_is_one_line_of_the_log(failed: RunDir) -> None:
    started(failed, agent=DEAD)
    heads = [line for line in run("logs", failed.id).stdout.splitlines() if line.startswith("[attempt 1] on ")]
    assert len(heads) == 1
    assert heads[0].endswith("|[red]`x`|<b> tab")


def test_lines_of_progress(failed: RunDir, folder: Path) -> None:
    stream = io.StringIO()
    progress.follow(plan([configfile.load("tiny.yaml")]), folder / "runs", stream)
    assert is_clean(stream.getvalue())
    assert len(stream.getvalue().splitlines()) == 4


def drawn(renderable: Any) -> str:
    """What rich shows of it, with styles left out and control characters not."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("columns", [40, 80, 400])
def test_the_screen_of_progress_takes_no_orders(tmp_path: Path, columns: int) -> None:
    run = make_plan(tmp_path).runs[0].model_copy(update={"id": f"x[red]{ORDERS}"})
    group = overview.Group(f"[b]{EVIL}", (run,), {run.id: EVIL})
    lines = overview.screen([group], {run.id: Status(State.FAILED, EVIL)}, os.terminal_size((columns, 40)))
    assert all(is_clean(re.sub(r"\x1b\[(0|1|31)m", "", line)) and "\n" not in line for line in lines)
    assert not any(re.match("(forged|\\|\\[red\\])", line) for line in lines)
    assert "x[red]" in "".join(lines)


def test_the_screen_of_a_sweep_takes_no_markup(folder: Path) -> None:
    from kdcluster.sweep.points import Point
    from kdcluster.sweep.scored import Tried

    point = Point({f"[b]{ORDERS}": f"[red]{EVIL}"}, ())
    text = drawn(screen([Tried(point, (State.FAILED,), None, None)], 1, "val/top1", width=80, height=20))
    assert is_clean(text)
    assert "[b]" in text
    assert "[red]no" in text


def test_a_reason_in_an_error_is_one_line_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = {"x": Status(State.RUNNING, EVIL, unknown="nobody answers")}
    monkeypatch.setattr("kdcluster.commands.plan.statuses", lambda *_: submission.refuse_unknown(unsure))
    write_experiment(folder)
    said = run("plan", "tiny.yaml").stderr.splitlines()
    assert len(said) == 2
    assert said[1].startswith("x: running: no\\x1b]0;")


def test_a_warning_is_one_clean_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(*_: object) -> dict[str, Path]:
        logging.getLogger("kdcluster.test").warning("%s; trying again", f"sbatch: {EVIL}")
        return {}

    log = logging.getLogger("kdcluster.test")
    monkeypatch.setattr(log, "propagate", False)  # nobody listens, as in a process that has set up no logging
    monkeypatch.setattr(configfile, "experiments", warns)
    (said,) = run("list").stderr.splitlines()
    assert said.startswith("sbatch: no\\x1b]0;")
