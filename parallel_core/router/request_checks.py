"""Check requests, and turn mappings into requests."""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    Callable,
    Iterable,
    Mapping,
    MappingView,
    Sequence,
    Set,
)
from typing import TYPE_CHECKING, Any, cast

from parallel_core.control import checked_number
from parallel_core.errors import InvalidRequestError
from parallel_core.types import RouterParallelRequest

if TYPE_CHECKING:
    from typing_extensions import TypeIs


_MAPPINGS = frozenset(("metadata", "stream_options"))
_WHOLE_NUMBERS = frozenset(("max_tokens", "max_completion_tokens", "n", "seed"))
_NUMBERS = frozenset(("temperature", "top_p", *_WHOLE_NUMBERS))
_CHECKED = frozenset(("model", "messages", *_MAPPINGS, *_NUMBERS))
# Types that no provider accepts as a number. Other types, such as numpy's, may be numbers.
_NO_NUMBERS = (bool, str, bytes, list, tuple, dict)


def check_all(requests: object, problem_of: Callable[[object], str | None]) -> None:
    """Check every request of a list, a tuple, … so that bad input is refused before any call.

    Other sources are lazy, and their items are checked when they are drawn (:func:`as_request`).

    Args:
        requests: the source.
        problem_of: returns the reason why an item is not a valid request; None if it is valid.

    Raises:
        InvalidRequestError: a request is invalid. It lists every invalid index and its problem.
        TypeError: ``requests`` is one request instead of many.
    """
    if isinstance(requests, Mapping | RouterParallelRequest | str | bytes):
        given = type(cast("object", requests)).__qualname__
        raise TypeError(
            "requests must be a list, an iterable or an async iterable of RouterParallelRequest or "
            f"mappings, not one {given}"
        )
    if not is_checked_as_a_whole(requests):
        return
    items = cast("Iterable[object]", requests)
    problems = {
        index: problem
        for index, item in enumerate(items)
        if (problem := problem_of(item)) is not None
    }
    if problems:
        raise InvalidRequestError(problems)


def is_checked_as_a_whole(requests: object) -> bool:
    """Return True if a source can be iterated several times.

    A length is no proof of that: a progress bar around a generator has one as well.
    """
    return isinstance(requests, Sequence | Set | MappingView) and not isinstance(
        requests, AsyncIterable
    )


def as_request(index: int, item: object) -> RouterParallelRequest:
    """Turn an item of a source into a request for a chat.

    Raises:
        InvalidRequestError: the item is invalid. It has the index and the problem.
    """
    return request_of(index, item, problem_of_chat)


def request_of(
    index: int, item: object, problem_of: Callable[[object], str | None]
) -> RouterParallelRequest:
    """Turn an item of a source into a request, as :func:`check_all` would check it.

    Raises:
        InvalidRequestError: the item is invalid. It has the index and the problem.
    """
    problem = problem_of(item)
    if problem is not None:
        raise InvalidRequestError({index: problem})
    if isinstance(item, RouterParallelRequest):
        return item
    kwargs = dict(cast("Mapping[str, Any]", item))
    model, messages, timeout = (
        kwargs.pop("model"),
        kwargs.pop("messages", ()),
        kwargs.pop("timeout", None),
    )
    return RouterParallelRequest(model, messages, kwargs or None, timeout)


def problem_of_chat(item: object) -> str | None:
    """Return the reason why an item is not a valid request for a chat; None if it is valid."""
    if isinstance(item, RouterParallelRequest):
        return _problem_of_parts(item.model, item.messages, item.kwargs) or problem_of_timeout(
            item.timeout
        )
    if is_mapping(item):
        mapping = cast("Mapping[object, object]", item)
        missing = [name for name in ("model", "messages") if name not in mapping]
        if missing:
            return f"{' and '.join(missing)} missing: a request is {{'model', 'messages', …}}"
        apart = ("model", "messages", "timeout")
        kwargs = {name: mapping[name] for name in mapping if name not in apart}
        if "kwargs" in kwargs:
            return (
                "a mapping takes the extra arguments of acompletion at its top level, "
                "not under 'kwargs' (RouterParallelRequest has that field)"
            )
        return _problem_of_parts(
            mapping["model"], mapping["messages"], kwargs
        ) or problem_of_timeout(mapping.get("timeout"))
    return (
        "a request is a RouterParallelRequest or a mapping {'model', 'messages', …}, "
        f"not {type(item).__qualname__}"
    )


