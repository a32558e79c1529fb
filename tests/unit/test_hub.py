"""A finished run's folder as timm itself reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from kdcluster import predictions
from tests import tiny

MODELS = {
    "a ViT of another size": {"student": tiny.VIT},
    "a CNN": {"student": tiny.CNN},
    "as large as the images": {"student": {"model": "test_resnet", "image_size": 16}},
}


def finished(folder, changes):
    run = tiny.make_run(folder, "baseline", changes)
    return tiny.train_here(folder / "runs", run, folder / "data")


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_timm_takes_the_folder_of_a_run(tmp_path, data_dir, changes):
    run_dir = finished(tmp_path, changes)
    net = timm.create_model(f"local-dir:{run_dir.path}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=net), is_training=False)
    images = np.load(tmp_path / "data" / "arrays" / "cifar10" / "test_images.npy")
    batch = torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images])
    with torch.inference_mode():
        found = net(batch).numpy()
    step = run_dir.result()["best"]["step"]
    ours = predictions.load(predictions.path_of(run_dir.path, step))["test"].logits
    np.testing.assert_allclose(found, ours, atol=2e-3 * max(1.0, np.abs(ours).max()))
    assert net.pretrained_cfg["label_names"] == [f"class {label}" for label in range(10)]


def test_the_lines_of_the_readme(tmp_path, data_dir, monkeypatch):
    run_dir = finished(tmp_path, {})
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"## Use the student elsewhere.*?```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(lines.split("\n")) == 5 + 2  # a blank one among them
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(lines.replace("RUN", run_dir.id), made)
    images = np.load(tmp_path / "data" / "arrays" / "cifar10" / "test_images.npy")
    batch = torch.stack([made["transform"](Image.fromarray(image.transpose(1, 2, 0))) for image in images])
    with torch.inference_mode():
        found = made["net"](batch).argmax(1)
    ours = predictions.load(predictions.path_of(run_dir.path, run_dir.result()["best"]["step"]))["test"].logits
    assert found.tolist() == ours.argmax(1).tolist()
    assert made["names"][0] == "class 0"


@pytest.mark.parametrize("student", [tiny.VIT, tiny.CNN], ids=["ViT", "CNN"])
def test_grey_images(tmp_path, student):
    tiny.put_images(tmp_path / "data", "mnist5k")
    run_dir = finished(tmp_path, {"data.name": "mnist5k", "student": student, "teacher": student})
    net = timm.create_model(f"local-dir:{run_dir.path}", pretrained=True).eval()
    config = json.loads((run_dir.path / "config.json").read_text())
    assert config["model_args"]["in_chans"] == 1
    assert config["pretrained_cfg"]["input_size"] == [1, 16, 16]
    assert len(config["pretrained_cfg"]["mean"]) == len(config["pretrained_cfg"]["std"]) == 1
    assert net(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_what_timm_knows_of_the_weights_stands_there(tmp_path, data_dir):
    config = json.loads((finished(tmp_path, {}).path / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["model_args"] == {**tiny.VIT["model_args"], "img_size": 16}
    known = config["pretrained_cfg"]
    assert (known["crop_pct"], known["classifier"], known["first_conv"]) == (1.0, "head", "patch_embed.proj")
    assert known["tag"].startswith("baseline-")


def test_a_licence_is_that_of_the_weights_that_training_began_from(tmp_path, data_dir, monkeypatch):
    """timm knows one of resnet18.a1_in1k, also where none of its weights were taken."""
    started = {"model": "resnet18.a1_in1k", "image_size": 16}
    scratch = json.loads((finished(tmp_path, {"student": started}).path / "config.json").read_text())["pretrained_cfg"]
    assert not {"license", "notes"} & scratch.keys()

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *names, **given: real(*names, **{**given, "pretrained": False}))
    run_dir = finished(tmp_path, {"student": {**started, "pretrained": True}})
    known = json.loads((run_dir.path / "config.json").read_text())["pretrained_cfg"]
    assert known["license"] == "apache-2.0"
    assert known["notes"] == ["license: as timm has it for resnet18.a1_in1k, from whose weights this run started"]
    monkeypatch.undo()
    assert timm.create_model(f"local-dir:{run_dir.path}", pretrained=True).pretrained_cfg["notes"] == known["notes"]
