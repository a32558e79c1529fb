"""Images are decoded by processes as they are by one, and a build that was killed goes on to the same bytes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcluster.errors import ConfigError
from kdcluster.plan import Run
from kdcluster.processes import descendants, is_alive, process_record
from kdcluster.train import bar, data, decode, pixels, pool
from tests.unit.test_data import folder_run, save, spoilt

FORK = multiprocessing.get_context("fork")
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, for torch's threads
HANG_S = 60


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Two processes decode all but the first two images, whatever it costs; those that were started."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def popen(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(start(*args, **options))
        return started[-1]

    for name, value in (("START_S", 0.0), ("CHUNK", 2), ("threads_available", lambda: 2)):
        monkeypatch.setattr(pool, name, value)
    monkeypatch.setattr(pool.subprocess, "Popen", popen)
    return started


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left to do, this process does it."""
    monkeypatch.setattr(pool, "threads_available", lambda: 1)


def make_folder(root: Path, train: int = 16, test: int = 6, size: int = 24) -> Path:
    """An image folder of two classes, noise in BMP: an image can be changed and keep its size in bytes."""
    rng = np.random.RandomState(0)
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            save(root / split / "ab"[i % 2] / f"{i:03}.bmp", rng.randint(0, 256, (size, size, 3)))
    shutil.copy(root / "train" / "a" / "000.bmp", root / "test" / "b" / "001.bmp")  # in both
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def built(run: Run, place: Path) -> dict[str, bytes]:
    return content(data.prepare(run, place, verify=True).folder)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Iterator[tuple[Run, dict[str, bytes]]]:
    """A run of 22 images, and its arrays as one process makes them in one go."""
    run = folder_run(tmp_path, make_folder(tmp_path / "images"), image_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "threads_available", lambda: 1)
        yield run, built(run, tmp_path / "undisturbed")


# --- processes


def test_processes_make_the_same_bytes(tmp_path, undisturbed, processes):
    run, wanted = undisturbed
    assert built(run, tmp_path) == wanted
    assert set(wanted) == {f"{s}_{w}.npy" for s in ("train", "test") for w in ("images", "labels")} | {"meta.json"}
    assert len(processes) == 4  # two a split
    assert None not in [one.returncode for one in processes]
    assert data.open_arrays(run, tmp_path).seen.notes[-1].startswith("1 test image is among the training images")


def test_sizes_are_looked_up_by_processes_too(tmp_path, processes):
    root = make_folder(tmp_path / "images")
    assert data.prepare(folder_run(tmp_path, root), tmp_path).images["train"].shape == (16, 3, 24, 24)
    assert len(processes) == 6


