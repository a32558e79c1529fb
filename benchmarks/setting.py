"""What the benchmarks of a step share: an experiment, its runs with random weights, batches, and times in turns."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kdcluster.experiment import configfile, yamlfile
from kdcluster.plan import Run, plan
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.train import feed, models, views
from kdcluster.train.distributed import World
from kdcluster.train.step import Training, epoch_batches, set_up, train_step
from kdcluster.train.storing import store_logits
from kdcluster.train.teacher_logits import Targets
from kdcluster.train.weights import write_weights

Times = dict[str, list[tuple[float, float]]]
"""Name -> (CPU, wall) milliseconds of each round."""


def in_turns(actions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | None = None) -> Times:
    """Time each action once a round, in an order that is reversed every other round; the first round is left out."""
    found: Times = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name in list(actions) if turn % 2 else reversed(list(actions)):
            wall, cpu = time.perf_counter(), time.process_time()
            actions[name]()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            took = (1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall))
            if turn:
                found[name].append(took)
    return found


def said(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


class Bench:
    """One experiment's student and its teacher, with random weights, on images of noise.

    Args:
        root: a runs directory.
        values: the experiment file's blocks.
        images: N.
        size: pixels of a side.
        device: where it trains.
    """

    def __init__(self, root: Path, values: dict[str, Any], images: int, size: int, device: torch.device) -> None:
        path = root / "bench.yaml"
        path.write_text(yamlfile.dump(values), encoding="utf-8")
        self.root, self.world = root, World(0, 1, device)
        self.plan = plan([configfile.load(str(path))])
        made = torch.Generator().manual_seed(0)
        self.teacher, self.baseline, self.distilled = (self._run(role) for role in ("teacher", "baseline", "distilled"))
        pixels = torch.randint(0, 256, (images, self.teacher.channels, size, size), dtype=torch.uint8, generator=made)
        labels = torch.randint(0, self.teacher.num_classes, (images,), generator=made)
        self.images = feed.Split(pixels.to(device), labels.to(device), device)
        self.index = torch.arange(images)
        weights = RunDir(root, self.teacher.id).weights("best")
        weights.parent.mkdir(parents=True, exist_ok=True)
        net = models.build(self.teacher.model, self.teacher.num_classes, self.teacher.channels)
        write_weights(weights, net.net.state_dict(), self.teacher, 0)

    def _run(self, role: str) -> Run:
        return next(run for run in self.plan.runs if run.role == role)

    def store(self) -> None:
        """Make the store, as its own run does."""
        run = self._run(STORE)
        run_dir = RunDir(self.root, run.id)
        run_dir.prepare(run)
        store_logits(run_dir, run, run_dir.start_attempt({}), self.world, self.images, lambda: False)

    def store_again(self) -> None:
        """The same once more, from nothing."""
        shutil.rmtree(self.root / self._run(STORE).id)
        self.store()

    def targets(self, *, stored: bool) -> Targets:
        """The teacher's logits of the distilled run, read from the store or computed."""
        run = self.distilled if stored else self.distilled.model_copy(update={"store": None})
        return Targets(run, self.root, self.world, len(self.images.labels))

    def training(self, run: Run, targets: Targets | None = None) -> Training:
        """A run as the trainer sets it up."""
        run = run.with_amp("bf16" if self.world.device.type == "cuda" else "none")
        assert run.train is not None
        made = set_up(run, self.world, len(self.index) // run.train.batch_size, targets)
        made.model.train()
        return made

    def epoch(self, training: Training, number: int = 0) -> None:
        """One epoch's steps, without evaluation."""
        if training.targets:
            training.targets.begin(number)
        for shards in self.batches(training, number):
            train_step(training, shards)

    def batches(self, training: Training, number: int = 0) -> Any:
        """What the trainer's loop takes."""
        return epoch_batches(training.run, self.images, self.index, number, self.world, targets=training.targets)

    def stepping(self, training: Training) -> Callable[[], object]:
        """One step of the trainer, with its batch."""
        if training.targets:
            training.targets.begin(0)
        batches: Iterator[Any] = (shards for _ in cycle([0]) for shards in self.batches(training))
        return lambda: train_step(training, next(batches))

    def bare(self, training: Training) -> Callable[[], None]:
        """Forward, cross-entropy, backward and optimizer of a run on one batch that is there."""
        assert training.run.train is not None
        pixels, labels = self.view(self.index[: training.run.train.batch_size])
        device = self.world.device

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = training.model(pixels)
            F.cross_entropy(logits.float(), labels).backward()
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)

        return step

    def view(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch's pixels in the first view, and its labels."""
        seen, placed = self.baseline.data, feed.Index.placed(index, self.world.device)
        pixels, labels = feed.gather(self.images, placed)
        return views.augment(pixels, placed.device, epoch=0, augment=seen.augment, view_seed=seen.view_seed), labels


STUDENT = {
    "model": "vit_tiny_patch16_224",
    "image_size": 32,
    "model_args": {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
}
"""0.46 M parameters at 32 px."""
CHEAP = {"model": "resnet18", "image_size": 32}
DEAR = {"model": "vit_tiny_patch16_224", "image_size": 32, "model_args": {"patch_size": 4}}
"""Its forward pass costs about 12 times the student's."""


def small(teacher: Mapping[str, Any], epochs: int = 1) -> dict[str, Any]:
    """An experiment at 32 px and 100 classes that two cores can bear."""
    train = {"epochs": epochs, "batch_size": 128, "lr": 1e-3}
    return {"data": {"name": "cifar100"}, "teacher": dict(teacher), "student": STUDENT, "train": train}
