"""`kdcluster evaluate`: other images are seen as the run's own were, and counted by hand."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image

from kdcluster import predictions
from kdcluster.cli import main
from kdcluster.commands.evaluate import picture
from kdcluster.launch import finished
from kdcluster.results.spread import wilson95
from kdcluster.runs import RunDir
from kdcluster.train import data
from kdcluster.train.finished import other_images
from kdcluster.train.finished.model import told
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, request):
    """The child's work without its seconds of imports."""

    def made(module, runs, root, data_dir, options, what):
        folder, device = Path(options[1]), options[3]
        answer = told(lambda: other_images.judge(runs[0], root, data_dir, folder, device))
        return finished.found_in(json.loads(json.dumps(answer)))

    if "own_process" not in request.fixturenames:
        monkeypatch.setattr(finished, "_made", made)


@pytest.fixture
def own_process():
    """The child is one."""


def trained(folder, changes=None):
    run = tiny.make_run(folder, "baseline", changes)
    return tiny.train_here(folder / "runs", run, folder / "data")


def evaluate(folder, *arguments):
    where = ["--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), *where], catch_exceptions=False)


def document(folder, *arguments):
    result = evaluate(folder, *arguments, "--format", "json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(folder, *arguments, code=2):
    result = evaluate(folder, *arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return result.stderr


def put_as_files(folder, name, to):
    """The test images of a data set as PNG files, in the order in which they are sorted."""
    arrays = folder / "data" / "arrays" / name
    labels = np.load(arrays / "test_labels.npy")
    for at, image in enumerate(np.load(arrays / "test_images.npy")):
        (to / f"class {labels[at]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(to / f"class {labels[at]}" / f"{at:03}.png")
    return to


def same_as_its_own(run_dir, found):
    own = run_dir.result()
    for metric in ("top1", "top5", "loss"):
        assert found[metric] == pytest.approx(own["best"][f"test/{metric}"], rel=1e-5)
    assert [one["images"] for one in found["classes"]] == own["per_class"]["images"]
    assert [one["right"] for one in found["classes"]] == own["per_class"]["right"]


@pytest.mark.parametrize("student", [tiny.VIT, tiny.CNN], ids=["ViT", "CNN"])
@pytest.mark.parametrize("name", ["cifar10", "mnist5k"], ids=["colour", "grey"])
def test_the_same_images_give_the_same_numbers(tmp_path, student, name):
    tiny.put_images(tmp_path / "data", name)
    run_dir = trained(tmp_path, {"data.name": name, "student": student, "teacher": student})
    found = document(tmp_path, run_dir.id[:20], "--data", put_as_files(tmp_path, name, tmp_path / "files"))
    same_as_its_own(run_dir, found)
    logits = predictions.load(predictions.path_of(run_dir.path, run_dir.result()["best"]["step"]))["test"].logits
    labels = np.load(tmp_path / "data" / "arrays" / name / "test_labels.npy")
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, logits.astype(np.float32).argmax(1)), 1)
    assert found["confusion"] == matrix.tolist()
    assert (found["images"], found["run"], found["schema"]) == (32, run_dir.id, "kdcluster.evaluation/1")


def test_in_the_precision_of_its_training(tmp_path, data_dir):
    run_dir = trained(tmp_path, {"train.amp": "bf16"})
    found = document(tmp_path, run_dir.id, "--data", put_as_files(tmp_path, "cifar10", tmp_path / "files"))
    assert found["precision"] == "bf16"
    assert found["loss"] == pytest.approx(run_dir.result()["best"]["test/loss"], rel=1e-4)


def test_photographs_of_any_size_as_an_image_folder_has_them(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for at in range(12):
            (tmp_path / "mine" / split / "ab"[at % 2]).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (20 + at, 30 - at, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / split / "ab"[at % 2] / f"{at}.jpg")
    changes = {"data": {"name": "image_folder", "path": "mine", "image_size": 16}, "train.batch_size": 4}
    run = tiny.make_run(tmp_path, "baseline", changes)
    data.prepare(run, tmp_path / "data")
    run_dir = tiny.train_here(tmp_path / "runs", run, tmp_path / "data")
    same_as_its_own(run_dir, document(tmp_path, run_dir.id, "--data", tmp_path / "mine" / "test"))


@pytest.fixture
def counted(monkeypatch, tmp_path, data_dir):
    """A run that is said to have taken three cats, one dog and no owl for this."""
    answer = {"top1": 50.0, "top5": 100.0, "loss": 1.25, "device": "cpu", "precision": "none"}
    answer |= {"classes": ["cat", "d$o_{g", "owl"], "labels": [0, 0, 0, 1], "predicted": [0, 2, 2, 1], "notes": ["one"]}
    monkeypatch.setattr(finished, "evaluate", lambda *_: answer)
    return trained(tmp_path).id


def test_counts_by_hand(tmp_path, counted):
    found = document(tmp_path, counted, "--data", tmp_path)
    assert found["confusion"] == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert found["classes"] == [
        {"name": "cat", "images": 3, "right": 1, "top1": pytest.approx(100 / 3)},
        {"name": "d$o_{g", "images": 1, "right": 1, "top1": 100.0},
        {"name": "owl", "images": 0, "right": 0, "top1": None},
    ]
    assert (found["images"], found["right"], found["notes"]) == (4, 2, ["one"])


def test_the_table(tmp_path, counted):
    result = evaluate(tmp_path, counted, "--data", tmp_path / "x")
    assert result.stdout.splitlines() == [
        f"{counted} on {tmp_path / 'x'}: top-1 50.00 % (2 of 4; 95 % interval 15.00 to 85.00, Wilson), loss 1.2500",
        "",
        "class   images  right  accuracy  taken for",
        "cat          3      1    33.3 %  owl (2)",
        "d$o_{g       1      1   100.0 %",
        "",
        "images by label (row) and prediction (column), of the 2 of 3 classes that have any:",
        "",
        "        cat  d$o_{g  owl",
        "cat       1       0    2",
        "d$o_{g    0       1    0",
        "",
        "one",
    ]


def test_a_picture(tmp_path, counted):
    assert "give the file as --output" in fails(tmp_path, counted, "--data", tmp_path, "--format", "png")
    result = evaluate(tmp_path, counted, "--data", tmp_path, "--format", "png", "--output", tmp_path / "m.png")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "top-1 50.00 % (2 of 4;" in result.stderr
    with Image.open(tmp_path / "m.png") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 10


def test_the_end_of_a_file_says_its_format(tmp_path, counted):
    for name, begins in {"m.png": b"\x89PNG", "m.json": b"{", "m.txt": counted.encode()}.items():
        assert evaluate(tmp_path, counted, "--data", tmp_path, "--output", tmp_path / name).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(begins)
    for words in (
        ["m.md"],
        ["m.pdf"],
        ["m.png", "--format", "json"],
        ["m.txt", "--format", "png"],
        ["m.csv", "--json"],
    ):
        said = fails(tmp_path, counted, "--data", tmp_path, "--output", *words)
        assert "--output" in said
        assert "kdcluster plot" not in said
        assert "or say --format" not in said


@pytest.mark.parametrize("classes", [2, 30, 100])
def test_a_picture_of_many_classes(classes):
    each = [{"name": f"一 class {at}", "images": 1, "right": 1, "top1": 100.0} for at in range(classes)]
    known = {"top1": 100.0, "top5": 100.0, "loss": 0.0, "right": classes, "images": classes, "top1_ci95": (90, 100)}
    known |= {"run": "distilled-a_model_with_a_long_name-s0-01234567", "data": "somewhere/my 一 images"}
    content = picture({**known, "classes": each, "confusion": np.eye(classes, dtype=int).tolist()})
    with Image.open(io.BytesIO(content)) as image:
        assert image.width < 3000


def test_a_picture_says_of_what_it_is_and_shows_classes_that_have_images(tmp_path, counted, monkeypatch):
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k))
    evaluate(tmp_path, counted, "--data", tmp_path / "my $images", "--output", tmp_path / "m.png")
    (figure,) = figures
    title = figure._suptitle
    assert title.get_text().split("\n")[:2] == [counted, "on my $images"]
    assert "95 % interval 15.00 to 85.00" in " ".join(title.get_text().split())
    box = title.get_window_extent()
    assert (box.x0 >= 0, box.x1 <= figure.bbox.width) == (True, True)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "d$o_{g"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["cat", "d$o_{g", "owl"]


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(0, 10, 0.0, 27.75), (10, 10, 72.25, 100.0), (81, 263, 25.53, 36.62), (1, 2, 9.45, 90.55)],  # Newcombe 1998, and R
)
def test_the_interval_of_a_share(right, images, low, high):
    assert wilson95(right, images) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_a_picture_without_matplotlib(tmp_path, counted, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib")] + ["matplotlib", "matplotlib.figure"]:
        monkeypatch.setitem(sys.modules, name, None)
    said = fails(tmp_path, counted, "--data", tmp_path, "--format", "png", "--output", tmp_path / "m.png", code=1)
    assert said == "a picture needs matplotlib: pip install 'kdcluster[report]'\n"
    assert not (tmp_path / "m.png").exists()


def test_the_best_of_an_experiment(tmp_path, data_dir):
    made = tiny.make_plan(tmp_path, {"seeds": [0, 1, 2]})
    trained_ones = [run for run in made.runs if run.role in ("teacher", "distilled")]
    places = [tiny.train_here(tmp_path / "runs", run, tmp_path / "data") for run in trained_ones]
    tops = {place.id: place.result()["best"]["test/top1"] for place in places if place.id.startswith("distilled")}
    folder = put_as_files(tmp_path, "cifar10", tmp_path / "files")
    found = document(tmp_path, tmp_path / "tiny.yaml", "--best", "--data", folder)
    assert found["run"] == max(tops, key=tops.get)
    assert found["top1"] == pytest.approx(max(tops.values()))
    assert f"this run is the best of 3 seeds by test/top1, {max(tops.values()):.2f} %" in found["notes"][-1]
    found = document(tmp_path, tmp_path / "tiny.yaml", "--best", "--seeds", "1", "--data", folder)
    assert found["run"] == next(run_id for run_id in tops if "-s1-" in run_id)


# What is wrong with a folder


def put_image(path, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


IS = "is to have a sub-folder for each class (class 0, class 1, class 2, class 3, class 4 and 5 more) with its images"
WANTED = f"it {IS}"
FOLDERS = {
    "no folder": ([], f"no such folder: FOLDER; {WANTED}"),
    "nothing in it": (["class 1/readme.txt"], "no images below FOLDER, but 1 .txt (images are .jpg .jpeg .png"),
    "no class folders": (
        ["a.png"],
        f"a.png lies outside the class folders; its folder is to say its class: FOLDER {IS}",
    ),
    "an unknown class": (["Class 1/a.png", "class 2/b.png"], "Class 1 is no class of this run, which knows class 0"),
    "several": (
        ["x/a.png", "y/b.png"],
        "x, y are no classes of this run, which knows class 0, class 1, class 2, class 3",
    ),
    "one that is none": (["x/a.png"], "; rename or remove it"),
    "one folder too high": (["train/class 1/a.png", "test/class 1/a.png"], "to take its test/ name"),
}


@pytest.mark.parametrize(("names", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_is_not_as_it_should_be(tmp_path, data_dir, names, words):
    run_dir = trained(tmp_path)
    for name in names:
        put_image((tmp_path / "mine" / name).with_suffix(".png"))
        if name.endswith(".txt"):
            (tmp_path / "mine" / name).with_suffix(".png").rename(tmp_path / "mine" / name)
    said = fails(tmp_path, run_dir.id, "--data", tmp_path / "mine")
    assert words.replace("FOLDER", str(tmp_path / "mine")) in said


def test_a_file_is_no_folder(tmp_path, data_dir):
    put_image(tmp_path / "a.png")
    said = fails(tmp_path, trained(tmp_path).id, "--data", tmp_path / "a.png")
    assert said.startswith(f"{tmp_path / 'a.png'} is a file: name a folder; {WANTED}")


@pytest.mark.parametrize("name", ["cifar10", "mnist5k"], ids=["colour", "grey"])
def test_images_that_are_unlike_those_of_the_training(tmp_path, name):
    tiny.put_images(tmp_path / "data", name)
    run_dir = trained(tmp_path, {"data.name": name, "student": tiny.CNN, "teacher": tiny.CNN})
    mine = tmp_path / "mine" / "class 1"
    mine.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(mine / "a.png")
    Image.new("L", (16, 40)).save(mine / "b.png")
    notes = document(tmp_path, run_dir.id, "--data", tmp_path / "mine")["notes"]
    how = "shorter side resized, then cropped at the centre"
    assert f"1 of 2 images have another size than the run's own, 16×16 px: {how}" in notes
    grey = "1 of 2 images are grey, and the run takes colour"
    colour = "1 of 2 images are in colour, and were turned to grey, like the run's own"
    assert [note for note in notes if "grey" in note] == [grey if name == "cifar10" else colour]
    Image.new("RGB", (40, 8)).save(mine / "c.png")
    notes = document(tmp_path, run_dir.id, "--data", tmp_path / "mine")["notes"]
    assert "1 of 3 images are smaller than 16×16 px, the size of the run's own, and were enlarged" in notes


def test_a_name_that_is_nearly_a_class(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    put_image(tmp_path / "mine" / "clas 1" / "a.png")
    assert "is clas 1 'class 1'?" in fails(tmp_path, run_dir.id, "--data", tmp_path / "mine")


def test_classes_that_are_absent_are_said(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    put_image(tmp_path / "mine" / "class 1" / "a.png")
    put_image(tmp_path / "mine" / "class 1" / ".b.png")
    found = document(tmp_path, run_dir.id, "--data", tmp_path / "mine")
    absent = "no image of 9 classes: class 0, class 2, class 3, class 4, class 5 and 4 more; top-1 is over the others"
    assert found["notes"] == ["left out: 1 hidden (images are .jpg .jpeg .png .bmp .ppm .webp .tif .tiff)", absent]
    assert [one["images"] for one in found["classes"]] == [0, 1, *[0] * 8]


def test_broken_images_are_all_named(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    put_image(tmp_path / "mine" / "class 1" / "a.png")
    for name in ("b.png", "c.jpg"):
        (tmp_path / "mine" / "class 1" / name).write_bytes(b"no image")
    said = fails(tmp_path, run_dir.id, "--data", tmp_path / "mine")
    assert "2 of 3 images cannot be read" in said
    assert "b.png: " in said
    assert "c.jpg: " in said


def test_images_of_another_size_where_all_had_one_that_is_not_square(tmp_path):
    images, labels = tiny.images(32, size=24)
    arrays = {f"{split}_{what}": of for split in ("train", "test") for what, of in (("labels", labels),)}
    arrays |= {f"{split}_images": images[:, :, :20] for split in ("train", "test")}
    tiny.put_arrays(tmp_path / "data", "cifar10", arrays)
    run_dir = trained(tmp_path)
    same_as_its_own(
        run_dir, document(tmp_path, run_dir.id, "--data", put_as_files(tmp_path, "cifar10", tmp_path / "m"))
    )
    put_image(tmp_path / "m" / "class 1" / "a.png", (30, 30))
    said = fails(tmp_path, run_dir.id, "--data", tmp_path / "m")
    assert "a.png has 30×30 px (height × width), and this run has learnt from images of 20×24 px" in said


# What is wrong with a run


def test_what_is_no_run_with_weights(tmp_path, data_dir):
    run_dir = trained(tmp_path)
    said = fails(tmp_path, tmp_path / "tiny.yaml", "--data", tmp_path)
    assert "tiny.yaml is an experiment: --best takes its best distilled run, or name a run: kdcluster results" in said
    said = fails(tmp_path, tmp_path / "tiny.yaml", "--best", "--data", tmp_path, code=1)
    assert said == "--best: no distilled run of tiny is done\n"
    assert "--best chooses among the seeds" in fails(tmp_path, run_dir.id, "--best", "--data", tmp_path)
    assert "a run has its settings" in fails(tmp_path, run_dir.id, "--seeds", "1", "--data", tmp_path)
    fails(tmp_path, "nothing", "--data", tmp_path, code=5)
    run_dir.weights("best").unlink()
    (tmp_path / "later").mkdir()
    later = tiny.make_run(tmp_path / "later", "baseline", {"train.lr": 0.5})
    (tmp_path / "runs" / later.id).mkdir()
    RunDir(tmp_path / "runs", later.id).config.write_text(later.to_yaml())
    said = fails(tmp_path, later.id, "--data", tmp_path, code=1)
    assert said == f"{later.id} has not been trained yet; kdcluster submit {later.id} starts it\n"
    assert "its best weights are gone" in fails(tmp_path, run_dir.id, "--data", tmp_path, code=1)


def test_a_gpu_that_is_not_there(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = fails(tmp_path, trained(tmp_path).id, "--data", tmp_path, "--device", "cuda")
    assert "torch sees no GPU here" in said


def test_it_writes_nothing_and_runs_in_a_process_of_its_own(tmp_path, data_dir, own_process):
    run_dir = trained(tmp_path)
    folder = put_as_files(tmp_path, "cifar10", tmp_path / "files")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    same_as_its_own(run_dir, document(tmp_path, run_dir.id, "--data", folder))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
