"""A run to its command: argv item by item, an environment that says nothing of another torchrun."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from kdcluster.experiment.config import Resources
from kdcluster.files import shipped
from kdcluster.launch.torchrun import Layout, Room, command, environment, layout, trainer

GOLDEN = Path(__file__).parents[1] / "golden" / "torchrun.txt"
LAYOUTS = {
    "one CPU process": Layout("cpu", 1, 2),
    "four CPU processes of one thread": Layout("cpu", 4, 1),
    "eight GPUs": Layout("cuda", 8, None),
}


def test_commands_are_as_agreed() -> None:
    runs, data = Path("/r"), Path("/d")
    places = {sys.executable: "{python}", str(shipped("jobs")): "{jobs}", str(runs): "{runs}", str(data): "{data}"}
    blocks = []
    for name, where in LAYOUTS.items():
        argv = command(runs / "teacher-resnet18-s0-01234567", data, where)
        for place, placeholder in places.items():
            argv = [item.replace(place, placeholder, 1) if item.startswith(place) else item for item in argv]
        blocks.append("\n".join([f"# {name}", *argv, ""]))
    assert "\n".join(blocks) == GOLDEN.read_text()


@pytest.mark.parametrize("odd", ["two words", "it's", 'say "hi"', "new\nline", "$HOME;*", "ü-Umlaut"])
def test_odd_names_stay_one_item(odd: str) -> None:
    run_dir, data = Path("/a") / odd / "run", Path("/b") / odd
    argv = command(run_dir, data, Layout("cpu", 1, 1))
    assert argv.count(str(run_dir)) == 1
    assert argv[argv.index("--data-dir") + 1] == str(data)
    assert shlex.split(shlex.join(argv)) == argv  # as `plan` prints it


def test_every_process_gets_what_one_process_gets() -> None:
    """`debug` starts without torchrun what torchrun starts otherwise."""
    where = Layout("cpu", 3, 2)
    assert "--report=/r/run/attempts/7" in command(Path("/r/run"), Path("/d"), where, attempt=7)
    for attempt in (None, 7):
        own = trainer(Path("/r/run"), Path("/d"), where, attempt)
        assert own[8:] == ([] if attempt is None else ["--attempt", "7"])
        assert command(Path("/r/run"), Path("/d"), where, attempt=attempt)[-len(own) :] == own
        assert own[0] == str(shipped("jobs/train.py"))
        assert Path(own[0]).is_file()


def test_the_environment_knows_nothing_of_another_torchrun() -> None:
    inherited = {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "8",
        "GROUP_RANK": "1",
        "ROLE_RANK": "3",
        "MASTER_ADDR": "elsewhere",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "x",
        "TORCHELASTIC_ERROR_FILE": "/x",
        "PET_NNODES": "4",
    }
    kept = {"PATH": "/bin", "HOME": "/h", "RANKING": "1", "CUDA_VISIBLE_DEVICES": "5", "TORCH_HOME": "/t"}
    env = environment({**inherited, **kept}, Layout("cuda", 1, None))
    assert env == {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo"}


def test_the_environment_of_a_run() -> None:
    base = {"OMP_NUM_THREADS": "64", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "GLOO_SOCKET_IFNAME": "ib0"}
    on_cpu = environment(base, Layout("cpu", 2, 3))
    assert on_cpu["OMP_NUM_THREADS"] == "3"
    on_gpu = environment(base, Layout("cuda", 2, None), gpus=["GPU-b", "GPU-c"])
    assert (on_gpu["CUDA_VISIBLE_DEVICES"], on_gpu["OMP_NUM_THREADS"]) == ("GPU-b,GPU-c", "64")
    assert on_gpu["GLOO_SOCKET_IFNAME"] == "ib0"  # the user's own
    assert "GLOO_SOCKET_IFNAME" not in environment({}, Layout("cpu", 4, 1, nodes=2))
    assert base["OMP_NUM_THREADS"] == "64"
    # As torchrun would have it for several processes of a node, but before torch is there.
    layouts = (Layout("cuda", 2, None), Layout("cuda", 2, None, nodes=2))
    assert [environment({}, layout).get("OMP_NUM_THREADS") for layout in layouts] == ["1", None]


@pytest.mark.parametrize(
    ("resources", "gpus_here", "cores_here", "expected"),
    [
        ({}, 0, 4, Layout("cpu", 1, 4)),
        ({}, 2, 4, Layout("cuda", 1, None)),
        ({"gpus": 8}, 0, 4, Layout("cuda", 8, None)),  # not there: an error later, never a silent CPU run
        ({"gpus": 2}, 8, 4, Layout("cuda", 2, None)),
        ({"device": "cuda"}, 0, 4, Layout("cuda", 1, None)),
        ({"device": "cuda", "gpus": 3}, 8, 4, Layout("cuda", 3, None)),
        ({"device": "cpu"}, 8, 4, Layout("cpu", 1, 4)),
        ({"device": "cpu", "procs": 3}, 8, 4, Layout("cpu", 3, 1)),
        ({"procs": 2}, 8, 5, Layout("cpu", 2, 2)),  # processes are CPU processes
        ({"procs": 9}, 0, 4, Layout("cpu", 9, 1)),  # more than cores: slow, not an error
        ({"device": "cpu", "threads": 3}, 0, 4, Layout("cpu", 1, 3)),
        ({"procs": 2, "threads": 1}, 0, 8, Layout("cpu", 2, 1)),
        ({"device": "cuda", "threads": 2}, 1, 8, Layout("cuda", 1, None)),
    ],
)
def test_layout(resources: dict[str, object], gpus_here: int, cores_here: int, expected: Layout) -> None:
    assert layout(Resources(**resources), Room(gpus_here, cores_here)) == expected  # type: ignore[arg-type]


def test_a_layout_in_words_and_cores() -> None:
    words = {str(where): where.cores for where in LAYOUTS.values()}
    assert words == {"1 CPU process of 2 threads": 2, "4 CPU processes of 1 thread": 4, "8 GPUs": 0}
    assert str(Layout("cuda", 1, None)) == "1 GPU"
