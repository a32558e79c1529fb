"""Columns and lines that fit a terminal: what wraps, what gives way, and that nothing is lost without one."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from kdcluster.columns import aligned, fitted
from kdcluster.commands.planned import typed
from kdcluster.terminal import by_depth
from kdcluster.wording import wide, wrapped

ROWS = [["name", "some text", "long heading", "n"], ["a", "one two three four", "1", "2"], ["b", "five", "10", "20"]]


def test_without_a_width_nothing_wraps_and_nothing_is_left_out() -> None:
    fit = fitted(ROWS, [2, 3])
    assert [row for row in fit.rows if len(row) > 1] == []
    assert [line for row in fit.rows for line in row] == aligned(ROWS, [2, 3]) == [
        "name  some text           long heading   n",
        "a     one two three four             1   2",
        "b     five                          10  20",
    ]  # fmt: skip
    assert fit.left_out == []


@pytest.mark.parametrize(
    ("width", "lines", "left_out"),
    [
        (39, ["                             long", "name  some text           heading   n"], []),
        (36, ["                            long", "name  some text          heading   n"], []),
        (30, ["name  some text            n"], ["long heading"]),
        (20, ["name  some text    n"], ["long heading"]),
        (5, ["      some", "name  text    n"], ["long heading"]),  # as narrow as its words
    ],
)
def test_headings_wrap_then_text_then_columns_give_way(width: int, lines: list[str], left_out: list[str]) -> None:
    fit = fitted(ROWS, [2, 3], width=width, ranks={2: 1}, wraps={1: 12})
    assert fit.rows[0] == lines
    assert fit.left_out == left_out
    said = {word for row in fit.rows[1:] for line in row for word in line.split()}
    assert said == {"a", "one", "two", "three", "four", "2", "b", "five", "20", *([] if left_out else ["1", "10"])}


def test_the_highest_rank_gives_way_first() -> None:
    assert fitted([["aaaa", "bbbb", "cccc"]], width=10, ranks={1: 2, 2: 1}).left_out == ["bbbb"]


def test_colours_take_no_room() -> None:
    fit = fitted(ROWS, width=80, paint=lambda row, column, text: f"\x1b[1m{text}\x1b[0m" if column == 0 else text)
    plain = [re.sub(r"\x1b\[[01]m", "", line) for row in fit.rows for line in row]
    assert plain == aligned(ROWS)


def test_wide_characters_count_twice() -> None:
    assert (wide("ab"), wide("数据"), wide("e\u0301")) == (2, 4, 1)
    assert [line.index("|") - len(line.split()[0]) for line in aligned([["数据", "|"], ["abcd", "|"]])] == [2, 2]


def test_lines_break_at_words_alone() -> None:
    assert wrapped("a bb ccc", 4, "  ") == ["a bb", "  ccc"]
    assert wrapped("a " + "b" * 9, 4, "  ") == ["a", "  " + "b" * 9]
    assert wrapped("at 95 % of it", 5) == ["at", "95 %", "of it"]
    assert wrapped("a b", None) == ["a b"]
    assert wrapped("x\x1b[2J", 80) == ["x\\x1b[2J"]


@pytest.mark.parametrize("width", [None, 20, 40, 80])
def test_a_command_on_several_lines_is_the_same_command(width: int | None) -> None:
    argv = ["printf", "%s|", "a b", "it's", "--option=1", "$(id)", "a\nb", "x" * 30, "\\"]
    lines = typed(argv, "  command  ", width)
    assert width is not None or len(lines) == 1
    assert all(len(line) <= max(width or 999, 11 + 30 + 2) for line in lines)
    text = "\n".join(lines).removeprefix("  command  ")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "|".join(argv[2:]) + "|"
    assert shlex.split(text.replace("\\\n", ""))[0] == "printf"


def test_a_traceback_without_room_keeps_its_depth() -> None:
    lines = [
        "Traceback:",
        '  File "a.py", line 3, in one',
        "    raise ValueError(1, 2)",
        f"    {'^' * 27}",
        "    ~~^~~",
    ]
    assert [part for line in lines for part in by_depth(line, 24)] == [
        "Traceback:",
        '  File "a.py", line 3,',
        "      in one",
        "    raise ValueError(1,",
        "        2)",
        "    ~~^~~",
    ]
    assert [part for line in lines for part in by_depth(line, None)] == lines
