"""TAB: what is offered where, what each shell's protocol makes of it, that it is quick, and that it never complains."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from tests.fabricated import put
from tests.tiny import make_plan, write_experiment


@pytest.fixture
def here(empty_folder: Path) -> Path:
    """A working directory with the experiment `tiny` and its runs."""
    (empty_folder / "configs").mkdir()
    path = write_experiment(empty_folder / "configs")
    path.write_text("# Tiny: α\n" + path.read_text())
    for run in make_plan(empty_folder).runs:
        put(empty_folder / "runs", run, "planned")
    (empty_folder / "tiny.yaml").unlink()
    (empty_folder / "runs" / "debug").mkdir()
    return empty_folder


def ids(here: Path, role: str = "") -> list[str]:
    return sorted(path.name for path in (here / "runs").glob(f"{role}*-s0-*"))


def asked(shell: str, words: str, **environment: str) -> list[str]:
    """The lines that a shell gets whose user has typed this, up to the cursor."""
    typed = words.split(" ")
    at = {"COMP_WORDS": words, "COMP_CWORD": typed[-1] if shell == "fish" else str(len(typed) - 1)}
    runner = CliRunner(env={**at, "_KDCLUSTER_COMPLETE": f"{shell}_complete", **environment})
    result = runner.invoke(main, [], prog_name="kdcluster", catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")
    return list(filter(None, result.stdout.splitlines()))


def offered(words: str, **environment: str) -> list[str]:
    """The words that bash is offered, or ["FILES"]."""
    lines = asked("bash", words, **environment)
    return ["FILES" if line.startswith("file,") else line.removeprefix("plain,") for line in lines]


# What is offered where


@pytest.mark.parametrize("command", ["plan", "results", "sweep", "debug", "prefetch", "verify", "doctor"])
def test_experiments(command: str, here: Path) -> None:
    assert offered(f"kdcluster {command} ") == ["tiny", "demo", "exp1", "exp2"]
    assert offered(f"kdcluster {command} ti") == ["tiny"]
    assert offered(f"kdcluster {command} ./con") == ["FILES"]


@pytest.mark.parametrize("command", ["submit", "status", "cancel", "rm", "logs", "diff"])
def test_experiments_and_runs(command: str, here: Path) -> None:
    assert offered(f"kdcluster {command} ") == ["tiny", "demo", "exp1", "exp2", *ids(here)]
    assert offered(f"kdcluster {command} teach") == ids(here, "teacher")
    assert offered(f"kdcluster {command} x") == ["FILES"]


@pytest.mark.parametrize("command", ["plan", "status", "diff tiny"])
def test_experiment_files_of_the_working_directory(command: str, here: Path) -> None:
    shutil.copy(here / "configs" / "tiny.yaml", here / "digits.yaml")
    (here / "other.yaml").write_text("somebody: else\n")
    os.mkfifo(here / "pipe.yaml")
    assert offered(f"kdcluster {command} di")[0] == "digits.yaml"
    assert not {"other.yaml", "pipe.yaml"} & set(offered(f"kdcluster {command} "))
    assert offered(f"kdcluster {command} ../") == ["FILES"]


def test_runs_of_the_runs_directory_that_is_meant(here: Path, tmp_path: Path) -> None:
    assert offered("kdcluster show ") == ids(here)
    (here / "runs").rename(tmp_path / "others")
    assert offered("kdcluster show ") == []
    found = offered(f"kdcluster show --runs-dir {tmp_path}/others d")
    assert found == sorted(path.name for path in (tmp_path / "others").glob("distilled*"))
    assert offered("kdcluster show d", KDCLUSTER_RUNS_DIR=f"{tmp_path}/others") == found


def test_what_was_given_is_not_offered_again(here: Path) -> None:
    assert "demo" not in offered("kdcluster plan demo ")
    assert offered("kdcluster diff tiny t") == ["tiny", *ids(here, "teacher")]


def test_keys_of_the_file_and_their_values(here: Path) -> None:
    keys = offered("kdcluster plan tiny --set ")
    assert {"train.lr=", "seeds=", "distill.alpha=", "student.model_args.", "teacher.train.lr="} <= set(keys)
    assert not {"train=", "train", "student"} & set(keys)
    assert offered("kdcluster plan --set train.opt") == ["train.optimizer="]
    assert offered("kdcluster plan --set train.schedule =") == ["constant", "cosine"]  # as bash takes the word apart
    assert offered("kdcluster plan --set train.schedule = cos") == ["cosine"]
    assert offered("kdcluster plan --set = train.schedule = cos") == ["cosine"]
    assert offered("kdcluster plan --set train.optimizer = adan") == ["adan", "adanw"]
    assert offered("kdcluster plan --set train.compile = t") == ["true"]
    assert offered("kdcluster plan --set train.grad_clip = ") == ["null"]
    assert offered("kdcluster plan --set nothing = ") == []


def test_roles_backends_profiles_and_choices(here: Path) -> None:
    assert offered("kdcluster plan tiny --role ") == ["teacher", "teacher-logits", "baseline", "distilled"]
    assert offered("kdcluster plan tiny --role teacher,b") == ["teacher,baseline"]
    assert offered("kdcluster submit tiny --backend ") == ["auto", "local", "slurm"]
    assert offered("kdcluster submit tiny --cluster d") == ["dev"]
    assert offered("kdcluster results tiny --format m") == ["md"]
    assert offered("kdcluster results tiny --output ") == ["FILES"]
    assert "--retry" in offered("kdcluster submit tiny --re")
    assert offered("kdcluster sho") == ["show"]


# What may stand in the way


def test_names_that_would_have_to_be_quoted_are_not_offered(here: Path) -> None:
    for name in ("a b", "$(touch x)", "a;b", "\x1b[2J", "*", "grün\u202e"):
        (here / "configs" / f"{name}.yaml").touch()
        (here / "runs" / f"teacher-{name}-s0-00000000").mkdir()
    assert offered("kdcluster plan ") == ["tiny", "demo", "exp1", "exp2"]
    assert offered("kdcluster show ") == [name for name in ids(here) if not name.endswith("-00000000")]


def test_what_cannot_be_read_has_no_names(here: Path) -> None:
    shutil.rmtree(here / "runs")
    (here / "runs").write_text("a file in the folder's place")
    (here / "configs" / "folder.yaml").mkdir()
    (here / "configs" / "broken.yaml").write_bytes(b"# \xff\x1b[2J\n")
    (here / "configs" / "gone.yaml").symlink_to("nowhere")
    assert offered("kdcluster show ") == []
    assert offered("kdcluster plan ")[:4] == ["broken", "folder", "gone", "tiny"]
    for words in (
        "kdcluster nothing ",
        "kdcluster plan --nothing ",
        "kdcluster plan 'tin",
        'kdcluster plan "',
        "kdcluster ",
    ):
        for shell in ("bash", "zsh", "fish"):
            asked(shell, words)


@pytest.mark.parametrize("words", ["kdcluster submit t", "kdcluster plan t", "kdcluster show d"])
def test_names_need_neither_pydantic_nor_yaml(words: str, here: Path) -> None:
    code = (
        "import sys, json\nfrom kdcluster.cli import main\n"
        "try:\n    main(prog_name='kdcluster')\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({'pydantic', 'ruamel', 'torch', 'rich'} & set(sys.modules))))"
    )
    at = {"COMP_WORDS": words, "COMP_CWORD": "2", "_KDCLUSTER_COMPLETE": "bash_complete"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env={**os.environ, **at}, capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout.splitlines()[-1]), done.stderr) == ([], "")
    assert len(done.stdout.splitlines()) > 1


# The protocol of each shell


def test_what_zsh_and_fish_are_told(here: Path) -> None:
    assert asked("zsh", "kdcluster plan ti") == ["plain", "tiny", "Tiny: α"]
    assert asked("zsh", "kdcluster show teach") == [
        word for run_id in ids(here, "teacher") for word in ("plain", run_id, "_")
    ]
    assert asked("zsh", "kdcluster plan --set=train.schedule=cos") == ["plain", "--set=train.schedule=cosine", "_"]
    assert asked("fish", "kdcluster plan ti") == ["plain,tiny\tTiny: α"]
    assert asked("fish", "kdcluster plan --role teacher,b") == ["plain,teacher,baseline"]
    assert asked("fish", "kdcluster results --columns top1,ga") == ["plain,top1,gain"]
    assert asked("fish", "kdcluster results --sort par") == ["plain,params"]
    assert asked("fish", "kdcluster plan --set train.schedule=cos") == ["plain,train.schedule=cosine"]
    assert asked("fish", "kdcluster plan ./con") == ["file,./con"]


@pytest.mark.parametrize(
    ("shell", "changes"),
    [
        ("bash", ["$1 2>/dev/null)", "compopt -o nospace"]),
        (
            "zsh",
            [
                "kdcluster 2>/dev/null)",
                '-U "${suffix[@]}"\n',
                'compadd -U "${suffix[@]}"',
                "response suffix\n",
                '-S ""',
            ],
        ),
        ("fish", ["kdcluster 2>/dev/null)", "split -m1"]),
    ],
)
def test_the_scripts_are_clicks_with_our_changes(shell: str, changes: list[str]) -> None:
    """A later click may have changed what ours stand in."""
    runner = CliRunner(env={"_KDCLUSTER_COMPLETE": f"{shell}_source"})
    script = runner.invoke(main, [], prog_name="kdcluster", catch_exceptions=False).stdout
    assert [change for change in changes if change not in script] == []


# Real shells

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'PS1=; eval "$(_KDCLUSTER_COMPLETE=bash_source kdcluster)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'PS1=; autoload -U compinit; compinit -D; eval "$(_KDCLUSTER_COMPLETE=zsh_source kdcluster)"',
    ),
}
TYPED = {
    "kdcluster submit ti\t": "kdcluster submit tiny ",
    "kdcluster show teacher-v\t": "kdcluster show TEACHER ",
    "kdcluster plan tiny --set train.opti\t": "kdcluster plan tiny --set train.optimizer=",
    "kdcluster plan tiny --set=train.schedule=cos\t": "kdcluster plan tiny --set=train.schedule=cosine ",
    "kdcluster plan tiny --role teacher,b\t": "kdcluster plan tiny --role teacher,baseline ",
    "kdcluster plan ./confi\t": "kdcluster plan ./configs/",
}


@pytest.fixture
def on_the_path(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`kdcluster` as a user has it."""
    command = tmp_path / "bin" / "kdcluster"
    command.parent.mkdir()
    code = "from kdcluster.cli import main; main(prog_name='kdcluster')"
    argv = shlex.join([sys.executable, "-c", code])  # a first line of `#!` ends at a blank in a path
    command.write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("TERM", "dumb")
    return here


