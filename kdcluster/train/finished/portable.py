"""A model as files that need neither timm nor this package, resize and normalisation inside: ONNX, and torch.export.

Letters: B batch, C channels or classes, H W pixels, S side at which the model sees the images, N images.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcluster import __version__
from kdcluster.errors import KdclusterError
from kdcluster.train.finished.model import Finished
from kdcluster.train.models import Classifier, last_line

ONNX, PT2 = "model.onnx", "model.pt2"
OPSET = 18
"""The first in which torch's exporter writes everything that it knows; runtimes have it since 2023."""
CHECKED = 32
"""Images that a file is held against the model on."""
TOLERANCE = 1e-4
"""By what part of the largest logit, or of 1, they may differ."""
EXTRA = "pip install 'kdcluster[export]'"


class Portable(nn.Module):
    """A classifier of images (H, W), as a graph of operations that every exporter has."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Classifier, size: tuple[int, int]) -> None:
        super().__init__()
        self.net = net.net
        self.resize = nn.Identity() if size == (net.size, net.size) else Resize(size, net.size, net.mode)
        self.register_buffer("mean", net.mean.clone())
        self.register_buffer("std", net.std.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of uint8 images (B, C, H, W)."""
        x = self.resize(images.float() / 255)
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


class Resize(nn.Module):
    """What `Classifier.forward` does to the size of images, as two matrices.

    Torch's resize is just that, to 1e-6: linear, along the rows and along the columns. So antialias, bicubic
    coefficients and borders are the training's, whatever a runtime's own Resize would do.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], to: int, mode: str) -> None:
        super().__init__()
        rows, columns = (_resizing(side, to, mode, antialias=max(size) > to) for side in size)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) of (B, C, H, W)."""
        return self.rows @ images @ self.columns


def _resizing(side: int, to: int, mode: str, *, antialias: bool) -> Tensor:
    """(S, H): what becomes of each column of an image of so many rows."""
    every = torch.eye(side)[None, None]
    resized = F.interpolate(every, (to, side), mode=mode, antialias=antialias, align_corners=False)
    return resized[0, 0] if to != side else every[0, 0]


def write(there: Finished, folder: Path) -> dict[str, Any]:
    """Write both files, each held against the model, or say why one is not there.

    Returns:
        {"missing": {name: why}, "checked": {"images": N, "real": bool, "gaps": {name: largest difference},
        "largest": of the logits, without their signs}}

    Raises:
        KdclusterError: a file does not give what the model gives.
    """
    images, real = some_images(there, CHECKED)
    with torch.inference_mode():
        ours = there.net(images)
    largest = float(ours.abs().max())
    missing: dict[str, str] = {}
    gaps: dict[str, float] = {}
    program = noted(missing, (PT2, ONNX), lambda: _program(there, images[:2]))
    makers: dict[str, Callable[[], Any]] = {
        PT2: lambda: _pt2(program, folder),
        ONNX: lambda: _onnx(program, there, folder),
    }
    for name, make in makers.items() if program else ():
        run = noted(missing, (name,), make)
        if run is None:
            (folder / name).unlink(missing_ok=True)
            continue
        found = torch.cat([run(images[:1]), run(images[1:])])  # two batches, of different sizes
        gaps[name] = float((found - ours).abs().max())
        if not gaps[name] <= TOLERANCE * max(1.0, largest):
            raise KdclusterError(
                f"{name} of {there.run.id} gives other logits than the model, by up to {gaps[name]:.2g}; nothing was "
                f"written; this is a fault of the exporter or of the model: please report it"
            )
    checked = {"images": len(images), "real": real, "gaps": gaps, "largest": largest}
    return {"missing": missing, "checked": checked}


def size_of(there: Finished) -> tuple[int, int]:
    """(H, W) of what goes in: as the images are stored; the model's own where nobody knows."""
    return there.input_size or (there.net.size, there.net.size)


