"""YAML and `--set` to a validated Experiment, with every problem at its place in the file.

The only file that knows YAML. ruamel.yaml reads YAML 1.2: `1e-3` is a number, `8:00:00` is text, a duplicate
key is refused, and each node knows its line.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from kdcluster import wording
from kdcluster.config import DATASETS, Experiment
from kdcluster.errors import ConfigError, NotFound
from kdcluster.files import file_digest, folder_classes, folder_digest, image_folder_problem, shipped
from kdcluster.wording import Key, Problem


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment with its name and what the files it names hold (path -> digest), so that a plan is pure."""

    name: str
    path: Path
    config: Experiment
    digests: Mapping[str, str]
    num_classes: int


def experiments() -> dict[str, Path]:
    """The experiments that can be named here: ./configs first, then those that ship with the package."""
    found: dict[str, Path] = {}
    for folder in (Path("configs"), shipped("configs")):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find(name: str) -> Path:
    """The file of an experiment that was named or given as a path.

    Raises:
        NotFound: there is neither.
    """
    known = experiments()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    if "/" in name or name.endswith((".yaml", ".yml")):
        raise NotFound(f"no experiment file {name}")
    close = difflib.get_close_matches(name, known, 1)
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
    source = _Source(path)
    malformed = source.override(overrides)
    config, problems = _validated(source.values)
    digests, missing = _digests(source.values)
    if malformed or problems or missing:
        raise ConfigError(*source.report([*problems, *missing]), *malformed)
    return LoadedExperiment(path.stem, path, config, digests, _num_classes(config))


def parse(text: str) -> Any:
    """One YAML 1.2 document as plain Python values.

    Raises:
        ValueError: it is not one.
    """
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


