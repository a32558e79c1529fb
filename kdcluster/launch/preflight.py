"""Ask a child process that has torch to try the models and to fetch data and weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcluster import inputs
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.plan import Run


def preflight(runs: Iterable[Run], data_dir: Path, *, fetch: bool) -> dict[str, Any]:
    """What `kdcluster.train.preflight` found: {"models": {run id: {"params", …}}, "notes": [text]}.

    Raises:
        ConfigError: a model, its weights or the data are not usable; every problem at once.
    """
    argv = [sys.executable, "-P", "-m", "kdcluster.train.preflight", "--data-dir", str(data_dir)]
    runs = list(runs)
    given = json.dumps([run.model_dump(mode="json") for run in runs])
    done = subprocess.run([*argv, *(["--fetch"] if fetch else [])], input=given, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise KdclusterError(
            f"checking models and data ended with {done.returncode}; nothing was started; its error stands above"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["problems"]:
        raise ConfigError(*found["problems"])
    for run in {f"{run.model!r} {run.imports}": run for run in runs}.values():
        if built := found["models"][run.id]:  # none of a store whose teacher is done
            inputs.remember(run, built["image_size"], built["patch"])
    return found
