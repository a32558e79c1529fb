"""`kdcluster export`: what others load is the run's model, and nothing of anybody's is written over."""

from __future__ import annotations

import errno
import json
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from timm.data import create_transform, resolve_data_config

from kdcluster import __version__, predictions
from kdcluster.cli import main
from kdcluster.commands.card import Card
from kdcluster.errors import KdclusterError
from kdcluster.experiment import configfile
from kdcluster.launch import finished
from kdcluster.plan import plan
from kdcluster.runs import RunDir
from kdcluster.train.finished import export as child
from kdcluster.train.finished import portable
from kdcluster.train.finished.model import told
from kdcluster.train.models import Classifier
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, request):
    """The child's work without its seconds of imports, and where a test is not about them, without the exporters'."""

    def made(module, runs, root, data_dir, options, what):
        answer = told(lambda: [child.export(run, root, data_dir, Path(options[1]) / run.id) for run in runs])
        return finished.found_in(json.loads(json.dumps(answer)))

    if "own_process" not in request.fixturenames:
        monkeypatch.setattr(finished, "_made", made)
    if "exporters" not in request.fixturenames:
        nothing = {"missing": {}, "checked": {"images": 32, "real": True, "gaps": {}}}
        monkeypatch.setattr(portable, "write", lambda *_: nothing)


@pytest.fixture
def exporters():
    """They run."""


@pytest.fixture
def own_process():
    """The child is one."""


def trained(folder, changes=None, role="baseline"):
    run = tiny.make_run(folder, role, changes)
    return tiny.train_here(folder / "runs", run, folder / "data")


def export(folder, *arguments):
    where = ["--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]
    return CliRunner().invoke(main, ["export", *map(str, arguments), *where], catch_exceptions=False)


def logits_of(run_dir):
    step = run_dir.result()["best"]["step"]
    return predictions.load(predictions.path_of(run_dir.path, step))["test"].logits.astype(np.float32)


def images_of(folder, name="cifar10"):
    return np.load(folder / "data" / "arrays" / name / "test_images.npy")


def close(found, ours):
    np.testing.assert_allclose(found, ours, atol=2e-3 * max(1.0, np.abs(ours).max()))


def pictures(images):
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in images]


class Lines:
    """The blocks of Python in a card, each run in its folder as it stands there."""

    def __init__(self, folder):
        self.folder = folder
        card = (folder / "README.md").read_text(encoding="utf-8")
        self.blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)

    def run(self, image, monkeypatch, capsys, name="image.png"):
        """What each has made, and what it has printed."""
        image.save(self.folder / name)
        monkeypatch.chdir(self.folder)
        found = []
        for block in self.blocks:
            made: dict = {}
            capsys.readouterr()
            exec(block, made)
            found.append((made, capsys.readouterr().out))
        (self.folder / name).unlink()
        return found


def seen_by_timm(net, images):
    """Images as a plain timm script has them: through PIL and timm's transform."""
    transform = create_transform(**resolve_data_config({}, model=net), is_training=False)
    batch = torch.stack([transform(image) for image in pictures(images)])
    with torch.inference_mode():
        return net.eval()(batch).numpy()


# timm


