"""The lines of Python in a model card: each block runs as it is, in the folder that the card lies in.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePath

IMAGE = "image.png"
"""What the reader is to put there."""
_NAMES = 'names = Path("classes.txt").read_text(encoding="utf-8").splitlines()'
_SAID = ("best = int(probabilities.argmax())", 'print(f"{names[best]}: {probabilities[best]:.1%}")')
_FROM_A_FILE = """\
cfg = json.loads(Path("config.json").read_text(encoding="utf-8"))
args = {"num_classes": cfg["num_classes"], **cfg.get("model_args", {})}
net = timm.create_model(cfg["architecture"], **args).eval()
net.load_state_dict(load_file("model.safetensors"))
transform = create_transform(**resolve_data_config({}, pretrained_cfg=cfg["pretrained_cfg"]))"""


def with_timm(
    stored: tuple[int, int, int], side: int, mode: str, imports: Iterable[str], *, by_itself: bool
) -> Iterator[str]:
    """Through timm's own transform, behind what was done to the training images before the model saw them.

    Args:
        stored: (C, H, W) of these.
        side: at which the model sees them, in pixels.
        mode: of the resize.
        imports: files that register the model.
        by_itself: whether timm loads the folder.
    """
    yield from (*([] if by_itself else ["import json"]), "from pathlib import Path", "", "import timm")
    yield "from PIL import Image, ImageOps"
    yield from () if by_itself else ["from safetensors.torch import load_file"]
    yield from ("from timm.data import create_transform, resolve_data_config", "")
    for name in (PurePath(path) for path in imports):
        run = f"import {name.stem}" if name.stem.isidentifier() else f"# run {json.dumps(name.name)} here"
        yield from (f"{run}  # registers the model; the file is not in this folder: put it here", "")
    if by_itself:
        yield 'net = timm.create_model("local-dir:.", pretrained=True).eval()'
        yield "transform = create_transform(**resolve_data_config({}, model=net))"
    else:
        yield from _FROM_A_FILE.splitlines()
    channels, height, width = stored
    yield from (_NAMES, "", _opened(channels))
    yield f"{_fitted(height, width)}, as in training"
    if height != width:  # a classifier stretches them; timm would cut
        yield f"image = image.resize(({side}, {side}), Image.Resampling.{mode.upper()})"
    yield from ("probabilities = net(transform(image)[None]).softmax(1)[0]", *_SAID)


def with_onnx(channels: int, height: int, width: int) -> Iterator[str]:
    """Without torch."""
    yield from ("from pathlib import Path", "", "import numpy as np", "import onnxruntime")
    yield from ("from PIL import Image, ImageOps", "")
    yield 'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])'
    yield from (_NAMES, "", *_pixels(channels, height, width))
    yield '(logits,) = session.run(None, {"images": pixels})'
    yield "exponentials = np.exp(logits[0] - logits[0].max())"
    yield from ("probabilities = exponentials / exponentials.sum()", *_SAID)


def with_torch(channels: int, height: int, width: int) -> Iterator[str]:
    """Without timm."""
    yield from ("from pathlib import Path", "", "import numpy as np", "import torch")
    yield from ("from PIL import Image, ImageOps", "", 'net = torch.export.load("model.pt2").module()')
    yield from (_NAMES, "", *_pixels(channels, height, width))
    yield from ("probabilities = net(torch.from_numpy(pixels)).softmax(1)[0]", *_SAID)


def _opened(channels: int) -> str:
    """Upright, as kdcluster itself reads it."""
    return f'image = ImageOps.exif_transpose(Image.open("{IMAGE}")).convert("{"L" if channels == 1 else "RGB"}")'


def _fitted(height: int, width: int) -> str:
    return f"image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.BICUBIC)  # width, height"


def _pixels(channels: int, height: int, width: int) -> Iterator[str]:
    yield _opened(channels)
    yield _fitted(height, width)
    shape = f"{height}, {width}, {channels}"
    yield f"pixels = np.array(image).reshape(1, {shape}).transpose(0, 3, 1, 2).copy()"
