"""Which code ran: commit and uncommitted changes of kdcluster's checkout and of the working directory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kdcluster
from kdcluster.files import trainer_code


def code_state() -> tuple[dict[str, Any], str]:
    """({"kdcluster", "trainer_code", "git": {folder: {"commit", "dirty"}}}, the diff of what is uncommitted)."""
    git: dict[str, Any] = {}
    diffs = []
    for folder in dict.fromkeys((Path(kdcluster.__file__).resolve().parent, Path.cwd())):
        top = _git(folder, "rev-parse", "--show-toplevel")
        if top is None or top.strip() in git:
            continue
        root = Path(top.strip())
        diff = _git(root, "diff", "HEAD") or ""
        commit = _git(root, "rev-parse", "HEAD")
        git[str(root)] = {
            "commit": commit and commit.strip(),
            "dirty": bool(_git(root, "status", "--porcelain")),
        }
        diffs.append(diff)
    return {"kdcluster": kdcluster.__version__, "trainer_code": trainer_code(), "git": git}, "".join(diffs)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
