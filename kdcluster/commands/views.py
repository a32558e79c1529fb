"""`kdcluster views`: a contact sheet of what the models will see."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kdcluster.commands.arguments import Chosen
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import write_output
from kdcluster.launch.preflight import contact_sheet
from kdcluster.terminal import say, show


def views(chosen: Chosen, experiment: str, output: Path) -> None:
    """Write it, and say where.

    Raises:
        ConfigError: the file's name does not end in .png.
        KdclusterError: the images are not here; the file cannot be written.
    """
    if output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: a contact sheet is a .png")
    runs = chosen.plan(experiment).runs
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "sheet.png"
        found = contact_sheet(runs, chosen.data, made)
        content = made.read_bytes()
    try:
        write_output(output, content)
    except OSError as error:
        raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
    for caption in found["sections"]:
        say(caption)
    show(str(output))
