"""Names to models: timm's, with their own normalisation and size, and their start weights.

B batch, C channels or classes, H W pixels.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from timm.models._helpers import load_state_dict
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.config import Model
from kdcluster.files import file_digest
from kdcluster.run import STORE, Run

log = logging.getLogger(__name__)

MIN_PATCHES = 4
"""Fewer patches a side leave a transformer little to attend to."""


class Classifier(nn.Module):
    """A timm model that takes images as they are: resizes to its own size, normalises by its own pretrained_cfg.

    Teacher and student may want different statistics and sizes, so batches stay in [0, 255] or [0, 1] until here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, cfg: dict[str, Any], channels: int, image_size: int | None) -> None:
        super().__init__()
        self.net = net
        self.size = _size(cfg, image_size)
        self.mode = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"
        self.channels_last = False
        for name in ("mean", "std"):
            values = torch.tensor(cfg[name], dtype=torch.float32)
            if len(values) != channels:  # three-channel statistics, grey images
                values = values.mean().expand(channels)
            self.register_buffer(name, values.reshape(1, -1, 1, 1).clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, C, H, W): uint8, or float in [0, 1]."""
        with torch.autocast(images.device.type, enabled=False):  # resizing under autocast was slow (pytorch 51204)
            x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
            if x.shape[-2:] != (self.size, self.size):
                smaller = x.shape[-1] > self.size or x.shape[-2] > self.size
                x = F.interpolate(x, (self.size, self.size), mode=self.mode, antialias=smaller, align_corners=False)
            x = (x - self.mean) / self.std
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.net(x)
        return logits

    def in_channels_last(self) -> Classifier:
        """NHWC from here on."""
        self.net.to(memory_format=torch.channels_last)
        self.channels_last = True
        return self


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def check_files(run: Run) -> None:
    """Refuse to train with other weights or imports than the run's id was made of.

    Raises:
        ConfigError: a file has changed since the run was planned.
    """
    start = run.model.pretrained if run.role != STORE else False  # a store's teacher has been trained
    weights = [start] if isinstance(start, str) else []
    for path in (*run.imports, *weights):
        if not Path(path).is_file() or file_digest(Path(path)) != run.digests[path]:
            raise ConfigError(f"{path} was changed or deleted since this run was planned; put it back, or plan again")


def import_files(paths: Iterable[str]) -> None:
    """Run the files of `imports`, which register models with timm; each content once in a process.

    Raises:
        ConfigError: a file cannot be run; says where it broke.
    """
    for path in paths:
        name = f"kdcluster_import_{file_digest(Path(path))[:16]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"imports: {path} is not a Python file")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ConfigError(f"imports: {path} failed: {type(error).__name__}: {error}") from error


def build(model: Model, num_classes: int, channels: int, *, start: bool = True, exact: bool = False) -> Classifier:
    """A model with its start weights.

    Args:
        model: name, weights, size, keyword arguments.
        num_classes: C of the logits.
        channels: colour channels of the images.
        start: False leaves random weights, for weights that are loaded afterwards.
        exact: the head must fit too (a teacher that is taken as it is).

    Raises:
        ConfigError: timm has no such model, it does not take the arguments, or the weights do not fit.
        KdclusterError: timm's weights are not here and cannot be fetched.
    """
    cfg = pretrained_cfg(model.model)
    kwargs = arguments(model, cfg)
    from_timm = start and model.pretrained is True
    if from_timm and exact and cfg.get("num_classes") != num_classes:
        had = cfg.get("num_classes")
        raise ConfigError(f"{model.model}: its weights have {had} classes, the data {num_classes}; give a file")
    try:
        net = timm.create_model(model.model, pretrained=from_timm, num_classes=num_classes, in_chans=channels, **kwargs)
    except (OSError, HfHubHTTPError) as error:
        raise KdclusterError(
            f"the weights of {model.model} are not here and cannot be fetched ({last_line(error)}); run "
            f"`kdcluster prefetch` where there is internet, or give a file: pretrained: weights.safetensors"
        ) from error
    except Exception as error:  # a wrong argument surfaces as whatever the model first does with it
        raise ConfigError(f"{model.model} cannot be built with {kwargs}: {last_line(error)}") from error
    size, patch = _size(cfg, model.image_size), patch_of(net)
    if size % patch:
        what = f"image_size {size} is not a multiple of its patch size {patch}"
        raise ConfigError(f"{model.model}: {what}; {_fitting(model, size, patch)}")
    if start and isinstance(model.pretrained, str):
        load_weights(net, Path(model.pretrained), cfg, exact=exact)
    return Classifier(net, cfg, channels, model.image_size)


def arguments(model: Model, cfg: dict[str, Any]) -> dict[str, Any]:
    """What timm's `create_model` is given beside classes and channels; `cfg`: the model's pretrained_cfg."""
    sized = model.image_size is not None and cfg.get("fixed_input_size")
    return {**model.model_args, **({"img_size": model.image_size} if sized else {})}


def patch_of(net: nn.Module) -> int:
    """What the side of a model's images has to be a multiple of, in pixels; 1 where they are not cut into patches."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    return math.lcm(*patch) if isinstance(patch, tuple) else 1


