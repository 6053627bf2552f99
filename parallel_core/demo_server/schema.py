"""Make synthetic values that fit a JSON schema, for answers of the demo server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

_NO_RESTRICTION: Final = frozenset(
    (
        *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description"),
        *("default", "examples", "deprecated", "readOnly", "writeOnly", "nullable", "strict"),
        *("contentMediaType", "contentEncoding"),
    )
)
_KNOWN: Final = _NO_RESTRICTION | frozenset(
    (
        *("$ref", "type", "enum", "const", "anyOf", "oneOf", "allOf"),
        *("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
        *("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern", "format"),
    )
)
_TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
_FORMATS: Final = {
    "date-time": "2001-02-03T04:05:06Z",
    "date": "2001-02-03",
    "time": "04:05:06Z",
    "duration": "P1D",
    "email": "demo@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_ENDLESS: Final = "the schema contains itself without end"
_MOST_ITEMS: Final = 1000
_MOST_CHARACTERS: Final = 100_000
_MOST_VALUES: Final = 10_000


class SchemaError(ValueError):
    """No value can be made for a schema. The message quotes only names of keywords and paths."""


def instance_of(schema: object, words: Sequence[str]) -> Any:
    """Make a value that fits a schema. The same schema and words give the same value.

    Optional properties are included, unless their schema contains itself. Texts are made of
    ``words``.

    Raises:
        SchemaError: the schema is invalid, no value fits it, or it uses an unknown keyword.
    """
    return _Maker(schema, words).make(schema, ())


class _Maker:
    def __init__(self, root: object, words: Sequence[str]) -> None:
        self._root = root
        self._words = words
        self._made = 0  # number of values of any kind; values vary with it

    def make(self, schema: object, references: tuple[str, ...]) -> Any:
        """Make a value. ``references`` are the references that are being followed.

        The smallest value for a schema never contains another value for the same schema. So a
        reference that is already being followed is refused; then an optional property is left out,
        or another branch of ``anyOf`` is used.
        """
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise SchemaError("a schema must be an object or true")
        members = cast("Mapping[str, Any]", schema)
        unknown = sorted(members.keys() - _KNOWN)
        if unknown:
            raise SchemaError(f"the keyword {unknown[0][:40]!r} is not supported")
        self._made += 1
        if self._made > _MOST_VALUES:
            raise SchemaError("the schema asks for too large a value")
        if "$ref" in members:
            return self._follow(members, references)
        if "allOf" in members:
            return self.make(self._merged(members, references), references)
        for keyword in ("anyOf", "oneOf"):
            if keyword in members:
                return self._first_branch(members, keyword, references)
        if "const" in members:
            return members["const"]
        if "enum" in members:
            values = _list_of(members, "enum")
            if not values:
                raise SchemaError("enum is empty")
            return values[self._made % len(values)]
        return self._of_type(_type_of(members), members, references)

    def _of_type(self, kind: str, schema: Mapping[str, Any], references: tuple[str, ...]) -> Any:
        if kind == "object":
            return self._object(schema, references)
        if kind == "array":
            return self._array(schema, references)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        return None if kind == "null" else self._made % 2 == 0

    def _follow(self, schema: Mapping[str, Any], references: tuple[str, ...]) -> Any:
        reference = schema["$ref"]
        if reference in references:
            raise SchemaError(_ENDLESS)
        target = self._target(reference)
        beside = {name: schema[name] for name in schema if name not in _NO_RESTRICTION}
        del beside["$ref"]
        if beside:
            target = {**beside, "allOf": [target, *beside.get("allOf", [])]}
        return self.make(target, (*references, reference))

    def _target(self, reference: object) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaError("$ref must point into the schema itself: '#/…'")
        target: object = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and name in target:
                target = cast("Mapping[str, object]", target)[name]
            elif isinstance(target, list) and name.isdecimal():
                items = cast("list[object]", target)
                target = items[int(name)] if int(name) < len(items) else None
            else:
                target = None
        if target is None:
            raise SchemaError("$ref points to nothing")
        return target

    def _merged(self, schema: Mapping[str, Any], references: tuple[str, ...]) -> dict[str, Any]:
        """Merge a schema with those of its ``allOf``."""
        merged = {name: schema[name] for name in schema if name != "allOf"}
        for part in _list_of(schema, "allOf"):
            followed = references
            while isinstance(part, Mapping) and "$ref" in part:
                reference: Any = cast("Mapping[str, Any]", part)["$ref"]
                if reference in followed:
                    raise SchemaError(_ENDLESS)
                followed = (*followed, reference)
                part = self._target(reference)
            if part is True:
                continue
            if not isinstance(part, Mapping):
                raise SchemaError("allOf must be a list of objects")
            members = cast("Mapping[str, Any]", part)
            if "allOf" in members:
                members = self._merged(members, followed)
            for name, value in members.items():
                merged[name] = _both(name, merged[name], value) if name in merged else value
        return merged

    def _first_branch(
        self, schema: Mapping[str, Any], keyword: str, references: tuple[str, ...]
    ) -> Any:
        rest = {name: value for name, value in schema.items() if name != keyword}
        restricts = not rest.keys() <= _NO_RESTRICTION
        reason = f"{keyword} is empty"
        for branch in _list_of(schema, keyword):
            try:
                return self.make({**rest, "allOf": [branch]} if restricts else branch, references)
            except SchemaError as error:
                reason = str(error)
        raise SchemaError(reason)

    def _object(self, schema: Mapping[str, Any], references: tuple[str, ...]) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = _list_of(schema, "required") if "required" in schema else []
        if not isinstance(properties, Mapping):
            raise SchemaError("properties must be an object")
        more = schema.get("additionalProperties", True)
        made: dict[str, Any] = {}
        for name, property_schema in cast("Mapping[str, Any]", properties).items():
            try:
                made[name] = self.make(property_schema, references)
            except SchemaError:
                if name in required:
                    raise
        missing = [name for name in required if name not in made]
        fewest = _count(schema, "minProperties", 0)
        missing += [f"property {number}" for number in range(len(made) + len(missing), fewest)]
        if missing and more is False:
            raise SchemaError("a property is required that is not allowed")
        for name in missing:
            made[name] = self.make(more, references)
        most = _count(schema, "maxProperties", len(made))
        for name in [name for name in made if name not in required][::-1]:
            if len(made) > max(most, fewest):
                del made[name]
        if len(made) > most:
            raise SchemaError("more properties are required than allowed")
        return made

    def _array(self, schema: Mapping[str, Any], references: tuple[str, ...]) -> list[Any]:
        fewest = _count(schema, "minItems", 0)
        most = _count(schema, "maxItems", max(fewest, 1))
        first = _list_of(schema, "prefixItems") if "prefixItems" in schema else []
        items = schema.get("items", True)
        count = max(fewest, min(most, max(1, len(first))))
        if fewest > most:
            raise SchemaError(f"minItems ({fewest}) is above maxItems ({most})")
        if count > _MOST_ITEMS:
            raise SchemaError(
                f"the server makes arrays of at most {_MOST_ITEMS} items, not {count}"
            )
        made: list[Any] = []
        tries = 0
        while len(made) < count:
            item_schema = first[len(made)] if len(made) < len(first) else items
            try:
                value = self.make(item_schema, references)
            except SchemaError:
                if len(made) < fewest:
                    raise
                break
            tries += 1
            if schema.get("uniqueItems") and _json(value) in map(_json, made):
                if tries > 10 * _MOST_ITEMS or tries > 100 * (len(made) + 1):
                    raise SchemaError("there are not enough different items")
                continue
            made.append(value)
        return made

    def _string(self, schema: Mapping[str, Any]) -> str:
        fewest = _count(schema, "minLength", 0)
        most = _count(schema, "maxLength", max(fewest, _MOST_CHARACTERS))
        if fewest > min(most, _MOST_CHARACTERS):
            raise SchemaError(
                f"minLength ({fewest}) is above maxLength, or above {_MOST_CHARACTERS} characters"
            )
        text = _FORMATS.get(cast("str", schema.get("format", "")))
        if text is None:
            text = self._words[self._made % len(self._words)]
            while len(text) < fewest:
                text += f" {self._words[len(text) % len(self._words)]}"
            text = text[:most]
        elif not fewest <= len(text) <= most:
            raise SchemaError("the lengths do not fit the format")
        pattern = schema.get("pattern")
        if pattern is not None and not _matches(pattern, text):
            raise SchemaError("the keyword 'pattern' is supported only where any word fits it")
        return text

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> int | float:
        step = _limit(schema, "multipleOf") or (1 if whole else 0.5)
        if step <= 0 or (whole and step % 1):
            raise SchemaError("multipleOf is not supported")
        low, high = _limit(schema, "minimum"), _limit(schema, "maximum")
        above, below = _limit(schema, "exclusiveMinimum"), _limit(schema, "exclusiveMaximum")
        if above is not None:
            low = above if low is None else max(low, above)
        if below is not None:
            high = below if high is None else min(high, below)
        if low is None:
            low = 0 if high is None or high >= 0 else high - 10 * step
        number = math.ceil(low / step)
        if above is not None and number * step <= above:
            number += 1
        last = number + 10 if high is None else math.floor(high / step)
        if below is not None and last * step >= below:
            last -= 1
        if number > last:
            if whole or "multipleOf" in schema or high is None or high < low:
                raise SchemaError("no number is between the limits")
            return (low + high) / 2  # the limits are less than a step apart
        value = (number + self._made % (min(last - number, 10) + 1)) * step
        return int(value) if whole or value == int(value) else value


def _type_of(schema: Mapping[str, Any]) -> str:
    given: object = schema.get("type")
    if given is None:
        # Without a type, the other keywords imply it.
        for kind, keywords in {
            "object": ("properties", "required", "additionalProperties", "minProperties"),
            "array": ("items", "prefixItems", "minItems"),
            "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        }.items():
            if any(keyword in schema for keyword in keywords):
                return kind
        return "string"
    kinds = cast("list[object]", given) if isinstance(given, list) else [given]
    known = [kind for kind in _TYPES if kind in kinds]
    if not known or len(known) < len(kinds):
        raise SchemaError(f"type must be one of {', '.join(_TYPES)}")
    return next((kind for kind in known if kind != "null"), "null")


def _both(name: str, one: Any, other: Any) -> Any:
    """Merge the values of a keyword that two schemas of an ``allOf`` have."""
    if one == other or name in _NO_RESTRICTION:
        return one
    if name == "properties":
        shared = {
            member: {"allOf": [one[member], other[member]]} for member in one if member in other
        }
        return {**one, **other, **shared}
    if name == "required":
        return list(dict.fromkeys([*one, *other]))
    if name == "enum":
        return [value for value in one if value in other]
    if name == "additionalProperties":
        return False if False in (one, other) else {"allOf": [one, other]}
    if name.startswith(("min", "exclusiveMin")):
        return max(one, other)
    if name.startswith(("max", "exclusiveMax")):
        return min(one, other)
    raise SchemaError(f"allOf with different values of {name[:40]!r} is not supported")


def _list_of(schema: Mapping[str, Any], name: str) -> list[Any]:
    value: object = schema[name]
    if not isinstance(value, list):
        raise SchemaError(f"{name} must be a list")
    return cast("list[object]", value)


def _count(schema: Mapping[str, Any], name: str, default: int) -> int:
    value = schema.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SchemaError(f"{name} must be an integer of at least 0")
    return value


def _limit(schema: Mapping[str, Any], name: str) -> int | float | None:
    value = schema.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise SchemaError(f"{name} must be a number")
    return value


def _matches(pattern: object, text: str) -> bool:
    if not isinstance(pattern, str):
        raise SchemaError("pattern must be a string")
    try:
        return re.search(pattern, text) is not None
    except re.error:
        raise SchemaError("pattern is not a regular expression") from None


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
