"""The step on one GPU with the models of exp1 and exp2 at 224 px: bare loops beside the trainer's own steps.

    PYTHONPATH=. python benchmarks/gpu.py            # meant for 4 minutes on one GPU
    PYTHONPATH=. python benchmarks/gpu.py --tiny     # does everything once with tiny models, on any machine

Batch 128, bf16, random weights, CIFAR-sized images on the GPU that the models enlarge; images a second, median and
range of the rounds, all in one process. Rows: the bare loop (forward, cross-entropy, backward, fused AdamW on one batch
that is there), the trainer's step with cross-entropy, with stored logits, and with the teacher run along, and timm's
own distillation over a batch that is there; eager, then the bare loop and stored logits compiled.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.others import timms
from benchmarks.setting import STUDENT, Bench, said
from kdcluster.train import models

TEACHER = {"model": "vit_base_patch16_224", "image_size": 224}
STUDENTS = {
    "ViT-Tiny": {"model": "vit_tiny_patch16_224", "image_size": 224},
    "ResNet18": {"model": "resnet18", "image_size": 224},
}
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, n = {given.rounds} rounds of {given.steps} steps")
    students = {"tiny": STUDENT} if given.tiny else STUDENTS
    for number, (what, student) in enumerate(students.items()):
        for compiled in (False, True):
            if compiled and given.tiny and device.type == "cpu":
                continue  # two minutes of compiling, to see nothing
            table(what, student, STUDENT if given.tiny else TEACHER, device, given, compiled, teacher_too=number == 0)


def table(
    what: str,
    student: dict[str, Any],
    teacher: dict[str, Any],
    device: torch.device,
    given: argparse.Namespace,
    compiled: bool,
    *,
    teacher_too: bool,
) -> None:
    """The rows of one student, one after the other, so that each has the memory to itself."""
    train = {"epochs": 1, "batch_size": BATCH, "lr": 3e-4, "compile": compiled}
    values = {"data": {"name": "cifar100"}, "teacher": teacher, "student": student, "train": train}
    how = "compiled" if compiled else "eager"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), values, given.steps * BATCH, 32, device)
        started = time.perf_counter()
        bench.store()
        took = time.perf_counter() - started
        rows: dict[str, Callable[[], Callable[[], object]]] = {
            f"{what}, bare loop": lambda: bench.bare(bench.training(bench.baseline)),
            f"{what}, cross-entropy": lambda: bench.stepping(bench.training(bench.baseline)),
            f"{what}, stored logits": lambda: bench.stepping(
                bench.training(bench.distilled, bench.targets(stored=True))
            ),
            f"{what}, teacher along": lambda: bench.stepping(
                bench.training(bench.distilled, bench.targets(stored=False))
            ),
            f"{what}, timm.task": lambda: timms(bench, [resized(bench)]),
        }
        if compiled:  # each takes about a minute to compile: the two that are asked for
            rows = {row: make for row, make in rows.items() if row.endswith(("bare loop", "stored logits"))}
        if teacher_too and not compiled:
            rows["teacher, bare loop"] = lambda: bench.bare(bench.training(bench.teacher))
            rows["teacher, training"] = lambda: bench.stepping(bench.training(bench.teacher))
        for row, make in rows.items():
            print(f"  {how:<9} {row:<26} {said(speeds(make(), given, device), 0)} images/s", flush=True)
            gc.collect()
        print(f"  {how:<9} {'the store, a view':<26} {len(bench.index) / took:.0f} images/s, once, with its start")


def resized(bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as timm's trainer would have it: at the size of the models, which do not resize there."""
    pixels, labels = bench.view(bench.index[:BATCH])
    side = models.image_size(bench.baseline.model)
    return F.interpolate(pixels.float(), (side, side), mode="bicubic").clamp(0, 255).byte(), labels


def speeds(step: Callable[[], object], given: argparse.Namespace, device: torch.device) -> list[float]:
    """Images a second of each round, after one that is not counted."""
    found = []
    for _ in range(given.rounds + 1):
        started = time.perf_counter()
        for _ in range(given.steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(given.steps * BATCH / (time.perf_counter() - started))
    return found[1:]


if __name__ == "__main__":
    main()
