"""Make chunks of a stream that differ from an earlier one in their texts alone."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

_DELTA = ("content", "reasoning_content")
_PADDING = "obfuscation"  # OpenAI's: a text of another length in each chunk
_set = object.__setattr__
# The inside of a JSON string, up to the quote that ends it. The quantifiers are possessive, since a
# match that can backtrack takes a hundred bytes of memory for each character.
_TEXT = rb'(?:[^"\\]++|\\.)++'
_ANY_TEXT = re.compile(_TEXT, re.DOTALL)
_MEMBERS = {
    name: re.compile(rb'"%s"\s*:\s*"(%s)"' % (name.encode(), _TEXT), re.DOTALL)
    for name in (*_DELTA, _PADDING)
}


@dataclass(frozen=True, eq=False)
class ChunkTemplate:
    """A chunk that litellm made, as a template for chunks that differ from it in their texts alone.

    Attributes:
        around: the parts of the chunk's line before, between and after its texts.
        names: the members that these texts have, in the order of the line; empty for one that
            litellm leaves out.
        chunk: litellm's chunk.
    """

    around: tuple[bytes, ...]
    names: tuple[str, ...]
    chunk: Any

    @classmethod
    def of(cls, line: bytes, chunk: Any) -> ChunkTemplate | None:
        """Learn from a line and the chunk that litellm made of it. None: the line has no text."""
        try:
            event: object = json.loads(line.removeprefix(b"data:"))
        except ValueError:
            return None
        delta = _delta_of(event)
        if delta is None or not _is_flat(chunk):
            return None
        members: dict[str, Any] = {name: delta[name] for name in _DELTA if delta.get(name)}
        if len(members) != 1:
            return None
        padding = cast("dict[str, Any]", event).get(_PADDING)
        if padding:
            members[_PADDING] = padding
        places: list[tuple[int, int, str]] = []
        for name, text in members.items():
            found = list(_MEMBERS[name].finditer(line))
            if len(found) != 1 or json.loads(b'"%s"' % found[0][1]) != text:
                return None
            kept = _get(chunk, name)
            if kept != text and not (name == _PADDING and kept is None):
                return None
            places.append((*found[0].span(1), name if kept == text else ""))
        places.sort()
        around: list[bytes] = []
        end = 0
        for start, stop, _ in places:
            around.append(line[end:start])
            end = stop
        around.append(line[end:])
        names = tuple(name for _, _, name in places)
        return cls(tuple(around), names, copy.deepcopy(chunk))

    def texts_in(self, line: bytes) -> list[bytes] | None:
        """Return the texts of a line, as JSON. None if it differs in more than its texts."""
        before, *others = self.around
        if not line.startswith(before):
            return None
        texts: list[bytes] = []
        end = len(before)
        for after in others:
            text = _ANY_TEXT.match(line, end)
            if text is None or not line.startswith(after, text.end()):
                return None
            texts.append(text[0])
            end = text.end() + len(after)
        return texts if end == len(line) else None

    def make(self, found: Sequence[bytes]) -> Any:
        """Return litellm's chunk for a line with these texts (:meth:`texts_in`).

        Raises:
            msgspec.DecodeError: a text is not JSON, or holds half a character.
        """
        texts = {name: _decoded(text) for name, text in zip(self.names, found, strict=True)}
        texts.pop("", None)
        padding = texts.pop(_PADDING, None)
        first = self.chunk.choices[0]
        choice = _copied(first, {"delta": _copied(first.delta, texts)})
        chunk = _copied(
            self.chunk, {"choices": [choice]} | ({} if padding is None else {_PADDING: padding})
        )
        private = chunk.__pydantic_private__
        private["_hidden_params"] = {**private["_hidden_params"], "created_at": time.time()}
        return chunk


def _copied(model: Any, members: dict[str, Any]) -> Any:
    """Copy a model of pydantic, with other values of some members.

    This is ``model_copy(update=…)`` without its checks, which cost more than the rest of a chunk.
    """
    kind: Any = model.__class__
    copied: Any = object.__new__(kind)
    fields: dict[str, Any] = model.__dict__
    extra: dict[str, Any] | None = model.__pydantic_extra__
    private: dict[str, Any] | None = model.__pydantic_private__
    if extra is None:
        fields = {**fields, **members}
    else:
        fields, extra = dict(fields), dict(extra)
        for name, value in members.items():
            (extra if name in extra else fields)[name] = value
    _set(copied, "__dict__", fields)
    _set(copied, "__pydantic_fields_set__", set(model.__pydantic_fields_set__))
    _set(copied, "__pydantic_extra__", extra)
    _set(copied, "__pydantic_private__", private and dict(private))
    return copied


def _delta_of(event: object) -> Mapping[str, Any] | None:
    """Return the delta of an event that has one choice."""
    choices = cast("dict[str, Any]", event).get("choices") if isinstance(event, dict) else None
    match choices:
        case [{"delta": {**delta}}]:
            return cast("dict[str, Any]", delta)
        case _:
            return None


def _is_flat(chunk: Any) -> bool:
    """Return True if a copy of a chunk shares nothing with it that can be changed."""
    if len(chunk.choices) != 1:
        return False
    choice = chunk.choices[0]
    return not any(
        isinstance(value, list | dict) or hasattr(value, "__dict__")
        for part, but in ((chunk, "choices"), (choice, "delta"), (choice.delta, ""))
        for name, value in part
        if name != but
    )


def _get(chunk: Any, name: str) -> Any:
    return getattr(chunk if name == _PADDING else chunk.choices[0].delta, name, None)


def _decoded(text: bytes) -> Any:
    return msgspec.json.decode(b'"%s"' % text)


def unlike(ours: Any, theirs: Any) -> str | None:
    """Return the first member in which two chunks of one choice differ; None if they are equal."""
    pairs = (
        ("chunk", ours, theirs, {"choices"}),
        ("choice", ours.choices[0], theirs.choices[0], {"delta"}),
        ("delta", ours.choices[0].delta, theirs.choices[0].delta, set[str]()),
    )
    for part, one, other, parts in pairs:
        if type(one) is not type(other) or one.model_fields_set != other.model_fields_set:
            return part
        mine, its = dict(one), dict(other)
        if list(mine) != list(its):
            return part
        for name in mine.keys() - parts:
            if type(mine[name]) is not type(its[name]) or mine[name] != its[name]:
                return f"{part}.{name}"
    mine, its = ours._hidden_params, theirs._hidden_params
    for name in (mine.keys() | its.keys()) - {"created_at"}:
        if name not in mine or name not in its or mine[name] != its[name]:
            return f"_hidden_params[{name!r}]"
    return None
