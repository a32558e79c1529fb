"""The model card of an exported run, in Markdown: what it is, how good, how it was made, how to use it, its limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kdcluster.columns import escaped, markdown
from kdcluster.commands import costs
from kdcluster.inputs import in_both
from kdcluster.plan import Run
from kdcluster.settings import of_run
from kdcluster.wording import count, size

UNKNOWN = "unknown"
"""A licence that nobody has named; the model hub of Hugging Face knows it by this word."""
FILES = {
    "model.safetensors": "the weights in timm's layout",
    "config.json": "the model in timm's hub layout",
    "model.onnx": "ONNX: resize and normalisation inside, any batch",
    "model.pt2": "torch.export: resize and normalisation inside, any batch",
    "classes.txt": "the names of the classes, one a line, in the order of the logits",
}
LICENCES = """\
**To be filled in by you.** kdcluster does not know the licence of your images, and has chosen none for these weights:
write it at the top of this file (`license:`), and beside it who made the images, whom they may show, and what the
model is meant for, and not meant for.
"""

_FROM_THE_FOLDER = """\
import json, pathlib, timm
from timm.data import create_transform, resolve_data_config

net = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = create_transform(**resolve_data_config({}, model=net))

# the same from its two files, by name
cfg = json.loads(pathlib.Path("FOLDER/config.json").read_text())
args = {"num_classes": cfg["num_classes"], **cfg.get("model_args", {})}
known = {**cfg["pretrained_cfg"], "file": "FOLDER/model.safetensors"}
net = timm.create_model(cfg["architecture"], pretrained=True, pretrained_cfg_overlay=known, **args).eval()"""
_FROM_A_FILE = """\
import json, pathlib, timm
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