def image_size(model: Model) -> int:
    """Side in pixels at which a model sees the images.

    Raises:
        ConfigError: timm has no such model.
    """
    return _size(pretrained_cfg(model.model), model.image_size)


def _size(cfg: dict[str, Any], image_size: int | None) -> int:
    return image_size or int(cfg["input_size"][-1])


def _fitting(model: Model, size: int, patch: int) -> str:
    """What to set where a size does not fit: the next that do, and patches of another size, if it can have them."""
    lower, upper = size // patch * patch, -(-size // patch) * patch
    words = f"set image_size to {upper}" + (f" or {lower}" if lower else "")
    few = [side for side in range(2, patch) if size % side == 0 and size // side >= MIN_PATCHES]
    if few:
        smaller = {**model.model_args, "patch_size": few[-1]}
        try:
            with torch.device("meta"):
                built = timm.create_model(model.model, img_size=size, **smaller)
        except Exception:  # a model whose patches are as they are
            return words
        if patch_of(built) == few[-1]:
            words += f", or model_args to {{patch_size: {few[-1]}}}"
    return words


def load_weights(net: nn.Module, path: Path, cfg: dict[str, Any], *, exact: bool) -> None:
    """Weights in timm's layout into a model: the head replaced where its size differs, position embeddings resized.

    Args:
        net: a timm model.
        path: safetensors, or a torch file that holds tensors alone (read with weights_only).
        cfg: the model's pretrained_cfg.
        exact: the head must fit too.

    Raises:
        ConfigError: the file cannot be read, or anything but the head does not fit.
    """
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # safetensors and pickle raise a dozen kinds for a bad file
        raise ConfigError(f"{path}: not a file of weights: {last_line(error)}") from error
    resize = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if resize is not None:
        try:
            state = resize(state, net)
        except Exception as error:  # timm's filters trust the file
            raise ConfigError(f"{path} does not fit {type(net).__name__}: {last_line(error)}") from error
    own = net.state_dict()
    for name in _names(cfg.get("first_conv")):
        key = f"{name}.weight"
        if key in state and key in own and state[key].shape[1] == 3 != own[key].shape[1]:
            state[key] = adapt_input_conv(own[key].shape[1], state[key])
    head = {f"{name}.{kind}" for name in _names(cfg.get("classifier")) for kind in ("weight", "bias")}
    replaced = {key for key in head & state.keys() & own.keys() if state[key].shape != own[key].shape}
    if replaced and exact:
        had, wants = (next(iter(s[key].shape[0] for key in replaced)) for s in (state, own))
        raise ConfigError(f"{path}: its head has {had} classes, the data {wants}; with train: none it must fit")
    state = {key: value for key, value in state.items() if key not in replaced}
    wrong = [f"no {key}" for key in own if key not in state and key not in replaced]
    wrong += [f"unknown {key}" for key in state if key not in own]
    wrong += [
        f"{key} is {tuple(value.shape)}, not {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(f"{path} does not fit {type(net).__name__}: {'; '.join(wrong[:5])}{more}")
    net.load_state_dict(state, strict=False)
    if replaced:
        log.info("%s: the head has another size and starts anew (%s)", path.name, ", ".join(sorted(replaced)))


def load_saved(net: nn.Module, path: Path) -> None:
    """The weights that a run has left, into the model that it has trained.

    Raises:
        KdclusterError: they cannot be read, or are not this model's.
    """
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise KdclusterError(
            f"{path} cannot be used ({last_line(error)}); delete it and submit the experiment with --retry, which "
            f"makes it again"
        ) from error


def pretrained_cfg(name: str) -> dict[str, Any]:
    """timm's pretrained_cfg of a model; a plain one for a model that registers none.

    Raises:
        ConfigError: timm has no such model or tag.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), 1)
        raise ConfigError(f"timm has no model {base!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    try:
        cfg = get_pretrained_cfg(name, allow_unregistered=not tag)
    except RuntimeError:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
        raise ConfigError(f"{base} has no weights tagged {tag!r}; it has: {', '.join(tags) or 'none'}") from None
    plain = {"input_size": (3, 224, 224), "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic"}
    return {**plain, **{k: v for k, v in (cfg.to_dict() if cfg else {}).items() if v is not None}}


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def last_line(error: Exception) -> str:
    """An exception's kind and the last line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1][:300]}"