def dump(values: Any) -> str:
    """Plain values as a YAML document."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.allow_unicode = False  # escaped: the emitter writes some line breaks, as U+0085, so that they read as spaces
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # pure: libyaml knows YAML 1.1 alone


class _Source:
    """An experiment file's values, and where each of them stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[Key, tuple[int, int]] = {}
        self.set_by: dict[Key, str] = {}
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
            root: Node | None = _yaml().compose(text)
            if wrong := list(self._note_places(root, ())) if root else []:
                raise ConfigError(*wrong)
            values = _yaml().load(text)
        except MarkedYAMLError as error:
            raise ConfigError(self._syntax(error)) from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}:1:1: not a YAML file: {' '.join(str(error).split())}") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        if not isinstance(values, dict):
            got = "an empty file" if values is None else wording.shown(values)
            raise ConfigError(f"{path}:1:1: expected keys like data:, teacher:, student: (got {got})")
        self.values = _text_keys(values)
        _make_absolute(self.values, path.parent)

    def _note_places(self, node: Node, key: Key, inside: tuple[Node, ...] = ()) -> Iterator[str]:
        """Fill `places`; yields a line for each key that stands twice in its block."""
        if any(node is outer for outer in inside):
            yield self._line(node.start_mark, key, "an alias inside the block that it stands for")
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                self.places.setdefault((*key, index), _line_column(item.start_mark))
                yield from self._note_places(item, (*key, index), (*inside, node))
        elif isinstance(node, MappingNode):
            own: set[Key] = set()
            for name, value in node.value:
                if name.tag == "tag:yaml.org,2002:merge":  # <<: *block, or a list of them
                    for block in value.value if isinstance(value, SequenceNode) else [value]:
                        yield from self._note_places(block, key, (*inside, node))
                    continue
                inner = (*key, str(name.value))
                if inner in own:
                    yield self._line(name.start_mark, inner, "stands twice in the same block; keep one")
                own.add(inner)
                self.places.setdefault(inner, _line_column(name.start_mark))
                yield from self._note_places(value, inner, (*inside, node))

    def _line(self, mark: StringMark, key: Key, what: str) -> str:
        line, column = _line_column(mark)
        return f"{self.path}:{line}:{column}: {_dotted(key)}: {what}"

    def _syntax(self, error: MarkedYAMLError) -> str:
        begin, end = error.context_mark, error.problem_mark
        unclosed = begin and re.search("end of stream|, but .*stream end", error.problem)
        line, column = _line_column(begin if unclosed else end)
        return f"{self.path}:{line}:{column}: {wording.syntax(error.problem, begin.line + 1 if begin else line)}"

    def override(self, overrides: Iterable[str]) -> list[str]:
        """Apply `KEY=VALUE`s; returns what is wrong with their form."""
        problems = []
        for text in overrides:
            dotted, _, value = text.partition("=")
            key: Key = tuple(dotted.split("."))
            if not all(key) or value == "":
                problems.append(f"--set {text}: expected KEY=VALUE with a dotted key, as in train.epochs=3")
                continue
            try:
                parsed = _text_keys(parse(value))
            except ValueError:
                problems.append(f"--set {text}: {dotted}: not a YAML value; put text in quotes")
                continue
            made = _put(self.values, key, parsed)
            self.set_by = {old: by for old, by in self.set_by.items() if old[: len(key)] != key}
            self.set_by |= {made: text, key: text}
            _make_absolute(self.values, Path.cwd())
        return problems

    def report(self, problems: Iterable[Problem]) -> list[str]:
        """`file:line:column: dotted.key: what` in the file's order, then `--set ...: dotted.key: what`."""
        sets = list(self.set_by.values())
        lines = []
        for key, what in problems:
            around = [key[:length] for length in range(len(key), 0, -1)]
            text = next((self.set_by[k] for k in around if k in self.set_by), None)
            line, column = next((self.places[k] for k in around if k in self.places), (1, 1))
            if text is None:
                lines.append((0, line, column, f"{self.path}:{line}:{column}: {_dotted(key)}: {what}"))
            else:
                lines.append((1, sets.index(text), 0, f"--set {text}: {_dotted(key)}: {what}"))
        return [line for *_, line in sorted(lines, key=lambda item: item[:3])]


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _line_column(mark: StringMark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _text_keys(value: Any) -> Any:
    """A copy with every key as text; what an alias shares is copied too, so that --set changes one place."""
    if isinstance(value, dict):
        return {str(key): _text_keys(inner) for key, inner in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, list) else value


def _put(values: dict[str, Any], key: Key, value: Any) -> Key:
    """Set a value, and return the outermost key that had to be made for it."""
    block: Any = values
    made = key
    for depth, part in enumerate(key[:-1], start=1):
        if not isinstance(block.get(part), dict):
            block[part] = {}
            made = min(made, key[:depth], key=len)
        block = block[part]
    block[key[-1]] = value
    return made


_STAND_INS = {"data": {"name": "cifar10"}, "teacher": {"model": "-"}, "student": {"model": "-"}}


def _validated(values: Mapping[str, Any]) -> tuple[Experiment, list[Problem]]:
    """The experiment, and what is wrong with it: in each block, and between the fields of the sound ones."""
    problems: list[Problem] = []
    try:
        config = Experiment.model_validate(values)
    except ValidationError as error:
        problems = wording.problems(error)
        wrong = {key[0] for key, _ in problems}
        sound = {name: block for name, block in values.items() if name not in wrong}
        config = Experiment.model_validate({**_STAND_INS, **sound})
        if "train" in wrong:  # then nothing is said about the teacher's warm-up, which counts on train.epochs
            config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 10**9})})
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


def _digests(values: Mapping[str, Any]) -> tuple[dict[str, str], list[Problem]]:
    """Digest of every file and folder that the values name, and what is wrong with them."""
    digests: dict[str, str] = {}
    problems: list[Problem] = []
    for key, text in _named(values):
        path, folder = Path(text), key == ("data", "path")
        if folder and values["data"].get("name") != "image_folder":
            continue  # a contradiction
        try:
            wrong = image_folder_problem(path) if folder else None if path.is_file() else f"no such file: {path}"
            if wrong is None:
                digests[text] = folder_digest(path) if folder else file_digest(path)
        except OSError as error:
            wrong = f"cannot read {error.filename}: {error.strerror}"
        if wrong is not None:
            problems.append((key, wrong))
    return digests, problems


def _num_classes(config: Experiment) -> int:
    if config.data.path is not None:
        return len(folder_classes(Path(config.data.path) / "train"))
    return DATASETS[config.data.name][0]
