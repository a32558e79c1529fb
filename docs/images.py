"""The pictures of the README, from the finished demo (`make demo`): `make docs-images`."""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

from kdcluster.experiment import configfile
from kdcluster.report.facts import gather
from kdcluster.report.page import page
from tests.browser import chromium, missing, show

WIDTH, SCALE = 1100, 1.5
"""Of the window, in CSS pixels, and how many pixels one of them has."""
LAST = "e0-gain-of-each-seed"
"""The heading at which the picture ends."""
LARGEST = 300_000
"""Bytes."""


def main(root: Path, target: Path) -> None:
    """Picture the upper part of the demo's report."""
    from PIL import Image

    if why := missing():
        sys.exit(why)
    facts = gather(configfile.load("demo"), [], root, root.parent / "data", ("demo",))
    if not facts.table.complete:
        sys.exit(f"the demo is not finished in {root}: make demo")
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as driver:
        file = Path(folder) / "report.html"
        file.write_text(page([facts], time.strftime("%Y-%m-%d")), encoding="utf-8")
        show(driver, file, WIDTH, "light", SCALE)
        height = driver.execute_script(f"return document.getElementById('{LAST}').getBoundingClientRect().top")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    image = (
        Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    )
    image.save(target, optimize=True)
    if (size := target.stat().st_size) > LARGEST:
        sys.exit(f"{target} has {size:,} bytes; at most {LARGEST:,} are wanted")


if __name__ == "__main__":
    main(Path("runs").absolute(), Path(__file__).with_name("report.png"))
