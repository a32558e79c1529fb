"""The model card of an exported run, in Markdown: what it is, how good, how it was made, how to use it, its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kdcluster.columns import escaped, markdown
from kdcluster.commands import beside, costs, recipe, snippets
from kdcluster.experiment.images import DATASETS
from kdcluster.inputs import in_both
from kdcluster.plan import Run
from kdcluster.results.table import Table
from kdcluster.wording import count, size

UNKNOWN = "unknown"
"""A licence that nobody has named; the model hub of Hugging Face knows it by this word."""
MOST_NAMES = 20
"""So many classes are named."""
LICENCES = """\
**To be filled in by you.** kdcluster does not know the licence of your images, and has chosen none for these weights:
write it at the top of this file (`license:`), and beside it who made the images, whom they may show, and what the
model is meant for, and not meant for.
"""


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
    beside: Sequence[Sequence[str]] = ()
    """Rows of what its accuracy is held against (`beside.models`)."""
    table: Table | None = None
    """The results of its experiment."""
    teacher_top1: float | None = None
    """Percent."""
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

    @property
    def data(self) -> str:
        """The data set's name: of a folder its own."""
        return self.run.data.name if self.run.data.path is None else PurePath(self.run.data.path).name

    def text(self) -> str:
        """All of it."""
        parts = (
            self._head,
            self._use,
            self._results,
            self._cost,
            self._data,
            self._recipe,
            self._limits,
            self._licence,
        )
        return "\n".join(line for part in parts for line in part()).rstrip() + "\n"

    def _head(self) -> Iterator[str]:
        run, facts = self.run, self.facts
        yield from ("---", f"license: {self._license or UNKNOWN}", "library_name: timm")
        yield from ("pipeline_tag: image-classification", "tags:", "- image-classification", "- timm")
        yield from ("- knowledge-distillation",) if run.distill else ()
        teacher = f"distilled from {escaped(run.teacher.model.model)}" if run.distill and run.teacher else ""
        title = f"{escaped(self.name)} for {escaped(self.data)}"
        yield from ("---", "", f"# {title}{f', {teacher}' if teacher else ''}", "")
        yield (
            f"An image classifier: it takes {self._images} and says which of {count(run.num_classes, 'class')} each "
            f"shows{self._few_names}. It has {facts['params']:,} parameters{f' and was {teacher}' if teacher else ''}."
        )
        if known := DATASETS.get(run.data.name):
            about = escaped(known.about)
            yield f"It knows images like those that it was trained on: {about}. Others it takes for these."
        if self.unfinished:
            yield from ("", f"**Not finished**: {escaped(self.unfinished)}. These are its best weights so far.")
        yield ""
        told = [[name, what, size(self.sizes[name])] for name, what in self._files() if name in self.sizes]
        yield from markdown([["file", "what it is", "size"], *told])
        yield from (f"\nThere is no `{name}`: {escaped(why)}." for name, why in facts["missing"].items())
        yield ""

    @property
    def _images(self) -> str:
        channels, height, width = self.facts["input"]
        return f"{'grey' if channels == 1 else 'colour'} images of {_pixels(height, width)}"

    @property
    def _few_names(self) -> str:
        """Names of the classes, where they have room in a sentence."""
        names = [escaped(name) for name in self.facts["classes"]]
        few = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
        return f" ({few})" if names else ""

    def _files(self) -> Iterator[tuple[str, str]]:
        (channels, height, width), side = self.facts["input"], self.facts["image_size"]
        resize = "" if (height, width) == (side, side) else f"resize to {_pixels(side, side)} and "
        takes = f"uint8 [batch, {channels}, {height}, {width}] in, logits [batch, {self.run.num_classes}] out"
        yield "model.onnx", f"ONNX: {takes}; {resize}normalisation inside"
        yield "model.pt2", f"torch.export: {takes}; {resize}normalisation inside"
        yield "model.safetensors", "the weights in timm's layout"
        yield "config.json", "the model as timm's hub describes one: architecture, size, normalisation, classes"
        yield "classes.txt", "the names of the classes, one a line, in the order of the logits"

    def _use(self) -> Iterator[str]:
        shape, side, mode = (self.facts[key] for key in ("input", "image_size", "interpolation"))
        yield from ("## Use", "")
        yield f"Each block runs as it is in this folder, on an image of yours that is called `{snippets.IMAGE}`."
        yield from ("", "With timm (`pip install timm`):", "")
        by_itself = not self.facts["timm"]
        yield from _block(snippets.with_timm(shape, side, mode, self.run.imports, by_itself=by_itself))
        if not by_itself:
            yield from (f"timm itself does not load this folder: {escaped(self.facts['timm'])}.", "")
        if "model.onnx" in self.sizes:
            yield from ("With onnxruntime (`pip install onnxruntime pillow`):", "")
            yield from _block(snippets.with_onnx(*shape))
        if "model.pt2" in self.sizes:
            yield from ("With torch alone (`pip install torch numpy pillow`):", "")
            yield from _block(snippets.with_torch(*shape))
        yield from self._checked()

    def _checked(self) -> Iterator[str]:
        checked = self.facts["checked"]
        if checked["gaps"]:
            of = "the test set" if checked["real"] else "noise, as the data set is not here"
            by = ", ".join(f"`{name}` {gap:.1e}" for name, gap in checked["gaps"].items())
            yield (
                f"Held against the model in torch on {checked['images']} images of {of}: logits of up to "
                f"{checked['largest']:.3g} differ by at most {by}."
            )
            yield ""

    def _results(self) -> Iterator[str]:
        tested = self.facts["images"].get("test")
        of = f"the {tested:,} images of the test set" if tested else "the images of the test set"
        yield from ("## Results", "")
        if len(self.beside) > 1:
            yield from (f"On {of}:", "", *markdown(self.beside, right=range(1, 4)), "")
        if self.selected:
            yield from (f"It is {escaped(self.selected)}.", "")
        if self.table:
            name = escaped(self.table.experiments[0].name)
            yield from (
                f"### All seeds of the experiment {name}",
                "",
                "Top-1 on the test set in percent, ± its standard deviation over the seeds:",
                "",
            )
            yield from (*beside.lines(self.table), "")

    def _cost(self) -> Iterator[str]:
        if self.cost:
            top1 = self.result["best"]["test/top1"] if self.result else None
            yield from ("## Cost", "", *markdown(costs.rows([(self.name, self.cost, top1)]), right=range(3, 7)), "")
            yield from (f"- {escaped(note)}" for note in costs.notes([self.cost]))
            yield ""

    def _data(self) -> Iterator[str]:
        run, facts, side = self.run, self.facts, self.facts["image_size"]
        _, height, width = facts["input"]
        yield from ("## Data", "")
        known = DATASETS.get(run.data.name)
        about = f"{run.data.name}: {known.about}" if known else f"A folder of images named {self.data}"
        yield f"{escaped(about)}. {count(run.num_classes, 'class')}, {self._images}{self._counts}."
        if facts["image_rule"] and facts["image_rule"] != "as published":
            yield f"How images came to that size: {escaped(facts['image_rule'])}."
        if (height, width) != (side, side):
            yield f"The model sees them at {_pixels(side, side)}; the files here resize them by themselves."
        yield ""

    @property
    def _counts(self) -> str:
        images, labelled = self.facts["images"], self.run.data.labelled
        if not images:
            return ""
        known = f" ({labelled:,} of them with a label)" if labelled else ""
        held = f", {images['val']:,} held out to choose the weights by" if images.get("val") else ""
        return f": {images['train']:,} to train on{known}{held}, {images['test']:,} to test on"

    def _recipe(self) -> Iterator[str]:
        yield from ("## Recipe", "")
        for sentence in recipe.sentences(self.run, self.teacher_top1):
            yield from (sentence, "")
        made = f" {escaped(self.made)}." if self.made else ""
        yield from (f"Run `{self.run.id}`, seed {self.run.seed}.{made}", "")

    def _limits(self) -> Iterator[str]:
        yield from ("## Limits", "")
        yield from (f"- {line}" for line in self._limiting())
        yield ""

    def _limiting(self) -> Iterator[str]:
        run, facts = self.run, self.facts
        if self.unfinished:
            yield "The run is not finished."
        if run.train is not None and run.data.val_fraction == 0:
            yield (
                "Of the evaluations during training, the weights are those of the best, **selected on the test set**: "
                "the accuracy there is optimistic."
            )
        if facts["images"]:
            known = f", of which {run.data.labelled:,} have a label" if run.data.labelled else ""
            yield f"Trained on {facts['images']['train']:,} images{known}: what is not in them, it has not seen."
        classes = count(run.num_classes, "class")
        yield f"It tells the {classes} of `classes.txt` apart and knows no other: every image gets one."
        yield "One seed is one draw: another one would be a little better or worse."
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


def _pixels(height: int, width: int) -> str:
    return f"{height}×{width} px" + ("" if height == width else " (height × width)")


def _block(lines: Iterator[str]) -> Iterator[str]:
    yield from ("```python", *lines, "```", "")
