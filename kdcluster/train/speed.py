"""What a run spends before its first steps to make the others faster: torch.compile, and cuDNN's search.

Both move the last bits, as another GPU would.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kdcluster.plan import Run
from kdcluster.train.distributed import World

log = logging.getLogger(__name__)

COMPILE_S = 60
"""Seconds that compiling a model takes before its first step: about a minute."""
SAVED_MS = 2
"""Milliseconds that it then saves in a step, at the least: ViT-Tiny at 224 px in batches of 128 on an H100 (torch 2.11)
took 17.6 to 20.4 eager (6,288 to 7,288 images/s), where launches bound it, and 16.0 compiled (8,008). A larger model
saves a smaller share of a longer step."""
WORTH_STEPS = COMPILE_S * 1000 // SAVED_MS
"""Steps that earn it back; no less on other cards, which were not measured."""


def decided(run: Run, world: World, steps: int, state: Mapping[str, Any] | None = None) -> Run:
    """The run with `train.compile: auto` decided, by the steps that are left; the log says how.

    On a CPU never: it took 130 s to the first step there. A run that goes on stays as it began, where it can.

    Args:
        steps: that this attempt may still take.
        state: the checkpoint that it goes on from.
    """
    assert run.train is not None
    if run.train.compile != "auto":
        return run
    began = (state or {}).get("compile")
    wanted = steps >= WORTH_STEPS if began is None else bool(began)
    lacks = _lacks() if wanted else ""
    worth = world.device.type == "cuda" and wanted and not lacks
    if world.device.type == "cuda" and world.rank == 0:
        why = f"{steps:,} steps are left, and {WORTH_STEPS:,} earn it back" if began is None else "as it began"
        why = f"there is no {lacks}" if lacks else why
        log.info("train.compile auto: %s; %s", "true" if worth else "false", why)
    return run.model_copy(update={"train": run.train.model_copy(update={"compile": worth})})


def _lacks() -> str:
    """What torch.compile needs beside torch on a GPU and does not find here; it would fail in the first step."""
    if importlib.util.find_spec("triton") is None:
        return "triton"
    return "" if os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang"))) else "C compiler"


def compiled(net: nn.Module, run: Run, world: World, pieces: int) -> nn.Module:
    """A student or its teacher as the step calls it: compiled if the run is decided so, before DDP wraps it.

    `evaluated` and checkpoints have the net itself, whose weights these are: an evaluation compiles nothing. Each
    shape is compiled for itself; a run has one, or two where shares differ by an image.

    CUDA graphs replay a step's launches at once, from memory of their own that the next replay overwrites. That is safe
    where a step is one forward and one backward: its gradients and logits are used up before the next. With
    micro-batches a second backward would overwrite the gradients that the first one left. With several ranks DDP's
    hooks and SyncBatchNorm's collectives would lie between or inside the graphs, which nobody has tried here.
    Optimizer and average change the weights in place, which a replay sees.

    Args:
        pieces: micro-batches of a step.
    """
    assert run.train is not None
    if run.train.compile is not True:
        return net
    torch._inductor.config.fallback_random = True  # dropout draws what it draws uncompiled, as a run that goes on does
    alone = world.device.type == "cuda" and world.size == 1 and pieces == 1
    made: nn.Module = torch.compile(net, dynamic=False, mode="reduce-overhead" if alone else None)  # type: ignore[assignment]
    return made


def worth_searching(*nets: nn.Module | None) -> bool:
    """Whether cuDNN is to try its algorithms for each convolution in the first step: not where some are depthwise.

    In tf_efficientnet_lite0 at 128 px on an H100 that took 31 s (1,414 images/s in the first epoch, then 11,500).
    `cudnn.benchmark_limit` does not bound it: it is 10 already, and says how many plans are timed (pytorch 74881);
    before that each plan that the heuristics name is built (`cudnnGetPlan` in Conv_v8.cpp), and those of depthwise
    convolutions are compiled at run time, at up to 1.5 s each (NVIDIA/cudnn-frontend 1066). Without the search the
    first plan that works is taken. A ViT has one convolution, a ResNet some twenty of few shapes.
    """
    convolutions = (m for net in nets if net is not None for m in net.modules() if isinstance(m, nn.Conv2d))
    return not any(m.groups == m.in_channels > 1 for m in convolutions)
