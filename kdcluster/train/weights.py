"""Files of tensors that a run publishes: its weights, and what they predict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdcluster.files import aside
from kdcluster.plan import Run
from kdcluster.predictions import path_of


def write_weights(path: Path, state: Mapping[str, Tensor], run: Run, step: int) -> None:
    """A model's weights as safetensors in timm's layout, with the run and the step they are of.

    The same weights are the same bytes, by which a store knows its teacher; safetensors itself shuffles what is known.
    """
    tensors = {  # copies: safetensors refuses tensors that share memory, as tied weights do
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    known = {"run": run.id, "hash": run.hash, "step": str(step)}
    content = save(tensors, known)
    end = 8 + int.from_bytes(content[:8], "little")
    header = {**json.loads(content[8:end]), "__metadata__": known}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    with aside(path) as file:
        for part in (content[:8], text.ljust(end - 8), memoryview(content)[end:]):
            file.write(part)


def weights_step(path: Path) -> int | None:
    """The step of a file that `write_weights` wrote; None where it is none, or gone."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # damaged, or somebody else's
        return None


def write_predictions(folder: Path, predictions: Mapping[str, Tensor], run: Run, step: int) -> None:
    """What the weights of a step predict (predictions.py), into a run's folder; before these weights, so that weights
    that are there have theirs."""
    path = path_of(folder, step)
    path.parent.mkdir(exist_ok=True)
    write_weights(path, predictions, run, step)
