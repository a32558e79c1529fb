"""YAML is read the short way only where that gives what YAML says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdcluster.experiment import yamlfile
from tests.tiny import make_plan

SCALARS = (
    *("a", "y", "no", "null", "Null", "NULL", "~", "true", "True", "TRUE", "false", "off", "nullable", "true-ish"),
    *("0", "-0", "00", "012", "0o17", "0x1f", "0b11", "1_000", "+1", "-7", "123456789012345678901", "- 1", "-"),
    *("0.5", ".5", "1.", "-0.0", "1e5", "1e-05", "1.5e-07", "3e+20", "12e+03", "1E+05", ".inf", "-.inf", ".nan"),
    *("1e5f", "002baa6f", "00000000", "123e4567", "0b1c", "8:00:00", "2020-01-01", "5min", "500steps", "5 min"),
    *("'1'", "'null'", "''", "'it''s'", "'a # b'", "'a", "a'", "'a' b", '"a"', '"\\u00e9"', "é", "'é'", "a\u2028b"),
    *("{}", "[]", "{a: 1}", "[1]", "{", "]", "a: b", "a:b", "a #b", "a#b", "# c", "&x 1", "*x", "!!str 1", "|", ">"),
    *(
        "a b",
        "a  b",
        "a - b",
        "a -",
        "null a",
        "Nullable",
        "nULL",
        "/a/b.pt",
        "/a b/c",
        "../a",
        "./a",
        "a\\b",
        "%a",
        "@a",
        "`a",
        "=",
        "<<",
        "?",
        "? a",
        ",",
        "a,b",
        "a\t",
        "\ta",
    ),
)
KEYS = ("a", "b", "c", "a.b", "/a/b", "A", "1", "null", "true", "y", "'a'", "<<", "?", "-", "é", "a b", "x" * 300)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Lines as `dump` writes them, and some that it never does, in blocks that fit and that do not."""
    lines: list[str] = []
    depth = 0
    for _ in range(draw(st.integers(1, 7))):
        depth = draw(st.sampled_from([depth, depth, depth + 1, max(0, depth - 1), 0]))
        indent = " " * (2 * depth + draw(st.sampled_from([0] * 9 + [1, 2])))
        key = draw(st.sampled_from(["a:", "b:", "c:", "d:", "e:", "-", "-"] * 3 + [f"{key}:" for key in KEYS]))
        value = draw(st.sampled_from(["", "", " "])) or draw(st.sampled_from(SCALARS))
        lines.append(indent + key + (f" {value}" if value.strip() else value))
    return draw(st.sampled_from(["\n"] * 5 + ["\r\n", "\n\n"])).join(lines) + draw(st.sampled_from(["\n", "\n", ""]))


def by_yaml(text: str) -> Any:
    try:
        return yamlfile._yaml().load(text)
    except Exception as error:
        return f"not YAML: {error}"


@settings(max_examples=1500, deadline=None)
@given(documents())
@example("a:\n- 1\n- x\nb:\n  c:\n  - 1\nd: {}\n")
@example("a: 1\na: 2\n")
@example("a:\n- 1\n  b: 2\n")
@example("a: 1\n  b: 2\n")
def test_what_is_read_the_short_way_is_what_yaml_says(text: str) -> None:
    short = yamlfile._plain(text)
    assert short is None or repr(short) == repr(by_yaml(text))


@pytest.mark.parametrize("value", SCALARS)
def test_no_value_is_taken_for_another(value: str) -> None:
    for text in (f"a: {value}\n", f"a:\n- {value}\n", f"a:\n  b: {value}\nc: 1\n"):
        short = yamlfile._plain(text)
        assert short is None or repr(short) == repr(by_yaml(text))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_one_changed_byte_of_a_runs_file_is_read_as_yaml_reads_it(config: str, seed: int) -> None:
    chance = random.Random(seed)
    at = chance.randrange(len(config))
    text = config[:at] + chance.choice(" \n:-'#x0\t{") + config[at + chance.randrange(2) :]
    short = yamlfile._plain(text)
    assert short is None or repr(short) == repr(by_yaml(text))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("made")
    (folder / "models.py").write_text("")
    changes = {"imports": [str(folder / "models.py")], "train.lr": 1e-5, "train.grad_clip": 1.0, "variant": "a b"}
    return make_plan(folder, changes).runs[-1].to_yaml()


def test_a_runs_file_is_read_the_short_way(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ruamel takes 5 ms for it: `status` of 1,000 runs would take as many seconds."""
    expected = by_yaml(config)
    monkeypatch.setattr(yamlfile, "_yaml", lambda: pytest.fail("ruamel was asked"))
    assert yamlfile.parse(config) == expected


def test_what_two_files_share_is_not_one_object() -> None:
    text = "model_args: {}\nimports: []\n"
    one, other = yamlfile.parse(text), yamlfile.parse(text)
    one["model_args"]["depth"] = 2
    one["imports"].append("a.py")
    assert other == {"model_args": {}, "imports": []}


def test_noise_needs_all_of_yaml(tmp_path: Path) -> None:
    for text in ("", "\n", "7\n", "- a\n", "[" * 3000, "\0\n", "a: 1"):
        assert yamlfile._plain(text) is None
