"""What a run has saved, looked at without torch and without reading it all: what can be loaded, what cannot.

runs/<id>/checkpoints/step-00000120.ckpt      written and read by train/checkpoint.py
    8 bytes "KDCKPT1\\n", 8 bytes length, 4 bytes CRC-32C of what follows (big-endian), then a torch file
runs/<id>/best.safetensors  last.safetensors
    8 bytes length (little-endian) of a JSON header, the header, the tensors where it says
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

from kdcluster.errors import Damaged
from kdcluster.files import file_digest, read_json

MAGIC = b"KDCKPT1\n"
HEADER = struct.Struct(">8sQ4s")


def path_of(folder: Path, step: int) -> Path:
    """A checkpoint in the folder of checkpoints."""
    return folder / f"step-{step:08}.ckpt"


def steps(folder: Path) -> list[int]:
    """Steps of which there is a checkpoint, in order; a file with another name is none."""
    found = [(path, path.stem.removeprefix("step-")) for path in folder.glob("step-*.ckpt") if path.is_file()]
    return sorted(int(digits) for path, digits in found if digits.isdecimal() and path == path_of(folder, int(digits)))


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint that is not cut, 0 without one; its check sum is looked at when it is loaded."""
    return next((step for step in reversed(steps(folder)) if not checkpoint_problem(path_of(folder, step))), 0)


def checkpoint_problem(path: Path) -> str:
    """Why a checkpoint cannot be whole, by its header and its size; empty where it can."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            size = os.fstat(file.fileno()).st_size - HEADER.size
    except OSError as error:
        return error.strerror or str(error)
    if size < 0:
        return f"{len(header)} bytes are no checkpoint"
    magic, length, _ = HEADER.unpack(header)
    if magic != MAGIC:
        return "not a checkpoint of this version"
    return "" if size == length else f"cut after {size} of {length} bytes"


def weights_record(path: Path) -> dict[str, Any]:
    """What result.json says of a file of weights."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def weights_problem(run: Path, which: str) -> str:
    """What is wrong with the `best` or `last` weights in a run's folder: "gone", "damaged (why)"; empty: nothing.

    They are held against result.json: the size each time, the check sum when the file has changed. Where it says
    nothing of them, as an older version's, or cannot be read, the file's own header has to do.
    """
    path, expected = run / f"{which}.safetensors", _recorded(run, which)
    if not path.is_file():
        return "gone"
    try:
        size = path.stat().st_size
        whole = expected["bytes"] if expected else _safetensors_size(path)
        if size != whole:
            return f"damaged ({size} of {whole} bytes)"
        return "damaged (its check sum is wrong)" if expected and file_digest(path) != expected["sha256"] else ""
    except (OSError, ValueError) as error:
        return f"damaged ({getattr(error, 'strerror', error)})"


def weights_digest(run: Path, which: str) -> str:
    """The check sum that result.json has of the `best` or `last` weights in a run's folder; empty: it says none."""
    return str(_recorded(run, which).get("sha256", ""))


def _recorded(run: Path, which: str) -> dict[str, Any]:
    """What result.json says of weights; nothing where it cannot be read."""
    try:
        record = read_json(run / "result.json")["weights"][which]
        return {"bytes": int(record["bytes"]), "sha256": str(record["sha256"])}
    except (Damaged, OSError, ValueError, LookupError, TypeError):
        return {}


def _safetensors_size(path: Path) -> int:
    """How large a file of safetensors has to be, by its header.

    Raises:
        ValueError: it has none.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError("no header of safetensors")
        header = file.read(length)
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        return 8 + length + max((int(one["data_offsets"][1]) for one in tensors), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError("no header of safetensors") from None