class Terminal:
    """A shell on a terminal."""

    def __init__(self, argv: list[str]) -> None:
        self.fd, inside = pty.openpty()
        self.process = subprocess.Popen(argv, stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
        os.close(inside)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, word: str) -> str:
        """What it shows until it has shown a word."""
        shown, last = b"", time.monotonic() + 120
        while word.encode() not in shown:
            assert time.monotonic() < last, shown
            if select.select([self.fd], [], [], 1)[0]:
                shown += os.read(self.fd, 4096)
        return shown.decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def needs(shell: str) -> None:
    """In CI nothing is skipped: .ci/run installs them."""
    if os.environ.get("CI") != "true" and shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, on_the_path: Path) -> Iterator[Terminal]:
    argv, load = SHELLS[request.param]
    needs(argv[0])
    shell = Terminal(argv)
    shell.type(f"{load}; echo rea''dy\n")
    shell.until("ready")
    yield shell
    shell.close()


def test_a_real_shell_completes_what_is_typed(terminal: Terminal, here: Path) -> None:
    [teacher] = ids(here, "teacher-v")
    for typed, wanted in TYPED.items():
        terminal.type(f"{typed}HERE\x01: '\x05'; echo en''d\n")  # into quotes, so that nothing of it is run
        shown = terminal.until("end\r\n").replace("\r", "")
        assert f": '{wanted.replace('TEACHER', teacher)}HERE'; echo" in shown, shown


def test_a_real_fish_is_offered_the_same(on_the_path: Path, here: Path) -> None:
    needs("fish")
    [teacher] = ids(here, "teacher-v")
    for typed, wanted in TYPED.items():
        line = typed.rstrip()
        code = f"_KDCLUSTER_COMPLETE=fish_source kdcluster | source; complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split("\t")[0].strip() == wanted.split()[-1].replace("TEACHER", teacher)
        assert done.stderr == ""
