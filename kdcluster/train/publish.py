"""What a run leaves behind: events, weights, result.json. Rank 0 writes, and only while its attempt is the newest."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from kdcluster import predictions
from kdcluster.course import Course
from kdcluster.errors import KdclusterError
from kdcluster.files import remove_asides, trainer_code, write_aside, write_json
from kdcluster.plan import Run
from kdcluster.runs import Attempt, RunDir
from kdcluster.saved import weights_record
from kdcluster.train import hub, models
from kdcluster.train.checkpoint import keep_last
from kdcluster.train.distributed import World, has_batchnorm
from kdcluster.train.evaluate import Evaluation
from kdcluster.train.feed import share
from kdcluster.train.tracking import BEST, Tracker
from kdcluster.train.weights import write_predictions, write_weights
from kdcluster.train.writer import Writer, on_host

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "timm", "tensorboard", "safetensors", "numpy")


class Publisher:
    """Collects the evaluations of a run; the best epoch is by validation where there is a split, else by test."""

    def __init__(
        self,
        run_dir: RunDir,
        run: Run,
        attempt: Attempt | None,
        world: World,
        net: models.Classifier,
        steps_per_epoch: int,
        resumed: dict[str, Any] | None = None,
        noted: Mapping[str, int] | None = None,
        images: Mapping[str, int] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """`noted`: `data.Arrays.noted`; `images`: of each split that is evaluated, how many; with and
        without labels, too, where some have none; `classes`: their names, by label."""
        self.run_dir, self.run, self.attempt = run_dir, run, attempt
        self.writer = Writer()
        self.active = world.rank == 0
        if self.active and attempt is not None:
            tidy(run_dir, attempt)
        step = resumed["step"] if resumed else -1
        self.tracker = Tracker(run_dir, attempt, run, active=self.active, first_step=step + 1)
        self.selected_on = "val" if run.data.val_fraction > 0 else "test"
        self.epochs: list[dict[str, Any]] = resumed["epochs"] if resumed else []
        self.course = Course.of(run.train, steps_per_epoch) if run.train else None
        self.config = hub.config(net, run, classes)
        norm_batch = batchnorm_batch(net, run, world)
        self.facts = {
            "params": models.parameters(net),
            "batchnorm_batch": norm_batch,
            "amp": run.amp,
            "trainer_code": trainer_code(),
            **(noted or {}),
        }
        went_on = {"steps_per_epoch": steps_per_epoch, "resumed_at_step": max(step, 0), "images": images or {}}
        went_on["compiled"] = run.train is not None and run.train.compile is True
        if self.active and attempt is not None:
            attempt.write("trainer", {**self.facts, **surroundings(world), **went_on})
        _warn_of_local_batchnorm(world, norm_batch)

    @property
    def best(self) -> dict[str, Any]:
        """The best epoch so far; the first of equals."""
        return max(self.epochs, key=lambda epoch: epoch[f"{self.selected_on}/top1"])

    def best_step(self, at: int) -> int:
        """Step of the best evaluation among those up to step `at`; 0 before the first."""
        seen = [epoch for epoch in self.epochs if epoch["step"] <= at]
        return max(seen, key=lambda epoch: epoch[f"{self.selected_on}/top1"])["step"] if seen else 0

    def epoch(self, epoch: int, step: int, found: Evaluation, net: models.Classifier) -> None:
        """Publish an evaluation after `epoch` epochs and `step` steps: predictions and weights first, beside the
        training, so that what the events call best is on disk."""
        self.check_newest()
        stored = self.tracker.scalars(found.metrics, step)
        self.epochs.append({"epoch": epoch, "step": step, **stored})
        self.tracker.scalars({BEST: self.best["test/top1"]}, step)
        if self.active:
            self.writer.room()
            which = ["last", *(["best"] if self.best is self.epochs[-1] else [])]
            weights = on_host(net.net.state_dict())
            self.beside(lambda: self._save(which, weights, found.predictions, step))
        self.beat(epoch, step, force=True, top1=stored["test/top1"], best_top1=self.best["test/top1"])

    def beat(self, epoch: int, step: int, *, force: bool = False, **values: float) -> None:
        """Say how far the run is, at most once a second.

        Raises:
            KdclusterError: the attempt was overtaken: it leaves the lock to the newest.
        """
        steps, epochs = (self.course.steps, self.course.epochs) if self.course else (0, 0)
        at = {"step": step, "steps": steps, "epoch": epoch, "epochs": epochs}
        if self.tracker.heartbeat(force=force, **at, **values):
            self.check_newest()

    def result(self, more: Mapping[str, Any]) -> None:
        """Write config.json and result.json, with `more`: the run is done, and needs no checkpoint but the last."""
        self.writer.wait()
        self.check_newest()
        if not self.active:
            return
        best, last = self.best, self.epochs[-1]
        counted = {"best": best, "last": last}
        result = {
            "schema": "kdcluster.result/1",
            "id": self.run.id,
            "hash": self.run.hash,
            "attempt": self.attempt.number if self.attempt else 0,
            "epochs": last["epoch"],
            "steps": last["step"],
            "selected_on": self.selected_on,
            **counted,
            "weights": {which: weights_record(self.run_dir.weights(which)) for which in ("best", "last")},
            "predictions": {w: predictions.record(self.run_dir.path, e["step"]) for w, e in counted.items()},
            "per_class": self._per_class(best["step"]),
            **self.facts,
            **more,
        }
        write_aside(self.run_dir.path / "config.json", json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")
        write_json(self.run_dir.path / "result.json", result)
        keep_last(self.run_dir.checkpoints)
        predictions.keep(self.run_dir.path, [best["step"], last["step"]])

    def _per_class(self, step: int) -> dict[str, list[int]] | None:
        """Test images of each class, and how many of them are right; None where an earlier version began the run."""
        path = predictions.path_of(self.run_dir.path, step)
        return predictions.per_class(predictions.load(path)["test"]) if path.exists() else None

    def beside(self, work: Callable[[], object]) -> None:
        """Have something written while the training goes on, unless this attempt is overtaken by then."""

        def do() -> None:
            self.check_newest()
            work()

        self.writer.do(do)

    def _save(self, names: list[str], weights: dict[str, Tensor], predicted: Mapping[str, Tensor], step: int) -> None:
        """Weights in timm's layout and what they predict, written aside and renamed."""
        write_predictions(self.run_dir.path, predicted, self.run, step)
        for which in names:
            write_weights(self.run_dir.weights(which), weights, self.run, step)
        self.tracker.flush()

    def preempted(self, epoch: int, step: int) -> None:
        """Say that the run was stopped on request and can go on from `step`; the checkpoint is on disk."""
        self.writer.wait()
        if self.active and self.attempt is not None:
            self.beat(epoch, step, force=True)  # where it stands while it waits to go on
            self.attempt.write("preempted", {"step": step})
            log.info("stopped on request, saved at step %d: goes on from there", step)

    def may_write(self) -> bool:
        """Whether this process writes checkpoints: rank 0 of an attempt that is the newest.

        Raises:
            KdclusterError: it was overtaken.
        """
        self.check_newest()
        return self.active and self.attempt is not None

    def check_newest(self) -> None:
        """Raise if another attempt has started since."""
        if self.active and self.attempt is not None:
            check_newest(self.run_dir, self.attempt)


