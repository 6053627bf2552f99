"""Shapes: what two calls must have in common to be sent alike, and two answers to be read alike."""

from __future__ import annotations

from typing import Any, TypeAlias

Structure: TypeAlias = Any
"""A hashable description of a JSON value."""

# Members whose values decide how others are treated, the last two how an answer is priced.
_DECISIVE = frozenset(
    {"type", "role", "object", "finish_reason", "format", "detail", "model", "service_tier"}
)
_ADDRESSES = frozenset({"url", "image_url"})


class NotJsonError(Exception):
    """A value is not JSON, so its shape is unknown."""


def structure(value: Any, name: str = "") -> Structure:
    """Describe a JSON value: its members and their types, and the values of decisive members.

    Texts have no part in it, except that empty ones, blank ones and the schemes of addresses do.
    Numbers have none, except that 0 is not like others: a count of it may cost nothing.

    Raises:
        NotJsonError: a part of it is not JSON.
    """
    kind = value.__class__
    if kind is str:
        if name in _DECISIVE:
            return value
        if name in _ADDRESSES:
            return value.partition(":")[0][:8]
        return str if value and not value.isspace() else value[:1]
    if kind is dict:
        return tuple([(key, structure(member, key)) for key, member in value.items()])
    if kind is list or kind is tuple:
        return (list, *[structure(member, name) for member in value])
    if value is None or kind is bool:
        return value
    if kind is int or kind is float:
        return kind if value else (kind, 0)
    raise NotJsonError(kind.__qualname__)


def outline(value: Any) -> Structure:
    """Describe the members of a dict as :func:`structure` does; objects by their class."""
    members: list[Any] = []
    for name, member in value.items():
        try:
            members.append((name, structure(member, name)))
        except NotJsonError:
            members.append((name, member.__class__))
    return tuple(members)


def exact(value: Any) -> Any:
    """Return a hashable stand-in for a value: equal for equal JSON values of the same types.

    A class, for example a pydantic model given as ``response_format``, stands for itself. An object
    of the Router, which follows a call by it and sends nothing of it, stands for its class.

    Raises:
        NotJsonError: a part of it is not JSON.
    """
    kind = value.__class__
    if kind is str or value is None or kind is bool or isinstance(value, type):
        return value
    if kind is int:
        return (kind, value)
    if kind is float:
        return (kind, repr(value))  # -0.0 is not 0.0
    if kind is dict:
        return (dict, *[(key, exact(member)) for key, member in value.items()])
    if kind is list:
        return (list, *[exact(member) for member in value])
    if kind.__module__.startswith("litellm.router"):
        return kind
    raise NotJsonError(kind.__qualname__)


class Passed:
    """Values of one argument that litellm has passed on unchanged.

    Litellm treats some values in a way of their own, for example a temperature that a model does
    not accept. After sixteen different texts, any text is taken to be passed on, and after sixteen
    different numbers, any number between them.
    """

    ENOUGH = 16

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._numbers: set[float] = set()
        self._least = self._most = 0.0

    def add(self, value: Any) -> None:
        """Note a value that was passed on."""
        if value.__class__ is str:
            if len(self._texts) < self.ENOUGH:
                self._texts.add(value)
        elif value.__class__ in (int, float):
            if not self._numbers:
                self._least = self._most = value
            self._least, self._most = min(self._least, value), max(self._most, value)
            if len(self._numbers) < self.ENOUGH:
                self._numbers.add(value)

    def another(self, value: Any) -> Any:
        """Return another value of the same kind that was passed on; the value if there is none."""
        known = self._texts if value.__class__ is str else self._numbers
        return next((each for each in known if each != value), value)

    def covers(self, value: Any) -> bool:
        """Return True if a value is passed on, as far as the values that were seen show."""
        if value.__class__ is str:
            return len(self._texts) >= self.ENOUGH
        if value.__class__ in (int, float):
            return len(self._numbers) >= self.ENOUGH and self._least <= value <= self._most
        return False


def equal(one: Any, other: Any) -> bool:
    """Return True if two JSON values are equal and of the same types (1, 1.0 and True differ)."""
    try:
        return bool(exact(one) == exact(other))
    except NotJsonError:
        return False