def problem_of_timeout(timeout: object) -> str | None:
    if timeout is None:
        return None
    try:
        checked_number("timeout", timeout)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def problem_of_model(model: object) -> str | None:
    if isinstance(model, str) and model:
        return None
    return f"model must be a non-empty str, not {brief(model)}"


def _problem_of_parts(model: object, messages: object, kwargs: object) -> str | None:
    problem = problem_of_model(model)
    if problem is not None:
        return problem
    is_list = messages.__class__ is list
    if not is_list and (not isinstance(messages, Sequence) or isinstance(messages, str | bytes)):
        return f"messages must be a list of messages, not {brief(messages)}"
    if not messages:
        return "messages is empty"
    for position, message in enumerate(cast("Sequence[Any]", messages)):
        # Fast path: most messages are dicts with a text and need no further check.
        if (
            message.__class__ is not dict
            or message.get("role").__class__ is not str
            or message.get("content").__class__ is not str
        ):
            problem = _problem_of_message(f"messages[{position}]", message)
            if problem is not None:
                return problem
    if not kwargs:
        return None if kwargs is None or is_mapping(kwargs) else _bad_kwargs(kwargs)
    return _problem_of_kwargs(kwargs)


def _problem_of_kwargs(kwargs: object) -> str | None:
    if not is_mapping(kwargs):
        return _bad_kwargs(kwargs)
    arguments = cast("Mapping[object, object]", kwargs)
    for name, value in arguments.items():
        if name.__class__ is not str and not isinstance(name, str):
            return f"names of kwargs must be str, not {brief(name)}"
        if name in _CHECKED:
            problem = _problem_of_argument(name, value)
            if problem is not None:
                return problem
    return None


def _problem_of_message(place: str, message: object) -> str | None:
    # Messages in litellm's answers (pydantic objects with a role) may be sent in the next turn.
    if not is_mapping(message):
        if hasattr(message, "role"):
            return None
        return f"{place} must be a mapping with a 'role', not {brief(message)}"
    if "role" not in message:
        return f"{place} has no 'role'"
    role: object = message["role"]
    if not isinstance(role, str):
        return f"{place}.role must be a str, not {brief(role)}"
    content: object = message.get("content")
    if not _may_be_content(content):
        return f"{place}.content must be a str or a list of parts, not {brief(content)}"
    return None


def _problem_of_argument(name: str, value: object) -> str | None:
    if name not in _NUMBERS and name not in _MAPPINGS:
        return f"{name} is given twice: as a field and in kwargs"
    if value is None:
        return None
    if name in _MAPPINGS:
        return None if is_mapping(value) else f"{name} must be a mapping, not {brief(value)}"
    if isinstance(value, _NO_NUMBERS):
        return f"{name} must be a number, not {brief(cast('object', value))}"
    if isinstance(value, float) and name in _WHOLE_NUMBERS and not value.is_integer():
        return f"{name} must be a whole number, not a fraction"
    return None


def _may_be_content(content: object) -> bool:
    # None is valid: a message may only call tools. The provider checks the parts of a list.
    return content is None or (
        isinstance(content, Sequence) and not isinstance(content, bytes | bytearray)
    )


def is_mapping(value: object) -> TypeIs[Mapping[Any, Any]]:
    # This runs several times for each of a million lines, so dicts skip the slow `isinstance`.
    return value.__class__ is dict or isinstance(value, Mapping)


def _bad_kwargs(kwargs: object) -> str:
    return f"kwargs must be a mapping of extra arguments of acompletion, not {brief(kwargs)}"


def brief(value: object) -> str:
    """Return the type of an invalid value, never the value: it may hold a prompt or a key."""
    if value is None:
        return "None"
    return "an empty str" if value == "" else type(value).__qualname__
