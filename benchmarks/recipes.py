"""What each part of a recipe brings, on 15,000 images of CIFAR-10: one teacher, three stores, five seeds, intervals.

    PYTHONPATH=. python benchmarks/recipes.py FOLDER IMAGES.tar WEIGHTS.safetensors [ARM…]

Arms are experiments of their own and share the teacher, its stores and, where nothing differs, the baselines. The same
command goes on after whatever stopped it; without names all arms run, those that cost least first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcluster.experiment import yamlfile
from kdcluster.results.spread import interval95

KDCLUSTER = [sys.executable, "-m", "kdcluster.cli"]
ROLE = {"label smoothing": "smoothed"}

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
        "train": {"epochs": 8, "lr": 2e-3, "weight_decay": 0.01, "label_smoothing": 0.0},
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
    "10_epochs": {"train.epochs": 10},
    "40_epochs": {"train.epochs": 40, "data.views": 20},
    "tuned": {"sweep": {"space": SPACE, "trials": 6, "scheduler": "asha"}},
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


def seeds_of(folder: Path, arm: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Of an arm, role (the control is `smoothed`) -> seed -> its run, accuracy in percent and seconds."""
    command = [*KDCLUSTER, "results", f"{arm}.yaml", "--json"]
    (one,) = json.loads(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout)["experiments"]
    role = {
        run: ROLE.get(row["configuration"].partition(":")[0], row["role"]) for row in one["rows"] for run in row["runs"]
    }
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for each in one["seeds"]:
        found.setdefault(role.get(each["run"], each["role"]), {})[each["seed"]] = each
    return found


def differences(some: Mapping[int, Any], others: Mapping[int, Any]) -> str:
    """Mean and 95 % interval of what one has more than the other, seed by seed."""
    values = [some[seed]["top1"] - others[seed]["top1"] for seed in some]
    low, high = interval95(values) or (math.nan, math.nan)
    return f"{statistics.fmean(values):+.2f} [{low:.2f}, {high:.2f}]"


def brings(folder: Path, arms: list[str]) -> str:
    """The table of the arms that are done, in Markdown, and the runs behind it: the ends of their ids, and percent."""
    title = "| arm | alone | distilled | gain | over kd | seconds a student |\n|---|---:|---:|---:|---:|---:|\n"
    lines, behind = [], []
    plain = seeds_of(folder, "kd")
    for arm in arms:
        roles = seeds_of(folder, arm)
        for role in [name for name in ("smoothed", "distilled") if name in roles]:
            theirs, alone = roles[role], roles["baseline"]
            cells = [arm if role == "distilled" else "label smoothing alone"]
            cells += [_spread(alone), _spread(theirs), differences(theirs, alone)]
            cells += ["" if (arm, role) == ("kd", "distilled") else differences(theirs, plain["distilled"])]
            cells += [f"{statistics.median(each['wall_s'] for each in theirs.values()):.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
        for role, runs in roles.items():
            each = [f"{'-'.join(one['run'].split('-')[-2:])} {one['top1']:.2f}" for one in runs.values()]
            behind.append(f"{arm}, {role}: {', '.join(each)}")
    return title + "\n".join([*lines, "", *behind])


def _spread(runs: Mapping[int, Any]) -> str:
    values = [each["top1"] for each in runs.values()]
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("folder", "images", "weights"):
        parser.add_argument(name, type=Path)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    prepare(given.folder, given.images, given.weights)
    for arm in given.arms:
        how = ["sweep", "--both", "--confirm", "5"] if arm == "tuned" else ["submit", "--wait"]
        done = subprocess.run([*KDCLUSTER, how[0], f"{arm}.yaml", *how[1:], "--backend", "local"], cwd=given.folder)
        if done.returncode:
            sys.exit(done.returncode)
    print(brings(given.folder, [arm for arm in given.arms if arm != "tuned"]))


if __name__ == "__main__":
    main()
