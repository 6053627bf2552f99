"""Tools for the translation of other providers' requests into chat completion requests.

A translation takes the members of an object one by one. What is left over has no counterpart, and
is refused by name: nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

import msgspec

from parallel_core.files.input_records import LineError, kind_of, shown
from parallel_core.files.parameters import is_litellm_setting
from parallel_core.types import CHAT

_HINT: Final = (
    "leave it out, or use the provider's own batches (the documentation says what can be "
    "expressed: Translation)"
)
_NO_SETTING_HINT: Final = (
    "leave it out: keys, addresses and settings of litellm belong in the Router's config"
)
_NAMES: Final = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}

_TypeT = TypeVar("_TypeT")


class Source:
    """An object of a line, whose members are taken one by one.

    Null is the same as absent.

    Args:
        place: where the object is in its line, for messages: ``params.tools[0]``.
        value: the object.
        written: how the line writes the names of members, where that differs.

    Raises:
        LineError: ``value`` is not an object.
    """

    def __init__(
        self, place: str, value: object, written: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.place = place
        self._left = dict(typed(place, value, dict[str, Any]))
        self._written = written

    def take(self, name: str) -> Any:
        """Take a member of any type; None if it is absent."""
        return self._left.pop(name, None)

    def take_typed(self, name: str, type_: type[_TypeT]) -> _TypeT | None:
        """Take a member that must have a type; None if it is absent.

        Raises:
            LineError: it has another type.
        """
        value = self._left.pop(name, None)
        return None if value is None else typed(self.at(name), value, type_)

    def require(self, name: str, type_: type[_TypeT]) -> _TypeT:
        """Take a member that must be there.

        Raises:
            LineError: it is absent, or has another type.
        """
        value = self.take_typed(name, type_)
        if value is None:
            code = "missing_required_parameter"
            raise LineError(code, f"{self.at(name)} is missing", "see the provider's API")
        return value

    def move(self, names: dict[str, str], body: dict[str, Any]) -> None:
        """Take members, and put them into a body under the names that they have there."""
        for name, new_name in names.items():
            value = self._left.pop(name, None)
            if value is not None:
                body[new_name] = value

    def at(self, name: str) -> str:
        """Return the place of a member, for a message."""
        name = self._written.get(name, name)
        return f"{self.place}.{name if name.isidentifier() else shown(name)}"

    def finish(self) -> None:
        """Refuse what is left over.

        Raises:
            LineError: a member that is not null was not taken; the message names it.
        """
        for name, value in self._left.items():
            if value is not None:
                raise self.refused(name)

    def refused(self, name: str, value: str = "") -> LineError:
        """Return the error of a member without a counterpart, or of one of its values."""
        place = self.at(name)
        is_parameter = not value and "." not in self.place
        if is_parameter and is_litellm_setting(self._written.get(name, name), CHAT):
            message = f"{place} must not come from a file: not a parameter of the request"
            return LineError("forbidden_parameter", message, _NO_SETTING_HINT)
        given = f"{place} {shown(value)}" if value else place
        return inexpressible(given)


def inexpressible(what: str) -> LineError:
    """Return the error of something that chat completions cannot express."""
    return LineError(
        "invalid_request",
        f"{what} has no counterpart in chat completions",
        _HINT,
    )


def typed(place: str, value: object, type_: type[_TypeT]) -> _TypeT:
    """Return a JSON value that must have a type.

    Raises:
        LineError: it has another one.
    """
    wanted: Any = getattr(type_, "__origin__", type_)
    if type(value) is not wanted:
        message = f"{place} must be {_NAMES[wanted]}, not {kind_of(value)}"
        raise LineError("invalid_type", message, "see the provider's API")
    return cast("_TypeT", value)


def as_text(value: object) -> str:
    """Return a JSON value as the text that chat completions have in its place."""
    return msgspec.json.encode(value).decode()


def plain_if_alone(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the text of content that is one text, as every provider takes it; else the parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return cast("str", parts[0]["text"])
    return parts
