"""A distilled epoch from stored logits against timm's own distillation and torchdistill's loss.

    PYTHONPATH=. python benchmarks/others.py 5

Everybody gets the same models, the same augmented batches (gathered and augmented by kdcluster and not timed for the
others, whose own data paths are slower), one thread, batch 128, fused AdamW; in one process and in turns. t is the
teacher's bare forward pass and s the student's bare step, from the same run: without a teacher an epoch could be
1 + t/s times as fast. torchdistill is not a dependency (`pip install torchdistill`); where it is missing its row is,
too.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask
from torch import Tensor, nn

from benchmarks.setting import CHEAP, DEAR, Bench, in_turns, said, small
from kdcluster.train import models, optim

BATCHES = 4
"""Of an epoch: ratios do not depend on it."""


def main() -> None:
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    for name, teacher in (("resnet18", CHEAP), ("vit_tiny", DEAR)):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), small(teacher), BATCHES * 128, 32, torch.device("cpu"))
            bench.store()
            compare(name, bench, rounds)


def compare(name: str, bench: Bench, rounds: int) -> None:
    """One teacher's table."""
    batches = [bench.view(one) for one in bench.index.split(128)]
    stored = bench.training(bench.distilled, bench.targets(stored=True))
    actions: dict[str, Callable[[], object]] = {
        "bare student": bare_student(bench, batches),
        "bare teacher": bare_teacher(bench, batches),
        "kdcluster, stored": lambda: bench.epoch(stored),
        "timm.task": timms(bench, batches),
    }
    with contextlib.suppress(ImportError):
        actions["torchdistill"] = torchdistills(bench, batches)
    both = in_turns(actions, rounds)
    times = {what: [cpu for cpu, _ in found] for what, found in both.items()}
    gain = 1 + statistics.median(times["bare teacher"]) / statistics.median(times["bare student"])
    what = f"teacher {name}: n = {rounds}, epochs of {BATCHES} batches; 1 + t/s = {gain:.2f}"
    print(f"{what}; milliseconds of a batch, CPU and wall clock")
    for what, found in times.items():
        ratios = [other / ours for other, ours in zip(found, times["kdcluster, stored"], strict=True)]
        of_it = f"{said(ratios)} times kdcluster's, {statistics.median(ratios) / gain:.2f} of 1 + t/s"
        each = f"{said([cpu / BATCHES for cpu in found], 1)}  {said([wall / BATCHES for _, wall in both[what]], 1)}"
        print(f"  {what:<18} {each:<52} {of_it if what in ('timm.task', 'torchdistill') else ''}".rstrip())


Batches = list[tuple[Tensor, Tensor]]


def bare_student(bench: Bench, batches: Batches) -> Callable[[], None]:
    """Cross-entropy alone."""
    net, optimizer = student(bench)

    def epoch() -> None:
        for pixels, labels in batches:
            F.cross_entropy(net(pixels), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def bare_teacher(bench: Bench, batches: Batches) -> Callable[[], None]:
    """Its forward pass."""
    net = teacher(bench)

    @torch.inference_mode()
    def epoch() -> None:
        for pixels, _ in batches:
            net(pixels)

    return epoch


def student(bench: Bench) -> tuple[models.Classifier, torch.optim.Optimizer]:
    """Model and optimizer, as the trainer makes them."""
    run = bench.baseline
    assert run.train is not None
    net = models.build(run.model, run.num_classes, run.channels).to(bench.world.device).in_channels_last().train()
    return net, optim.build_optimizer(net, run.train)


def teacher(bench: Bench) -> models.Classifier:
    """In evaluation mode, without gradients."""
    run = bench.teacher
    net = models.build(run.model, run.num_classes, run.channels).to(bench.world.device).in_channels_last()
    return net.eval().requires_grad_(False)  # type: ignore[return-value]


def theirs(
    batches: Batches, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], None]:
    """An epoch around somebody else's loss; in bf16 on a GPU."""

    def epoch() -> None:
        for pixels, labels in batches:
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
                value = loss(pixels, labels)
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def timms(bench: Bench, batches: Batches) -> Callable[[], None]:
    """timm.task.LogitDistillationTask over timm's models; its images come normalised for the student."""
    ours, optimizer = student(bench)
    task = LogitDistillationTask(
        ours.net,
        teacher(bench).net,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.5,
        temperature=4.0,
        verbose=False,
    )
    task.train()
    normal = [((pixels.float() / 255 - ours.mean) / ours.std, labels) for pixels, labels in batches]
    return theirs(normal, optimizer, lambda pixels, labels: task(pixels, labels)["loss"])


def torchdistills(bench: Bench, batches: Batches) -> Callable[[], None]:
    """torchdistill.losses.mid_level.KDLoss over the same models."""
    from torchdistill.losses.mid_level import KDLoss

    net, optimizer = student(bench)
    old = teacher(bench)
    loss = KDLoss("s", "output", "t", "output", temperature=4.0, alpha=0.5)

    def both(pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            soft = old(pixels)
        found: Tensor = loss({"s": {"output": net(pixels)}}, {"t": {"output": soft}}, labels)
        return found

    return theirs(batches, optimizer, both)


if __name__ == "__main__":
    main()
