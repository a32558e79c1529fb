"""A YAML file and `--set` to a validated Experiment, with every problem at its place in the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdcluster import imagefolder, wording
from kdcluster.errors import ConfigError, NotFound
from kdcluster.experiment import yamlfile
from kdcluster.experiment.config import Experiment
from kdcluster.experiment.images import DATASETS
from kdcluster.experiment.recipes import expanded
from kdcluster.experiment.yamlfile import Source
from kdcluster.files import YAML, file_digest, is_experiment, shipped, write_aside
from kdcluster.wording import Key, Problem


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment with its name and what the files it names hold (path -> digest), so that a plan is pure."""

    name: str
    path: Path
    config: Experiment
    digests: Mapping[str, str]
    num_classes: int
    train_images: int
    """Of the whole training set, broken ones included."""


def experiments() -> dict[str, Path]:
    """The experiments that can be named here: ./configs first, then those that ship, then ./x.yaml as `./x.yaml`.

    A file of the working directory is one if it has a teacher and a student.
    """
    found: dict[str, Path] = {}
    for folder in (Path("configs"), shipped("configs")):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    beside = sorted(path for path in Path().glob("*.y*ml") if is_experiment(path))
    return {**found, **{f"./{path}": path for path in beside}}


def find(name: str) -> Path:
    """The file of an experiment that was named or given as a path.

    Raises:
        NotFound: there is neither.
    """
    for folder in (Path("configs"), shipped("configs")):
        if (path := folder / f"{name}.yaml").is_file() and "/" not in name:
            return path
    if Path(name).is_file():
        return Path(name)
    if "/" in name or name.endswith(YAML):
        raise NotFound(f"no experiment file {name}")
    known = experiments()
    close = [f"./{name}{end}" for end in YAML if Path(name + end).is_file()]
    close = close or difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise NotFound(f"no experiment {name!r}, neither ./configs/{name}.yaml nor a shipped one nor a file; {hint}")


def load(name: str, overrides: Iterable[str] = ()) -> LoadedExperiment:
    """Read, override and validate one experiment, and take the digests of the files it names.

    Args:
        name: experiment name or path.
        overrides: `KEY=VALUE` with a dotted key, as given to --set; later ones win.

    Raises:
        NotFound: no such experiment.
        ConfigError: everything that is wrong with it, one line each, in the order of the file.
    """
    path = find(name)
    source = Source(path, "data:, teacher:, student:", _make_absolute)
    malformed = source.override(overrides)
    config, problems = _validated(expanded(source.values))
    digests, (classes, images), missing = _digests(source.values)
    if malformed or problems or missing:
        raise ConfigError(*source.report([*problems, *missing]), *malformed)
    if known := DATASETS.get(config.data.name):
        classes, images = known.classes, known.train
    return LoadedExperiment(path.stem, path, config, digests, classes, images)


def located(loaded: LoadedExperiment, overrides: Iterable[str], problems: Iterable[Problem]) -> list[str]:
    """What else is wrong with a file that was read, at its place there or in the override that brought it."""
    source = Source(loaded.path, "", _make_absolute)
    source.override(overrides)
    return source.report(problems)


def kept(loaded: LoadedExperiment, folder: Path) -> LoadedExperiment:
    """The same experiment from a copy of its file, which stays as it is while somebody edits the file."""
    path = folder / f"{loaded.name}.yaml"
    write_aside(path, edited(loaded, []))
    return replace(loaded, path=path)


def edited(loaded: LoadedExperiment, overrides: Iterable[str]) -> str:
    """An experiment's file with overrides put into it, and with absolute paths, so that it can lie anywhere."""
    return yamlfile.edited(loaded.path, overrides, _make_absolute)


_STAND_INS = {"data": {"name": "cifar10"}, "teacher": {"model": "-"}, "student": {"model": "-"}}


def _validated(values: Mapping[str, Any]) -> tuple[Experiment, list[Problem]]:
    """The experiment, and what is wrong with it: in each block, and between the fields of the sound ones."""
    problems: list[Problem] = []
    try:
        config = Experiment.model_validate(values)
    except ValidationError as error:
        problems = wording.problems(error, Experiment)
        wrong = {key[0] for key, _ in problems}
        sound = {name: block for name, block in values.items() if name not in wrong}
        config = Experiment.model_validate({**_STAND_INS, **sound})
        if "train" in wrong:  # then nothing is said about the teacher's length and warm-up, which count on it
            sound_ones = [problem for problem in config.contradictions() if problem[0][:2] != ("teacher", "train")]
            return config, problems + sound_ones
    return config, problems + config.contradictions()


def _named(values: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Every file and folder that the values name, and under which key."""
    imports = values.get("imports")
    for index, path in enumerate(imports if isinstance(imports, list) else ()):
        if isinstance(path, str):
            yield ("imports", index), path
    for block, name in (("data", "path"), ("teacher", "pretrained"), ("student", "pretrained")):
        inside = values.get(block)
        if isinstance(inside, dict) and isinstance(inside.get(name), str):
            yield (block, name), inside[name]


def _make_absolute(values: dict[str, Any], base: Path) -> None:
    """Relative paths: a file's count from its folder, a --set's from the working directory."""
    for key, text in list(_named(values)):
        holder: Any = values
        for part in key[:-1]:
            holder = holder[part]
        path = Path.home() / text[2:] if text.startswith("~/") else base / text
        holder[key[-1]] = str(path.resolve())


def _digests(values: Mapping[str, Any]) -> tuple[dict[str, str], tuple[int, int], list[Problem]]:
    """Digest of every file and folder that the values name, classes and training images of an image folder, and what
    is wrong with them."""
    digests: dict[str, str] = {}
    counts = 0, 0
    problems: list[Problem] = []
    for key, text in _named(values):
        path = Path(text)
        try:
            if key != ("data", "path"):
                if not path.is_file():
                    raise ConfigError(f"no such file: {path}")
                digests[text] = file_digest(path)
            elif values["data"].get("name") == "image_folder":  # else it is a contradiction
                found = imagefolder.look(path)
                digests[text], counts = found.digest, (len(found.classes), len(found.images["train"]))
        except ConfigError as error:
            problems.append((key, str(error)))
        except OSError as error:
            problems.append((key, f"cannot read {error.filename}: {error.strerror}"))
    return digests, counts, problems
