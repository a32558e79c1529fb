"""A run's model for others, each in a folder of its own. A child process of the launcher.

Reads run configurations on stdin, answers with one JSON document on stdout, as preflight.py does.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import timm
import torch

from kdcluster.plan import Run
from kdcluster.processes import die_with
from kdcluster.runs import RunDir
from kdcluster.train import hub, models
from kdcluster.train.finished import portable
from kdcluster.train.finished.model import open_run, told, written
from kdcluster.train.preflight import answer_about

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""As timm's hub layout calls them."""


def main() -> None:
    """`python -m kdcluster.train.finished.export --runs-dir DIR --data-dir DIR --into DIR < runs.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True, help="the pid of who waits, and whom it does not outlive")
    given = parser.parse_args()
    die_with(given.parent, "the kdcluster that asked")
    where = (given.runs_dir, given.data_dir)
    answer_about(lambda runs: told(lambda: [export(run, *where, given.into / run.id) for run in runs]))


def export(run: Run, root: Path, data_dir: Path, into: Path) -> dict[str, Any]:
    """Write a run's best weights and what they need into a new folder.

    Returns:
        what there is to say of them: {"id", "params", "image_size", "interpolation", "input": [C, H, W], "classes",
        "license", "images": {split: how many}, "image_rule", "data": why the images are not here, or "",
        "timm": `timm_problem`} and what `portable.write` says.
    """
    into.mkdir()
    shutil.copyfile(RunDir(root, run.id).weights("best"), into / WEIGHTS)
    there = open_run(run, root, data_dir, into / WEIGHTS)
    config = hub.config(there.net, run, there.classes)
    written(into / CONFIG, config)
    arrays = there.arrays
    log.info("%s: writing ONNX and torch.export", run.id)
    return {
        "id": run.id,
        "params": models.parameters(there.net),
        "image_size": there.net.size,
        "interpolation": there.net.mode,
        "input": [run.channels, *portable.size_of(there)],
        "classes": list(there.classes),
        "license": config["pretrained_cfg"].get("license"),
        "images": dict(arrays.seen.counts) if arrays else {},
        "image_rule": arrays.image_rule if arrays else None,
        "data": there.without,
        "timm": timm_problem(into, there.net),
        **portable.write(there, into),
    }


def timm_problem(folder: Path, net: models.Classifier) -> str:
    """Why `timm.create_model` does not give this model from a folder; empty where it does.

    A model that somebody has registered may ignore `pretrained`, and would then have random weights without a word.
    """
    try:
        with portable.quiet():
            found = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    except Exception as error:  # whatever a model of the user's may raise
        return models.last_line(error)
    ours = net.net.state_dict()
    same = found.keys() == ours.keys() and all(torch.equal(found[name], value) for name, value in ours.items())
    return "" if same else "its function does not load weights (timm's build_model_with_cfg does)"


if __name__ == "__main__":
    main()
