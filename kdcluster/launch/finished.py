"""Ask a child process that has torch for what is made of finished runs (train/finished)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.launch.child import asked
from kdcluster.plan import Run


def export(runs: Sequence[Run], root: Path, data_dir: Path, into: Path) -> list[dict[str, Any]]:
    """What `kdcluster.train.finished.export` says of the folders that it has written, one a run, named by its id.

    Raises:
        ConfigError, KdclusterError: why it could not.
    """
    found: list[dict[str, Any]] = _made(
        "export", runs, root, data_dir, ["--into", str(into)], "exporting; nothing was written"
    )
    return found


def evaluate(run: Run, root: Path, data_dir: Path, folder: Path, device: str) -> dict[str, Any]:
    """What `kdcluster.train.finished.other_images` says of a run on the images of a folder.

    Raises:
        ConfigError, KdclusterError: why it could not.
    """
    options = ["--images", str(folder), "--device", device]
    found: dict[str, Any] = _made("other_images", [run], root, data_dir, options, "evaluating; nothing was written")
    return found


def benchmark(runs: Sequence[Run], root: Path, data_dir: Path) -> list[dict[str, Any]]:
    """What stands in the benchmark.json of some runs; measured where there is none of this machine.

    Raises:
        ConfigError, KdclusterError: why it could not be.
    """
    found: list[dict[str, Any]] = _made(
        "benchmark", runs, root, data_dir, [], "measuring; what was measured before is kept"
    )
    return found


def _made(module: str, runs: Sequence[Run], root: Path, data_dir: Path, options: Sequence[str], what: str) -> Any:
    where = ["--runs-dir", str(root), "--data-dir", str(data_dir)]
    return found_in(asked(f"finished.{module}", runs, [*options, *where], what))


def found_in(answer: Mapping[str, Any]) -> Any:
    """What the child has found.

    Raises:
        ConfigError, KdclusterError: what it has raised.
    """
    if "found" in answer:
        return answer["found"]
    if answer["exit_code"] == ConfigError.exit_code:
        raise ConfigError(*answer["problems"])
    raise KdclusterError(*answer["problems"])
