"""What a run has saved, looked at without loading it: damage that shows in a header, a size or a check sum."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcluster import saved
from kdcluster.files import write_json
from kdcluster.runs import RunDir
from tests.fabricated import NO_WEIGHTS, save
from tests.tiny import make_run, prepare


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return prepare(tmp_path / "runs", make_run(tmp_path, "teacher"))


def test_without_checkpoints_nothing_is_saved(run_dir: RunDir) -> None:
    assert run_dir.saved_step() == 0
    run_dir.checkpoints.write_text("a file in the folder's place")
    assert run_dir.saved_step() == 0


@pytest.mark.parametrize("damage", [b"", b"KDCKPT1\n", b"x" * 4096])
def test_a_checkpoint_that_cannot_be_loaded_is_not_saved(run_dir: RunDir, damage: bytes) -> None:
    save(run_dir, 4)
    newest = save(run_dir, 6)
    assert run_dir.saved_step() == 6
    newest.write_bytes(newest.read_bytes()[:-1])
    assert run_dir.saved_step() == 4
    assert saved.checkpoint_problem(newest) == "cut after 3 of 4 bytes"
    newest.write_bytes(damage)
    assert run_dir.saved_step() == 4


def test_what_has_an_odd_name_is_no_checkpoint(run_dir: RunDir) -> None:
    whole = save(run_dir, 4).read_bytes()
    for name in ("step-old.ckpt", "step-.ckpt", "step-9.ckpt", "step-00000009 (copy).ckpt", "step-0000000²9.ckpt"):
        (run_dir.checkpoints / name).write_bytes(whole)
    (run_dir.checkpoints / "step-00000012.ckpt").mkdir()
    (run_dir.checkpoints / "step-00000013.ckpt").symlink_to("nowhere")
    os.mkfifo(run_dir.checkpoints / "step-00000014.ckpt")
    assert saved.steps(run_dir.checkpoints) == [4]
    assert run_dir.saved_step() == 4


def weights(*tensors: tuple[int, int]) -> bytes:
    """A file of safetensors with tensors of bytes at these offsets."""
    header = {str(n): {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for n, (a, b) in enumerate(tensors)}
    text = json.dumps({"__metadata__": {"step": "3"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(max((end for _, end in tensors), default=0))


WHOLE = weights((0, 10), (10, 64))
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "damaged (0 of ": lambda data: b"",
    f"damaged ({len(WHOLE) - 1} of {len(WHOLE)} bytes)": lambda data: data[:-1],
    f"damaged ({len(WHOLE) + 1} of {len(WHOLE)} bytes)": lambda data: data + b"\0",
    "damaged (its check sum is wrong)": lambda data: data[:-1] + b"\1",
}


@pytest.mark.parametrize("said", DAMAGE)
def test_weights_are_held_against_what_the_result_says_of_them(run_dir: RunDir, said: str) -> None:
    path = run_dir.weights("best")
    path.write_bytes(WHOLE)
    write_json(run_dir.path / "result.json", {"weights": {"best": saved.weights_record(path)}})
    assert run_dir.weights_problem("best") == ""
    assert run_dir.weights_problem("last") == "gone"
    path.write_bytes(DAMAGE[said](WHOLE))
    assert run_dir.weights_problem("best").startswith(said)
    path.unlink()
    assert run_dir.weights_problem("best") == "gone"
    path.mkdir()
    assert run_dir.weights_problem("best") == "gone"


@pytest.mark.parametrize("result", ["", "null", "[]", '{"best": {}}', '{"weights": {"best": 7}}', None])
def test_weights_that_the_result_says_nothing_of_have_a_header(run_dir: RunDir, result: str | None) -> None:
    """An older version's; or it is damaged itself, which is said elsewhere."""
    if result is not None:
        (run_dir.path / "result.json").write_text(result)
    path = run_dir.weights("best")
    for whole in (WHOLE, NO_WEIGHTS, weights()):
        path.write_bytes(whole)
        assert run_dir.weights_problem("best") == ""
    path.write_bytes(WHOLE[:-1])
    assert run_dir.weights_problem("best") == f"damaged ({len(WHOLE) - 1} of {len(WHOLE)} bytes)"
    nonsense = [(len(text).to_bytes(8, "little") + text) for text in (b"[]", b'{"a": 1}', b"{{", b"\xff\xfe")]
    for data in (b"", b"PK\3\4", b"x" * 4096, WHOLE[:20], *nonsense):
        path.write_bytes(data)
        assert run_dir.weights_problem("best") in ("damaged (no header of safetensors)", "damaged (0 of 8 bytes)")


def test_a_check_sum_is_taken_anew_only_where_the_file_has_changed(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_dir.weights("best")
    path.write_bytes(WHOLE)
    write_json(run_dir.path / "result.json", {"weights": {"best": saved.weights_record(path)}})
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert run_dir.weights_problem("best") == ""
