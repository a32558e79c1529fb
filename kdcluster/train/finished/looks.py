"""What images are like before they are decoded, without torch: a work of pool.py's processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kdcluster.imagefolder import upright_size

Look = tuple[tuple[int, int], bool]
"""(H, W) upright, and whether it is grey."""
_GREY = {"1", "L", "La", "LA"}


def looks(_: int, paths: Sequence[Path]) -> list[Look | None]:
    """Of each image; None for one that cannot be read, which whoever decodes it says."""
    return [_look(path) for path in paths]


def _look(path: Path) -> Look | None:
    try:
        with Image.open(path) as image:
            return upright_size(image), image.mode in _GREY
    except Exception:  # for a broken file PIL raises OSError, SyntaxError, ValueError, struct.error, …
        return None
