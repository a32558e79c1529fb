"""Small things that many tests stand on: images in a data cache, experiments with tiny models, their runs.

Nothing here needs torch until `train_here` is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcluster.experiment import configfile, yamlfile
from kdcluster.experiment.images import DATASETS
from kdcluster.files import write_json
from kdcluster.plan import Plan, Run, plan
from kdcluster.runs import RunDir

if TYPE_CHECKING:
    from kdcluster.runs import Attempt
    from kdcluster.train.distributed import World

TINY_MODELS = str(Path(__file__).with_name("tiny_models.py"))
"""For `imports`: registers tiny_net, 0.5 k parameters, no BatchNorm."""

VIT = {
    "model": "vit_tiny_patch16_224",
    "image_size": 16,
    "model_args": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
"""A ViT without BatchNorm and without dropout, 7 k parameters, at 16 px."""

CNN = {"model": "test_resnet", "image_size": 16}
"""timm's own small CNN for tests, with BatchNorm."""

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "cifar10", "augment": {"pad": 2, "flip": True}},
    "teacher": {**VIT, "model_args": {**VIT["model_args"], "embed_dim": 24}},  # type: ignore[dict-item]
    "student": VIT,
    "train": {"epochs": 2, "batch_size": 16, "lr": 1e-2, "amp": "none"},
    "resources": {"device": "cpu", "procs": 1, "threads": 1},
}


def images(count: int, *, classes: int = 10, channels: int = 3, size: int = 16, seed: int = 0) -> Any:
    """uint8 (N, C, H, W) and int64 (N,): a pattern for each class under noise, learnt in a few dozen steps."""
    patterns = np.random.RandomState(0).uniform(60, 196, (classes, channels, 4, 4))
    patterns = patterns.repeat(-(-size // 4), axis=2).repeat(-(-size // 4), axis=3)[:, :, :size, :size]
    random = np.random.RandomState(seed + 1)
    labels = random.randint(0, classes, count).astype(np.int64)
    noisy = patterns[labels] + random.normal(0, 20, (count, channels, size, size))
    return noisy.clip(0, 255).astype(np.uint8), labels


def put_arrays(data_dir: Path, name: str, arrays: Mapping[str, Any]) -> Path:
    """Decoded arrays into the data cache as train/data.py lays it out; `arrays` has train_images, train_labels, …

    The check sums are left empty: they are compared on `verify` alone.
    """
    folder = data_dir / "arrays" / name
    folder.mkdir(parents=True)
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", array)
    meta = {
        "schema": "kdcluster.arrays/1",
        "fingerprint": f"{name}/1",
        "shapes": {key: list(array.shape) for key, array in arrays.items()},
        "dtypes": {key: str(array.dtype) for key, array in arrays.items()},
        "num_classes": DATASETS[name].classes,
        "classes": [f"class {label}" for label in range(DATASETS[name].classes)],
        "image_rule": "as made for a test",
        "crc32c": {},
    }
    write_json(folder / "meta.json", meta)
    return folder


def put_images(data_dir: Path, name: str = "cifar10", *, train: int = 64, test: int = 32, size: int = 16) -> Path:
    """`images` into the data cache under the name of a built-in data set."""
    classes, channels, *_ = DATASETS[name]
    splits = {
        split: images(count, classes=classes, channels=channels, size=size, seed=seed)
        for seed, (split, count) in enumerate({"train": train, "test": test}.items())
    }
    arrays = {
        f"{split}_{what}": array
        for split, pair in splits.items()
        for what, array in zip(("images", "labels"), pair, strict=True)
    }
    return put_arrays(data_dir, name, arrays)


def write_experiment(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "tiny") -> Path:
    """EXPERIMENT as a file; `changes` has dotted keys, as --set has, and may replace a whole block."""
    values = _copy(EXPERIMENT)
    for dotted, value in (changes or {}).items():
        *above, key = dotted.split(".")
        block = values
        for part in above:
            block = block.setdefault(part, {})
        block[key] = _copy(value)
    path = folder / f"{name}.yaml"
    path.write_text(yamlfile.dump(values), encoding="utf-8")
    return path


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def make_plan(folder: Path, changes: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Plan:
    """The plan of `write_experiment`: a teacher, a baseline and a distilled run with seed 0."""
    return plan([configfile.load(str(write_experiment(folder, changes)), overrides)])


def make_run(folder: Path, role: str, changes: Mapping[str, Any] | None = None) -> Run:
    """The first run of one role."""
    return next(run for run in make_plan(folder, changes).runs if run.role == role)


def prepare(root: Path, run: Run) -> RunDir:
    """A run's directory with its config.yaml."""
    run_dir = RunDir(root, run.id)
    run_dir.prepare(run)
    return run_dir


def train_here(root: Path, run: Run, data_dir: Path, *, world: World | None = None, max_steps: int = 0) -> RunDir:
    """Train a run in this process as torchrun's worker would, in a new attempt, without its signals and logs."""
    import torch

    from kdcluster.train.distributed import World
    from kdcluster.train.trainer import Progress, train

    run_dir = prepare(root, run)
    attempt: Attempt | None = None if max_steps else run_dir.start_attempt({})
    train(run_dir, attempt, world or World(0, 1, torch.device("cpu")), data_dir, Progress(), max_steps)
    return run_dir
