"""Before anything runs: try the models, fetch data and weights. A child process of the launcher, which has no torch.

Reads run configurations on stdin, one YAML document a line of JSON; answers with one JSON document on stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pdb
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import logging as hub_logging

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.config import Model
from kdcluster.imagefolder import looked_at_once
from kdcluster.inputs import arrays_folder
from kdcluster.processes import die_with
from kdcluster.run import STORE, Run
from kdcluster.train import data, models, optim
from kdcluster.train.step import checkpoint_gradients


def main() -> None:
    """`python -m kdcluster.train.preflight --data-dir DIR --parent PID [--fetch] < runs.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true", help="fetch what is missing, instead of only saying so")
    parser.add_argument("--parent", type=int, required=True, help="the pid of who waits, and whom it does not outlive")
    given = parser.parse_args()
    die_with(given.parent, "the kdcluster that asked")
    answer_about(lambda runs: preflight(runs, given.data_dir, fetch=given.fetch))


def answer_about(asked: Callable[[list[Run]], Any]) -> None:
    """Read runs on stdin, and write what is asked about them to stdout."""
    # The answer is alone on stdout: a file of `imports` may print, from C++ too, and its words go to stderr.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Nobody is there to answer a debugger that waits in a model's forward pass, which `kdcluster debug` is for.
    sys.breakpointhook = pdb.set_trace = lambda *_, **__: None
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    hub_logging.set_verbosity_error()  # it prints every one of its retries, twice
    runs = [Run.model_validate(values, strict=False) for values in json.load(sys.stdin)]
    with answer, looked_at_once():
        json.dump(asked(runs), answer)


def preflight(runs: list[Run], data_dir: Path, *, fetch: bool) -> dict[str, Any]:
    """Everything at once.

    {"models": {run id: {"params", "image_size", "patch"}}, "notes": [text], "problems": [text], "torch": …}

    Models are built with their own weights where they are given as files, and see two images, so that what does not
    fit is found here and not after hours in a queue.
    """
    notes: list[str] = []
    problems: list[str] = []
    found: dict[str, Any] = {}
    built: dict[Any, dict[str, int]] = {}
    tried: set[Any] = set()
    for run in runs:
        if run.role == STORE:  # its model is its teacher's, which has been trained
            continue
        key = (run.model.model_dump_json(), *_fits(run))
        if key not in built:
            built[key] = _attempt(lambda run=run: _build(run, fetch, notes, tried), f"{run.id}: ", problems)
        found[run.id] = built[key]
    found |= {run.id: found.get(run.needs[0]) for run in runs if run.role == STORE}
    for run in {arrays_folder(run, data_dir): run for run in runs}.values():
        _attempt(lambda run=run: _data(run, data_dir, fetch, notes), "", problems)
    devices = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    about = {"version": torch.__version__, "devices": devices}
    return {"models": found, "notes": notes, "problems": problems, "torch": about}


def _attempt(action: Any, prefix: str, problems: list[str]) -> Any:
    try:
        return action()
    except ConfigError as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]
    except KdclusterError as error:
        problems.append(f"{prefix}{error}")
    return None


def _fits(run: Run) -> tuple[Any, ...]:
    """What a model has to fit into."""
    asked = run.train and (run.train.grad_checkpointing, run.train.layer_decay)
    return asked, run.num_classes, run.channels, run.imports


def _build(run: Run, fetch: bool, notes: list[str], tried: set[Any]) -> dict[str, int]:
    """What is known of a run's model; one that is in `tried` with other weights sees no images again."""
    models.import_files(run.imports)
    here = run.model.pretrained is not True or weights_are_here(run.model)
    if not here and not fetch:
        notes.append(f"the weights of {run.model.model} will be fetched")
    try:
        net = models.build(run.model, run.num_classes, run.channels, start=here or fetch, exact=run.train is None)
    except ConfigError:
        raise
    except KdclusterError:
        constants.HF_HUB_OFFLINE = True  # one minute of retries is enough: do not try the next model's
        raise
    key = (run.model.model_dump_json(exclude={"pretrained"}), *_fits(run))
    if key not in tried:
        tried.add(key)
        _try(run, net)
    return {"params": models.parameters(net), "image_size": net.size, "patch": models.patch_of(net.net)}


def _try(run: Run, net: models.Classifier) -> None:
    """Have a model see two images as the trainer would: in training mode where it is trained, and in evaluation mode.

    Real images: with a model of the user's, fake tensors fail where it reads a number, and take about as long (ViT-B
    at 224 px 1.1 s of one core, fake 0.3; resnet18 0.2 and 0.2). One thread: on a busy machine several wait for
    each other for seconds.

    Raises:
        ConfigError: it fails, or gives something else than logits; says what came and what is wanted.
        KdclusterError: it cannot do train.grad_checkpointing, or train.layer_decay.
    """
    count = 2 if run.num_classes != 2 else 3  # so that (B, C) is not (C, B)
    if run.train is not None and run.train.grad_checkpointing:
        checkpoint_gradients(net, run.model.model)
    if run.train is not None and run.train.layer_decay:
        optim.build_optimizer(net.net, run.train)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = torch.randint(0, 256, (count, run.channels, net.size, net.size), dtype=torch.uint8)
        for mode in ("training", "evaluation") if run.train else ("evaluation",):
            with torch.set_grad_enabled(mode == "training"):
                problem = _problem(run, net.train(mode == "training"), images)
            if problem:
                raise ConfigError(f"{_called(run.model, net.size)} in {mode} mode {problem}")
    finally:
        torch.set_num_threads(threads)


def _problem(run: Run, net: models.Classifier, images: torch.Tensor) -> str:
    """What is wrong with what a model makes of images; empty where nothing is."""
    try:
        logits: Any = net(images)
    except Exception as error:  # whatever a model of the user's may raise
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in run.imports]
        at = f", in {own[-1].filename}:{own[-1].lineno}" if own else ""
        return f"fails in its forward pass: {models.last_line(error)}{at}"
    shape = (len(images), run.num_classes)
    is_tensor = isinstance(logits, torch.Tensor)
    if not is_tensor or logits.shape != shape or not logits.is_floating_point():
        wanted = f"a tensor {shape} of floats, the logits of {shape[0]} images and {shape[1]} classes"
        return f"gives {_described(logits)}; wanted is {wanted}"
    if net.training and not logits.requires_grad:
        return "gives logits without a gradient, so nothing of it could be trained"
    return ""


def _called(model: Model, size: int) -> str:
    """A model with what it was built with."""
    arguments = f", model_args {model.model_args}" if model.model_args else ""
    return f"{model.model} (image_size {size}{arguments})"


def _described(value: Any) -> str:
    """What came out of a model, in words."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_described, value[:3]))}"
    return f"a {type(value).__name__}"


def weights_are_here(model: Model) -> bool:
    """Whether timm's weights of a tagged model lie in the hub's cache."""
    repository: str = models.pretrained_cfg(model.model).get("hf_hub_id") or ""
    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    return bool(repository) and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _data(run: Run, data_dir: Path, fetch: bool, notes: list[str]) -> None:
    if fetch:
        data.prepare(run, data_dir)
        return
    if arrays_folder(run, data_dir).exists():
        data.open_arrays(run, data_dir)
    else:
        what = f"images in {run.data.path}" if run.data.path else f"data set {run.data.name}"
        notes.append(f"the {what} will be {'' if run.data.path else 'fetched and '}decoded into {data_dir}")


if __name__ == "__main__":
    main()
