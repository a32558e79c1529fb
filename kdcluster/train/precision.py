"""In which precision the forward passes are: what the file says, else what suits the device; and where it went wrong.

On CPUs with bf16 units the gradient of a 3×3 convolution on a 1×1 map is now and then not finite in bf16, so that a
device is given it by default only where that is known to be safe: on a GPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from kdcluster.plan import Run
from kdcluster.teacherlogits import EARLIER
from kdcluster.train.distributed import World

log = logging.getLogger(__name__)


def decided(run: Run, world: World, state: Mapping[str, Any] | None) -> Run:
    """The run with its precision decided, the same on every rank.

    A run that goes on keeps the one in which it began, wherever it goes on.

    Args:
        run: as its file has it.
        world: of which the first rank decides.
        state: the checkpoint that it goes on from.
    """
    if run.amp != "auto":
        return run
    here: Literal["bf16", "none"] = "bf16" if world.from_first(int(_has_bf16(world.device))) else "none"
    began = state.get("amp", EARLIER) if state else here
    if began != here and world.rank == 0:
        log.warning("going on with amp: %s, in which it began; auto would be %s here (%s)", began, here, world.device)
    return run.with_amp(began)


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


Norms = tuple[int, Mapping[str, Tensor]]
"""A step, and the norm of the gradient of each parameter in it, in the order of the model."""


def first_not_finite(norms: Iterable[Norms]) -> tuple[int, str] | None:
    """The step and the parameter whose gradient was not finite first: in a step, the nearest to the output.

    The norms are read here alone, so that nobody waits for the device while all goes well.
    """
    for step, found in norms:
        for name, norm in reversed(list(found.items())):  # as the backward pass comes by
            if not math.isfinite(float(norm)):
                return step, name
    return None
