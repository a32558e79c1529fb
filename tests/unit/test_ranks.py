"""Ranks as forks of their agent: how they end, what becomes of those that nobody begins, what an agent may import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kdcluster.files import shipped
from kdcluster.launch.torchrun import Layout, environment

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    if __name__ == "__main__":
        assert os.getsid(0) == os.getpid()
        if os.environ["HOW"] == "says":
            print(os.getppid(), os.environ["RANK"], sys.argv[1:], flush=True)
        elif os.environ["HOW"] == "words":
            sys.exit("in words")
        elif os.environ["HOW"] == "code":
            sys.exit(3)
        elif os.environ["HOW"] == "raises":
            raise ValueError("as asked")
        elif os.environ["HOW"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif os.environ["HOW"] == "waits":
            signal.pause()
    """
)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def agent(code: str, script: Path) -> subprocess.Popen[str]:
    """A process with two ranks of the script, which are not begun, and what it is to do with them."""
    start = "import os, signal, subprocess, sys; from kdcluster.launch.ranks import fork_ranks\n"
    start += "ranks = fork_ranks([sys.argv[1], 'given'], 2)\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", start + textwrap.dedent(code), str(script)], text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("says", 0, ""),
        ("words", 1, "in words"),
        ("code", 3, ""),
        ("raises", 1, "ValueError: as asked"),
        ("killed", -signal.SIGKILL, ""),
    ],
)
def test_how_a_rank_ends(script: Path, how: str, code: int, said: str) -> None:
    asks = f"rank = ranks[0].begin({{'HOW': {how!r}, 'RANK': '7'}}); print(rank.wait(60), rank.poll(), os.getpid())"
    with agent(asks, script) as process:
        out, errors = process.communicate(timeout=60)
    *words, last = out.splitlines()
    assert last.split()[:2] == [str(code)] * 2, errors
    assert words == ([f"{process.pid} 7 ['given']"] if how == "says" else [])
    assert said in errors
    assert bool(errors) == bool(said)


def test_a_rank_that_runs_is_waited_for_no_longer_than_asked(script: Path) -> None:
    asks = """
        rank = ranks[0].begin({"HOW": "waits"})
        try:
            rank.wait(0.1)
        except subprocess.TimeoutExpired:
            print(rank.poll())
        os.killpg(rank.pid, signal.SIGTERM)
        print(rank.wait(60))
    """
    with agent(asks, script) as process:
        assert process.communicate(timeout=60)[0].split() == ["None", str(-signal.SIGTERM)]


def test_a_rank_that_is_gone_before_it_begins_is_no_error(script: Path) -> None:
    asks = "os.kill(ranks[0].pid, 9); os.waitid(os.P_PID, ranks[0].pid, os.WEXITED | os.WNOWAIT)\n"
    asks += "print(ranks[0].begin({}).wait(60))"
    with agent(asks, script) as process:
        assert process.communicate(timeout=60)[0].split() == [str(-signal.SIGKILL)]


def test_ranks_that_nobody_begins_end_with_their_agent(script: Path) -> None:
    with agent("print(*(rank.pid for rank in ranks), flush=True); signal.pause()", script) as process:
        assert process.stdout is not None
        pids = process.stdout.readline().split()
        process.kill()
    deadline = time.monotonic() + 60
    while any(Path("/proc", pid, "exe").exists() for pid in pids):  # a zombie has none
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_an_agent_imports_leaves_gpus_and_threads_alone() -> None:
    """A fork could use neither: CUDA refuses it, and a pool's threads are not there."""
    looks = """
        import runpy, sys, types
        import torch
        import torch.distributed.run

        asked = []
        sys.addaudithook(lambda event, about: event == "ctypes.dlopen" and asked.append(about))
        for module, names in ((torch._C, dir(torch._C)), (torch.cuda, ("_lazy_init", "is_available", "device_count"))):
            for name in names:
                if name in ("_lazy_init", "is_available", "device_count") or name.startswith("_cuda_"):
                    if isinstance(getattr(module, name), (types.FunctionType, types.BuiltinFunctionType)):
                        setattr(module, name, lambda *_, name=name: asked.append(name))
        runpy.run_path(sys.argv[1], run_name="__mp_main__")
        assert "kdcluster.train.trainer" in sys.modules
        assert not [about for about in asked if "cuda" in str(about) or "nvidia" in str(about)], asked
        assert not torch.cuda.is_initialized()
        print([line for line in open("/proc/self/status") if line.startswith("Threads")])
    """
    env = environment({**os.environ, "OPENBLAS_NUM_THREADS": "1"}, Layout("cpu", 1, 4))  # NumPy's ends at a fork
    argv = [sys.executable, "-c", textwrap.dedent(looks), str(shipped("jobs/train.py"))]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == r"['Threads:\t1\n']", done.stderr
