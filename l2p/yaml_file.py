"""Reading YAML that a person or a stranger wrote: bounded in time and memory, with the lines of its keys.

Plain values alone: text, numbers, true, false, null, lists, and mappings whose keys are text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from l2p.errors import UserError
from l2p.files import read_bytes

LARGEST = 256 * 1024  # bytes of a file
DEEPEST = 24  # sections in sections
MOST_NODES = 20_000  # values, those of an alias counted wherever it stands
MOST_CHARACTERS = 2 * LARGEST  # of keys and values, counted alike
LONGEST_NUMBER = 100  # characters; to recognise a longer one takes quadratic time
EXPECTED = "expected keys and values such as 'name: my-run'"
PLAIN = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")
}


@dataclass
class Document:
    """What a source says: ``values``, and the node tree that knows their lines."""

    source: str
    values: dict[str, Any]
    node: yaml.Node | None = None

    def place(self, path: tuple[str | int, ...]) -> str:
        """The source, and the line of a key in it as far as it is there: ``recipe.yaml:12``."""
        line, node = None, self.node
        for part in path:
            if isinstance(node, yaml.MappingNode):
                pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                pair = node.value[part], node.value[part]
            else:
                pair = None
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        return f"{self.source}:{line}" if line else self.source

    def has(self, path: tuple[str | int, ...]) -> bool:
        """Whether the key is said here."""
        values: Any = self.values
        for part in path:
            if isinstance(values, dict) and part in values:
                values = values[part]
            elif isinstance(values, list) and isinstance(part, int) and part < len(values):
                values = values[part]
            else:
                return False
        return True


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with floats such as 1e-3, without dates; no duplicate keys, a bounded depth, long words are text."""

    depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and len(value) > LONGEST_NUMBER:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float", ":value"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_document(path: Path, what: str = "recipe") -> Document:
    """The YAML file ``path``. Raises: UserError: no such file, no text, too large, or as :func:`parse`."""
    if "\0" in str(path):
        raise UserError(f"{what} {str(path)!r} is no name of a file")
    try:
        content = read_bytes(path, LARGEST, "a YAML file")
    except (FileNotFoundError, NotADirectoryError):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise UserError(f"{what} {path} does not exist{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{what} {path} is a folder, expected a YAML file") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UserError as error:
        raise UserError(f"{what} {error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not a text file, expected YAML in UTF-8") from None
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> Document:
    """YAML text as a mapping. Raises: UserError with the line: broken, a list, nothing, nested too deep, too many values,
    a key that is no text, or a value of another kind, such as ``!!binary``."""
    values, node = _parse(text, source)
    if values is None or values == {}:
        raise UserError(f"{source} is empty, {EXPECTED}")
    if isinstance(values, str) and node is not None:
        values = {values: None}  # a lone word, the start of a key
    if not isinstance(values, dict):
        raise UserError(f"{source} holds {'a list' if isinstance(values, list) else 'one value'}, {EXPECTED}")
    return Document(source, values, node)


def parse_value(text: str, source: str) -> Any:
    """One YAML value. Raises: UserError, as :func:`parse_document`."""
    return _parse(text, source)[0]


def _parse(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check(node)
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(str(error.problem or error.context).split())
        raise UserError(f"{source}:{mark.line + 1 if mark else 1}: broken YAML: {reason}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: broken YAML: {' '.join(str(error).split())}") from None


def _check(root: yaml.Node) -> None:
    counts: dict[int, tuple[int, int]] = {}  # values and characters of a node, what aliases repeat included

    def count(node: yaml.Node, above: frozenset[int]) -> tuple[int, int]:
        if id(node) in above:
            raise yaml.MarkedYAMLError(problem="an alias that holds itself", problem_mark=node.start_mark)
        if id(node) not in counts:
            if node.tag not in PLAIN:
                kind = node.tag.rpartition(":")[2]
                raise yaml.MarkedYAMLError(
                    problem=f"a value of the kind {kind}", problem_mark=node.start_mark
                )
            length = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
                length = sum(len(key.value) for key, _ in node.value)
            below = [count(child, above | {id(node)}) for child in _children(node)]
            counts[id(node)] = 1 + sum(n for n, _ in below), length + sum(n for _, n in below)
        for found, most, what in zip(
            counts[id(node)], (MOST_NODES, MOST_CHARACTERS), ("values", "characters"), strict=True
        ):
            if found > most:
                raise yaml.MarkedYAMLError(
                    problem=f"more than {most} {what}, those of aliases counted wherever they stand",
                    problem_mark=node.start_mark,
                )
        return counts[id(node)]

    count(root, frozenset())


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
            found = f"key {key.value}" if isinstance(key, yaml.ScalarNode) else "key"
            raise yaml.MarkedYAMLError(problem=f"a {found} that is no text", problem_mark=key.start_mark)
        if key.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"found duplicate key {key.value}", problem_mark=key.start_mark
            )
        seen.add(key.value)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
