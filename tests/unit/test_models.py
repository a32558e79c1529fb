"""Models see images their own way, take weights from files, and say clearly what does not fit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.config import Model
from kdcluster.launch.preflight import preflight as launch_preflight
from kdcluster.train import models
from tests import tiny

REAL = {
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": (85_875_556, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": (5_543_716, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "resnet18.a1_in1k": (11_227_812, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""exp1's and exp2's models: parameters with 100 classes (FACTS.md), mean and standard deviation."""

VIT_42 = {"model": "vit_tiny_patch16_224", "model_args": {"patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2}}


class Recorder(nn.Module):
    """In place of a network: keeps what it was given, and whether autocast was on."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        self.autocast = torch.is_autocast_enabled("cpu")
        return x.mean((1, 2, 3))


def recorded(name: str, images: Tensor, **changes: Any) -> Tensor:
    """What the model `name` would be given of some images."""
    cfg = {**models.pretrained_cfg(name), **changes}
    net = Recorder()
    models.Classifier(net, cfg, images.shape[1], images.shape[-1])(images)
    return net.seen


def random_images(count: int = 4, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def vit(**changes: Any) -> Model:
    return Model(**{**tiny.VIT, **changes})


def cnn(**changes: Any) -> Model:
    return Model(**{**tiny.CNN, **changes})


# --- what a model sees ---


@pytest.mark.parametrize("name", REAL)
def test_parameters_of_the_real_models(name):
    with torch.device("meta"):  # no memory, no random numbers
        net = models.build(Model(model=name), 100, 3)
    assert models.parameters(net) == REAL[name][0]
    assert net.size == 224


@pytest.mark.parametrize("name", REAL)
def test_each_model_normalises_by_its_own_statistics(name):
    _, mean, std = REAL[name]
    images = random_images()
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(recorded(name, images), expected)
    assert torch.equal(recorded(name, images), recorded(name, images.float() / 255))


def test_grey_images_take_the_mean_of_the_statistics():
    images = random_images(channels=1)
    seen = recorded("resnet18.a1_in1k", images)
    torch.testing.assert_close(seen, (images / 255 - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3))


@pytest.mark.parametrize("model", [vit(), cnn()], ids=["vit", "cnn"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_goes_in_and_logits_come_out(model, channels):
    net = models.build(model, 7, channels).eval()
    for size in (8, 16, 31):
        assert net(random_images(2, channels, size)).shape == (2, 7)


def test_image_size_of_a_vit_and_of_a_cnn():
    """timm keeps input size 224 in pretrained_cfg whatever the model was built with."""
    small, plain = models.build(vit(image_size=24), 10, 3), models.build(vit(image_size=None), 10, 3)
    assert small.net.patch_embed.img_size == (24, 24)
    assert (small.size, plain.size) == (24, 224)
    assert models.build(Model(model="resnet18", image_size=40), 10, 3).size == 40
    assert models.build(Model(model="resnet18"), 10, 3).size == 224


@pytest.mark.parametrize(("size", "antialias"), [(8, False), (32, True), (16, None)])
def test_resizing_is_done_outside_autocast(monkeypatch, size, antialias):
    calls = []
    resize = F.interpolate

    def spy(x: Tensor, *given: Any, **options: Any) -> Tensor:
        calls.append((x.dtype, torch.is_autocast_enabled("cpu"), options["mode"], options["antialias"]))
        return resize(x, *given, **options)

    monkeypatch.setattr(F, "interpolate", spy)
    net = Recorder()
    with torch.autocast("cpu", torch.bfloat16):
        models.Classifier(net, models.pretrained_cfg("resnet18.a1_in1k"), 3, 16)(random_images(size=size))
    assert calls == ([] if antialias is None else [(torch.float32, False, "bicubic", antialias)])
    assert net.seen.dtype == torch.float32
    assert net.seen.shape[-2:] == (16, 16)
    assert net.autocast


def test_interpolation_is_the_models_own():
    images = random_images(size=8)
    cfg = models.pretrained_cfg("resnet18.a1_in1k")
    for mode in ("bilinear", "bicubic"):
        net = Recorder()
        models.Classifier(net, {**cfg, "interpolation": mode, "mean": (0,), "std": (1,)}, 3, 16)(images)
        torch.testing.assert_close(net.seen, F.interpolate(images / 255, (16, 16), mode=mode, align_corners=False))


def test_channels_last_changes_the_layout_and_not_the_logits():
    torch.manual_seed(0)
    net = models.build(cnn(), 10, 3).eval()
    images = random_images()
    before = net(images)
    net.in_channels_last()
    assert net.net.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-5)
    recorder = net.net = Recorder()
    net(images)
    assert recorder.seen.is_contiguous(memory_format=torch.channels_last)


def test_statistics_are_no_part_of_the_weights():
    net = models.build(vit(), 10, 3)
    assert not {"mean", "std"} & net.state_dict().keys()
    assert net.net.state_dict().keys() == timm.create_model("vit_tiny_patch16_224", depth=1).state_dict().keys()


# --- start weights ---


def save(net: nn.Module, path: Path, wrap: str = "") -> str:
    """A network's weights as a file in timm's layout; `wrap` nests them as training scripts do."""
    state = dict(net.state_dict())
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    return str(path)


@pytest.fixture
def pretrained() -> nn.Module:
    """A small ViT with another head than the data has."""
    torch.manual_seed(1)
    return models.build(vit(), 1000, 3).net


@pytest.mark.parametrize(
    ("name", "wrap"),
    [("w.safetensors", ""), ("w.pth", ""), ("w.bin", "state_dict"), ("w.pt", "model")],
)
def test_weights_from_a_file_with_a_new_head(tmp_path, caplog, pretrained, name, wrap):
    caplog.set_level(logging.INFO)
    file = save(pretrained, tmp_path / name, wrap)
    found = models.build(vit(pretrained=file), 10, 3).net
    source, own = pretrained.state_dict(), found.state_dict()
    same = [key for key in own if not key.startswith("head.")]
    assert len(same) == len(own) - 2
    assert all(torch.equal(own[key], source[key]) for key in same)
    assert own["head.weight"].shape == (10, 16)
    assert f"{name}: the head has another size and starts anew (head.bias, head.weight)" in caplog.text


def test_a_head_that_fits_is_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for model in (vit(), cnn()):
        source = models.build(model, 10, 3).net
        file = save(source, tmp_path / f"{model.model}.safetensors")
        found = models.build(model.model_copy(update={"pretrained": file}), 10, 3, exact=True).net
        assert all(
            torch.equal(a, b) for a, b in zip(source.state_dict().values(), found.state_dict().values(), strict=True)
        )
    assert "starts anew" not in caplog.text


def test_taken_as_it_is_the_head_must_fit(tmp_path, pretrained):
    file = save(pretrained, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"w\.safetensors: its head has 1000 classes, the data 10; with train: none"):
        models.build(vit(pretrained=file), 10, 3, exact=True)
    with pytest.raises(ConfigError, match=r"resnet18\.a1_in1k: its weights have 1000 classes, the data 10"):
        models.build(Model(model="resnet18.a1_in1k", pretrained=True), 10, 3, exact=True)  # before it is fetched


def test_position_embeddings_are_resized(tmp_path):
    small = models.build(Model(**VIT_42, image_size=28), 10, 1).net
    file = save(small, tmp_path / "w.safetensors")
    large = models.build(Model(**VIT_42, image_size=42, pretrained=file), 10, 1, exact=True).net
    before, after = small.pos_embed.detach(), large.pos_embed.detach()
    assert (before.shape[1], after.shape[1]) == (1 + 4 * 4, 1 + 6 * 6)
    assert torch.equal(after[:, 0], before[:, 0])  # the class token has no place
    grid = before[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(after[:, 1:], grid.reshape(1, 36, -1))
    assert torch.equal(large.blocks[0].attn.qkv.weight, small.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(("model", "first"), [(vit(), "patch_embed.proj"), (cnn(), "conv1.0")], ids=["vit", "cnn"])
def test_colour_weights_are_summed_for_grey_images(tmp_path, model, first):
    colour = models.build(model, 10, 3).net
    file = save(colour, tmp_path / "w.safetensors")
    grey = models.build(model.model_copy(update={"pretrained": file}), 10, 1).net
    expected = colour.get_submodule(first).weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.get_submodule(first).weight, expected)


def test_without_start_no_file_is_read():
    models.build(vit(pretrained="no such file"), 10, 3, start=False)


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        (vit(), "cnn", r"does not fit VisionTransformer: no cls_token; no pos_embed; .* and \d+ more$"),
        (cnn(), "vit", r"does not fit ResNet: no conv1\.0\.weight; .* and \d+ more$"),
        (vit(model_args={**VIT_42["model_args"], "patch_size": 8, "embed_dim": 32}), "vit", r"is \(16,\), not \(32,\)"),
        (vit(model_args={**VIT_42["model_args"], "patch_size": 8, "depth": 2}), "vit", r"no blocks\.1\.norm1\.weight"),
        (
            vit(model_args={**VIT_42["model_args"], "patch_size": 8, "class_token": False, "global_pool": "avg"}),
            "vit",
            "unknown cls_token",
        ),
    ],
    ids=["cnn in a ViT", "ViT in a CNN", "other width", "deeper", "no class token"],
)
def test_another_architecture_is_an_error_that_names_keys(tmp_path, model, file, message):
    path = save(models.build({"vit": vit(), "cnn": cnn()}[file], 10, 3).net, tmp_path / f"{file}.safetensors")
    with pytest.raises(ConfigError, match=message) as caught:
        models.build(model.model_copy(update={"pretrained": path}), 10, 3)
    assert path in str(caught.value)


def test_a_file_that_timms_filter_breaks_on_is_an_error_of_the_file(tmp_path, pretrained):
    state = {**pretrained.state_dict(), "patch_embed.proj.weight": torch.zeros(3)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"w\.safetensors does not fit VisionTransformer: RuntimeError: shape"):
        models.build(vit(pretrained=str(tmp_path / "w.safetensors")), 10, 3)


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"head.weight": torch.zeros(3)}, "extra": Bomb()}, "w.pth")
    with pytest.raises(ConfigError, match=r"w\.pth: not a file of weights: .*weights_only=True blocked"):
        models.build(vit(pretrained="w.pth"), 10, 3)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04"])
def test_a_broken_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}: not a file of weights: "):
        models.build(vit(pretrained=str(tmp_path / name)), 10, 3)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"weights": {"a": torch.zeros(1)}}, {"epoch": 3}])
def test_a_torch_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"w\.pth.* (not a file of weights|does not fit)"):
        models.build(vit(pretrained=str(tmp_path / "w.pth")), 10, 3)


# --- names and arguments ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", "timm has no model 'vit_tinny_patch16_224'; did you mean 'vit_tiny_patch16_224'?"),
        ("ResNet18", "timm has no model 'ResNet18'; did you mean 'resnet18'?"),
        ("nothing like it", "timm has no model 'nothing like it'"),
        ("test_resnet.r160", "test_resnet has no weights tagged 'r160'; it has: r160_in1k"),
        ("resnet18.", "resnet18 has no weights tagged ''; it has: a1_in1k, a2_in1k"),
    ],
)
def test_an_unknown_name_or_tag(name, message):
    with pytest.raises(ConfigError) as caught:
        models.build(Model(model=name), 10, 3)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patchsize": 8}, "unexpected keyword argument 'patchsize'"),
        ({"num_heads": 5}, "dim should be divisible by num_heads"),
        ({"patch_size": 0}, "ZeroDivisionError"),
        ({"norm_layer": "nope"}, "KeyError: 'nope'"),
        ({"embed_dim": "wide"}, "TypeError"),
    ],
)
def test_arguments_that_timm_does_not_take(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        models.build(vit(model_args=arguments), 10, 3)
    assert str(caught.value).startswith(f"vit_tiny_patch16_224 cannot be built with {{'{next(iter(arguments))}': ")


# --- models of one's own ---


def test_a_file_that_registers_a_model(tmp_path):
    models.import_files([tiny.TINY_MODELS])
    net = models.build(Model(model="tiny_net", image_size=16, model_args={"width": 6}), 7, 1)
    assert net(random_images(2, 1, 8)).shape == (2, 7)
    assert net.size == 16
    assert net.net.stem.out_channels == 6
    assert models.pretrained_cfg("tiny_net")["mean"] == (0.5,)  # it registers none
    models.import_files([tiny.TINY_MODELS])  # timm would warn of a second registration
    weights = save(net.net, tmp_path / "w.safetensors")
    again = models.build(Model(model="tiny_net", model_args={"width": 6}, pretrained=weights), 7, 1, exact=True)
    assert torch.equal(again.net.stem.weight, net.net.stem.weight)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package_at_all", "failed: ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("def f(:", "failed: SyntaxError: invalid syntax"),
        ("x = 1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "failed: SystemExit: 0"),
    ],
)
def test_a_file_that_cannot_be_run(tmp_path, code, message):
    path = tmp_path / "mine.py"
    path.write_text(code)
    for _ in range(2):  # a failed one is not taken for done
        with pytest.raises(ConfigError) as caught:
            models.import_files([str(path)])
        assert str(caught.value).startswith(f"imports: {path} {message}")


def test_the_answer_of_the_check_is_alone_on_stdout_whatever_a_file_of_imports_prints(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text("import os\nprint('hello')\nos.write(1, b'from C++')\nos.system('echo from a child')\n")
    run = tiny.make_run(tmp_path, "teacher", {"imports": [str(path)]})
    found = launch_preflight([run], tmp_path / "data", fetch=False)
    assert found["models"][run.id]["params"] > 0
    said = capfd.readouterr()
    assert said.out == ""
    assert all(words in said.err for words in ("hello", "from C++", "from a child"))


def test_a_file_that_is_no_python(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("x = 1")
    with pytest.raises(ConfigError, match=r"mine\.txt is not a Python file"):
        models.import_files([str(path)])


# --- weights that timm would fetch ---

OFFLINE = """
import socket, sys
def refuse(*_, **__):
    sys.exit("touched the network")
socket.socket.connect = socket.getaddrinfo = refuse
from kdcluster.experiment.config import Model
from kdcluster.errors import KdclusterError
from kdcluster.train import models, preflight
model = Model(model="resnet18.a1_in1k", pretrained=True)
assert not preflight.weights_are_here(model)
try:
    models.build(model, 100, 3)
except KdclusterError as error:
    print(error)
"""


def test_missing_weights_without_internet(tmp_path):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONWARNINGS": "error"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the weights of resnet18.a1_in1k are not here and cannot be fetched (")
    assert "kdcluster prefetch" in done.stdout
    assert "pretrained: weights.safetensors" in done.stdout


def test_a_refused_connection_is_no_fault_of_the_configuration(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(KdclusterError, match=r"cannot be fetched \(ConnectionRefusedError: no route") as caught:
        models.build(Model(model="resnet18.a1_in1k", pretrained=True), 10, 3)
    assert not isinstance(caught.value, ConfigError)


# A size that the patches do not fit


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"model": "test_vit", "image_size": 28}, "set image_size to 32 or 16, or model_args to {patch_size: 7}"),
        ({"model": "test_vit", "image_size": 29}, "set image_size to 32 or 16"),
        ({"model": "vit_tiny_patch16_224", "image_size": 8}, "set image_size to 16, or model_args to {patch_size: 2}"),
    ],
    ids=["28", "29", "8"],
)
def test_a_size_that_is_no_multiple_of_the_patches(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models.build(Model(**model), 10, 3)
    name, size = model["model"], model["image_size"]
    assert str(caught.value) == f"{name}: image_size {size} is not a multiple of its patch size 16; {words}"


def test_what_is_offered_instead_builds() -> None:
    assert models.build(Model(model="test_vit", image_size=28, model_args={"patch_size": 7}), 10, 3).size == 28
    assert models.build(Model(model="test_vit", image_size=32), 10, 3).size == 32
