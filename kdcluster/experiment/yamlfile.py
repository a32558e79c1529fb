"""YAML 1.2 with the place of every key: the only file that knows YAML.

ruamel.yaml reads YAML 1.2: `1e-3` is a number, `8:00:00` is text, a duplicate key is refused, and each node knows
its line.
"""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from kdcluster import wording
from kdcluster.errors import ConfigError
from kdcluster.wording import Key, Problem


def parse(text: str) -> Any:
    """One YAML 1.2 document as plain Python values.

    Raises:
        ValueError: it is not one.
    """
    if (values := _plain(text)) is not None:
        return values
    try:
        return _yaml().load(text)
    except Exception as error:  # on noise ruamel raises RecursionError, TypeError, AttributeError, …, too
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


_WORD = r"(?!(?i:null|true|false)\b)[A-Za-z_/][\w./-]{0,200}"
_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "text": (rf"{_WORD}(?: [\w./ -]*[\w./-])?|[0-9a-f]*[acdf][0-9a-f]*|[1-9][0-9]*(?:min|steps)", str),
    "integer": (r"-?(?:0|[1-9][0-9]{0,17})", int),
    "number": (r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,20}|[1-9](?:\.[0-9]{1,20})?e[+-][0-9]{2}", float),
    "other": (r"true|false|null|\{\}|\[\]", json.loads),
    "quoted": (r"'[ !-&(-~]*'", lambda text: text[1:-1]),
}
"""How each is written, and what makes a value of it."""
_LINE = re.compile(
    rf"(?P<indent>(?:  )*)(?:(?P<key>{_WORD}):|-)"
    rf"(?: (?:{'|'.join(f'(?P<{name}>{written})' for name, (written, _) in _VALUES.items())}))?",
    re.ASCII,
)


def _plain(text: str) -> dict[str, Any] | None:
    """The values of a document as `dump` writes most; None: it holds something else, and needs the whole of YAML.

    A key or an item a line, blocks two spaces deeper, and no value that could be meant for another one. ruamel takes
    5 ms for a run's file, this 0.1.
    """
    root: dict[str, Any] = {}
    blocks, empty = [root], ""  # the open blocks, from the outermost; the key in the last one that has no value yet
    *lines, rest = text.split("\n")
    for line in lines:
        read = _read_line(line)
        if read is None:
            return None
        depth, key, is_empty, value = read
        value = copy.copy(value) if isinstance(value, dict | list) else value
        if key is None:
            if not empty or depth != len(blocks) - 1 or is_empty:
                return None
            blocks[-1][empty] = [*(blocks[-1][empty] or []), value]
            continue
        if depth == len(blocks) and empty and blocks[-1][empty] is None:
            blocks[-1][empty] = {}
            blocks.append(blocks[-1][empty])
        if depth >= len(blocks) or key in blocks[depth]:
            return None
        del blocks[depth + 1 :]
        blocks[-1][key] = value
        empty = key if is_empty else ""
    return None if rest else root or None


@lru_cache(maxsize=1 << 14)
def _read_line(line: str) -> tuple[int, str | None, bool, Any] | None:
    """Depth, key (None: an item), whether it has no value, and its value, not to be changed; most runs share most."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    kind = str(match.lastgroup)
    is_empty = kind not in _VALUES
    return len(match["indent"]) // 2, match["key"], is_empty, None if is_empty else _VALUES[kind][1](match[kind])


def dump(values: Any) -> str:
    """Plain values as a YAML document."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.allow_unicode = False  # escaped: the emitter writes some line breaks, as U+0085, so that they read as spaces
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def edited(path: Path, settings: Iterable[str], settle: Callable[[dict[str, Any], Path], None]) -> str:
    """A sound file with `KEY=VALUE`s put into it; its comments stay.

    Args:
        path: the file.
        settings: as `Source.override` takes them, and known to be sound.
        settle: called with the values and the folder that relative paths in them count from.
    """
    yaml = YAML()
    yaml.width = 4096
    values = yaml.load(path.read_text(encoding="utf-8-sig"))
    for key in values:  # what an alias shares between blocks is copied, so that a setting changes one place
        values[key] = copy.deepcopy(values[key])
    settle(values, path.parent)
    for setting in settings:
        dotted, _, value = setting.partition("=")
        _put(values, tuple(dotted.split(".")), parse(value))
        settle(values, Path.cwd())
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # pure: libyaml knows YAML 1.1 alone


Places = dict[Key, tuple[int, int]]
"""Line and column of each key and item."""
Wrong = tuple[StringMark, Key, str]


class Source:
    """A file's values, and where each of them stands.

    Args:
        path: the file.
        keys: some of the keys that it may begin with, for the message about a file that has none.
        settle: called with the values and the folder that relative paths in them count from.
    """

    def __init__(self, path: Path, keys: str, settle: Callable[[dict[str, Any], Path], None]) -> None:
        self.path = path
        self._settle = settle
        self.set_by: dict[Key, str] = {}
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
            self.places, wrong, values = _composed(text)
        except MarkedYAMLError as error:
            raise ConfigError(self._syntax(error)) from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}:1:1: not a YAML file: {' '.join(str(error).split())}") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        if wrong:
            raise ConfigError(*(self._line(*one) for one in wrong))
        if not isinstance(values, dict):
            got = "an empty file" if values is None else wording.shown(values)
            raise ConfigError(f"{path}:1:1: expected keys like {keys} (got {got})")
        self.values = _text_keys(values)
        settle(self.values, path.parent)

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
            self._settle(self.values, Path.cwd())
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


@lru_cache(maxsize=64)
def _composed(text: str) -> tuple[Places, list[Wrong], Any]:
    """A file's places, what is wrong with them, and its values, not to be changed; once for all points of a sweep."""
    yaml, places = _yaml(), Places()
    root: Node | None = yaml.compose(text)
    wrong = list(_note_places(root, (), places)) if root else []
    return places, wrong, yaml.constructor.construct_document(root) if root and not wrong else None


def _note_places(node: Node, key: Key, places: Places, inside: tuple[Node, ...] = ()) -> Iterator[Wrong]:
    """Fill `places`; yields each key that stands twice in its block."""
    if any(node is outer for outer in inside):
        yield (node.start_mark, key, "an alias inside the block that it stands for")
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            places.setdefault((*key, index), _line_column(item.start_mark))
            yield from _note_places(item, (*key, index), places, (*inside, node))
    elif isinstance(node, MappingNode):
        own: set[Key] = set()
        for name, value in node.value:
            if name.tag == "tag:yaml.org,2002:merge":  # <<: *block, or a list of them
                for block in value.value if isinstance(value, SequenceNode) else [value]:
                    yield from _note_places(block, key, places, (*inside, node))
                continue
            inner = (*key, str(name.value))
            if inner in own:
                yield (name.start_mark, inner, "stands twice in the same block; keep one")
            own.add(inner)
            places.setdefault(inner, _line_column(name.start_mark))
            yield from _note_places(value, inner, places, (*inside, node))


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
