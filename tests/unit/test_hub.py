"""A finished run's folder as timm itself reads it."""

from __future__ import annotations

import json

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