@pytest.mark.parametrize("student", [tiny.VIT, tiny.CNN], ids=["ViT", "CNN"])
def test_timm_loads_it(tmp_path, data_dir, student):
    run_dir = trained(tmp_path, {"student": student})
    result = export(tmp_path, run_dir.id[:20], "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ours = logits_of(run_dir)
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    close(seen_by_timm(net, images_of(tmp_path)), ours)

    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"][3] == "class 3"
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines()[9] == "class 9"


def test_grey_images(tmp_path):
    tiny.put_images(tmp_path / "data", "mnist5k")
    run_dir = trained(tmp_path, {"data.name": "mnist5k", "student": tiny.CNN, "teacher": tiny.CNN})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.from_numpy(images_of(tmp_path, "mnist5k")).float() / 255
    with torch.inference_mode():
        found = net((pixels - net.pretrained_cfg["mean"][0]) / net.pretrained_cfg["std"][0]).numpy()
    close(found, logits_of(run_dir))


# The card


def test_the_card_has_the_row_the_recipe_the_teacher_the_data_and_the_limits(tmp_path, data_dir):
    made = tiny.make_plan(tmp_path)
    runs = [tiny.train_here(tmp_path / "runs", run, data_dir) for run in made.runs if run.role != "teacher-logits"]
    distilled = runs[-1]
    distilled.add_experiments([str(tmp_path / "tiny.yaml")])
    assert export(tmp_path, distilled.id, "--output", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    best = distilled.result()["best"]["test/top1"]
    assert card.startswith("---\nlicense: unknown\n")
    for name, run_dir in zip(
        ("its teacher, vit_tiny_patch16_224", "the same without a teacher (baseline)"), runs, strict=False
    ):
        assert f"| {name} | {run_dir.result()['best']['test/top1']:.2f} % |" in card
    assert f"| this model | {best:.2f} % |" in card
    row = next(line for line in card.splitlines() if line.startswith("| distilled: vit_tiny_patch16_224"))
    assert f"| {best:.2f} |" in row
    assert "loss = (1-α)·CE + α·T²·KL(teacher‖student), with α 0.5, T 4." in card
    assert "for 2 epochs with 16 images a step: AdamW, learning rate 0.01 (constant), weight decay 0.01." in card
    assert "Images in training: shifted at random by up to 2 px and mirrored at random." in card
    assert "Trained on 64 images" in card
    assert "10 classes, colour images of 16×16 px: 64 to train on, 32 to test on." in card
    assert "How images came to that size: as made for a test." in card
    assert not re.search(r"(?<![\w|:-])--[a-z]|kdcluster \w+ (RUN|EXP)", card)  # options and commands of kdcluster
    assert str(tmp_path) not in card
    assert "**selected on the test set**" in card
    assert "To be filled in by you" in card
    assert "knowledge-distillation" in card


def test_a_validated_run_was_not_selected_on_test(tmp_path, data_dir):
    run_dir = trained(tmp_path, {"data.val_fraction": 0.25})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "selected on the test set" not in card
    assert "Trained on 48 images" in card


def test_no_folder_of_this_machine_is_handed_on(tmp_path, data_dir, exporters):
    weights = trained(tmp_path).weights("best")
    shutil.copy(weights, tmp_path / "start.safetensors")
    run_dir = trained(tmp_path, {"student": {**tiny.VIT, "pretrained": "start.safetensors"}, "variant": "a|`b`<i>"})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                content += b"".join(map(packed.read, packed.namelist()))
        folders = (str(tmp_path), "site-packages", str(Path(__file__).parents[2]))
        assert not [word for word in folders if word.encode() in content], path.name
    assert "It started from the weights in `start.safetensors`" in card
    assert r"variant a\|\`b\`\<i>" in card


@pytest.mark.parametrize(("said", "head"), [("apache-2.0", "apache-2.0"), (None, "unknown"), ("a\nb: c", "unknown")])
def test_the_licence_that_timm_says(tmp_path, data_dir, said, head):
    run_dir = trained(tmp_path)
    facts = {
        "params": 1,
        "image_size": 16,
        "interpolation": "bicubic",
        "input": [3, 16, 16],
        "license": said,
        "timm": "",
        "missing": {},
    }
    facts |= {"images": {}, "classes": [], "image_rule": None, "checked": {"gaps": {}}}
    card = Card(run_dir.load(), facts, {}, run_dir.result(), {}).text()
    assert card.startswith(f"---\nlicense: {head}\nlibrary_name: timm\n")
    assert ("timm says apache-2.0 of the weights that this run started from" in card) == (head != "unknown")


def stored(folder, name, height, width):
    """Images of this size in the data cache."""
    channels = 1 if name == "mnist5k" else 3
    arrays = {}
    for seed, split in enumerate(("train", "test")):
        images, labels = tiny.images(32, size=max(height, width), channels=channels, seed=seed)
        arrays |= {f"{split}_images": images[:, :, :height, :width].copy(), f"{split}_labels": labels}
    tiny.put_arrays(folder / "data", name, arrays)


LINES = {
    "as they are stored": ("cifar10", (16, 16), tiny.VIT),
    "grey and larger": ("mnist5k", (16, 16), {**tiny.CNN, "image_size": 24}),
    "smaller": ("cifar10", (40, 40), tiny.VIT),
    "not square": ("cifar10", (20, 24), {**tiny.CNN, "image_size": 22}),
}


@pytest.mark.parametrize(("name", "size", "student"), LINES.values(), ids=LINES)
def test_the_lines_of_a_card_run_as_they_are(tmp_path, name, size, student, exporters, monkeypatch, capsys):
    """timm, onnxruntime and torch: each names the class of an image, of any size, that the run itself gives it."""
    stored(tmp_path, name, *size)
    run_dir = trained(tmp_path, {"data.name": name, "student": student, "teacher": student})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    image = Image.fromarray(images_of(tmp_path, name)[3].transpose(1, 2, 0).squeeze())
    logits = torch.from_numpy(logits_of(run_dir)[3])
    shares, best = logits.softmax(0), int(logits.argmax())
    lines = Lines(tmp_path / "out")
    assert len(lines.blocks) == 3
    for made, out in lines.run(image, monkeypatch, capsys):
        # PIL rounds to whole values of pixels, where the training's resize does not
        found = made["probabilities"].tolist()
        np.testing.assert_allclose(found, shares, atol=0.02 if size[0] > 16 else 2e-3)
        assert out == f"class {best}: {found[best]:.1%}\n"
    for _, out in lines.run(image.resize((53, 40)).convert("RGBA"), monkeypatch, capsys):
        assert re.fullmatch(r"class \d: \d+\.\d%\n", out)


def test_what_an_onnx_file_says_of_itself(tmp_path, data_dir, exporters):
    run_dir = trained(tmp_path, {"student": {**tiny.CNN, "image_size": 24}})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    known = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_modelmeta()
    assert known.producer_name == "kdcluster"
    said = known.custom_metadata_map
    assert json.loads(said["classes"]) == [f"class {label}" for label in range(10)]
    assert (said["name"], said["run"], said["producer"]) == ("test_resnet", run_dir.id, f"kdcluster {__version__}")
    assert said["input"] == "RGB images, uint8 from 0 to 255, [batch, 3, 16, 16]"
    assert said["output"] == "logits, before any softmax, [batch, 10]"
    assert said["preprocessing"].startswith("inside: division by 255, bilinear resize to 24×24, normalisation with ")


def test_a_run_that_was_submitted_with_settings_has_its_table(tmp_path, data_dir):
    """Its file alone is another experiment, of which this run is none."""
    file = tiny.write_experiment(tmp_path)
    made = plan([configfile.load(str(file), ["train.lr=3e-3", "seeds=[4, 5]"])])
    runs = [tiny.train_here(tmp_path / "runs", run, data_dir) for run in made.runs if run.role != "teacher-logits"]
    for run_dir in runs:
        run_dir.add_experiments(["tiny"])
        run_dir.note_submit(f"{file} --set train.lr=3e-3 --seeds 4,5")
    assert export(tmp_path, runs[-1].id, "--output", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "### All seeds of the experiment tiny" in card
    assert "| distilled: vit_tiny_patch16_224 (α 0.5, T 4) | 2 |" in card

    file.unlink()
    assert export(tmp_path, runs[-1].id, "--output", tmp_path / "alone").exit_code == 0
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "All seeds" not in card
    for name in ("this model", "the same without a teacher (baseline)", "its teacher, vit_tiny_patch16_224"):
        assert f"| {name} | " in card


def test_a_run_of_the_table_that_failed_tells_no_folder(tmp_path, data_dir):
    ids, file = experiment(tmp_path, [0, 1])
    (RunDir(tmp_path / "runs", ids[1]).path / "result.json").unlink()
    RunDir(tmp_path / "runs", ids[0]).note_submit(f"{file} --seeds 0,1")
    assert export(tmp_path, ids[0], "--output", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not in the means" in card
    assert str(tmp_path) not in card


# An experiment


def experiment(folder, seeds, val_fraction=0.0):
    made = tiny.make_plan(folder, {"seeds": seeds, "data.val_fraction": val_fraction})
    for run in made.runs:
        if run.role in ("teacher", "distilled"):
            tiny.train_here(folder / "runs", run, folder / "data")
    return [run.id for run in made.runs if run.role == "distilled"], folder / "tiny.yaml"


@pytest.mark.parametrize(("val_fraction", "rule"), [(0.0, "test/top1"), (0.25, "val/top1")])
def test_the_distilled_runs_and_the_best_of_them(tmp_path, data_dir, val_fraction, rule):
    ids, file = experiment(tmp_path, [0, 1, 2], val_fraction)
    assert export(tmp_path, file, "--output", tmp_path / "all").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(ids)
    result = export(tmp_path, file, "--best", "--output", tmp_path / "best")
    scores = [RunDir(tmp_path / "runs", run_id).result()["best"][rule] for run_id in ids]
    best = ids[int(np.argmax(scores))]
    assert f"{best}: the best of 3 seeds by {rule}, {max(scores):.2f} %" in result.stderr
    assert ("selected on the test set" in result.stderr) == (rule == "test/top1")
    assert json.loads((tmp_path / "best" / "config.json").read_text())["pretrained_cfg"]["tag"] == best
    assert f"the best of 3 seeds by {rule}" in (tmp_path / "best" / "README.md").read_text()


def test_a_run_is_no_choice(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    result = export(tmp_path, run_dir.id, "--best", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--best chooses among the seeds of an experiment" in result.stderr
    result = export(tmp_path, run_dir.id, "--set", "train.epochs=1", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a run has its settings" in result.stderr


# What is not finished


def unfinished(folder):
    run_dir = trained(folder)
    (run_dir.path / "result.json").unlink()
    (run_dir.path / "config.json").unlink()
    return run_dir


def test_an_unfinished_run_is_refused(tmp_path, data_dir):
    run_dir = unfinished(tmp_path)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{run_dir.id} is not finished: " in result.stderr
    assert "--force" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_by_force(tmp_path, data_dir):
    run_dir = unfinished(tmp_path)
    assert export(tmp_path, run_dir.id, "--force", "--output", tmp_path / "out").exit_code == 0
    assert "**Not finished**" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == run_dir.weights("best").read_bytes()


def test_without_weights_force_is_of_no_use(tmp_path, data_dir):
    run_dir = unfinished(tmp_path)
    run_dir.weights("best").unlink()
    result = export(tmp_path, run_dir.id, "--force", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "its best weights are gone" in result.stderr


def test_damaged_weights_are_refused(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    content = run_dir.weights("best").read_bytes()
    run_dir.weights("best").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "its check sum is wrong" in result.stderr


def test_one_unfinished_run_of_an_experiment(tmp_path, data_dir):
    ids, file = experiment(tmp_path, [0, 1])
    (tmp_path / "runs" / ids[0] / "result.json").unlink()
    result = export(tmp_path, file, "--best", "--output", tmp_path / "out")
    assert (result.exit_code, f"{ids[0]} is not finished" in result.stderr) == (1, True)
    assert export(tmp_path, file, "--best", "--force", "--output", tmp_path / "out").exit_code == 0
    assert ids[1] in (tmp_path / "out" / "README.md").read_text()


# Where the data is away


def test_classes_come_from_the_run_where_the_data_is_away(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    shutil.rmtree(data_dir)
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines()[0] == "class 0"


# Models of `imports`


def test_a_model_of_imports(tmp_path, data_dir, monkeypatch, capsys):
    student = {"model": "tiny_net", "image_size": 16}
    run_dir = trained(tmp_path, {"imports": [tiny.TINY_MODELS], "student": student})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import tiny_models  # registers the model; the file is not in this folder: put it here" in card
    assert "timm itself does not load this folder: its function does not load weights" in card
    monkeypatch.setitem(sys.modules, "tiny_models", ModuleType("put there"))  # it is registered here already
    images = images_of(tmp_path)
    ((made, _),) = Lines(tmp_path / "out").run(pictures(images)[0], monkeypatch, capsys)
    batch = torch.stack([made["transform"](image) for image in pictures(images)])
    with torch.inference_mode():
        close(made["net"](batch).numpy(), logits_of(run_dir))


def test_a_file_of_imports_that_is_gone(tmp_path, data_dir):
    shutil.copy(tiny.TINY_MODELS, tmp_path / "mine.py")
    run_dir = trained(tmp_path, {"imports": ["mine.py"], "student": {"model": "tiny_net", "image_size": 16}})
    (tmp_path / "mine.py").unlink()
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "mine.py was changed or deleted" in result.stderr
    assert not [*tmp_path.glob("*out*"), *tmp_path.glob(".*")]


# The folder


def test_nothing_is_written_over(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("out")
    for name, word in (("out", "is not empty (mine.txt)"), ("link", "is not empty"), ("file", "is a file")):
        result = export(tmp_path, run_dir.id, "--output", tmp_path / name)
        assert (result.exit_code, result.stdout) == (2, "")
        assert word in result.stderr
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a link to an empty folder"])
def test_an_empty_folder_will_do(tmp_path, data_dir, there):
    run_dir = trained(tmp_path)
    if there == "an empty folder":
        (tmp_path / "deep" / "out").mkdir(parents=True)
    elif there != "nothing":
        (tmp_path / "else").mkdir()
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "out").symlink_to(tmp_path / "else")
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "deep" / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "deep" / "out" / "config.json").is_file()
    assert not list(tmp_path.rglob(".*"))
    assert result.stdout.splitlines()[0].startswith(f"{tmp_path / 'deep' / 'out' / 'README.md'}  ")


@pytest.mark.parametrize("name", ["it's a\nfolder", "-n", "é ü", "x" * 255])
def test_names_that_are_odd(tmp_path, data_dir, name):
    run_dir = trained(tmp_path)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name / "config.json").is_file()
    assert len(result.stdout.splitlines()) == 4


@pytest.mark.parametrize("name", ["file/out", "x" * 300, "loop/out"])
def test_a_place_that_takes_no_folder(tmp_path, data_dir, name):
    run_dir = trained(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    result = export(tmp_path, run_dir.id, "--output", tmp_path / name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot write" in result.stderr


def test_the_folder_that_one_is_in(tmp_path, data_dir, empty_folder):
    run_dir = trained(tmp_path)
    result = export(tmp_path, run_dir.id, "--output", ".")
    assert result.exit_code == 2
    assert "is the folder that you are in" in result.stderr
    assert export(tmp_path, run_dir.id, "--output", "out").exit_code == 0


def test_what_comes_in_meanwhile_is_kept(tmp_path, data_dir, monkeypatch):
    run_dir = trained(tmp_path)
    real = child.export

    def meanwhile(*arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        return real(*arguments)

    monkeypatch.setattr(child, "export", meanwhile)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is as it was" in result.stderr
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "mine.txt"]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_in_the_child_is_said_without_its_traceback():
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    answer = told(full)
    assert answer["exit_code"] == 1
    assert "the disk is full" in answer["problems"][0]


KILLED = """
import sys
from pathlib import Path
from kdcluster.commands.export import _folder_beside
with _folder_beside(Path(sys.argv[1])) as aside:
    (aside / "half.onnx").write_bytes(b"half")
    print(aside, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_export_has_left_is_removed_by_the_next(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "other")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        aside = Path(process.stdout.readline().strip())
        mine = tmp_path / aside.name.replace(aside.name[-14:-6], "another!")
        elsewhere = tmp_path / ".export-otherhost-12345678.aside"
        for folder in (mine, elsewhere):
            folder.mkdir()
        assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
        assert (aside / "half.onnx").read_bytes() == b"half"  # its export lives
        assert (mine.exists(), elsewhere.exists()) == (False, True)
        process.kill()
    assert aside.exists()
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "again").exit_code == 0
    assert not aside.exists()
    assert list(tmp_path.glob(".export-*")) == [elsewhere]


def test_where_folders_cannot_be_locked_it_exports_and_removes_nothing(tmp_path, data_dir, monkeypatch):
    run_dir = trained(tmp_path)
    left = tmp_path / f".export-{socket.gethostname()}-12345678.aside"
    left.mkdir()

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    assert list(tmp_path.glob(".export-*")) == [left]


def test_a_failure_leaves_nothing(tmp_path, data_dir, monkeypatch):
    run_dir = trained(tmp_path)

    def fails(*_):
        raise KdclusterError("the disk is gone")

    monkeypatch.setattr(child, "export", fails)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "the disk is gone\n")
    assert not [*tmp_path.glob("*out*"), *tmp_path.glob(".*")]


# ONNX and torch.export

SIZES = {"as large as the images": 16, "smaller, antialiased": 8, "larger": 24}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_both_give_the_predictions_of_the_run(tmp_path, data_dir, size, exporters):
    run_dir = trained(tmp_path, {"student": {**(tiny.VIT if size == 24 else tiny.CNN), "image_size": size}})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    images = images_of(tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for batch in (1, 5, len(images)):
        close(session.run(None, {"images": images[:batch]})[0], logits_of(run_dir)[:batch])
        close(program(torch.from_numpy(images[:batch])).numpy(), logits_of(run_dir)[:batch])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Held against the model in torch on 32 images of the test set" in card
    shape = "uint8 [batch, 3, 16, 16] in, logits [batch, 10] out"
    for kind in ("ONNX", "torch.export"):
        resize = "" if size == 16 else f"resize to {size}×{size} px and "
        assert f"{kind}: {shape}; {resize}normalisation inside |" in card
    assert [one.shape for one in (*session.get_inputs(), *session.get_outputs())] == [
        ["batch", 3, 16, 16],
        ["batch", 10],
    ]


def test_images_that_are_not_square(tmp_path, exporters):
    splits = {split: tiny.images(32, size=24, seed=seed) for seed, split in enumerate(("train", "test"))}
    arrays = {f"{split}_images": pair[0][:, :, :20] for split, pair in splits.items()}
    arrays |= {f"{split}_labels": pair[1] for split, pair in splits.items()}
    tiny.put_arrays(tmp_path / "data", "cifar10", arrays)
    run_dir = trained(tmp_path, {"student": {**tiny.CNN, "image_size": 22}})
    assert export(tmp_path, run_dir.id, "--output", tmp_path / "out").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    close(session.run(None, {"images": images_of(tmp_path)})[0], logits_of(run_dir))


def test_grey_images_and_noise_where_the_data_is_away(tmp_path, exporters):
    tiny.put_images(tmp_path / "data", "mnist5k")
    run_dir = trained(tmp_path, {"data.name": "mnist5k", "student": tiny.CNN, "teacher": tiny.CNN})
    images = images_of(tmp_path, "mnist5k")
    shutil.rmtree(tmp_path / "data")
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert "not on images of the data set" in result.stderr
    assert "32 images of noise, as the data set is not here" in (tmp_path / "out" / "README.md").read_text()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 28, 28]  # as published, for 16 px are a test's
    assert session.get_inputs()[0].shape[1:] != [1, *images.shape[2:]]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_all_the_rest_is_written(tmp_path, data_dir, monkeypatch, package, exporters):
    run_dir = trained(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert result.exit_code == 0
    why = f"{package} is not installed: pip install 'kdcluster[export]'"
    assert f"{run_dir.id}: no model.onnx: {why}" in result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "model.pt2", "classes.txt", "README.md"}
    assert f"There is no `model.onnx`: {why}." in (tmp_path / "out" / "README.md").read_text()


def test_a_model_that_no_exporter_takes(tmp_path, data_dir, exporters):
    (tmp_path / "mine.py").write_text(
        "from timm.models import register_model\nfrom torch import nn\n"
        "class Odd(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.flatten(1) if float(x.mean()) < 1e9 else -x.flatten(1))\n"
        "@register_model\n"
        "def mine_net(pretrained=False, num_classes=10, in_chans=3, **_):\n"
        "    return Odd(in_chans * 256, num_classes)\n"
    )
    run_dir = trained(tmp_path, {"imports": ["mine.py"], "student": {"model": "mine_net", "image_size": 16}})
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "no model.onnx: the exporter fails: " in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("model.*")) == ["model.safetensors"]


def test_a_file_that_gives_other_logits_is_not_handed_out(tmp_path, data_dir, monkeypatch, exporters):
    run_dir = trained(tmp_path)
    right = portable.Portable.forward
    monkeypatch.setattr(portable.Portable, "forward", lambda self, images: right(self, images) * 1.001)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "gives other logits than the model" in result.stderr
    assert not [*tmp_path.glob("*out*"), *tmp_path.glob(".*")]


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 32), (32, 20, 8), (30, 50, 40), (40, 10, 40)])
def test_the_resize_is_that_of_training(mode, height, width, size):
    net = Classifier(torch.nn.Identity(), {"input_size": (3, 9, 9), "mean": (0.1,), "std": (0.7,)}, 3, size)
    net.mode = mode
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    ours = portable.Portable(net, (height, width))(images)
    torch.testing.assert_close(ours, net(images), atol=5e-6, rtol=0)


def test_in_a_process_of_its_own(tmp_path, data_dir, own_process):
    run_dir = trained(tmp_path)
    result = export(tmp_path, run_dir.id, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {"model.onnx", "model.pt2"} <= {path.name for path in (tmp_path / "out").iterdir()}
