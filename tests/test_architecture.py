"""The layout of DESIGN.md, held by tests: who imports whom, what an import costs, and that no field is idle."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdcluster import plan
from kdcluster.experiment.recipes import expanded
from kdcluster.launch.status import Status, blocked_by
from kdcluster.launch.torchrun import Room, command, layout
from kdcluster.results import table
from kdcluster.states import State
from tests.fields import BASE, another, experiment, get, leaves, put

PACKAGE = Path(__file__).parents[1] / "kdcluster"
FILES = sorted(PACKAGE.rglob("*.py"))

RANKS: dict[str, float] = {
    "__init__": 0,
    "errors": 0,
    "files": 1,
    "processes": 1,
    "rereading": 1,
    "rows": 1,
    "predictions": 1.1,
    "saved": 1.1,
    "states": 1,
    "tickets": 1,
    "wording": 0.1,
    "ownership": 0.2,
    "columns": 1.1,
    "imagefolder": 1.1,
    "inputs": 3.1,
    "experiment": 2,
    "run": 2.5,
    "course": 2.1,
    "parts": 2.6,
    "plan": 3,
    "teacherlogits": 3.3,
    "settings": 3.1,
    "differing": 3.15,
    "shapes": 2,
    "records": 3.1,
    "attempts": 3.2,
    "runs": 4,
    "history": 4.1,
    "continued": 4.1,
    "launch": 5,
    "results": 5,
    "train": 5,
    "sweep": 6,
    "tabled": 6,
    "report": 6.05,
    "terminal": 6.1,
    "commands": 6.2,
    "cli": 7,
}
"""A room imports itself and rooms of a lower rank; those of one rank are strangers. A new room belongs here."""

HEAVY = {"torch", "torchvision", "timm", "ray", "submitit", "matplotlib", "rich", "tensorboard", "numpy"}
HEAVY |= {"psutil", "pynvml"}

LONG = {
    "cli.py": "one function for each command, and each does nothing but parse, call, print",
}
"""Modules of more than 300 lines, and why; each is to become shorter, or to keep its reason."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """The kdcluster modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    modules = {name_of(file) for file in FILES}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "kdcluster")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction"
            if node.module and node.module.partition(".")[0] == "kdcluster":
                whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                yield from (dotted if dotted in modules else node.module for dotted in whole.values())


# Who imports whom


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    own = room(path)
    for module in imported(path):
        other = module.split(".")[1] if "." in module else "__init__"
        assert other == own or RANKS[other] < RANKS[own], f"{own} imports {module}"