def test_a_small_folder_is_not_worth_a_process(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(pool, "threads_available", lambda: 8)
    monkeypatch.setattr(pool, "_in_processes", lambda *_: pytest.fail("started"))
    run, wanted = undisturbed
    assert built(run, tmp_path) == wanted


@pytest.mark.parametrize("cores", [1, 2])
def test_what_processes_cost_decides(tmp_path, monkeypatch, cores):
    """Of 100 files that take a second each the others would save much; one core has no other."""
    now = 0.0

    def work(_: int, paths: list[Path]) -> list[Path]:
        nonlocal now
        now += len(paths)
        return paths

    paths = [Path(str(i)) for i in range(100)]
    handed_over = []
    monkeypatch.setattr(pool, "threads_available", lambda: cores)
    monkeypatch.setattr(pool.time, "perf_counter", lambda: now)
    monkeypatch.setattr(pool, "_in_processes", lambda work, all_, first, *_: handed_over.append(first) or all_[first:])
    assert pool.each(work, paths, "counting") == paths
    assert handed_over == ([pool.CHUNK] if cores > 1 else [])


def deep(root: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(root / "test" / "ape" / "0.png")


@pytest.mark.parametrize("spoil", [lambda _: None, deep], ids=["broken", "and 16 bits"])
def test_broken_images_are_told_as_by_one_process(tmp_path, processes, monkeypatch, spoil):
    root = spoilt(tmp_path)
    spoil(root)
    told = []
    for cores in (2, 1):
        monkeypatch.setattr(pool, "threads_available", lambda cores=cores: cores)
        with pytest.raises(ConfigError) as caught:
            data.prepare(folder_run(tmp_path, root), tmp_path)
        told.append(caught.value.problems)
        assert [path.suffix for path in (tmp_path / "arrays").iterdir()] == [".lock"]
    assert told[0] == told[1]
    assert len(told[0]) == (4 if spoil is not deep else 6)
    assert processes


def test_broken_images_are_left_out_by_processes(tmp_path, processes, monkeypatch):
    run = folder_run(tmp_path, spoilt(tmp_path), skip_broken=True)
    made = built(run, tmp_path / "two")
    assert processes
    monkeypatch.setattr(pool, "threads_available", lambda: 1)
    assert built(run, tmp_path / "one") == made


def test_an_error_of_ours_in_a_process_keeps_its_place(tmp_path, processes):
    with pytest.raises(TypeError) as caught:
        pool.each(Broken(), [Path("a")] * 4, "counting")
    assert "in main\n    result = work(start, paths)" in "".join(caught.value.__notes__)


class Broken:
    """Works here; in another process it takes one argument, and not two."""

    def __call__(self, _: int, paths: list[Path]) -> list[Path]:
        return paths

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return attrgetter, ("no_such",)


# --- what is left running, and what is left on the disk


@contextmanager
def building(run: Run, place: Path, chunks: int) -> Iterator[multiprocessing.Process]:
    """A process that builds in two of its own, and waits for ever once it has so many pairs of images from them."""

    def child() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
        left, wait = iter(range(chunks)), pool.wait

        def one_at_a_time(connections: list[Connection]) -> list[object]:
            if next(left, None) is None:
                signal.pause()
            return wait(connections)[:1]

        pool.START_S, pool.CHUNK, pool.threads_available, pool.wait = 0.0, 2, lambda: 2, one_at_a_time
        data.prepare(run, place)

    process = FORK.Process(target=child)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def marked(place: Path) -> int:
    """How many images are decoded, as far as their marks say."""
    count = 0
    for path in place.glob(f"arrays/.*.aside/*{decode.MARKS}"):
        with suppress(ValueError, EOFError, FileNotFoundError):  # just now made, or removed
            count += int(np.count_nonzero(np.load(path)["mtime_ns"]))
    return count


@forks
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_a_build_leaves_no_process(tmp_path, number, processes):
    run = folder_run(tmp_path, make_folder(tmp_path / "images", train=200, size=200), image_size=100)
    with building(run, tmp_path, 10) as process:
        until(lambda: len(descendants(process.pid)) == 2)
        children = [process_record(pid) for pid in descendants(process.pid)]
        os.kill(process.pid, number)
        process.join(HANG_S)
        until(lambda: not any(is_alive(one) for one in children))
    assert process.exitcode != 0
    assert built(run, tmp_path)


def test_a_process_that_is_killed_is_named_and_its_work_kept(tmp_path, undisturbed, processes, monkeypatch):
    run, wanted = undisturbed
    start = pool.subprocess.Popen

    def killed(*args: object, **options: object) -> subprocess.Popen[bytes]:
        child = start(*args, **options)
        child.kill()
        return child

    monkeypatch.setattr(pool.subprocess, "Popen", killed)
    with pytest.raises(pool.Lost, match=r"ended with -9 while it was decoding .*run the same command again"):
        data.prepare(run, tmp_path)
    assert marked(tmp_path) == 2  # by this process, before
    monkeypatch.setattr(pool.subprocess, "Popen", start)
    assert built(run, tmp_path) == wanted


def test_the_check_of_models_and_data_ends_with_who_asked():
    """It may decode for hours."""
    asks = "from pathlib import Path; from kdcluster.launch.preflight import preflight as p; p([], Path(), fetch=False)"
    process = subprocess.Popen([sys.executable, "-c", asks], stderr=subprocess.PIPE)
    until(lambda: descendants(process.pid))
    process.kill()
    _, told = process.communicate(timeout=HANG_S)  # the end of the file: nobody has it open any more
    assert told in (b"", b"ending: the kdcluster that asked is gone\n")


# --- going on after a kill


@forks
def test_ten_kills_at_random_moments_leave_the_same_bytes(tmp_path, caplog, processes):
    run = folder_run(tmp_path, make_folder(tmp_path / "images", train=300, test=100, size=64), image_size=48)
    wanted = built(run, tmp_path / "undisturbed")
    moments = sorted(random.Random(0).sample(range(300), 10))
    for moment in moments:
        with building(run, tmp_path, moment // 2 + 1) as process:
            until(lambda moment=moment: marked(tmp_path) >= moment)
            children = [process_record(pid) for pid in descendants(process.pid)]
            process.kill()
            process.join(HANG_S)
            assert process.exitcode == -signal.SIGKILL
            until(lambda children=children: not any(is_alive(one) for one in children))
    before = marked(tmp_path)
    assert before >= moments[-1]
    with caplog.at_level(logging.INFO):
        assert built(run, tmp_path) == wanted
    there = [int(text.split()[2]) for text in caplog.messages if "from an earlier start" in text]
    assert (
        before - 8 <= sum(there) <= before
    )  # each of two processes may have been in one image, whenever it was killed


def stopped_after(count: int, run: Run, place: Path) -> Path:
    """Build, and stop as Ctrl-C does once so many images are there; returns what is left."""
    seen = 0
    real = pixels._decoded

    def decoded(*args: object) -> object:
        nonlocal seen
        seen += 1
        if seen > count:
            raise KeyboardInterrupt
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_decoded", decoded)
        with pytest.raises(KeyboardInterrupt):
            data.prepare(run, place)
    assert marked(place) == count
    (left,) = place.glob("arrays/.*.aside")
    return left


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are decoded in this process."""
    seen: list[Path] = []
    real = pixels._decoded
    monkeypatch.setattr(pixels, "_decoded", lambda path, *size: seen.append(path) or real(path, *size))
    return seen


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("count", [5, 16, 20])
def test_only_what_is_missing_is_decoded(tmp_path, undisturbed, decoded, count):
    run, wanted = undisturbed
    stopped_after(count, run, tmp_path)
    decoded.clear()
    assert built(run, tmp_path) == wanted
    assert len(decoded) == 22 - count


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        at = file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def touched(left: Path, root: Path) -> None:
    pixels_of = np.zeros((24, 24, 3), np.uint8)
    Image.fromarray(pixels_of).save(root / "train" / "a" / "002.bmp")


LOSSES: dict[str, tuple[Callable[[Path, Path], object], int]] = {
    "a bit of a pixel": (lambda left, _: flip(left / "train_images.npy", -1 + 128 + 3 * 768), 1),
    "a bit of a mark": (lambda left, _: flip(next(left.glob(f"*{decode.MARKS}")), -15 * pixels.MARK.itemsize), 1),
    "half of the pixels": (lambda left, _: os.truncate(left / "train_images.npy", 128 + 5 * 768), 5),
    "all pixels": (lambda left, _: (left / "train_images.npy").unlink(), 10),
    "all marks": (lambda left, _: next(left.glob(f"*{decode.MARKS}")).unlink(), 10),
    "the header": (lambda left, _: flip(left / "train_images.npy", 0), 10),
    "a stranger's file": (lambda left, _: (left / ".meta.json.abcdefgh.aside").write_text("{"), 0),
    "the image itself": (touched, 1),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", LOSSES)
def test_what_is_not_whole_is_decoded_again(tmp_path, undisturbed, decoded, what):
    """After a crash of the machine the disk may lack anything that was written last."""
    run, _ = undisturbed
    left = stopped_after(10, run, tmp_path)
    lose, again = LOSSES[what]
    lose(left, tmp_path / "images")
    decoded.clear()
    made = built(run, tmp_path)
    assert len(decoded) == 12 + again
    assert made == built(run, tmp_path / "as new")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("change", ["decoder", "code"])
def test_another_decoder_begins_again(tmp_path, undisturbed, decoded, monkeypatch, change):
    run, wanted = undisturbed
    stopped_after(10, run, tmp_path)
    if change == "decoder":
        monkeypatch.setattr(decode.PIL, "__version__", "0.1")
    else:
        monkeypatch.setattr(decode, "trainer_code", lambda: "other")
    decoded.clear()
    assert built(run, tmp_path) == wanted
    assert len(decoded) == 22


# --- what is said meanwhile


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(bar.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    with bar.Pace("decoding", 10_000) as pace:
        for _ in range(10):
            now += 10.0
            pace.add(1000)
    assert caplog.messages == [
        "decoding: 3,000 of 10,000, 100 images/s, 70 s left",
        "decoding: 6,000 of 10,000, 100 images/s, 40 s left",
        "decoding: 9,000 of 10,000, 100 images/s, 10 s left",
    ]
