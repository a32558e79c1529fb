"""Ask a child process that has torch: the launching half has none.

It reads runs on stdin and answers with one JSON document on stdout (train/preflight.py: `answer_about`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from kdcluster.errors import KdclusterError
from kdcluster.plan import Run


def asked(module: str, runs: Iterable[Run], options: Sequence[str], what: str) -> Any:
    """What `python -m kdcluster.train.<module>` says of some runs.

    Args:
        module: its name below kdcluster.train.
        runs: likewise.
        options: of its command line.
        what: it does, for the error: `checking models; nothing was started`.

    Raises:
        KdclusterError: it has failed, and its own error stands above.
    """
    argv = [sys.executable, "-P", "-m", f"kdcluster.train.{module}", *options, "--parent", str(os.getpid())]
    given = json.dumps([run.model_dump(mode="json") for run in runs])
    done = subprocess.run(argv, input=given, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        doing, _, so = what.partition("; ")
        raise KdclusterError(f"{doing} ended with {done.returncode}; {so}; its error stands above")
    return json.loads(done.stdout)
