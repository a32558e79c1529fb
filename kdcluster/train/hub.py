"""A run's model as timm's hub layout describes one, so that a plain timm script takes its weights.

`timm.create_model("local-dir:runs/<id>", pretrained=True)` reads `config.json` and the `best.safetensors` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcluster.plan import Run
from kdcluster.train import models

CARRIED = ("first_conv", "classifier", "pool_size", "license")
"""Of timm's pretrained_cfg, as it is."""


def config(net: models.Classifier, run: Run, classes: Sequence[str]) -> dict[str, Any]:
    """What stands in a run's `config.json`.

    Args:
        net: the run's model.
        run: likewise.
        classes: names of the classes, by label.
    """
    cfg = models.pretrained_cfg(run.model.model)
    given = models.arguments(run.model, cfg) | ({"in_chans": run.channels} if run.channels != 3 else {})
    means = {name: list(cfg[name]) for name in ("mean", "std")}
    if len(means["mean"]) != run.channels:
        means = {name: [float(value) for value in getattr(net, name).flatten()] for name in means}
    seen = {
        "tag": run.id,
        "custom_load": False,
        "input_size": [run.channels, net.size, net.size],
        "fixed_input_size": bool(cfg.get("fixed_input_size")),
        "interpolation": net.mode,
        "crop_pct": 1.0,
        "crop_mode": "center",  # images of another shape are cut as those of an image folder are
        **means,
        "num_classes": run.num_classes,
        **{name: cfg[name] for name in CARRIED if name in cfg},
    }
    if run.model.pretrained is not True:
        seen.pop("license", None)  # it is that of timm's weights
    elif "license" in seen:
        seen["notes"] = [f"license: as timm has it for {run.model.model}, from whose weights this run started"]
    if net.size != cfg["input_size"][-1]:
        seen.pop("pool_size", None)
    return {
        "architecture": run.model.model.partition(".")[0],
        "num_classes": run.num_classes,
        **({"label_names": list(classes)} if classes else {}),
        **({"model_args": given} if given else {}),
        "pretrained_cfg": seen,
    }
