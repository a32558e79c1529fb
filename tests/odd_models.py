"""A file as a user writes it for `imports`: models whose forward pass gives what no trainer can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

GIVES: dict[str, Callable[[OddNet, Tensor, Tensor], Any]] = {
    "a tuple": lambda net, x, y: (y, y),
    "a tuple in training": lambda net, x, y: (y, y) if net.training else y,
    "a tuple in evaluation": lambda net, x, y: y if net.training else (y, y),
    "a dict": lambda net, x, y: {"logits": y, "features": x},
    "another number of classes": lambda net, x, y: torch.cat([y, y[:, :1]], dim=1),
    "a flat vector": lambda net, x, y: y.flatten(),
    "labels": lambda net, x, y: y.argmax(1, keepdim=True).expand_as(y),
    "nothing": lambda net, x, y: None,
    "an error": lambda net, x, y: net.head(x),
    "no gradient": lambda net, x, y: y.detach(),
    "half precision": lambda net, x, y: y.half(),
    "a number read back": lambda net, x, y: y if y.sum().item() < 1e9 else None,
}


class OddNet(nn.Module):
    """A linear head over the mean of the image, and what is made of its logits."""

    def __init__(self, num_classes: int, in_chans: int, gives: str) -> None:
        super().__init__()
        self.head = nn.Linear(in_chans, num_classes)
        self.gives = gives

    def forward(self, x: Tensor) -> Any:
        return GIVES[self.gives](self, x, self.head(x.mean((2, 3))))


@register_model
def odd_net(pretrained: bool = False, num_classes: int = 10, in_chans: int = 3, gives: str = "", **_: Any) -> OddNet:
    return OddNet(num_classes, in_chans, gives)
