"""The file of an experiment with the best of its sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError
from kdcluster.experiment import configfile
from kdcluster.files import write_output
from kdcluster.sweep.points import Point, Space


def write_best(searched: Space, best: Mapping[str, Any], target: Path) -> None:
    """The experiment with the best values, as a file of its own; comments stay.

    Raises:
        ConfigError: another file is there already, or it cannot be written.
    """
    text = configfile.edited(searched.loaded, [*searched.overrides, *Point(dict(best), ()).settings])
    text = f"{_header(searched)}: {', '.join(f'{key} {value}' for key, value in best.items())}\n{text}"
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") != text:
        raise ConfigError(f"{target} is there already and is not overwritten; move it away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_output(target, text)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None


def refuse_target(searched: Space, target: Path) -> None:
    """Before anything is trained: refuse to write where there is a file that no sweep of the experiment wrote.

    Raises:
        ConfigError: there is one.
    """
    if target.exists() and not target.read_text(encoding="utf-8", errors="replace").startswith(_header(searched)):
        raise ConfigError(f"{target} is there already and is not overwritten; move it away, or leave --write-best out")


def _header(searched: Space) -> str:
    return f"# {searched.loaded.name} with the best of its sweep"