cfg = json.loads(pathlib.Path("FOLDER/config.json").read_text())
args = {"num_classes": cfg["num_classes"], **cfg.get("model_args", {})}
net = timm.create_model(cfg["architecture"], **args).eval()
net.load_state_dict(load_file("FOLDER/model.safetensors"))
transform = create_transform(**resolve_data_config({}, pretrained_cfg=cfg["pretrained_cfg"]))"""


@dataclass(frozen=True)
class Card:
    """What a card is made from."""

    run: Run
    facts: Mapping[str, Any]
    """What `train.finished.export` says of the folder."""
    sizes: Mapping[str, int]
    """Bytes of the files in it."""
    result: Mapping[str, Any] | None
    """result.json; None: the run is not finished."""
    trainer: Mapping[str, Any]
    """The newest trainer.json."""
    table: str = ""
    """The results table of its experiment, in Markdown."""
    selected: str = ""
    """By which rule it was taken among the seeds."""
    unfinished: str = ""
    """How far it is."""
    made: str = ""
    """By which versions, and when."""
    cost: Mapping[str, Any] | None = None
    """benchmark.json, if it was measured."""

    @property
    def name(self) -> str:
        """The model without its tag."""
        return self.run.model.model.partition(".")[0]

    def text(self) -> str:
        """All of it."""
        parts = (self._head, self._results, self._cost, self._use, self._recipe, self._limits, self._licence)
        return "\n".join(line for part in parts for line in part()).rstrip() + "\n"

    def _head(self) -> Iterator[str]:
        run, facts = self.run, self.facts
        yield from ("---", f"license: {self._license or UNKNOWN}", "library_name: timm")
        yield from ("tags:", "- image-classification", "- timm", *["- knowledge-distillation"] * bool(run.distill))
        yield from ("---", "", f"# {escaped(self.name)}, {run.role}, seed {run.seed}", "")
        how = f", distilled from {escaped(run.teacher.model.model)}" if run.distill and run.teacher else ""
        channels, height, width = facts["input"]
        yield (
            f"An image classifier of {count(run.num_classes, 'class')}: {facts['params']:,} parameters, "
            f"{height}×{width} px in {count(channels, 'channel')}{how}. The run is `{run.id}`."
        )
        if self.unfinished:
            yield from ("", f"**Not finished**: {escaped(self.unfinished)}. These are its best weights so far.")
        yield ""
        told = [[name, what, size(self.sizes[name])] for name, what in FILES.items() if name in self.sizes]
        yield from markdown([["file", "what it is", "size"], *told])
        yield from (f"\nThere is no `{name}`: {escaped(why)}." for name, why in facts["missing"].items())
        yield ""

    def _results(self) -> Iterator[str]:
        yield from ("## Results", "")
        if self.result:
            best = self.result["best"]
            top5 = f", top-5 {best['test/top5']:.2f} %" if "test/top5" in best else ""
            yield f"This run: top-1 **{best['test/top1']:.2f} %**{top5} on the test set."
        if self.selected:
            yield from ("", f"It is {escaped(self.selected)}.")
        yield from ("", self.table or "No experiment that is known here has this run: there is no table to show.", "")

    def _cost(self) -> Iterator[str]:
        if self.cost:
            top1 = self.result["best"]["test/top1"] if self.result else None
            yield from ("## Cost", "", *markdown(costs.rows([(self.name, self.cost, top1)]), right=range(3, 7)), "")
            yield from (f"- {escaped(note)}" for note in costs.notes([self.cost]))
            yield ""

    def _use(self) -> Iterator[str]:
        channels, height, width = self.facts["input"]
        yield from ("## Use", "", "```python")
        for path in self.run.imports:
            yield f"# first run {json.dumps(PurePath(path).name)}, which registers the model and is not in this folder"
        yield from (_FROM_A_FILE if self.facts["timm"] else _FROM_THE_FOLDER).splitlines()
        yield from ("```", "")
        if self.facts["timm"]:
            yield f"timm itself does not load this folder: {escaped(self.facts['timm'])}."
            yield ""
        if "model.onnx" in self.sizes:
            yield from ("```python", "import onnxruntime", "")
            yield 'session = onnxruntime.InferenceSession("FOLDER/model.onnx")'
            yield f'(logits,) = session.run(None, {{"images": images}})  # uint8 (batch, {channels}, {height}, {width})'
            yield from ("```", "")
        if "model.pt2" in self.sizes:
            yield from ("```python", "import torch", "", 'net = torch.export.load("FOLDER/model.pt2").module()')
            yield f"logits = net(images)  # uint8 (batch, {channels}, {height}, {width})"
            yield from ("```", "")
        yield from self._pixels()

    def _pixels(self) -> Iterator[str]:
        rule, (_, height, width), side = self.facts["image_rule"], self.facts["input"], self.facts["image_size"]
        stored = f"{rule}" if rule else "not known, since the images are not here"
        yield f"Images in training and test: {escaped(stored)}; the model sees {side}×{side} px."
        if {"model.onnx", "model.pt2"} & self.sizes.keys() and (height, width) != (side, side):
            yield f"`model.onnx` and `model.pt2` resize from {height}×{width} px themselves."
        checked = self.facts["checked"]
        if checked["gaps"]:
            on = "images of the test set" if checked["real"] else "images of noise, as the data set is not here"
            by = ", ".join(f"`{name}` {gap:.1e}" for name, gap in checked["gaps"].items())
            yield f"Held against the model in torch on {checked['images']} {on}: logits differ by at most {by}."
        yield ""

    def _recipe(self) -> Iterator[str]:
        yield from ("## Recipe", "")
        if self.run.distill and self.run.teacher:
            how, loss = self.run.distill.in_words(), self.run.distill.formula()
            yield f"Distilled from `{self.run.teacher.id}` with {how}: {loss}."
            yield ""
        yield from markdown([["setting", "value"], *self._settings()])
        yield from ("", f"{escaped(self.made)}.", "") if self.made else ("",)

    def _settings(self) -> Iterator[list[str]]:
        """What decides the numbers; of a path its last part alone, since the others are nobody's business."""
        files = {self.run.data.path, self.run.model.pretrained, *self.run.imports}
        steps = self.run.train is not None and self.run.train.steps is not None
        for key, one in of_run(self.run).items():
            value = one.value
            said = key in ("role", "seed", "teacher", *(("train.epochs", "train.warmup_epochs") if steps else ()))
            if said or value in (None, "", []) or not (one.hashed or key in ("pretrained", "imports")):
                continue
            if isinstance(value, list):
                yield [key, json.dumps([PurePath(part).name if part in files else part for part in value])]
            else:
                yield [key, PurePath(value).name if isinstance(value, str) and value in files else one.text]

    def _limits(self) -> Iterator[str]:
        yield from ("## Limits", "")
        yield from (f"- {line}" for line in self._limiting())
        yield ""

    def _limiting(self) -> Iterator[str]:
        run, facts = self.run, self.facts
        if self.unfinished:
            yield "The run is not finished."
        if run.train is not None and run.data.val_fraction == 0:
            yield "The epoch was **selected on the test set**: its accuracy is the best epoch's there, and optimistic."
        if facts["train_images"] is not None:
            known = f", of which {run.data.labelled:,} have a label" if run.data.labelled else ""
            yield f"Trained on {facts['train_images']:,} images{known}: what is not in them, it has not seen."
        classes = count(run.num_classes, "class")
        yield f"It tells the {classes} of `classes.txt` apart and knows no other: every image gets one."
        yield "One seed is one draw; the table says how many there are, and their spread."
        if run.amp == "bf16" or self.trainer.get("amp") == "bf16":
            yield "It was evaluated in bf16; these files compute in float32, which may move a single image."
        if broken := self.trainer.get("images_skipped"):
            yield f"{count(broken, 'image')} could not be read and were left out."
        if both := self.trainer.get("images_in_both"):
            yield f"{in_both(both)}."

    def _licence(self) -> Iterator[str]:
        yield from ("## Licence", "")
        if self._license:
            of = escaped(self.run.model.model)
            yield f"timm says {self._license} of the weights that this run started from ({of})."
        yield LICENCES

    @property
    def _license(self) -> str | None:
        """One word, as timm has it."""
        found = self.facts["license"]
        return found if found and all(c.isalnum() or c in ".-" for c in found) else None
