"""What each part of a recipe brings, on 15,000 images of CIFAR-10: one teacher, three stores, five seeds, intervals.

    PYTHONPATH=. python benchmarks/recipes.py FOLDER IMAGES.tar WEIGHTS.safetensors [ARM…]

Arms are experiments of their own and share the teacher, its stores and, where nothing differs, the baselines. The same
command goes on after whatever stopped it; without names all arms run, those that cost least first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcluster.experiment import yamlfile

EACH = 1500
"""Training images of a class."""
CROP = {"crop": {"scale": [0.35, 1.0]}}
MIXUP = {"mixup": {"alpha": 0.8, "share": 0.5}}
BASE: dict[str, Any] = {
    "data": {"name": "image_folder", "path": "images", "val_fraction": 0.1, "augment": {"pad": 4, "flip": True}},
    "teacher": {
        "model": "tf_efficientnet_lite0",
        "pretrained": "weights.safetensors",
        "image_size": 64,
        "augment": {"pad": 4, "flip": True},
        "train": {"epochs": 5, "lr": 1e-3, "weight_decay": 0.01},
    },
    "student": {
        "model": "vit_tiny_patch16_224",
        "image_size": 32,
        "model_args": {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2},
    },
    "train": {
        "epochs": 20,
        "batch_size": 128,
        "lr": 2e-3,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "weight_decay": 0.05,
    },
    "distill": {"alpha": 0.5, "temperature": 4.0},
    "seeds": [0, 1, 2, 3, 4],
    "resources": {"device": "cpu", "procs": 1, "threads": 1},
}
SPACE = {
    "train.lr": {"loguniform": [5e-4, 8e-3]},
    "train.weight_decay": {"loguniform": [0.005, 0.5]},
    "train.label_smoothing": {"uniform": [0.0, 0.3]},
    "distill.alpha": {"uniform": [0.2, 0.95]},
}
ARMS: dict[str, Mapping[str, Any]] = {
    "kd": {"control": "label_smoothing"},
    "standardised": {"distill.standardise": True, "distill.temperature": 2.0},
    "dkd": {"distill.loss": "dkd", "distill.dkd_beta": 2.0},
    "dist": {"distill.loss": "dist", "distill.temperature": 1.0},
    "hard": {"distill": {"alpha": 0.5, "loss": "hard"}},
    "mixup": {"data.augment": {"pad": 4, "flip": True, **MIXUP}},
    "crop": {"data.augment": {"flip": True, **CROP}},
    "twice": {"train.epochs": 40},
    "four_times": {"train.epochs": 80},
    "tuned": {"sweep": {"space": SPACE, "trials": 8, "scheduler": "asha"}},
}
"""Name -> what it changes; `tuned` is swept with --both."""


def prepare(folder: Path, images: Path, weights: Path) -> None:
    """Images, weights and the file of each arm."""
    if not (folder / "images").exists():
        counts: dict[str, int] = {}
        aside = folder / "images.aside"
        with tarfile.open(images) as tar:
            for member in tar:
                split, *rest = Path(member.name).parts
                if member.isfile() and len(rest) == 2:
                    counts[f"{split}/{rest[0]}"] = number = counts.get(f"{split}/{rest[0]}", 0) + 1
                    if split == "test" or number <= EACH:
                        tar.extract(member, aside, filter="data")
        aside.rename(folder / "images")
    if not (folder / "weights.safetensors").exists():
        (folder / "weights.safetensors").symlink_to(weights.resolve())
    for name, changes in ARMS.items():
        (folder / f"{name}.yaml").write_text(yamlfile.dump(changed(BASE, changes)))


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set."""
    found = dict(values)
    for dotted, value in changes.items():
        first, _, rest = dotted.partition(".")
        found[first] = changed(found.get(first, {}), {rest: value}) if rest else value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("folder", "images", "weights"):
        parser.add_argument(name, type=Path)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    prepare(given.folder, given.images, given.weights)
    kdcluster = [sys.executable, "-m", "kdcluster.cli"]
    for arm in given.arms:
        how = ["sweep", "--both"] if arm == "tuned" else ["submit", "--wait"]
        done = subprocess.run([*kdcluster, how[0], f"{arm}.yaml", *how[1:], "--backend", "local"], cwd=given.folder)
        if done.returncode:
            sys.exit(done.returncode)
    files = [f"{arm}.yaml" for arm in given.arms if arm != "tuned"]
    subprocess.run([*kdcluster, "results", *files, "--together"], cwd=given.folder, check=True)


if __name__ == "__main__":
    main()
