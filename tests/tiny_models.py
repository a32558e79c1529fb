"""A file as a user writes it for `imports`: registers a model of their own with timm."""

from __future__ import annotations

import os
import threading
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn


class TinyNet(nn.Module):
    """One convolution, a mean, a linear head: the cheapest thing that learns."""

    def __init__(self, num_classes: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, width, 4, stride=4)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


@register_model
def tiny_net(pretrained: bool = False, num_classes: int = 10, in_chans: int = 3, width: int = 8, **_: Any) -> TinyNet:
    return TinyNet(num_classes, in_chans, width)


class HangingNet(TinyNet):
    """Rank 1 does not come back from its third batch: long after the others have given up, its process ends."""

    batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        if self.batches == 3 and os.environ.get("RANK") == "1":
            threading.Event().wait(12)  # not for ever: torchrun kills what fails to end only after 30 s
            os._exit(1)
        return super().forward(x)


@register_model
def hanging_net(pretrained: bool = False, num_classes: int = 10, in_chans: int = 3, **_: Any) -> HangingNet:
    return HangingNet(num_classes, in_chans, 8)
