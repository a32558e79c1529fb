"""Where a run begins: at the end of the same run with fewer epochs, where that gives the same numbers as from scratch.

That is so under a constant schedule, where no step knows how many are to come, with the same software and layout. A
run whose length is said in `steps` begins at no other's end: it is evaluated after each tenth of its own steps, so the
shorter one's evaluations are not among its own, and it could choose its best from more than one from scratch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.files import trainer_code
from kdcluster.plan import Run
from kdcluster.runs import RunDir
from kdcluster.saved import checkpoint_problem, path_of

BEGUN = "begun.json"
"""In a run's directory: the `run` at whose end it began, and the `step`."""
APART = {"epochs", "checkpoint_every"}
"""What may differ in `train`."""


def begins_from(run: Run, root: Path, there: Collection[str], known: Mapping[str, Any]) -> tuple[RunDir, str] | None:
    """The finished shorter run at whose end a run that is not started yet begins; or which one it is not, and why.

    Args:
        run: the longer one.
        root: the runs directory.
        there: names in it.
        known: of device, procs, threads and so on (`trainer.json`), those that are known of the longer run.
    """
    stem = run.id.removesuffix(run.hash[:8])
    if run.train is None or run.train.steps or not any(name.startswith(stem) and name != run.id for name in there):
        return None
    refused = None
    for epochs in range(run.train.epochs - 1, 0, -1):
        shorter = run.model_copy(update={"train": run.train.model_copy(update={"epochs": epochs})})
        run_dir = RunDir(root, f"{stem}{shorter.digest()[:8]}")
        if run_dir.id in there and (result := run_dir.result()):
            why_not = _why_not(run, run_dir, result, known)
            if not why_not:
                return run_dir, ""
            refused = refused or (run_dir, why_not)
    return refused


def _why_not(run: Run, run_dir: RunDir, result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Why the numbers could differ from those from scratch, or cannot be had."""
    assert run.train is not None
    if run.train.schedule != "constant":
        return "another schedule: its learning rates depend on the number of epochs"
    if run.train.warmup_epochs > result["epochs"] - 1:
        return "it ended in the warm-up"
    shorter, wrong = run_dir.known()
    if wrong or shorter.train is None:
        return wrong
    ours, theirs = (one.model_dump(exclude=APART) for one in (run.train, shorter.train))
    if differs := [f"train.{name}" for name in ours if ours[name] != theirs[name]]:
        return f"{', '.join(differs)} was another"
    attempts = run_dir.attempts()
    facts = attempts[-1].read("trainer") if attempts else {}
    began = (records.found(run_dir.path / BEGUN) or {}).get("step", 0)
    if len(attempts) != 1 or facts.get("resumed_at_step") != began:
        return "it was interrupted on its way"
    if facts.get("trainer_code") != trainer_code():
        return "other trainer code made it"
    if others := [name for name, value in known.items() if facts.get(name) != value]:
        return f"it ran with other {' and '.join(others)}"
    if problem := checkpoint_problem(path_of(run_dir.checkpoints, result["steps"])):
        if problem == os.strerror(errno.ENOENT):
            return "its checkpoint was deleted"
        return f"its last checkpoint cannot be had: {problem}"
    wrong_weights = (f"its {which} weights are {run_dir.weights_problem(which)}" for which in ("best", "last"))
    return next((words for words in wrong_weights if not words.endswith("are ")), "")
