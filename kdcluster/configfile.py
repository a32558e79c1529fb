"""YAML and `--set` to a validated Experiment, with every problem at its place in the file.

The only file that knows YAML. ruamel.yaml reads YAML 1.2: `1e-3` is a number, `8:00:00` is text, a duplicate
key is refused, and each key knows its line.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdcluster.config import DATASETS, Experiment
from kdcluster.errors import ConfigError, NotFound
from kdcluster.files import file_digest, folder_classes, folder_digest, folder_images, shipped

Key = tuple[str | int, ...]


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
        ConfigError: everything that is wrong with it, one line each.
    """
    path = find(name)
    source = _Source(path)
    problems = source.override(overrides)
    if problems:
        raise ConfigError(*problems)
    try:
        config = Experiment.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError(*source.explain(error)) from None
    problems = [source.at(key, f"{what}") for key, what in config.contradictions()]
    digests, missing = _digests(config)
    problems += [source.at(key, what) for key, what in missing]
    if problems:
        raise ConfigError(*problems)
    return LoadedExperiment(path.stem, path, config, digests, _num_classes(config))


def parse(text: str) -> Any:
    """One YAML 1.2 document as plain Python values."""
    return _plain(_yaml().load(text))


def dump(values: Any) -> str:
    """Plain values as a YAML document."""
    out = io.StringIO()
    _yaml().dump(values, out)
    return out.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.default_flow_style = False
    yaml.width = 4096
    return yaml


def _plain(node: Any) -> Any:
    """Round-trip nodes to plain values: dict, list, str, int, float, bool, None."""
    if isinstance(node, CommentedMap):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


