"""Run directories as they lie on disk in every state, made by hand: no torch, no torchrun, no waiting."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcluster import saved, teacherlogits
from kdcluster.experiment.yamlfile import parse
from kdcluster.files import write_json
from kdcluster.launch.status import run_status
from kdcluster.plan import Run
from kdcluster.processes import process_record
from kdcluster.run import STORE
from kdcluster.runs import Attempt, RunDir

LIVE = process_record(os.getpid())
"""A process that runs: this one."""

DEAD = {"host": socket.gethostname(), "pid": os.getpid(), "start_time": "1"}
"""A process that is gone, and whose pid another one has by now."""

NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"
"""A whole file of safetensors, without tensors."""

BEAT = {
    "time": 1.0,
    "step": 30,
    "steps": 100,
    "epoch": 3,
    "epochs": 10,
    "loss": 1.5,
    "steps_per_s": 10.0,
    "images_per_s": 160.0,
    "top1": 40.0,
    "best_top1": 41.25,
}
"""A heartbeat in the middle of training."""


def started(run_dir: RunDir, *, supervisor: dict[str, Any] = DEAD, agent: dict[str, Any] | None = None) -> Attempt:
    """A new attempt, as the supervisor leaves it once torchrun runs (`agent`), or just before (None)."""
    attempt = run_dir.start_attempt({"supervisor": supervisor})
    if agent is not None:
        attempt.write("agent", agent)
    return attempt


def ended(attempt: Attempt, state: str, reason: str = "", rank: int | None = None) -> None:
    """The supervisor's word on how an attempt ended."""
    attempt.write("outcome", {"state": state, "reason": reason, "rank": rank, "time": time.time()})


def save(run_dir: RunDir, step: int) -> Path:
    """A checkpoint that is whole as far as can be seen without loading it."""
    run_dir.checkpoints.mkdir(exist_ok=True)
    path = saved.path_of(run_dir.checkpoints, step)
    path.write_bytes(saved.HEADER.pack(saved.MAGIC, 4, bytes(4)) + b"body")
    return path


def rank_failed(attempt: Attempt, rank: int, **values: Any) -> None:
    """What a rank leaves that ended with an exception."""
    known = {"host": "node1", "time": 1.0, "step": 7, "message": "ValueError: no", "traceback": "ValueError: no\n"}
    failure = {"rank": rank, **known, "collective": False, "out_of_memory": False, **values}
    attempt.write(f"failure-rank{rank}", failure)


def publish(run_dir: RunDir, top1: float, attempt: int = 1, **values: Any) -> None:
    """result.json, as the trainer leaves it at the end, and a file in the place of the best weights, or a store."""
    if run_dir.id.startswith(STORE):
        return store(run_dir, attempt)
    run_dir.weights("best").write_bytes(NO_WEIGHTS)
    last = {"epoch": 1, "step": 10, "test/top1": top1}
    config = parse(run_dir.config.read_text()) if run_dir.config.exists() else {"hash": run_dir.id[-8:]}
    known = {"schema": "kdcluster.result/1", "id": run_dir.id, "hash": config["hash"], "attempt": attempt}
    facts = {"epochs": last["epoch"], "steps": last["step"], "selected_on": "test", "params": 3}
    write_json(run_dir.path / "result.json", {**known, **facts, "best": last, "last": last, **values})


def store(run_dir: RunDir, attempt: int = 1, views: int | None = None) -> None:
    """result.json and the views of a store of one image: as many as it is to hold, unless told."""
    run = run_dir.known()[0]
    listed = {str(view): {"crc32c": 0} for view in range(run.views if views is None and run.views else views or 0)}
    (run_dir.path / "logits").mkdir(exist_ok=True)
    for view in map(int, listed):  # behind a header of 128 bytes
        size = 128 + teacherlogits.size_of(1, run.num_classes, 1)
        (run_dir.path / "logits" / f"view-{view:05}.npy").write_bytes(bytes(size))
    of = {"run": run.id, "teacher": run.teacher.id if run.teacher else "", "images": 1, "classes": run.num_classes}
    write_json(run_dir.path / "logits" / "manifest.json", {"schema": teacherlogits.SCHEMA, **of, "views": listed})
    known = {"schema": "kdcluster.result/1", "id": run_dir.id, "hash": run.hash, "attempt": attempt}
    write_json(run_dir.path / "result.json", {**known, "views": len(listed), "params": 7})


def evaluated(run_dir: RunDir, epochs: Iterable[Mapping[str, Any]], attempt: int = 1) -> None:
    """The event file of an attempt that was evaluated after each of these: {"step", tag: value, …}."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run_dir.events), filename_suffix=f".a{attempt}")
    for epoch in epochs:
        for tag in sorted(tag for tag in epoch if "/" in tag):
            value = Summary.Value(tag=tag, simple_value=epoch[tag])
            writer.add_event(event_pb2.Event(wall_time=1.0, step=epoch["step"], summary=Summary(value=[value])))
    writer.close()


def planned(run_dir: RunDir) -> None:
    pass


def queued(run_dir: RunDir) -> None:
    run_dir.write_ticket("local", LIVE)


def running(run_dir: RunDir) -> None:
    started(run_dir, agent=LIVE)


def done(run_dir: RunDir, top1: float = 50.0) -> None:
    attempt = started(run_dir, agent=DEAD)
    publish(run_dir, top1, attempt.number)
    ended(attempt, "done")


def failed(run_dir: RunDir) -> None:
    ended(started(run_dir, agent=DEAD), "failed", "rank 1, step 7: ValueError: no", rank=1)


def cancelled(run_dir: RunDir) -> None:
    ended(started(run_dir, agent=DEAD), "cancelled", "as asked")


def preempted(run_dir: RunDir) -> None:
    ended(started(run_dir, agent=DEAD), "preempted", "SIGUSR2")


def stopped(run_dir: RunDir) -> None:
    ended(started(run_dir, agent=DEAD), "stopped", "by the sweep")


def lost(run_dir: RunDir) -> None:
    started(run_dir, agent=DEAD)


STATES: dict[str, Callable[[RunDir], None]] = {
    make.__name__: make for make in (planned, queued, running, done, failed, cancelled, preempted, stopped, lost)
}
"""Every state that a run has by itself; `blocked` comes from what it needs."""


def put(root: Path, run: Run, state: str) -> RunDir:
    """The directory of a run in one of STATES."""
    run_dir = RunDir(root, run.id)
    run_dir.prepare(run)
    STATES[state](run_dir)
    assert run_status(run_dir).state == state
    return run_dir