def some_images(there: Finished, count: int, split: str = "test") -> tuple[Tensor, bool]:
    """uint8 (N, C, H, W) spread over a split, or noise where it is not here; and whether they are real."""
    if there.arrays is None:
        random = np.random.default_rng(0)
        shape = (count, there.run.channels, *size_of(there))
        return torch.from_numpy(random.integers(0, 256, shape, np.uint8)), False
    every = there.arrays.images[split]  # type: ignore[index]
    at = np.unique(np.linspace(0, len(every) - 1, count).astype(int))
    return torch.from_numpy(every[at].copy()), True


def noted(missing: dict[str, str], names: tuple[str, ...], work: Callable[[], Any]) -> Any:
    """What `work` gives; None, and why is noted, where the exporter cannot."""
    try:
        with quiet():
            return work()
    except Exception as error:  # whatever an exporter raises of a model that it does not understand
        why = str(error) if isinstance(error, KdclusterError) else f"the exporter fails: {last_line(error)}"
        missing |= dict.fromkeys(names, why)
        return None


def _program(there: Finished, example: Tensor) -> torch.export.ExportedProgram:
    """The model as torch.export has it, for any batch."""
    net = Portable(there.net, size_of(there)).eval()
    program = torch.export.export(net, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the folders of this machine
    return program


def _pt2(program: torch.export.ExportedProgram, folder: Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, folder / PT2)
    loaded = torch.export.load(folder / PT2).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = loaded(images)
        return logits

    return run


def _onnx(program: torch.export.ExportedProgram, there: Finished, folder: Path) -> Callable[[Tensor], Tensor]:
    needed("onnx", "onnxruntime", "onnxscript")
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),  # its name
    )
    assert made is not None
    parts: list[Any] = [made.model.graph, *made.model.functions.values()]
    for part in parts:
        for node in part.all_nodes():
            node.metadata_props.clear()  # where in whose files each stands: a third of a small model's size
    made.model.producer_name, made.model.producer_version = "kdcluster", __version__
    made.model.metadata_props.update(_about(there))
    made.save(folder / ONNX)
    loaded = session(folder / ONNX)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(loaded.run(None, {"images": images.numpy()})[0])

    return run


def _about(there: Finished) -> dict[str, str]:
    """What an ONNX file says of itself, to whoever has nothing but it."""
    net, run = there.net, there.run
    size = size_of(there)
    resize = "" if size == (net.size, net.size) else f"{net.mode} resize to {net.size}×{net.size}, "
    mean, std = (json.dumps([round(value, 6) for value in part.flatten().tolist()]) for part in (net.mean, net.std))
    colour = "grey" if run.channels == 1 else "RGB"
    return {
        "name": run.model.model.partition(".")[0],
        "classes": json.dumps(there.classes, ensure_ascii=False),
        "input": f"{colour} images, uint8 from 0 to 255, [batch, {run.channels}, {size[0]}, {size[1]}]",
        "preprocessing": f"inside: division by 255, {resize}normalisation with mean {mean} and std {std}",
        "output": f"logits, before any softmax, [batch, {run.num_classes}]",
        "run": run.id,
        "producer": f"kdcluster {__version__}",
    }


def make_onnx(there: Finished, folder: Path) -> Path:
    """The ONNX file alone, as it is: whoever hands it out takes `write`.

    Raises:
        KdclusterError: a package is missing, or the exporter fails.
    """
    missing: dict[str, str] = {}
    noted(missing, (ONNX,), lambda: _onnx(_program(there, some_images(there, 2)[0]), there, folder))
    if missing:
        raise KdclusterError(f"{there.run.id}: {missing[ONNX]}")
    return folder / ONNX


def session(path: Path, threads: int = 0) -> Any:
    """An ONNX file as onnxruntime runs it on the CPU; 0 threads: as many as there are cores."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, min(threads, 1)
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def needed(*names: str) -> Any:
    """Packages of the extra `export`; the last one.

    Raises:
        KdclusterError: one is not installed.
    """
    found = None
    for name in names:
        try:
            found = importlib.import_module(name)
        except ImportError:
            raise KdclusterError(f"{name} is not installed: {EXTRA}") from None
    return found


@contextmanager
def quiet(level: int = logging.INFO) -> Iterator[None]:
    """Without what exporters say of their progress, up to a level."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