class _Source:
    """An experiment file's values, and where each of them stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_by: dict[Key, str] = {}
        try:
            self.tree = _yaml().load(path.read_text(encoding="utf-8"))
        except MarkedYAMLError as error:
            raise ConfigError(self._syntax(error)) from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}:1:1: not a YAML file: {' '.join(str(error).split())}") from None
        if not isinstance(self.tree, CommentedMap):
            got = "an empty file" if self.tree is None else f"a {type(_plain(self.tree)).__name__}"
            raise ConfigError(f"{path}:1:1: expected keys like data:, teacher:, student:; got {got}")
        self.values = _plain(self.tree)
        _resolve_paths(self.values, path.parent)

    def _syntax(self, error: MarkedYAMLError) -> str:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = (error.problem or str(error)).split("\n")[0]
        if duplicate := re.match(r'found duplicate key "(.+?)"', what):
            what = f"{duplicate[1]}: stands twice in the same block; keep one"
        elif mark and mark.buffer and "\t" in mark.buffer.split("\0")[0].split("\n")[mark.line]:
            what = f"a tab where YAML wants spaces ({what})"
        return f"{self.path}:{line}:{column}: {what}"

    def override(self, overrides: Iterable[str]) -> list[str]:
        """Apply `KEY=VALUE`s; returns what is wrong with their form."""
        problems = []
        for text in overrides:
            dotted, equals, value = text.partition("=")
            key: Key = tuple(dotted.split("."))
            if not equals or not all(key) or value == "":
                problems.append(f"--set {text}: expected KEY=VALUE with a dotted key, as in train.epochs=3")
                continue
            try:
                parsed = parse(value)
            except YAMLError:
                problems.append(f"--set {text}: {dotted}: not a YAML value")
                continue
            block = self.values
            for part in key[:-1]:
                if not isinstance(block.get(part), dict):
                    block[part] = {}
                block = block[part]
            block[key[-1]] = parsed
            self.set_by = {old: by for old, by in self.set_by.items() if old[: len(key)] != key}
            self.set_by[key] = text
            _resolve_paths(self.values, Path.cwd(), only=key)
        return problems

    def at(self, key: Key, what: str) -> str:
        """`file:line:column: dotted.key: what`, or `--set …: dotted.key: what` where that set it."""
        dotted = ".".join(map(str, key))
        for length in range(len(key), 0, -1):
            if text := self.set_by.get(key[:length]):
                return f"--set {text}: {dotted}: {what}"
        line, column = self._place(key)
        return f"{self.path}:{line}:{column}: {dotted}: {what}"

    def _place(self, key: Key) -> tuple[int, int]:
        node: Any = self.tree
        line, column = 0, 0
        for part in key:
            if isinstance(node, CommentedMap) and part in node:
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                break
            node = node[part]
        return line + 1, column + 1

    def explain(self, error: ValidationError) -> list[str]:
        """All problems that pydantic found, in the order in which they stand in the file."""
        lines = []
        for problem in error.errors(include_url=False):
            key: Key = tuple(problem["loc"])
            if key[:1] and len(key) > 2 and key[-1] in ("bool", "str"):  # a branch of `bool | str`
                if key[-1] == "str":
                    continue
                key, what = key[:-1], f"must be true, false or a file name (got {problem['input']!r})"
            else:
                what = _wording(problem, _block_at(key[:-1]))
            lines.append((self._place(key), self.at(key, what)))
        return [line for _, line in sorted(lines, key=lambda item: item[0])]


def _block_at(key: Key) -> type[BaseModel] | None:
    """The pydantic block that a key leads to."""
    block: type[BaseModel] | None = Experiment
    for part in key:
        if block is None or part not in block.model_fields:
            return None
        block = block_of(block.model_fields[str(part)].annotation)
    return block


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The block inside a field's annotation (`Train`, `Train | None`), or None for a plain value."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _wording(problem: Any, block: type[BaseModel] | None) -> str:
    """One pydantic error in the words of the person who wrote the file."""
    kind, got = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = list(block.model_fields) if block else []
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, 1, cutoff=0.5)
        return f"unknown key; did you mean '{close[0]}'?" if close else f"unknown key; known: {', '.join(known)}"
    if kind == "missing":
        return "required key is missing"
    if kind in ("model_type", "dict_type"):
        return f"must be a block of keys (got {got!r})"
    if kind == "tuple_type":
        return f"must be a list, as in [0, 1] (got {got!r})"
    if kind == "too_short":
        return "must not be empty"
    if kind == "literal_error":
        text = f"must be one of {problem['ctx']['expected'].replace(' or ', ', ')} (got {got!r})"
        options = re.findall(r"'(.*?)'", problem["ctx"]["expected"])
        close = difflib.get_close_matches(str(got), options, 1, cutoff=0.5)
        return f"{text}; did you mean '{close[0]}'?" if close else text
    words = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    words = words.replace("a valid ", "a ").replace("a integer", "a whole number").replace("a string", "text")
    return f"{words} (got {got!r})"


_PATHS: tuple[Key, ...] = (
    ("data", "path"),
    ("teacher", "pretrained"),
    ("student", "pretrained"),
    ("imports",),
)


def _resolve_paths(values: dict[str, Any], base: Path, only: Key | None = None) -> None:
    """Make relative paths absolute: a file's against its folder, a --set's against the working directory."""
    for key in _PATHS:
        if only is not None and key[: len(only)] != only:
            continue
        block: Any = values
        for part in key[:-1]:
            block = block.get(part) if isinstance(block, dict) else None
        if not isinstance(block, dict):
            continue
        value = block.get(key[-1])
        if isinstance(value, str):
            block[key[-1]] = str((base / Path(value).expanduser()).resolve())
        elif isinstance(value, list):
            block[key[-1]] = [str((base / v).resolve()) if isinstance(v, str) else v for v in value]


def _digests(config: Experiment) -> tuple[dict[str, str], list[tuple[Key, str]]]:
    """Digest of every file that the experiment names, and what is wrong with them."""
    digests: dict[str, str] = {}
    problems: list[tuple[Key, str]] = []
    named: list[tuple[Key, str]] = [(("imports", i), path) for i, path in enumerate(config.imports)]
    for role in ("teacher", "student"):
        weights = getattr(config, role).pretrained
        if isinstance(weights, str):
            named.append(((role, "pretrained"), weights))
    for key, path in named:
        if Path(path).is_file():
            digests[path] = file_digest(Path(path))
        else:
            problems.append((key, f"no such file: {path}"))
    if config.data.path is not None:
        wrong = _folder_problem(Path(config.data.path))
        if wrong:
            problems.append((("data", "path"), wrong))
        else:
            digests[config.data.path] = folder_digest(Path(config.data.path))
    return digests, problems


def _folder_problem(folder: Path) -> str | None:
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            return f"no such folder: {folder / split} (an image_folder has train/<class>/ and test/<class>/)"
        if not folder_images(folder / split):
            return f"no images below {folder / split}"
    train, test = folder_classes(folder / "train"), folder_classes(folder / "test")
    if train != test:
        odd = sorted(set(train) ^ set(test))
        return f"train/ has {len(train)} classes and test/ has {len(test)}; only in one of them: {', '.join(odd[:5])}"
    return None


def _num_classes(config: Experiment) -> int:
    if config.data.path is not None:
        return len(folder_classes(Path(config.data.path) / "train"))
    return DATASETS[config.data.name][0]
