"""Models are tried before anything is queued: what teacher and student give in training and in evaluation mode."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from kdcluster.cli import main
from kdcluster.launch import child
from kdcluster.launch.preflight import preflight as ask
from kdcluster.plan import Run
from kdcluster.train import models, preflight
from tests import tiny

ODD = str(Path(__file__).parents[1] / "odd_models.py")


def odd(gives: str) -> dict[str, Any]:
    """A model of odd_models.py."""
    return {"model": "odd_net", "image_size": 16, "model_args": {"gives": gives}}


def problems(folder: Path, changes: dict[str, Any], *roles: str) -> list[str]:
    """What the check says of the runs of some roles, without the data."""
    made = tiny.make_plan(folder, {"imports": [ODD], **changes}).only(roles or ("teacher", "distilled", "baseline"))
    found: list[str] = preflight.preflight(list(made.runs), folder / "data", fetch=False)["problems"]
    return found


WANTED = "; wanted is a tensor (2, 10) of floats, the logits of 2 images and 10 classes"
TWO = "a tensor (2, 10) float32, a tensor (2, 10) float32"


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ("a tuple", f"in training mode gives a tuple of 2: {TWO}{WANTED}"),
        ("a tuple in training", f"in training mode gives a tuple of 2: {TWO}{WANTED}"),
        ("a tuple in evaluation", f"in evaluation mode gives a tuple of 2: {TWO}{WANTED}"),
        ("a dict", f"in training mode gives a dict of logits, features{WANTED}"),
        ("another number of classes", f"in training mode gives a tensor (2, 11) float32{WANTED}"),
        ("a flat vector", f"in training mode gives a tensor (20,) float32{WANTED}"),
        ("labels", f"in training mode gives a tensor (2, 10) int64{WANTED}"),
        ("nothing", f"in training mode gives a NoneType{WANTED}"),
        ("no gradient", "in training mode gives logits without a gradient, so nothing of it could be trained"),
    ],
)
def test_what_came_and_what_is_wanted(tmp_path, gives, said):
    (problem,) = problems(tmp_path, {"student": odd(gives)}, "baseline")
    assert problem.startswith("baseline-odd_net-s0-")
    assert problem.endswith(f": odd_net (image_size 16, model_args {{'gives': '{gives}'}}) {said}")


def test_an_error_of_the_model_with_its_place_and_arguments(tmp_path):
    (problem,) = problems(tmp_path, {"student": odd("an error")}, "baseline")
    assert "odd_net (image_size 16, model_args {'gives': 'an error'}) in training mode fails in its forward" in problem
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in problem
    assert f", in {ODD}:" in problem


@pytest.mark.parametrize("gives", ["half precision", "a number read back"])
def test_what_can_be_trained_goes_on(tmp_path, gives):
    assert problems(tmp_path, {"student": odd(gives), "teacher": odd(gives)}) == []


@pytest.mark.parametrize("model", ["deit_tiny_distilled_patch16_224", "repvit_m0_9"])
def test_timms_distilled_models_give_one_tensor(tmp_path, model):
    """With two heads; the tuple comes only after set_distilled_training, of which timm's own trainer makes use."""
    student = {"model": model, "image_size": 32}
    assert problems(tmp_path, {"student": student}, "baseline") == []


def test_two_classes_are_not_mistaken_for_two_images(tmp_path):
    run = tiny.make_run(tmp_path, "baseline", {"imports": [ODD], "student": odd("a flat vector")})
    two = run.model_copy(update={"num_classes": 2})
    (problem,) = preflight.preflight([two], tmp_path / "data", fetch=False)["problems"]
    assert "a tensor (6,) float32; wanted is a tensor (3, 2) of floats" in problem


def test_a_teacher_that_is_only_evaluated_is_not_tried_in_training_mode(tmp_path):
    models.import_files([ODD])
    net = models.build(models.Model(**odd("a tuple in training")), 10, 3).net
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    taken = {"teacher": {**odd("a tuple in training"), "pretrained": "w.safetensors", "train": "none"}}
    assert problems(tmp_path, taken, "teacher") == []
    (problem,) = problems(tmp_path, {"teacher": odd("a tuple in training")}, "teacher")
    assert "in training mode" in problem


