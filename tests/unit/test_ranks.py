"""Ranks as forks of their agent: how they end, what becomes of those that nobody begins, what an agent may import."""

from __future__ import annotations

import os
import shutil
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


DRIVER = """
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    int cuInit(unsigned flags) { fclose(fopen(getenv("ASKED"), "w")); return 100; }  /* CUDA_ERROR_NO_DEVICE */
    int cuDriverGetVersion(int *version) { *version = 99000; return 0; }
    static int other(void) { return 100; }
    int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, int *status)
    {
        *found = strcmp(name, "cuInit") == 0               ? (void *)cuInit
               : strcmp(name, "cuDriverGetVersion") == 0   ? (void *)cuDriverGetVersion
               : strncmp(name, "cuGetProcAddress", 16) == 0 ? (void *)cuGetProcAddress_v2
                                                            : (void *)other;
        if (status)
            *status = 0;
        return 0;
    }
    int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags)
    {
        return cuGetProcAddress_v2(name, found, version, flags, 0);
    }
"""
"""A CUDA driver that makes the file ASKED when it is asked for its GPUs, and has none."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for a driver that notes who asks for GPUs")
def test_what_an_agent_imports_leaves_gpus_and_threads_alone(tmp_path: Path) -> None:
    """A fork could use neither: CUDA refuses it, and a pool's threads are not there."""
    (tmp_path / "driver.c").write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "libcuda.so.1", "driver.c"], cwd=tmp_path, check=True)
    looks = """
        import os, runpy, sys
        import torch.distributed.run
        runpy.run_path(sys.argv[1], run_name="__mp_main__")
        assert "kdcluster.train.trainer" in sys.modules
        print(os.path.exists(os.environ["ASKED"]))
        print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("Threads")))
        torch.cuda.is_available()
        print(os.path.exists(os.environ["ASKED"]) or torch.version.cuda is None)
    """
    env = environment({**os.environ, "OPENBLAS_NUM_THREADS": "1"}, Layout("cpu", 1, 4))  # NumPy's ends at a fork
    env |= {"ASKED": str(tmp_path / "asked"), "LD_LIBRARY_PATH": str(tmp_path)}
    argv = [sys.executable, "-c", textwrap.dedent(looks), str(shipped("jobs/train.py"))]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "1", "True"], done.stderr
