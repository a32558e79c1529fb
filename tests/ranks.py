"""What every rank of test_ddp.py does: `torchrun tests/ranks.py FOLDER OUT DEVICE RUN…`; rank 0 writes what it found.

For each run: the gradient and the summed losses of one global batch, for several batch sizes and micro-batches.
For each run too: one evaluation, and which images this rank took for it. At the end one whole training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kdcluster.plan import Run
from kdcluster.runs import RunDir
from kdcluster.train import data, evaluate, feed, models, step, trainer
from kdcluster.train.distributed import World, join, leave
from kdcluster.train.teacher_logits import Targets
from tests import tiny

CASES = ((10, None), (10, 3), (10, 1), (7, None), (7, 2), (2, None), (1, None))
"""Global batch size, micro-batch: with remainders, and smaller than the ranks. A CNN takes the first alone, and a loss
of the whole batch those without micro-batches."""
EVALUATED = (32, 2)
"""How many test images are evaluated: not divisible by 3, and fewer than the ranks."""


def main() -> None:
    folder, out, device = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with join(device, 1) as world:
        for run_id in sys.argv[4:]:
            found, numbers = measure(RunDir(folder / "runs", run_id), world, folder / "data", out)
            if world.rank == 0:
                save_file(found, out / f"{run_id}.safetensors")
                (out / f"{run_id}.json").write_text(json.dumps(numbers))
        run_dir = RunDir(folder / "runs", sys.argv[4])
        trainer.train(run_dir, run_dir.newest(), world, folder / "data", trainer.Progress())


def measure(run_dir: RunDir, world: World, data_dir: Path, out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gradients and sums by case, buffers after the last case's step; evaluations by number of images."""
    run = run_dir.load()
    arrays = data.open_arrays(run, data_dir)
    images, test = (feed.to_device(arrays, split, world.device) for split in ("train", "test"))
    found: dict[str, Tensor] = {}
    for batch_size, micro_batch in cases(run):
        assert run.train is not None
        changed = {"batch_size": batch_size, "micro_batch": micro_batch}
        case = run.model_copy(update={"train": run.train.model_copy(update=changed)})
        targets = Targets(case, run_dir.root, world, len(images.labels)) if case.teacher else None
        training = step.set_up(case, world, 4, targets)
        key = f"{batch_size}/{micro_batch}"
        found[f"gradient/{key}"], found[f"sums/{key}"] = one_step(training, case, images)
    found |= {
        f"state/{name}": value.clone(memory_format=torch.contiguous_format)
        for name, value in training.student.net.state_dict().items()
    }
    numbers = {str(count): evaluation(training.student, run, test, count, world, out) for count in EVALUATED}
    return found, numbers


def cases(run: Run) -> list[tuple[int, int | None]]:
    """Those that a run takes."""
    if run.model.model == tiny.CNN["model"]:
        return [*CASES[:1]]
    of_the_batch = run.distill is not None and run.distill.loss == "dist"
    return [case for case in CASES if case[1] is None or not of_the_batch]


def one_step(training: step.Training, run: Run, images: feed.Split) -> tuple[Tensor, Tensor]:
    """What the optimizer is given in the first step, as one vector, and the sums over all ranks."""
    caught: list[Tensor] = []

    def catch(*_: Any) -> None:
        caught.append(torch.cat([p.grad.flatten() for p in training.student.parameters()]))

    training.optimizer.register_step_pre_hook(catch)
    training.model.train()
    (shards, *_) = step.epoch_batches(run, images, torch.arange(len(images.labels)), 0, training.world)
    sums = training.world.sum(step.train_step(training, shards))
    return caught[0].cpu(), sums.cpu()


def evaluation(
    net: models.Classifier, run: Run, test: feed.Split, count: int, world: World, out: Path
) -> dict[str, float]:
    """`evaluate_all` on the first images of the test set, and a file with those that this rank took."""
    taken: list[int] = []
    gather = feed.gather

    def spy(split: feed.Split, index: feed.Index) -> tuple[Tensor, Tensor]:
        taken.extend(index.host.tolist())
        return gather(split, index)

    feed.gather, evaluate.BATCH = spy, 5
    try:
        found = evaluate.evaluate_all(net, run, {"test": (test, torch.arange(count))}, world)
    finally:
        feed.gather, evaluate.BATCH = gather, 256
    (out / f"taken-{run.id}-{count}-{world.rank}.json").write_text(json.dumps(taken))
    if world.rank == 0:
        save_file(found.predictions, out / f"predictions-{run.id}-{count}.safetensors")
    assert bool(found.predictions) == (world.rank == 0)
    return found.metrics


if __name__ == "__main__":
    main()
    leave()