def test_no_two_modules_import_each_other() -> None:
    graph = {name_of(path): {module for module in imported(path) if module != "kdcluster"} for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " > ".join((*trail, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_fits_one_reading(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300 or path.relative_to(PACKAGE).as_posix() in LONG, f"{lines} lines"


def test_no_reason_for_length_outlives_it() -> None:
    assert {name for name in LONG if len((PACKAGE / name).read_text().splitlines()) <= 300} == set()


def test_only_yamlfile_knows_yaml() -> None:
    knowing = {path.name for path in FILES if any(name == "ruamel" for name in _packages(path))}
    assert knowing == {"yamlfile.py"}


def _packages(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


# What an import does


def in_fresh_interpreter(code: str) -> Any:
    """What `code` prints last, from JSON; a warning is an error there too."""
    argv = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOADED = f"import json; print(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}} & {HEAVY!r})))"


def test_the_command_line_is_light() -> None:
    assert in_fresh_interpreter(f"import sys, kdcluster.cli; {LOADED}") == []


def test_launching_and_results_need_no_torch() -> None:
    """tensorboard's protos, which are read in results/events.py, bring numpy along; nothing else is heavy."""
    modules = [name_of(path) for path in FILES if room(path) != "train"]
    assert len(modules) > 20
    loaded = in_fresh_interpreter(f"import sys, {', '.join(modules)}; {LOADED}")
    assert set(loaded) <= {"tensorboard", "numpy"}
    assert not {"torch", "timm"} & set(in_fresh_interpreter(f"import sys, kdcluster.launch.local.supervisor; {LOADED}"))


def test_importing_sets_up_no_logging_and_reads_no_environment() -> None:
    modules = [name_of(path) for path in FILES if room(path) != "train"]
    code = (
        "import logging, os; root = logging.getLogger(); before = (root.level, len(root.handlers), dict(os.environ));"
        f"import json, {', '.join(modules)}; ours = logging.getLogger('kdcluster');"
        "after = (root.level, len(root.handlers), dict(os.environ));"
        "print(json.dumps([before == after, len(ours.handlers), ours.level]))"
    )
    assert in_fresh_interpreter(code) == [True, 0, 0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_computes_nothing_of_the_world_when_it_is_imported(path: Path) -> None:
    """Rule 3: at the top of a module stand definitions, and calls that only make values."""
    for node in _at_import(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("open", "print", "logging.basicConfig"), called
            assert not called.startswith(("os.environ", "os.getenv", "torch.cuda", "torch.set_", "subprocess.")), called
            assert not called.endswith((".setLevel", ".addHandler", ".read_text", ".mkdir")), called
        if isinstance(node, ast.Subscript):
            assert ast.unparse(node.value) != "os.environ"


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_main(child):
            continue
        yield child
        yield from _at_import(child)


def _is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


# Every field of the experiment file has an effect


def hashes(values: dict[str, Any]) -> Any:
    return [run.hash for run in plan.plan([experiment(values)]).runs]


def commands(values: dict[str, Any]) -> Any:
    runs = plan.plan([experiment(values)]).runs
    wheres = [layout(run.resources, Room(gpus, 6)) for run in runs for gpus in (0, 1)]
    return [command(Path("run"), Path("data"), where) for where in wheres]


def reference_column(values: dict[str, Any]) -> Any:
    built = table.build(plan.plan([experiment(values)]), Path("no-runs-are-here"))
    return [row.reference for row in built.experiments[0].rows]


def rows(values: dict[str, Any]) -> Any:
    return [row.configuration for row in table.build(plan.plan([experiment(values)]), Path("none")).experiments[0].rows]


def waits(values: dict[str, Any]) -> Any:
    """What a student waits for."""
    return plan.plan([experiment(values)]).runs[-1].after


def gate(values: dict[str, Any]) -> Any:
    """Whether a student is held back from a teacher of 0.1 %."""
    made = plan.plan([experiment(values)])
    teacher, distilled = made.runs[0], made.runs[-1]
    return blocked_by(distilled, {teacher.id: Status(State.DONE, top1=0.1)})


@cache
def read_in(place: str) -> frozenset[str]:
    """`block.field` for every attribute that a module, or the modules of a room, read, as in `run.train.compile`."""
    found = set()
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix().startswith(place):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(".".join(ast.unparse(node).split(".")[-2:]))
    return frozenset(found)


HASH, COMMAND, TABLE, ROWS, GATE, WAITS = hashes, commands, reference_column, rows, gate, waits
READ = ("train/step.py", "train/speed.py", "train/sources.py", "train/checkpoint.py")
STEP, SPEED, SOURCES, CHECKPOINT = READ
Effect = Callable[[dict[str, Any]], Any] | str
"""What a changed field changes, or the module that reads it."""

TRAIN: dict[str, Effect] = {
    "epochs": HASH,
    "steps": HASH,
    "batch_size": HASH,
    "optimizer": HASH,
    "momentum": HASH,
    "betas": HASH,
    "lr": HASH,
    "layer_decay": HASH,
    "schedule": HASH,
    "min_lr": HASH,
    "warmup_epochs": HASH,
    "warmup_steps": HASH,
    "weight_decay": HASH,
    "label_loss": HASH,
    "label_smoothing": HASH,
    "grad_clip": HASH,
    "ema_decay": HASH,
    "ema_warmup": HASH,
    "amp": HASH,
    "channels_last": STEP,
    "grad_checkpointing": STEP,
    "compile": SPEED,
    "checkpoint_every": CHECKPOINT,
    "micro_batch": STEP,
}
AUGMENT = (
    *("crop.scale", "crop.ratio", "color.brightness", "color.contrast", "color.saturation", "color.hue"),
    *("policy", "rand.ops", "rand.magnitude", "erase.probability", "erase.scale", "erase.ratio"),
)
MIXING = ("mixup.alpha", "mixup.share", "cutmix.alpha", "cutmix.share")
MODEL: dict[str, Effect] = {"model": HASH, "pretrained": HASH, "image_size": HASH, "model_args": HASH}
DISTILL = ("loss", "temperature", "standardise", "dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma")
EFFECTS: dict[str, Effect] = {
    "recipe": expanded,
    "data.name": HASH,
    "data.path": SOURCES,
    "data.image_size": HASH,
    "data.skip_broken": HASH,
    "data.val_fraction": HASH,
    "data.labelled": HASH,
    "data.augment.pad": HASH,
    "data.augment.flip": HASH,
    "data.views": HASH,
    "data.view_seed": HASH,
    "teacher.augment.pad": HASH,
    "teacher.augment.flip": HASH,
    **{f"{block}.augment.{key}": HASH for block in ("data", "teacher") for key in AUGMENT},
    **{f"{block}.augment.{key}": HASH for block in ("data", "teacher") for key in MIXING},
    **{f"teacher.{key}": effect for key, effect in MODEL.items()},
    "teacher.seed": HASH,
    "teacher.min_top1": GATE,
    **{f"teacher.train.{key}": effect for key, effect in TRAIN.items()},
    **{f"student.{key}": effect for key, effect in MODEL.items()},
    "distill.alpha": HASH,
    **{f"distill.{key}": HASH for key in DISTILL},
    "distill.logits": WAITS,
    "control": ROWS,
    **{f"train.{key}": effect for key, effect in TRAIN.items()},
    "seeds": HASH,
    "variant": HASH,
    "resources.device": COMMAND,
    "resources.gpus": COMMAND,
    "resources.procs": COMMAND,
    "resources.threads": COMMAND,
    "resources.collective_timeout_min": "train/worker.py",
    "imports": HASH,
    **dict.fromkeys(
        ("sweep.space", "sweep.trials", "sweep.search", "sweep.seeds", "sweep.seed", "sweep.val_fraction"),
        "sweep/points.py",
    ),
    **dict.fromkeys(
        ("sweep.scheduler", "sweep.at_once", "sweep.time_budget_min", "sweep.max_failures"),
        "sweep/flow.py",
    ),
    "sweep.metric": "sweep/report.py",
    "reference.teacher": TABLE,
    "reference.baseline": TABLE,
    "reference.distilled": TABLE,
}
"""Where a change of each field can be seen: the hash, the command, a value that the trainer reads, or the table."""

READERS = {
    **{f"train.{key}": f"train.{key}" for key in TRAIN},
    "train.amp": "run.amp",
    "data.name": "data.name",
    "data.path": "data.path",
    "data.image_size": "data.image_size",
    "data.skip_broken": "data.skip_broken",
    "data.val_fraction": "data.val_fraction",
    "data.labelled": "data.labelled",
    "data.augment.pad": "augment.pad",
    "data.augment.flip": "augment.flip",
    **{f"data.augment.{key}": key for key in AUGMENT},
    "data.augment.policy": "augment.policy",
    **{f"data.augment.{key}": key for key in MIXING},
    "data.views": "data.views",
    "data.view_seed": "data.view_seed",
    "student.model": "model.model",
    "student.pretrained": "model.pretrained",
    "student.image_size": "model.image_size",
    "student.model_args": "model.model_args",
    "distill.alpha": "distill.alpha",
    **{f"distill.{key}": f"distill.{key}" for key in DISTILL},
    "seeds": "run.seed",
    "imports": "run.imports",
}
"""What the trainer reads of a field that decides the numbers: being hashed is not yet an effect."""


def test_every_field_has_an_effect_that_is_looked_at() -> None:
    assert set(EFFECTS) == {key for key, _ in leaves()}


@pytest.mark.parametrize("key", EFFECTS)
def test_a_changed_field_changes_something(key: str) -> None:
    effect = EFFECTS[key]
    if isinstance(effect, str):
        assert key.removeprefix("teacher.") in read_in(effect), f"{effect} does not read it"
        return
    info = dict(leaves())[key]
    changed = put(BASE, key, another(info, get(experiment(BASE).config, key)))
    assert effect(changed) != effect(BASE)


@pytest.mark.parametrize("key", READERS)
def test_the_trainer_reads_what_is_hashed(key: str) -> None:
    assert READERS[key] in read_in("train/")


def test_every_hashed_field_has_a_reader_in_the_trainer() -> None:
    hashed = {key.removeprefix("teacher.") for key, effect in EFFECTS.items() if effect in (HASH, *READ)}
    hashed = {f"student.{key}" if key in MODEL else key for key in hashed}
    hashed = {f"data.{key}" if key.startswith("augment.") else key for key in hashed}  # of the teacher's own run
    labels = {"variant", "seed"}  # a free label; the teacher's seed is a run's seed, as `seeds` are
    assert hashed - labels == set(READERS)


# A state has one spelling

NO_STATES = {"states.py": "where they are spelt", "tuning.py": "Tune's own key `done`", "shapes.py": "a record's name"}
RECORDS = {"read", "write", "write_last"}
"""Methods that take the name of a record of an attempt: there is one called `preempted`."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_state_is_a_bare_string(path: Path) -> None:
    states = {str(state) for state in State}
    named = {
        id(node.args[0])
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in RECORDS
        and node.args
    }
    bare = [
        f"{node.lineno}: {node.value}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in states and id(node) not in named
    ]
    assert bare == [] or path.name in NO_STATES


# What a person sees


def test_colours_can_be_read_on_white_and_on_black() -> None:
    """Bold, red and green, and the end of them: dim, yellow, white or grey vanish on one of the two."""
    used = {code for path in FILES for code in re.findall(r"(?:\\x1b|\\033|\\e)\[([\d;]*)m", path.read_text("utf-8"))}
    assert used == {"0", "1", "31", "32"}
    styled = r"click\.(style|secho)|\bfg=|\bstyle="  # of click and rich, which bring colours by name
    html = {"fragment.py"}  # where style= is an attribute of an element
    assert [path.name for path in FILES if re.search(styled, path.read_text("utf-8")) and path.name not in html] == []