def check_newest(run_dir: RunDir, attempt: Attempt) -> None:
    """Refuse to publish anything once another attempt has started.

    Raises:
        KdclusterError: it has.
    """
    newest = run_dir.newest()
    if newest is not None and newest.number != attempt.number:
        raise KdclusterError(
            f"attempt {attempt.number} was overtaken by attempt {newest.number}, which goes on from what is "
            f"saved; this one stops and publishes nothing more"
        )


def tidy(run_dir: RunDir, attempt: Attempt) -> None:
    """Remove what attempts that were killed left half written, which may be large; the run's lock is this one's.

    Only what trainers alone write: who submits or cancels may be writing at this moment.

    Raises:
        KdclusterError: this attempt was overtaken.
    """
    check_newest(run_dir, attempt)
    remove_asides(run_dir.path, "best.safetensors", "last.safetensors", "config.json", "result.json")
    remove_asides(run_dir.checkpoints, "step-*.ckpt")
    remove_asides(run_dir.path / predictions.FOLDER, "step-*.safetensors")
    remove_asides(run_dir.path / "logits", "manifest.json", ".partial.json")
    for one in run_dir.attempts():
        if one.number < attempt.number:
            remove_asides(one.path, "heartbeat.json", "trainer.json", "preempted.json")


def batchnorm_batch(net: nn.Module, run: Run, world: World) -> int | None:
    """Over how many images BatchNorm takes its statistics (at most, where shares differ); None for a model without."""
    if run.train is None or not has_batchnorm(net):
        return None
    mine = len(share(run.train.batch_size, 0, world.size))
    pieces = math.ceil(mine / (run.train.micro_batch or mine))
    piece = math.ceil(mine / pieces)
    return min(piece * world.size, run.train.batch_size) if world.device.type == "cuda" else piece


def _warn_of_local_batchnorm(world: World, images: int | None) -> None:
    if images is not None and world.size > 1 and world.device.type != "cuda" and world.rank == 0:
        log.warning("BatchNorm does not sync over CPU processes: statistics are over %d images each", images)


def surroundings(world: World) -> dict[str, Any]:
    """Where a run ran; what of it can still move the last bits."""
    cuda = world.device.type == "cuda"
    return {
        "procs": world.size,
        "device": world.device.type,
        "device_name": torch.cuda.get_device_name(world.device) if cuda else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
