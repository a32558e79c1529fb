"""A run that has nothing yet begins at the end of a shorter one: takes over its state, its weights and its events."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils.tensorboard import SummaryWriter

from kdcluster import predictions, records
from kdcluster.continued import BEGUN, begins_from
from kdcluster.files import write_json
from kdcluster.plan import Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.saved import path_of, steps
from kdcluster.train.checkpoint import Damaged, load, save
from kdcluster.train.distributed import World
from kdcluster.train.publish import surroundings
from kdcluster.train.weights import write_predictions, write_weights

log = logging.getLogger(__name__)


def begin(run_dir: RunDir, run: Run, attempt: Attempt, world: World) -> None:
    """Give a run a first checkpoint, where a shorter one has it (continued.py), on rank 0; the others wait for it.

    The checkpoint comes last: before it is there, the next attempt begins anew.
    """
    if world.rank != 0 or steps(run_dir.checkpoints) or run_dir.newest() != attempt:
        return
    found = begins_from(run, run_dir.root, records.entries(run_dir.root), surroundings(world))
    if found is None:
        return
    shorter, why_not = found
    state: dict[str, Any] = {}
    try:
        state = {} if why_not else _state(shorter)
    except Damaged as error:
        why_not = str(error)
    if why_not:
        log.info("starts from scratch, and not at the end of %s: %s", shorter.id, why_not)
        return
    step = state["step"]
    for which, at in (("best", state["best_step"]), ("last", step)):
        if (predicted := predictions.path_of(shorter.path, at)).exists():  # an earlier version kept none
            write_predictions(run_dir.path, load_file(predicted), run, at)
        write_weights(run_dir.weights(which), load_file(shorter.weights(which)), run, at)
    _carry(shorter.events, run_dir.events)
    write_json(run_dir.path / BEGUN, {"run": shorter.id, "step": step})
    save(run_dir.checkpoints, step, {**state, "hash": run.hash})
    log.info("begins at step %d, the end of %s: the same numbers as from scratch", step, shorter.id)


def _state(shorter: RunDir) -> dict[str, Any]:
    """What a finished run saved last.

    Raises:
        Damaged: it cannot be had, or is not of the end.
    """
    result = shorter.result() or {}
    path = path_of(shorter.checkpoints, result.get("steps", 0))
    state = load(path)
    if (state["hash"], state["step"]) != (result["hash"], result["steps"]) or state["epochs"][-1] != result["last"]:
        raise Damaged(f"{path}: it is not the end of that run")
    return state


def _carry(source: Path, target: Path) -> None:
    """Write the scalars of a run that was not interrupted into a file that comes before all of this run's own.

    Its START at step 0 makes void what an attempt carried that was killed meanwhile.
    """
    with SummaryWriter(target, purge_step=0, filename_suffix=".a0") as writer:
        for path in sorted(source.glob("events.out.tfevents.*"), key=lambda one: (one.suffix, one.name)):
            for event in LegacyEventFileLoader(str(path)).Load():
                if any(value.HasField("simple_value") for value in event.summary.value):
                    writer._get_file_writer().add_event(event, step=event.step, walltime=event.wall_time)