def test_each_model_is_tried_once_whatever_its_weights_and_runs(tmp_path, monkeypatch):
    tried = []
    attempt = preflight._try
    monkeypatch.setattr(preflight, "_try", lambda run, net: (tried.append(run.id), attempt(run, net)))
    models.import_files([ODD])
    save_file(models.build(models.Model(**tiny.VIT), 10, 3).net.state_dict(), tmp_path / "w.safetensors")
    same = {"teacher": {**tiny.VIT, "pretrained": "w.safetensors"}, "seeds": [0, 1, 2]}
    assert problems(tmp_path, same) == []
    assert len(tried) == 1
    tried.clear()
    assert problems(tmp_path, {"seeds": [0, 1]}) == []  # the teacher's is wider
    assert len(tried) == 2


def test_gradient_checkpointing_is_refused_before_anything_is_queued(tmp_path):
    """By the model that has none in timm; the teacher, which is another, is not concerned where it says so."""
    forgets = {"train.grad_checkpointing": True}
    (problem,) = problems(tmp_path, {"student": odd("a tuple"), **forgets}, "baseline")
    assert "odd_net has no gradient checkpointing in timm; leave train.grad_checkpointing out" in problem
    (problem,) = problems(tmp_path, {"teacher": {"model": "test_resnet.r160_in1k", "image_size": 32}, **forgets})
    assert "has BatchNorm, which would count each batch twice" in problem
    without = {"model": "test_resnet.r160_in1k", "image_size": 32, "train": {"grad_checkpointing": False}}
    assert problems(tmp_path, {"teacher": without, **forgets}) == []


def test_layer_decay_of_a_model_that_is_one_layer_to_timm_is_refused(tmp_path):
    student = {"model": "tiny_net", "image_size": 16}
    changes = {"student": student, "imports": [tiny.TINY_MODELS], "train.layer_decay": 0.7}
    (problem,) = problems(tmp_path, changes, "baseline")
    assert problem.endswith(
        ": train.layer_decay: timm finds one layer in TinyNet; give it a group_matcher, or leave layer_decay out"
    )
    assert problems(tmp_path, {"student": tiny.VIT, "train.layer_decay": 0.7}, "baseline") == []


def test_a_breakpoint_in_a_model_waits_for_the_debug_run(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import pdb\nfrom pdb import set_trace\nfrom timm.models import register_model\nfrom torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        breakpoint()\n        pdb.set_trace()\n        set_trace()\n"
        "        return super().forward(x.flatten(1))\n"
        "@register_model\n"
        "def stopping_net(pretrained=False, num_classes=10, in_chans=3, **_):\n"
        "    return Net(in_chans * 4, num_classes)\n"
    )
    student = {"model": "stopping_net", "image_size": 2}
    run = tiny.make_run(tmp_path, "baseline", {"imports": [str(tmp_path / "mine.py")], "student": student})
    found = ask([run], tmp_path / "data", fetch=False)
    assert found["models"][run.id]["params"] == 130


def test_the_check_leaves_the_threads_as_they_were(tmp_path):
    before = torch.get_num_threads()
    problems(tmp_path, {"student": odd("an error")}, "baseline")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "command", [["plan", "--check"], ["submit", "--backend", "local"], ["debug"]], ids=lambda words: words[0]
)
def test_teacher_and_student_are_refused_before_anything_starts(tmp_path, monkeypatch, command):
    def here(_: Any, *, input: str, **__: Any) -> Any:  # instead of a process that imports torch for seconds
        runs = [Run.model_validate(values, strict=False) for values in json.loads(input)]
        answer = preflight.preflight(runs, tmp_path / "data", fetch=False)
        return SimpleNamespace(returncode=0, stdout=json.dumps(answer))

    monkeypatch.setattr(child, "subprocess", SimpleNamespace(run=here, PIPE=None))
    tiny.put_images(tmp_path / "data")
    file = tiny.write_experiment(tmp_path, {"imports": [ODD], "teacher": odd("a dict"), "student": odd("a tuple")})
    where = ["--runs-dir", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(main, [command[0], str(file), *command[1:], *where])
    assert done.exit_code == 2, done.output
    assert "gives a dict of logits, features" in done.output
    assert "gives a tuple of 2" in done.output
    assert not list((tmp_path / "runs").glob("*/attempts"))
