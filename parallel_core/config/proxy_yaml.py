"""A YAML file with the line of each value, and messages about what is wrong in it.

No message quotes a value of the file, since it may be a key.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import yaml

from .proxy_values import Place, RouterConfigError, dotted

MOST_VALUES: Final = 100_000  # in a file, with anchors expanded; no real file has so many


class Document:
    """A YAML file whose top level is a mapping, with the line of each value."""

    def __init__(self, path: Path, values: dict[str, Any], lines: Mapping[Place, int]) -> None:
        self.path = path
        self.values = values
        self._lines = lines

    @classmethod
    def load(cls, path: Path) -> Document:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise RouterConfigError([f"{path} cannot be read: {error.strerror}"]) from None
        try:
            values, lines = _parse(path, text)
        except RouterConfigError:
            raise
        except yaml.MarkedYAMLError as error:
            raise RouterConfigError([_wrong_yaml(path, error)]) from None
        except yaml.YAMLError:
            problem = f"{path} is not YAML: it has bytes or characters that are not text"
            raise RouterConfigError([problem]) from None
        except RecursionError:
            problem = f"{path} is nested too deeply, or contains itself: is it a config of a proxy?"
            raise RouterConfigError([problem]) from None
        except (ValueError, TypeError):  # their texts quote the file
            problem = f"{path} is not valid YAML: a date, a number or a key of a mapping is wrong"
            raise RouterConfigError([problem]) from None
        if values is None:
            raise RouterConfigError([f"{path} is empty; it needs a model_list"])
        if not isinstance(values, dict):
            what = "a list" if isinstance(values, list) else "a single value"
            problem = f"{path}, line 1: the file is {what}; its top level must have model_list:"
            raise RouterConfigError([problem])
        sections = cast("dict[object, Any]", values)
        return cls(path, {str(name): value for name, value in sections.items()}, lines)

    def place(self, *inner: str | int) -> str:
        """Return the place of a value, for messages: the file, the line and the names."""
        line = self._lines.get(inner)
        where = f"{self.path}, line {line}" if line else f"{self.path}"
        return f"{where}: {dotted(inner).removeprefix('.')}"

    def list_of(self, name: str, problems: list[str]) -> list[Any]:
        value = self.values.get(name)
        if isinstance(value, list):
            return cast("list[Any]", self.values[name])
        if value is not None:
            problems.append(f"{self.place(name)}: must be a list, whose entries begin with '- '")
        return []

    def mapping_of(self, name: str, problems: list[str]) -> dict[str, Any]:
        value = self.values.get(name)
        if isinstance(value, dict):
            mapping = cast("dict[object, Any]", value)
            return {str(key): inner for key, inner in mapping.items()}
        if value is not None:
            problems.append(f"{self.place(name)}: must be a mapping, 'name: value' on each line")
        return {}


def _parse(path: Path, text: bytes) -> tuple[Any, dict[Place, int]]:
    loader: Any = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Place, int] = {}
        duplicates: list[str] = []
        for place, line, is_duplicate in _walk(node):
            if is_duplicate:
                duplicates.append(
                    f"{path}, line {line}: {dotted(place).removeprefix('.')} appears twice; "
                    "keep one of them"
                )
            lines.setdefault(place, line)
            if len(lines) > MOST_VALUES:
                problem = f"{path} has more than {MOST_VALUES:,} values: is it a config of a proxy?"
                raise RouterConfigError([problem])
        if duplicates:
            raise RouterConfigError(duplicates)
        return _plain(loader.construct_document(node)), lines
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, place: Place = (), above: frozenset[int] = frozenset()
) -> Iterator[tuple[Place, int, bool]]:
    """Yield for each value below a node: its place, its line from 1, and True if its key is a
    duplicate."""
    if id(node) in above:
        raise RecursionError
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            inner = (*place, name)
            is_merge = key.tag == "tag:yaml.org,2002:merge"
            yield inner, key.start_mark.line + 1, name in seen and not is_merge
            seen.add(name)
            yield from _walk(value, inner, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1, False
            yield from _walk(value, (*place, index), above)


def _plain(value: object) -> Any:
    """Return a copy without shared anchors, in which a date is a text.

    ``api_version: 2024-02-01`` without quotes is a date in YAML, but the setting is a text.
    """
    if isinstance(value, dict):
        mapping = cast("dict[object, Any]", value)
        return {key: _plain(inner) for key, inner in mapping.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[object]", value)]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _wrong_yaml(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    problem = error.problem or "it cannot be read"
    hint = ""
    if "\\t" in problem:
        problem, hint = "there is a tab", "; YAML is indented with spaces only"
    elif "alias" in problem:
        hint = "; an anchor (&name) must come before its alias (*name)"
    elif "constructor for the tag" in problem:
        hint = "; tags that make objects are not allowed"
    return f"{path}{line}: not valid YAML: {problem}{hint}"
