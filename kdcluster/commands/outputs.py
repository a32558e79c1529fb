"""The file that a command writes instead of printing: which format the end of its name says, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import write_output

TABLES = {
    ".txt": "table",
    ".md": "md",
    ".markdown": "md",
    ".tex": "latex",
    ".html": "html",
    ".htm": "html",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""End of a file's name -> what a table is there."""
EVALUATIONS = {".txt": "table", ".json": "json", ".png": "png"}
PICTURES = (".pdf", ".png", ".svg", ".eps", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff")
DOCUMENTS = (".docx", ".doc", ".odt", ".rtf", ".xlsx", ".xls", ".ods", ".pptx", ".yaml", ".yml", ".parquet")


def style_of(output: Path | None, style: str | None, known: Mapping[str, str]) -> str:
    """The format that was asked for, else the one that the file's end says, else a table for people.

    Any text may stand in a .txt, and any format in a file whose end is nobody's.

    Raises:
        ConfigError: the end is that of another format, or of none that is written here.
    """
    end = output.suffix.lower() if output else ""
    says = known.get(end)
    others = {*known, *TABLES, *EVALUATIONS, *PICTURES, *DOCUMENTS}
    if style and (end not in others or says == style or (says == "table" and style != "png")):
        return style
    if style and says:
        raise ConfigError(f"--output {output} --format {style}: {end} is the end of {says}; leave one of them out")
    if says or not end:
        return says or "table"
    ends = ", ".join(known)
    draws = end in PICTURES and ".png" not in known
    hint = "; kdcluster plot draws pictures" if draws else "" if end in others else "; or say --format"
    raise ConfigError(f"--output {output}: its end says no format that is written here; there are {ends}{hint}")


def write(output: Path, content: str | bytes) -> None:
    """Write it whole.

    Raises:
        KdclusterError: it cannot be written.
    """
    try:
        write_output(output, content)
    except OSError as error:
        raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
