"""`kdcluster verify`: whether the stored logits are those that the teacher gives today, in the order of the images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcluster import teacherlogits
from kdcluster.commands.arguments import Chosen
from kdcluster.errors import NotFound
from kdcluster.launch import preflight
from kdcluster.plan import Plan, Run
from kdcluster.run import STORE
from kdcluster.terminal import say, show_json, show_wrapped
from kdcluster.wording import count

FEW = 128
"""Images of the sample of `plan --check`: one forward pass; of a ViT-B at 224 px, the dearest, 4.5 TFLOP."""
MOST_NAMED = 4
"""So many views are named with what is wrong with them."""


def verify(chosen: Chosen, *, images: int, seed: int, as_json: bool) -> None:
    """Print what is found; leave with 1 where something is wrong, else with 5 where there is no store."""
    made, root = chosen.plan(), chosen.root
    there = stores(made, root)
    again = f"kdcluster submit {chosen.again()}{chosen.where}"
    absent = list(_absent(made, root, again))
    if not there:
        raise NotFound("; ".join(absent))
    found = preflight.verify(there, root, chosen.data, images=images, seed=seed, whole=True)
    if as_json:
        stores_ = [{**one, "experiments": made.experiments_of(one["id"])} for one in found]
        show_json({"schema": "kdcluster.verify/1", "seed": seed, "stores": stores_, "notes": absent})
    else:
        for one in found:
            show_wrapped("", f"{one['id']}: {_held(one)}")
            for line in (*_sound(one), *wrong(one, again)):
                show_wrapped("  ", line)
        for line in absent:
            say(line)
    if any(one["wrong"] or one["problems"] for one in found):
        sys.exit(1)
    if absent:
        sys.exit(NotFound.exit_code)


def check(made: Plan, root: Path, data: Path, again: str) -> tuple[list[str], bool]:
    """For `plan --check`, by a small sample: what there is to know, and whether submit cannot heal what is wrong."""
    there = stores(made, root)
    found = preflight.verify(there, root, data, images=FEW, seed=0, whole=False) if there else []
    notes = [f"{one['id']}: {line}" for one in found for line in (*list(_sound(one))[:1], *wrong(one, again))]
    return notes, any(one["problems"] for one in found)


def stores(made: Plan, root: Path) -> list[Run]:
    """The stores of a plan that hold a view."""
    return [run for run in made.runs if run.role == STORE and teacherlogits.held(root / run.id)]


def _absent(made: Plan, root: Path, again: str) -> Iterator[str]:
    """Experiments without a store, and why; `again`: the command that makes what is missing."""
    for name, config in made.experiments.items():
        ids = made.wanted[name][STORE]
        if not ids:
            why = "distill.alpha is 0" if config.distill.alpha == 0 else "distill.logits is computed"
            yield f"{name} has no store of its teacher's logits: {why}"
        for run_id in ids:
            if not teacherlogits.held(root / run_id):
                yield f"{name}: no view is stored yet in {root / run_id}; {again} makes them"


def _held(one: Mapping[str, Any]) -> str:
    if not one["images"]:
        return "not looked at"
    wanted = f" of {one['wanted']}" if one["wanted"] and one["views"] < one["wanted"] else ""
    sums = "" if one["wrong"] or one["problems"] or not one["sample"] else ", every check sum is right"
    return f"{one['views']}{wanted} views of {one['images']:,} images, {one['classes']} classes{sums}"


def _sound(one: Mapping[str, Any]) -> Iterator[str]:
    """What was found of its logits and of their order, in words."""
    if sample := one["sample"]:
        differ = sample["images"] - sample["same"]
        bits = f"the same bits in {sample['same']:,}" if differ else "the same bits"
        if differ:
            bits += f", and in the others at most {sample['difference']:.2g} apart, where {sample['allowed']:.2g} is"
            bits += f" allowed{_why_allowed(sample)}"
        yield f"{sample['images']:,} images computed again on {' and '.join(sample['devices'])}: {bits}"
    if labels := one["labels"]:
        least, most = (f"{top1:.2f}" for top1 in labels["top1"])
        share = least if least == most else f"{least} to {most}"
        test = f", the teacher has {labels['test_top1']:.2f} % on the test images" if labels["test_top1"] else ""
        shuffled = f"{labels['shuffled']:.2f} % would be in a shuffled order"
        yield f"{share} % of the images are as labelled, {shuffled}{test}"


def _why_allowed(sample: Mapping[str, Any]) -> str:
    if sample["elsewhere"]:
        return " between two kinds of processor, or two versions of torch"
    return " on a GPU" if "cuda" in sample["devices"] else ""


def wrong(one: Mapping[str, Any], again: str) -> Iterator[str]:
    """What is wrong with a store, and what to do."""
    views: dict[str, str] = one["wrong"]
    for view, why in list(views.items())[:MOST_NAMED]:
        yield f"view {view} is wrong: {why}"
    if len(views) > MOST_NAMED:
        yield f"and {count(len(views) - MOST_NAMED, 'view')} more"
    if views:
        them = "it" if len(views) == 1 else "them"
        yield f"no student reads {them} any more; {again} makes {them} again"
    yield from one["problems"]
